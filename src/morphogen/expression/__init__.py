"""Spatial gene expression from H&E: Stem, HisDiff and Morphogen's own recipe, from sections to maps.

Names are imported when first used, so importing this package is instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

_HOME = {
    "DataConfig": "config",
    "EvaluateConfig": "config",
    "ExpressionConfig": "config",
    "PanelConfig": "config",
    "PredictConfig": "config",
    "PrepareConfig": "config",
    "Evaluation": "evaluate",
    "evaluate_models": "evaluate",
    "ExpressionModel": "model",
    "load_section": "sections.prepare",
    "load_sections": "sections.prepare",
    "prepare_sections": "sections.prepare",
    "read_processed": "sections.processed",
    "find_sections": "sections.readers",
    "read_sections": "sections.readers",
    "slide_section": "sections.grid",
    "write_geojson": "sections.grid",
    "split_sections": "sections.splits",
    "train_model": "train",
}

__all__ = [
    "DataConfig",
    "EvaluateConfig",
    "Evaluation",
    "ExpressionConfig",
    "ExpressionModel",
    "PanelConfig",
    "PredictConfig",
    "PrepareConfig",
    "evaluate_models",
    "find_sections",
    "load_section",
    "load_sections",
    "prepare_sections",
    "read_processed",
    "read_sections",
    "slide_section",
    "split_sections",
    "train_model",
    "write_geojson",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'morphogen.expression' has no attribute '{name}'")
    return getattr(import_module(f"morphogen.expression.{_HOME[name]}"), name)
