"""Whole slides: open, read in micrometres, tile, encode; a thin layer on wsidata, LazySlide and lazyslide-models.

Names are imported when first used, so importing this package is instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from morphogen.slides.encode import encode_slide
    from morphogen.slides.encoders.registry import Encoder, get_encoder, list_encoders
    from morphogen.slides.encoders.spec import EncoderSpec
    from morphogen.slides.fields import crop_fields, dihedral, read_boxes
    from morphogen.slides.pyramid.writer import PyramidWriter
    from morphogen.slides.slide import Slide, open_slide
    from morphogen.slides.tiles import tile_slide, tissue_windows
    from morphogen.slides.tissue import find_tissue

_HOME = {
    "Encoder": "encoders.registry",
    "EncoderSpec": "encoders.spec",
    "PyramidWriter": "pyramid.writer",
    "Slide": "slide",
    "crop_fields": "fields",
    "dihedral": "fields",
    "encode_slide": "encode",
    "find_tissue": "tissue",
    "get_encoder": "encoders.registry",
    "list_encoders": "encoders.registry",
    "open_slide": "slide",
    "read_boxes": "fields",
    "tile_slide": "tiles",
    "tissue_windows": "tiles",
}

__all__ = [
    "Encoder",
    "EncoderSpec",
    "PyramidWriter",
    "Slide",
    "crop_fields",
    "dihedral",
    "encode_slide",
    "find_tissue",
    "get_encoder",
    "list_encoders",
    "open_slide",
    "read_boxes",
    "tile_slide",
    "tissue_windows",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'morphogen.slides' has no attribute '{name}'")
    return getattr(import_module(f"morphogen.slides.{_HOME[name]}"), name)
