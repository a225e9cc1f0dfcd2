"""What can be set about windows of large images, in every task room alike."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from morphogen.core.config import Config

PLAIN_BATCH = 8
Whitening = Annotated[
    float,
    Field(
        ge=0,
        le=1,
        description="components: each is divided by this power of its standard deviation; 0 = as they are, 1 = all of "
        "one size.",
    ),
]
ByChannel = Annotated[
    bool,
    Field(
        description="x0 networks: in place of x0_weight, the error of each channel counts in units of what the best "
        "linear estimate from its noisy value alone leaves over, whatever the noise.",
    ),
]


class WindowConfig(Config):
    """How images larger than a window are cut and joined."""

    window: int | None = Field(
        None, ge=32, description="Side of a window in model pixels. null = the training crop."
    )
    overlap: int | None = Field(
        None,
        ge=0,
        description="Overlap of neighbouring windows in model pixels. null = a quarter of the window.",
    )
    batch: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        PLAIN_BATCH,
        description="Windows that go through the network together. auto = what the memory of the GPU takes.",
    )
    tissue_only: bool = Field(True, description="Whole slides: leave glass white and skip it.")
