"""What can be set about drawing a canvas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from morphogen.core.config import Config
from morphogen.tissue.sampling import TissueSampler


class CanvasConfig(Config):
    """How a canvas is drawn from a grid of embeddings."""

    ALIASES: ClassVar[Mapping[str, str]] = {"encoder_guidance": "sampler.encoder_guidance"}

    sampler: TissueSampler = Field(default_factory=TissueSampler, description="Solver, steps and guidance.")
    blend: Literal["shifted", "feather", "uniform"] = Field(
        "shifted",
        description="How windows become one canvas at every step: shifted: they do not overlap and their grid moves; "
        "feather: half a window of overlap, blended softly; uniform: plain means (published).",
    )
    stride: int | None = Field(
        None,
        ge=1,
        description="Overlapping windows: latent cells from one to the next. null = half a window; a quarter for "
        "uniform.",
    )
    overlapped_steps: int = Field(
        3, ge=0, description="shifted: so many last steps overlap and are feathered, against seams."
    )
    glass: Literal["fill", "draw"] = Field(
        "fill",
        description="Cells that the source shows to be bare glass: fill = they get its colour, the network is not "
        "asked, and no tissue is brighter; draw = from their embeddings, like all others.",
    )
    batch: int = Field(8, ge=1, description="Windows through the network together.")
    memory_gib: float = Field(
        1.0,
        ge=0,
        description="Canvases whose state needs more are kept on disk, beside the result, while drawn.",
    )
    save_every: int = Field(1, ge=1, description="Steps between states kept for a killed run.")
    seed: int = Field(0, ge=0, description="Seed of all noise.")
    format: Literal["tiff", "zarr"] = Field(
        "tiff", description="The image is a pyramidal OME-TIFF, or OME-Zarr, which is lossless."
    )
    codec: Literal["jpeg", "deflate"] = Field(
        "jpeg", description="Compression of the OME-TIFF; deflate is lossless."
    )
    quality: int = Field(90, ge=1, le=100, description="JPEG quality.")
    mpp: float | None = Field(
        None, gt=0, description="µm per pixel written into the file where the model does not know it."
    )

    @classmethod
    def preset(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """How windows are blended, as the sampler's preset wants it: the published canvas code takes plain means of
        169 windows per 1024² at each of its 50 steps."""
        sampler = given.get("sampler")
        name = sampler.get("preset") if isinstance(sampler, Mapping) else None
        return _BLENDS.get(str(name), {})

    @classmethod
    def named(cls, name: str) -> CanvasConfig:
        """``standard``, ``fast`` or ``reference-canvas``."""
        return cls.load(overrides={"sampler.preset": name})


_BLENDS: dict[str, dict[str, Any]] = {
    "reference-canvas": {"blend": "uniform", "overlapped_steps": 0, "glass": "draw"},
    "fast": {"overlapped_steps": 2},
}
