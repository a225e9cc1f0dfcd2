"""How tissue is sampled: the presets of this room over the one sampler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from morphogen.diffusion.sampler import SamplerConfig


class TissueSampler(SamplerConfig):
    """How patches and canvases are made.

    ``standard``: 16 steps of DPM-Solver++ on a log-SNR grid, guided at 2 while the picture forms. ``fast``: 6 even
    steps, guided in a few. ``reference``: PLMS as published for patches (51 evaluations, all guided at 2).
    ``reference-canvas``: 50 steps of the published canvas code, guided at 4.
    """

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "standard": {},
        "fast": {"steps": 6, "spacing": "trailing", "guidance_interval": (400.0, 700.0)},
        "reference": {
            "solver": "plms",
            "steps": 50,
            "spacing": "strided",
            "final": "first",
            "guidance_interval": None,
        },
        "reference-canvas": {
            "solver": "ddim",
            "steps": 50,
            "spacing": "trailing",
            "eta": "training",
            "guidance_scale": 4.0,
            "guidance_interval": None,
            "time_offset": 1,
        },
    }

    steps: int = Field(16, ge=1, description="Steps from noise to data.")
    spacing: Literal["model", "trailing", "leading", "linspace", "strided", "log_snr", "log_snr_few"] = Field(
        "log_snr", description="Where the steps lie; model = as the schedule was made for."
    )
    guidance_scale: float = Field(
        2.0, ge=0, description="Classifier-free guidance, eps_u + s·(eps_c − eps_u). 1 = none."
    )
    guidance_interval: tuple[float, float] | None = Field(
        (300.0, 840.0), description="Times (low, high) within which guidance acts. null = at all."
    )
    time_offset: int = Field(
        0,
        description="Training steps added to the time that the network is told (the published canvas code: 1).",
    )
    encoder_guidance: float = Field(
        0.0,
        ge=0,
        le=2,
        description="Pull what is drawn towards its embedding (on canvases: each cell to its own), by the gradient of "
        "the embeddings' own encoder: 1 = as far at a time as would reach it if all were linear. 0 = not.",
    )
    encoder_guidance_steps: int = Field(
        12, ge=1, description="Evaluations of the encoder and its gradient in each step that it guides."
    )
    encoder_guidance_interval: tuple[float, float] = Field(
        (0.0, 500.0), description="Times (low, high) within which the encoder guides."
    )
