"""Virtual staining, H&E → IHC (HistDiST): patches, folders and whole slides.

Names are imported when first used, so importing this package is instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from morphogen.stain.model import StainOutput, StainTransfer

_HOME = {
    "StainOutput": "model",
    "StainTransfer": "model",
}

__all__ = ["StainOutput", "StainTransfer"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'morphogen.stain' has no attribute '{name}'")
    return getattr(import_module(f"morphogen.stain.{_HOME[name]}"), name)
