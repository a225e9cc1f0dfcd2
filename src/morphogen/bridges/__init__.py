"""Bridges to the packages that users of whole-slide images work in already."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from morphogen.bridges import lazyslide

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["lazyslide"])
