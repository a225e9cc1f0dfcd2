"""Labelled images in the style of unlabelled slides, and the segmentation network they feed (STEDM, ECCV 2024).

Names are imported when first used, so importing this package is instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from morphogen.layout.config import (
        DataConfig,
        ModelConfig,
        SegmentConfig,
        SynthesisConfig,
        TrainConfig,
    )
    from morphogen.layout.data import DataSplit, read_sources
    from morphogen.layout.evaluate import compare, evaluate_segmenters
    from morphogen.layout.model import LayoutDiffusion, LayoutSampler
    from morphogen.layout.predict import synthesize
    from morphogen.layout.scoring.synthetic import evaluate_synthetic
    from morphogen.layout.segmenter.apply import segment_images, segment_slide
    from morphogen.layout.segmenter.model import Segmenter
    from morphogen.layout.segmenter.train import train_segmenter
    from morphogen.layout.train import build_model, train_model

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "config": ["DataConfig", "ModelConfig", "SegmentConfig", "SynthesisConfig", "TrainConfig"],
        "data": ["DataSplit", "read_sources"],
        "evaluate": ["compare", "evaluate_segmenters"],
        "model": ["LayoutDiffusion", "LayoutSampler"],
        "predict": ["synthesize"],
        "scoring.synthetic": ["evaluate_synthetic"],
        "segmenter.apply": ["segment_images", "segment_slide"],
        "segmenter.model": ["Segmenter"],
        "segmenter.train": ["train_segmenter"],
        "train": ["build_model", "train_model"],
    },
)
