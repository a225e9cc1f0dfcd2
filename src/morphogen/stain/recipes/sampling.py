"""The recipe of HistDiST in the words of the diffusion core: inversion and standardisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from morphogen.diffusion import Denoiser, Schedule, ddim_invert
from morphogen.stain.config import ModelConfig


def standardise(latent: Tensor) -> Tensor:
    """Mean 0 and unbiased SD 1 per image and channel over height and width; (B, C, h, w)."""
    mean = latent.mean(dim=(2, 3), keepdim=True)
    return (latent - mean) / latent.std(dim=(2, 3), keepdim=True).clamp(min=1e-6)


def model_schedule(config: ModelConfig) -> Schedule:
    """Scaled-linear; with zero terminal SNR, but plain for epsilon."""
    schedule = Schedule.scaled_linear(config.beta_start, config.beta_end)
    return schedule.zero_terminal_snr() if config.output != "epsilon" else schedule


def invert(
    denoiser: Denoiser,
    latent: Tensor,
    times: list[float],
    schedule: Schedule,
    *,
    when: str = "end",
    condition: Mapping[str, Any] | None = None,
) -> Tensor:
    """Noise that the H&E latent (B, C, h, w), scaled, came from; standardised as ``when`` says.

    ``condition`` is that of the generation task (null context, no H&E channels).
    """

    def each(state: Any, prediction: Any) -> None:
        state.x.copy_(standardise(state.x))  # in place: the solver goes on from this very tensor

    noise = ddim_invert(
        denoiser, latent, times, schedule, condition=condition, callback=each if when == "steps" else None
    )
    return standardise(noise) if when == "end" else noise
