"""The recipe of HistDiST in the words of the diffusion core: inversion, standardisation, translation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from morphogen.core.errors import ConfigError, nearest
from morphogen.diffusion import Denoiser, Schedule, ddim, ddim_invert, dpmpp_2m, timesteps
from morphogen.stain.config import ModelConfig, SamplerConfig

_ETA = {  # name → (middle, swing) of eta(x) = middle − swing·cos(πx)
    "cosine": (0.6, 0.4),
    "cosine-narrow": (0.55, 0.45),
    "cosine-wide": (0.65, 0.35),
}


def eta_function(name: str | float) -> Callable[[float], float] | float:
    """η over progress x = i/(N−1): 0 at the noisiest step, 1 at the cleanest (HistDiST, section 2).

    ``cosine`` is clamp(0.6 − 0.4·cos(πx), 0, 1): little noise while structure forms, ancestral noise at the
    end. ``linear`` is x. A number is constant.
    """
    if isinstance(name, str) and name in _ETA:
        middle, swing = _ETA[name]
        return lambda x: min(max(middle - swing * math.cos(math.pi * x), 0.0), 1.0)
    if name == "linear":
        return lambda x: x
    try:
        value = float(name)
    except ValueError:
        choices = [*_ETA, "linear"]
        raise ConfigError(
            f"unknown eta '{name}'.{nearest(str(name), choices)}",
            where="sampler.eta",
            fix=f"Use {', '.join(choices)} or 0…1",
        ) from None
    if not 0 <= value <= 1:
        raise ConfigError(f"eta is {name}, but must lie in 0…1", where="sampler.eta")
    return value


def standardise(latent: Tensor) -> Tensor:
    """Mean 0 and unbiased SD 1 per image and channel over height and width; (B, C, h, w)."""
    mean = latent.mean(dim=(2, 3), keepdim=True)
    return (latent - mean) / latent.std(dim=(2, 3), keepdim=True).clamp(min=1e-6)


def model_schedule(config: ModelConfig) -> Schedule:
    """Scaled-linear; with zero terminal SNR, but plain for epsilon."""
    schedule = Schedule.scaled_linear(config.beta_start, config.beta_end)
    return schedule.zero_terminal_snr() if config.output != "epsilon" else schedule


def model_timesteps(config: ModelConfig, schedule: Schedule, n: int, spacing: str = "model") -> list[float]:
    """``n`` falling times; ``model`` is trailing for v and leading with offset 1 (Stable Diffusion) for
    epsilon.
    """
    if spacing == "model":
        spacing = "trailing" if config.output != "epsilon" else "leading"
    offset = 1 if spacing == "leading" and config.output == "epsilon" else 0
    return timesteps(schedule, n, spacing, steps_offset=offset)  # type: ignore[arg-type]


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


def translate(
    denoiser: Denoiser,
    start: Tensor,
    config: ModelConfig,
    sampler: SamplerConfig,
    schedule: Schedule,
    *,
    noise: Callable[[int], Tensor] | None,
    condition: Mapping[str, Any],
) -> Tensor:
    """From noise ``start`` (B, C, h, w) to a scaled latent of the target stain."""
    if sampler.solver == "mean":
        return expectation(denoiser, start, schedule, condition)
    times = model_timesteps(config, schedule, sampler.steps, sampler.spacing)
    options: dict[str, Any] = {"final": sampler.final, "condition": condition}
    if sampler.solver == "ddim":
        eta = eta_function(sampler.eta)
        return ddim(denoiser, start, times, schedule, eta=eta, noise=noise, **options)
    sde = sampler.solver == "dpmpp_2m_sde"
    return dpmpp_2m(denoiser, start, times, schedule, sde=sde, noise=noise if sde else None, **options)


@torch.no_grad()
def expectation(
    denoiser: Denoiser, start: Tensor, schedule: Schedule, condition: Mapping[str, Any]
) -> Tensor:
    """The denoiser's answer at pure noise: the mean of all stains that fit this H&E, from one evaluation."""
    return denoiser(start, schedule.last, **condition).x0
