"""Tissue images of any size from the embeddings of a pathology encoder (Graikos et al., CVPR 2024).

Names are imported when first used, so importing this package is instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from morphogen.tissue.canvases.config import CanvasConfig
    from morphogen.tissue.canvases.draw import CanvasResult, draw_canvas
    from morphogen.tissue.canvases.edits import edit_image, outpaint_image
    from morphogen.tissue.canvases.grid import EmbeddingGrid, interpolated
    from morphogen.tissue.canvases.sources import grid_of_picks, grid_of_region
    from morphogen.tissue.config import (
        DataConfig,
        EvaluateConfig,
        ModelConfig,
        ObjectiveConfig,
        TrainConfig,
        UseConfig,
    )
    from morphogen.tissue.data import TileTable, read_tiles
    from morphogen.tissue.evaluate import evaluate_model, evaluate_twin
    from morphogen.tissue.model import TissueDiffusion, TissueOutput
    from morphogen.tissue.predict import draw_patches, interpolate_patches
    from morphogen.tissue.priors.config import PriorConfig
    from morphogen.tissue.priors.model import TissuePrior
    from morphogen.tissue.priors.train import train_prior
    from morphogen.tissue.sampling import TissueSampler
    from morphogen.tissue.starting import new_model
    from morphogen.tissue.train import train_model
    from morphogen.tissue.use import evaluate_use

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "canvases.config": ["CanvasConfig"],
        "canvases.draw": ["CanvasResult", "draw_canvas"],
        "canvases.edits": ["edit_image", "outpaint_image"],
        "canvases.grid": ["EmbeddingGrid", "interpolated"],
        "canvases.sources": ["grid_of_picks", "grid_of_region"],
        "config": [
            "DataConfig",
            "EvaluateConfig",
            "ModelConfig",
            "ObjectiveConfig",
            "TrainConfig",
            "UseConfig",
        ],
        "data": ["TileTable", "read_tiles"],
        "evaluate": ["evaluate_model", "evaluate_twin"],
        "model": ["TissueDiffusion", "TissueOutput"],
        "predict": ["draw_patches", "interpolate_patches"],
        "priors.config": ["PriorConfig"],
        "priors.model": ["TissuePrior"],
        "priors.train": ["train_prior"],
        "sampling": ["TissueSampler"],
        "starting": ["new_model"],
        "train": ["train_model"],
        "use": ["evaluate_use"],
    },
)
