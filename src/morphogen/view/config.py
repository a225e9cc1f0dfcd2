"""What can be set of the viewer."""

from __future__ import annotations

from pydantic import Field

from morphogen.core.config import Config


class ViewConfig(Config):
    """How tiles are made and kept."""

    tile: int = Field(
        512, ge=64, le=2048, description="Side of the tiles that the browser asks for, in pixels."
    )
    quality: int = Field(90, ge=1, le=100, description="JPEG quality of tiles in colour; maps are lossless.")
    cache_mb: float = Field(256.0, gt=0, description="Memory for tiles that were made, in MB.")
    workers: int = Field(0, ge=0, description="Tiles made at a time; 0 takes the number of cores.")
