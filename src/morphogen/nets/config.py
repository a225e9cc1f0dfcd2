"""What can be set about the networks of this room (no torch here: the command line reads it)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from morphogen.core.config import Config

MAX_PARAMETERS = 20_000_000_000  # twenty times the largest network that is published in this field


def bounded(parameters: float) -> None:
    """:class:`ValueError` for sizes that no machine builds: those of a damaged or hostile model folder."""
    if parameters > MAX_PARAMETERS:
        raise ValueError(f"these sizes are a network of {parameters:.1e} parameters; check them")


class GeneTransformerConfig(Config):
    """Architecture of :class:`morphogen.nets.GeneTransformer`. The defaults are Stem's (ICLR 2025)."""

    genes: int = Field(
        gt=0,
        le=1_000_000,
        description="Number of genes G of the panel; the network reads and writes G values.",
    )
    condition_dim: int = Field(
        ge=0,
        le=1 << 20,
        description="Width C of one spot embedding (UNI + CONCH: 1536; UNI: 1024). 0: no image condition.",
    )
    width: int = Field(384, gt=0, le=1 << 16, description="Token width D.")
    depth: int = Field(12, gt=0, le=1000, description="Number of transformer blocks.")
    heads: int = Field(6, gt=0, le=1 << 16, description="Attention heads over genes; must divide the width.")
    mlp_ratio: float = Field(4.0, gt=0, le=1000, description="Hidden width of a block's MLP over D.")
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
        bounded(self.depth * self.width**2 * (10 + 2 * self.mlp_ratio) + self.genes * self.width)
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.conditioner.startswith("hierarchical") and self.condition_dim % self.condition_heads:
            raise ValueError(
                f"condition_dim {self.condition_dim} is no multiple of condition_heads {self.condition_heads}"
            )
        if (self.conditioner == "none") != (self.condition_dim == 0):
            raise ValueError("condition_dim is 0 exactly when conditioner is 'none'")
        return self


class UNetConfig(Config):
    """Architecture of a latent U-Net, in the words of diffusers' ``UNet2DConditionModel`` / ``UNet2DModel``.

    The class methods are the sizes of the papers; any other size is made by giving the fields.
    """

    in_channels: int = Field(
        gt=0, le=1 << 16, description="Channels of the input: noisy latent and what is beside it."
    )
    out_channels: int = Field(gt=0, le=1 << 16, description="Channels of the prediction.")
    widths: tuple[int, ...] = Field(
        min_length=1,
        max_length=16,
        description="Channels per level, from the finest; each level halves the resolution.",
    )
    layers: int = Field(2, gt=0, le=256, description="Residual blocks per level.")
    attention: tuple[int, ...] = Field(
        (), description="Levels (0 = finest) with a transformer block after every residual block."
    )
    heads: int = Field(
        8,
        gt=0,
        description="Attention heads (without context: of the finest level that attends, whose head width "
        "all levels share).",
    )
    context_dim: int = Field(
        0,
        ge=0,
        le=1 << 20,
        description="Width of the context tokens for cross-attention. 0: no context (UNet2DModel).",
    )
    context_vector: int = Field(
        0,
        ge=0,
        description="Width of the context tokens side by side, where they are also added to the time embedding. "
        "0: they enter by cross-attention alone.",
    )
    scale_shift: bool = Field(
        False, description="The time embedding scales and shifts the residual blocks' features (AdaGN)."
    )
    groups: int = Field(32, gt=0, description="Groups of the group norms; must divide every width.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout in the residual blocks.")

    @model_validator(mode="after")
    def _fits(self) -> UNetConfig:
        if min(self.widths) < 1:
            raise ValueError(f"widths are at least 1, not {min(self.widths)}")
        bounded(18 * self.layers * sum(width**2 for width in self.widths))
        for width in self.widths:
            if width % self.groups:
                raise ValueError(f"width {width} is no multiple of groups {self.groups}")
        if self.context_vector and not self.context_dim:
            raise ValueError("context_vector needs context tokens: set context_dim")
        for level in self.attention:
            if not 0 <= level < len(self.widths):
                raise ValueError(f"attention level {level} does not exist with {len(self.widths)} widths")
            if self.widths[level] % self.heads:
                raise ValueError(f"width {self.widths[level]} is no multiple of heads {self.heads}")
            head = self.widths[min(self.attention)] // self.heads
            if not self.context_dim and self.widths[level] % head:
                raise ValueError(f"width {self.widths[level]} is no multiple of the head width {head}")
        if self.widths[-1] % self.heads:  # the middle block always attends
            raise ValueError(f"width {self.widths[-1]} is no multiple of heads {self.heads}")
        return self

    @classmethod
    def stable_diffusion(
        cls, in_channels: int = 8, out_channels: int = 4, context_dim: int = 768
    ) -> UNetConfig:
        """Stable Diffusion 1.5 (860 M parameters); 8 input channels are HistDiST's latent and H&E latent."""
        return cls(
            in_channels=in_channels,
            out_channels=out_channels,
            widths=(320, 640, 1280, 1280),
            attention=(0, 1, 2),
            heads=8,
            context_dim=context_dim,
        )

    @classmethod
    def representation(cls, channels: int = 3, context_dim: int = 512) -> UNetConfig:
        """The latent diffusion model of representation-guided tissue (CVPR 2024; 401 M parameters): one
        head."""
        return cls(
            in_channels=channels,
            out_channels=channels,
            widths=(192, 384, 576, 960),
            attention=(1, 2, 3),
            heads=1,
            context_dim=context_dim,
        )

    @classmethod
    def small(cls, in_channels: int, out_channels: int, context_dim: int = 0) -> UNetConfig:
        """A network that trains in minutes on a CPU (about 3 M parameters)."""
        return cls(
            in_channels=in_channels,
            out_channels=out_channels,
            widths=(32, 64, 128),
            layers=1,
            attention=(1, 2),
            heads=4,
            context_dim=context_dim,
            groups=16,
        )
