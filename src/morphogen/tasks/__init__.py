"""What every task room shares: windows and bands of large images, splits, folders and slides of results, the base of
the models.

It knows no stain, gene, style or mask; what it needs of a model is a small Protocol. Names are imported when first
used, so importing this package is instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from morphogen.tasks.bands import (
        Band,
        ImageNoise,
        Translator,
        array_reader,
        joined,
        make_bands,
        make_images,
        together,
    )
    from morphogen.tasks.config import WindowConfig
    from morphogen.tasks.glass import Glass, glass_of
    from morphogen.tasks.pretrained import Pretrained
    from morphogen.tasks.splits import Split, folds, hold_out, split_items
    from morphogen.tasks.windows import WindowModel, WindowPlan, plan_windows, scale_between

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "bands": [
            "Band",
            "ImageNoise",
            "Translator",
            "array_reader",
            "joined",
            "make_bands",
            "make_images",
            "together",
        ],
        "config": ["WindowConfig"],
        "glass": ["Glass", "glass_of"],
        "pretrained": ["Pretrained"],
        "splits": ["Split", "folds", "hold_out", "split_items"],
        "windows": ["WindowModel", "WindowPlan", "plan_windows", "scale_between"],
    },
)
