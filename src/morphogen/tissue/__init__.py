"""Tissue images of any size from the embeddings of a pathology encoder (Graikos et al., CVPR 2024).

Names are imported when first used, so importing this package is instant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from morphogen.tissue.config import DataConfig, ModelConfig, ObjectiveConfig, TrainConfig
    from morphogen.tissue.data import TileTable, read_tiles
    from morphogen.tissue.model import TissueDiffusion, TissueOutput
    from morphogen.tissue.sampling import TissueSampler
    from morphogen.tissue.starting import new_model
    from morphogen.tissue.train import train_model

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "config": ["DataConfig", "ModelConfig", "ObjectiveConfig", "TrainConfig"],
        "data": ["TileTable", "read_tiles"],
        "model": ["TissueDiffusion", "TissueOutput"],
        "sampling": ["TissueSampler"],
        "starting": ["new_model"],
        "train": ["train_model"],
    },
)
