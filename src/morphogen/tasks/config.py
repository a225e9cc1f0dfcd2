"""What can be set about windows of large images, in every task room alike."""

from __future__ import annotations

from pydantic import Field

from morphogen.core.config import Config


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
    batch: int = Field(8, ge=1, description="Windows that go through the network together.")
    tissue_only: bool = Field(True, description="Whole slides: leave glass white and skip it.")
