"""What can be set about the networks of this room (no torch here: the command line reads it)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from morphogen.core.config import Config


class GeneTransformerConfig(Config):
    """Architecture of :class:`morphogen.nets.GeneTransformer`. The defaults are Stem's (ICLR 2025)."""

    genes: int = Field(
        gt=0, description="Number of genes G of the panel; the network reads and writes G values."
    )
    condition_dim: int = Field(
        ge=0,
        description="Width C of one spot embedding (UNI + CONCH: 1536; UNI: 1024). 0: no image condition.",
    )
    width: int = Field(384, gt=0, description="Token width D.")
    depth: int = Field(12, gt=0, description="Number of transformer blocks.")
    heads: int = Field(6, gt=0, description="Attention heads over genes; must divide the width.")
    mlp_ratio: float = Field(4.0, gt=0, description="Hidden width of a block's MLP over D.")
    channels: Literal[1, 2] = Field(
        2, description="Outputs per gene: 1 = prediction; 2 = prediction and variance coefficient."
    )
    genes_per_token: int = Field(
        1,
        gt=0,
        description="Genes that share a token. k > 1 costs about k times less; 1 is the published network.",
    )
    conditioner: Literal["image", "hierarchical", "hierarchical_mlp", "none"] = Field(
        "image",
        description="image: MLP of the spot's embedding (Stem). hierarchical: attention of the spot over its "
        "neighbours and its region (HisDiff as released). hierarchical_mlp: an MLP per branch before the "
        "attention (HisDiff as in the paper). none: unconditional.",
    )
    condition_heads: int = Field(8, gt=0, description="Heads of the hierarchical conditioner; must divide C.")

    @model_validator(mode="after")
    def _divisible(self) -> GeneTransformerConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.conditioner.startswith("hierarchical") and self.condition_dim % self.condition_heads:
            raise ValueError(
                f"condition_dim {self.condition_dim} is no multiple of condition_heads {self.condition_heads}"
            )
        if (self.conditioner == "none") != (self.condition_dim == 0):
            raise ValueError("condition_dim is 0 exactly when conditioner is 'none'")
        return self
