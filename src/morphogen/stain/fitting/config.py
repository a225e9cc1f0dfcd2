"""What a stain model learns."""

from __future__ import annotations

from pydantic import Field

from morphogen.core.config import Config


class ObjectiveConfig(Config):
    """What is learned."""

    bias_he_ihc: float = Field(
        0.5, ge=0, lt=1, description="Probability that a sample trains H&E generation instead of translation."
    )
    min_snr_gamma: float | None = Field(
        None,
        gt=0,
        description="Weight losses by min-SNR with this gamma (5 is usual). null = plain mean square.",
    )
    x0_weight: float = Field(
        5.0, ge=1, description="x0 networks: the error counts as that in v, 1/sigma², but at most this much."
    )
    last_step_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of samples trained at pure noise, where the answer is the mean stain.",
    )
    residual_spread: float = Field(
        0.5,
        gt=0,
        description="model.residual: standard deviation of what is diffused, the noise at the end having 1. Less moves "
        "training and sampling to where large structures are decided.",
    )
