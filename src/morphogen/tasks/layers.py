"""What is written of a result: which pictures, of which planes, in which form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from morphogen.slides.pyramid.writer import Codec
from morphogen.tasks.bands import Band

Format = Literal["tiff", "zarr"]
SUFFIXES: dict[Format, str] = {"tiff": ".ome.tif", "zarr": ".ome.zarr"}  # of pyramids


@dataclass(frozen=True)
class Layer:
    """One picture that is written of a result.

    Attributes
    ----------
    name:
        ``""`` for the main one; a word in the name of a slide's file, a folder beside the main images.
    pixels:
        What it shows of a band: (h, w, 3) or (h, w) uint8; of images uint16 too.
    channels, codec, background, dtype, names, colours:
        Of its pyramid (:class:`~morphogen.slides.PyramidWriter`). Images of more than one named channel are OME-TIFF.
    labels:
        Whether its values are classes, which are never averaged.
    facts:
        Into its OME-XML.
    """

    name: str
    pixels: Callable[[Band], np.ndarray]
    channels: int = 3
    codec: Codec = "jpeg"
    background: int = 255
    labels: bool = False
    dtype: Literal["uint8", "uint16"] = "uint8"
    names: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()
    facts: Mapping[str, object] = field(default_factory=dict)

    @property
    def suffix(self) -> str:
        """Of the files of images: PNG, or OME-TIFF for what no PNG holds."""
        return ".ome.tif" if len(self.names) > 1 else ".png"
