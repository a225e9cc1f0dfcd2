"""What a stain model learns."""

from __future__ import annotations

from pydantic import Field, field_validator

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
    residual_knots: int = Field(
        0,
        ge=0,
        le=64,
        description="model.residual: groups of answers of the regression in each of which the spread of what is left "
        "over is measured: the unit is then small where the regression is sure. 0 = one unit everywhere.",
    )
    image_effects: bool = Field(
        False,
        description="model.residual, channels: how bright an image is as a whole, beside the regression's answer, is "
        "not diffused. It is measured on every training image, and every sample takes that of one of them.",
    )
    effect_spread: float = Field(
        1.5,
        ge=0,
        description="image_effects: how much further apart than they were measured samples draw them, kept with the "
        "model. New images differ more than the few of a training; on cores held out of those of collagen 90 % "
        "intervals cover 85 % with 1.5 and 77 % with 1.",
    )
    cross_fit: int = Field(
        0,
        ge=0,
        description="model.residual: parts of the pairs (whole groups, such as arrays or scanners, where the data name "
        "them, else whole patients) for each of which a regression is trained without it: the diffusion learns what "
        "that leaves over, as of pairs never seen. 0 = what the regression leaves over of the pairs it was trained on, "
        "which is less.",
    )
    noise_scales: int = Field(
        0,
        ge=0,
        le=12,
        description="model.residual: scales of the noise beside white, each twice the one before, in the shares that "
        "what is left over has: large structures are then hidden as small ones are. 0 = white noise.",
    )

    @field_validator("cross_fit")
    @classmethod
    def _groups(cls, groups: int) -> int:
        if groups == 1:
            raise ValueError("one group leaves no pairs to train on; 0 is none, 2 the fewest")
        return groups
