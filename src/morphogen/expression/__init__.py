"""Spatial gene expression from H&E: Stem, HisDiff and Morphogen's own recipe, from sections to maps.

Names are imported when first used, so importing this package is instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from morphogen.expression.config import (
        DataConfig,
        EvaluateConfig,
        ExpressionConfig,
        PanelConfig,
        PredictConfig,
        PrepareConfig,
    )
    from morphogen.expression.evaluate import Evaluation, evaluate_models
    from morphogen.expression.model import ExpressionModel
    from morphogen.expression.sections.grid import slide_section, write_geojson
    from morphogen.expression.sections.prepare import load_section, load_sections, prepare_sections
    from morphogen.expression.sections.processed import read_processed
    from morphogen.expression.sections.readers import find_sections, read_sections
    from morphogen.expression.sections.splits import split_sections
    from morphogen.expression.train import train_model

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "config": [
            "DataConfig",
            "EvaluateConfig",
            "ExpressionConfig",
            "PanelConfig",
            "PredictConfig",
            "PrepareConfig",
        ],
        "evaluate": ["Evaluation", "evaluate_models"],
        "model": ["ExpressionModel"],
        "sections.grid": ["slide_section", "write_geojson"],
        "sections.prepare": ["load_section", "load_sections", "prepare_sections"],
        "sections.processed": ["read_processed"],
        "sections.readers": ["find_sections", "read_sections"],
        "sections.splits": ["split_sections"],
        "train": ["train_model"],
    },
)
