"""Whole slides: open, read in micrometres, tile, encode; a thin layer on wsidata, LazySlide and lazyslide-models.

Names are imported when first used, so importing this package is instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from morphogen.slides.encode import encode_slide
    from morphogen.slides.encoders.registry import Encoder, get_encoder, list_encoders
    from morphogen.slides.encoders.spec import EncoderSpec
    from morphogen.slides.fields import crop_fields, dihedral, read_boxes
    from morphogen.slides.pyramid.writer import PyramidWriter
    from morphogen.slides.slide import Slide, open_slide
    from morphogen.slides.tiles import tile_slide, tissue_windows
    from morphogen.slides.tissue import find_tissue

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "encode": ["encode_slide"],
        "encoders.registry": ["Encoder", "get_encoder", "list_encoders"],
        "encoders.spec": ["EncoderSpec"],
        "fields": ["crop_fields", "dihedral", "read_boxes"],
        "pyramid.writer": ["PyramidWriter"],
        "slide": ["Slide", "open_slide"],
        "tiles": ["tile_slide", "tissue_windows"],
        "tissue": ["find_tissue"],
    },
)
