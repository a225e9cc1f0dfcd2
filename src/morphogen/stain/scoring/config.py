"""What can be set about the scores of stains."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from morphogen.core.config import Config
from morphogen.stain.targets.config import TargetConfig


class EvaluateConfig(Config):
    """A run of `morphogen stain evaluate`."""

    target: TargetConfig | None = Field(
        None,
        description="What is scored. null = as the data or the predicted images say, else DAB of a picture in colour.",
    )
    tile: int = Field(64, ge=8, description="Side in pixels of the tiles whose DAB is correlated.")
    positive: float = Field(
        0.15, gt=0, description="DAB optical density above which a pixel counts as stained."
    )
    bins: tuple[float, float, float] = Field(
        (0.15, 0.35, 0.60), description="DAB optical densities where 1+, 2+ and 3+ begin (H-score)."
    )
    vectors: Literal["hdab", "estimated"] = Field(
        "hdab",
        description="Stain vectors of the DAB maps: Ruifrok and Johnston's, or estimated from the real images.",
    )
    encoder: str = Field("texture", description="Encoder of MRA, Fréchet distance and KID.")
    encoder_weights: str | None = Field(None, description="Weights of that encoder on disk.")
    resnet_weights: str | None = Field(
        None, description="torchvision resnet50 file for PHV. null = PHV left out."
    )
    lpips: bool = Field(False, description="LPIPS too (needs torchvision's AlexNet weights).")
    field: int = Field(
        1024,
        ge=64,
        description="Slides: side in pixels of the fields they are cut into where there is tissue.",
    )
    mpp: float | None = Field(None, gt=0, description="Slides: µm per pixel of these fields. null = 0.5.")
    panels: int = Field(8, ge=0, description="Images shown beside their DAB maps in the report.")
    reference_quirks: bool = Field(
        False,
        description="MRA ties and PHV normalisation as in the published HistDiST code, to compare with it.",
    )
    seed: int = Field(0, ge=0, description="Seed of bootstrap and KID subsets.")
    resamples: int = Field(10_000, ge=100, description="Bootstrap resamples.")
