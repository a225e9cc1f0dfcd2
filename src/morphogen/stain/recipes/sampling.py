"""The recipe of HistDiST in the words of the diffusion core: inversion and standardisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from morphogen.diffusion import Denoiser, ItemNoise, Schedule, ddim_invert
from morphogen.stain.config import ModelConfig
from morphogen.stain.recipes.effects import ImageEffects
from morphogen.stain.recipes.units import LocalUnit
from morphogen.tasks.streams.noise import OF_IMAGE, image_draw
from morphogen.tasks.streams.scales import NoiseScales


def standardise(latent: Tensor) -> Tensor:
    """Mean 0 and unbiased SD 1 per image and channel over height and width; (B, C, h, w)."""
    mean = latent.mean(dim=(2, 3), keepdim=True)
    return (latent - mean) / latent.std(dim=(2, 3), keepdim=True).clamp(min=1e-6)


def model_schedule(config: ModelConfig) -> Schedule:
    """Scaled-linear; with zero terminal SNR, but plain for epsilon."""
    schedule = Schedule.scaled_linear(config.beta_start, config.beta_end)
    return schedule.zero_terminal_snr() if config.output != "epsilon" else schedule


def noise_scales(config: ModelConfig) -> NoiseScales | None:
    """What the noise of a model is made of; ``None`` for white noise."""
    if config.noise_shares is None:
        return None
    return NoiseScales(config.noise_shares, pixels_of_cell(config))


def local_unit(config: ModelConfig, base: Tensor) -> Tensor:
    """The unit of what a regression leaves over where it answers ``base`` (B, C, h, w), in ``residual_scale``."""
    if config.residual_knots is None:
        return torch.ones_like(base)
    return LocalUnit(config.residual_knots, pixels_of_cell(config))(base)


def image_effects(config: ModelConfig, spread: float = 1.0) -> ImageEffects | None:
    """The effects of images that samples take, ``spread`` times as far apart; ``None`` for a model without."""
    if config.image_effects is None:
        return None
    return ImageEffects(config.image_effects, pixels_of_cell(config), config.pixel_scale, spread)


def pixels_of_cell(config: ModelConfig) -> int:
    """Channels of a latent cell that are pixels of one channel of the target."""
    return config.pixel_factor**2 if config.size == "small" else 1


def item_noise(
    config: ModelConfig, seed: int, keys: Sequence[tuple[int, int]], shape: Sequence[int], device: Any
) -> Callable[[int], Tensor]:
    """``noise(step)`` of a batch of independent crops, each with a key of its own, (crop, number of the sample)."""
    scales = noise_scales(config)
    found = (
        ItemNoise(seed, keys, shape, device) if scales is None else scales.items(seed, keys, shape, device)
    )

    def noise(step: int) -> Tensor:
        if step != OF_IMAGE:
            return found(step)
        return torch.tensor([image_draw(k, False, seed, "stain", "image", crop) for crop, k in keys])

    return noise


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
