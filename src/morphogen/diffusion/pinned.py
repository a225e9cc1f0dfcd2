"""A denoiser that knows part of the picture: inpainting, outpainting, edits of a canvas."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from morphogen.diffusion.predictions import Denoiser, Prediction
from morphogen.diffusion.schedules import Schedule, Time


def pinned(denoiser: Denoiser, known: Tensor, keep: Tensor, schedule: Schedule) -> Denoiser:
    """The denoiser, but x0 is ``known`` where ``keep`` is 1 and mixed with it in between.

    known: (B, C, H, W) clean data. keep: (B or 1, 1, H, W) in [0, 1]. eps is taken anew from x, so that
    ``x = alpha·x0 + sigma·eps`` holds: under a deterministic solver that starts at ``alpha·known + sigma·noise`` the
    known part of x is at every level the known data with that same noise (Lugmayr et al. 2022, eq. 8, without draws).
    """

    def denoise(x: Tensor, t: Time, /, **condition: Any) -> Prediction:
        predicted = denoiser(x, t, **condition)
        alpha, sigma = schedule.levels_like(t, x)
        x0 = predicted.x0.lerp(known.to(x), keep.to(x))
        return Prediction(x0, (x - alpha * x0) / sigma)

    return denoise
