"""What every task room shares: windows and bands of large images, folders and slides of results, sources, splits,
checks, cached crops, evaluations, the base of the models.

It knows no stain, gene, style or mask; what it needs of a model is a small Protocol. Names are imported when first
used, so importing this package is instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from morphogen.tasks.bands import (
        Band,
        Translator,
        joined,
        make_bands,
        make_images,
        together,
    )
    from morphogen.tasks.checks import CheckReport, inspected, usable
    from morphogen.tasks.config import WindowConfig
    from morphogen.tasks.evaluation import (
        Evaluation,
        ItemScores,
        SetScores,
        against_first,
        mean_intervals,
        paired_differences,
        write_page,
        write_results,
    )
    from morphogen.tasks.folders import FolderResult, save_png, translate_images
    from morphogen.tasks.glass import Glass, glass_of
    from morphogen.tasks.latents import Cached, cache_items
    from morphogen.tasks.layers import Layer
    from morphogen.tasks.pretrained import Pretrained
    from morphogen.tasks.pyramids import PyramidJob, SlideResult, make_slide, slide_facts, translate_slide
    from morphogen.tasks.shards import Shards
    from morphogen.tasks.sources import (
        Images,
        Outcome,
        SlideSource,
        is_slide,
        sort_sources,
        spread_sources,
    )
    from morphogen.tasks.splits import Split, folds, held_together, hold_out, split_items
    from morphogen.tasks.streams.noise import ImageNoise
    from morphogen.tasks.streams.pixels import array_reader
    from morphogen.tasks.windows import WindowModel, WindowPlan, plan_windows, scale_between

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "bands": [
            "Band",
            "Translator",
            "joined",
            "make_bands",
            "make_images",
            "together",
        ],
        "checks": ["CheckReport", "inspected", "usable"],
        "config": ["WindowConfig"],
        "evaluation": [
            "Evaluation",
            "ItemScores",
            "SetScores",
            "against_first",
            "mean_intervals",
            "paired_differences",
            "write_page",
            "write_results",
        ],
        "folders": ["FolderResult", "save_png", "translate_images"],
        "glass": ["Glass", "glass_of"],
        "latents": ["Cached", "cache_items"],
        "layers": ["Layer"],
        "pretrained": ["Pretrained"],
        "pyramids": ["PyramidJob", "SlideResult", "make_slide", "slide_facts", "translate_slide"],
        "shards": ["Shards"],
        "sources": [
            "Images",
            "Outcome",
            "SlideSource",
            "is_slide",
            "sort_sources",
            "spread_sources",
        ],
        "streams.noise": ["ImageNoise"],
        "streams.pixels": ["array_reader"],
        "splits": ["Split", "folds", "held_together", "hold_out", "split_items"],
        "windows": ["WindowModel", "WindowPlan", "plan_windows", "scale_between"],
    },
)
