"""What can be set about a prior over grids of embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field, model_validator

from morphogen.core.config import Config
from morphogen.tissue.config import DataConfig
from morphogen.training.config import TrainingConfig


class PriorConfig(Config):
    """A run of `morphogen tissue prior`: a diffusion transformer over grids of embeddings."""

    ALIASES: ClassVar[Mapping[str, str]] = {"seed": "training.seed"}

    data: DataConfig = Field(
        default_factory=DataConfig, description="Tiles and embeddings, side by side without overlap."
    )
    side: int = Field(8, ge=2, le=64, description="Rows and columns of the grids that are learned.")
    variance: float = Field(
        0.95, gt=0, le=1, description="Share of the embeddings' variance that the components keep."
    )
    most_components: int = Field(128, ge=1, description="Components at most.")
    width: int = Field(128, ge=8, description="Width of a token.")
    depth: int = Field(6, ge=1, description="Transformer blocks.")
    heads: int = Field(4, ge=1, description="Attention heads; must divide the width.")
    p_uncond: float = Field(0.2, ge=0, lt=1, description="Probability that a grid's class is dropped.")
    training: TrainingConfig = Field(
        default_factory=lambda: TrainingConfig(
            steps=2000,
            batch_size=32,
            lr=5e-4,
            weight_decay=1e-2,
            warmup_steps=100,
            lr_schedule="cosine",
            ema_decay=0.995,
            save_every=500,
        ),
        description="The loop.",
    )

    @model_validator(mode="after")
    def _divisible(self) -> PriorConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self
