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
    channels, codec, background:
        Of its pyramid (:class:`~morphogen.slides.PyramidWriter`).
    labels:
        Whether its values are classes, which are never averaged.
    facts:
        Into its OME-XML.
    """

    name: str
    pixels: Callable[[Band], np.ndarray]
    channels: Literal[1, 3] = 3
    codec: Codec = "jpeg"
    background: int = 255
    labels: bool = False
    facts: Mapping[str, object] = field(default_factory=dict)
