"""Pyramidal OME-TIFF, written in any order and resumable.

Names are imported when first used, so importing this package is instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from morphogen.slides.pyramid.banded import write_pyramid
    from morphogen.slides.pyramid.writer import Codec, PyramidWriter

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "banded": ["write_pyramid"],
        "writer": ["Codec", "PyramidWriter"],
    },
)
