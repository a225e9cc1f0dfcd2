"""The noise over an image that is translated window by window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from morphogen.core.seeds import numpy_generator, seed_for
from morphogen.diffusion import CanvasNoise
from morphogen.diffusion.noise import Blocks
from morphogen.tasks.streams.scales import NoiseScales, ScaledCanvas
from morphogen.tasks.windows import WindowPlan

NOISE_BLOCK = 16  # latent cells
OF_IMAGE = -2  # the "step" of the one number that a sample has for the whole image
Region = tuple[slice, slice]


def image_draw(number: int, antithetic: bool, seed: int, *keys: int | str) -> float:
    """A number in 0…1 for sample ``number`` of what ``keys`` name; those of several samples are spread evenly (steps of
    the golden ratio from a random start), and antithetic ones come in pairs of u and 1 − u.

    >>> a, b = (image_draw(k, True, 0, "x") for k in (2, 3))
    >>> round(a + b, 9)
    1.0
    """
    start, step = float(numpy_generator(seed, *keys).random()), (5**0.5 - 1) / 2
    if not antithetic:
        return (start + number * step) % 1
    drawn = (start + number // 2 * step) % 1
    return 1 - drawn if number % 2 else drawn


@dataclass(frozen=True)
class NegatedNoise:
    """A noise field with its sign turned."""

    field: CanvasNoise | ScaledCanvas

    def over(self, step: int, regions: Sequence[Region]) -> Tensor:
        return -self.field.over(regions)(step)


@dataclass(frozen=True)
class PlainNoise:
    """A noise field as it is."""

    field: CanvasNoise | ScaledCanvas

    def over(self, step: int, regions: Sequence[Region]) -> Tensor:
        return self.field.over(regions)(step)


Field = PlainNoise | NegatedNoise


class ImageNoise:
    """The K noise fields over an image and the noise of the autoencoder's posterior.

    All are a function of seed, purpose and name; antithetic ones come in pairs of a field and its negative (Hammersley
    and Morton, Proc. Camb. Phil. Soc. 52, 1956). Blocks that windows share are drawn once.

    Parameters
    ----------
    channels:
        Of a latent.
    purpose:
        Keeps the draws of different rooms apart.
    name:
        Of the image.
    samples:
        K.
    posterior:
        Whether :meth:`start` is ever used; where not, it is not drawn.
    device:
        Where it is drawn and given.
    scales:
        Of noise that is not white; the posterior's is.
    """

    def __init__(
        self,
        channels: int,
        plan: WindowPlan,
        *,
        seed: int,
        purpose: str,
        name: str,
        samples: int = 1,
        antithetic: bool = False,
        posterior: bool = True,
        device: torch.device | str = "cpu",
        scales: NoiseScales | None = None,
    ) -> None:
        shape, kept = (channels, *plan.canvas), Blocks()

        def plain(seed: int, shape: Sequence[int]) -> CanvasNoise:
            return CanvasNoise(seed, shape, block=NOISE_BLOCK, device=device, kept=kept)

        def field(*keys: int | str) -> CanvasNoise | ScaledCanvas:
            number = seed_for(seed, *keys)
            return plain(number, shape) if scales is None else ScaledCanvas(scales, number, shape, plain)

        self.fields: list[Field] = []
        for k in range(samples):
            if antithetic and k % 2:
                self.fields.append(NegatedNoise(cast(PlainNoise, self.fields[-1]).field))
            else:
                self.fields.append(PlainNoise(field(purpose, name, k)))
        self.draws = [image_draw(k, antithetic, seed, purpose, "image", name) for k in range(samples)]
        self._posterior = plain(seed_for(seed, f"{purpose} posterior", name), shape) if posterior else None

    def over(self, regions: Sequence[Region]) -> RegionNoise:
        """``noise(step)`` for a batch of windows at these latent cells."""
        return RegionNoise(self.fields, regions, self.draws)

    def start(self, regions: Sequence[Region]) -> Tensor | None:
        """(B, channels, h, w) posterior noise for a batch of windows; ``None`` where none is used."""
        return None if self._posterior is None else self._posterior.over(regions)(-1)


class RegionNoise:
    """``noise(step)`` for a batch of windows × K samples: each window's part of the image's K noise fields; of step
    ``OF_IMAGE`` (B·K,) on the CPU, the samples' ``draws``."""

    def __init__(
        self, fields: Sequence[Field], regions: Sequence[Region], draws: Sequence[float] = ()
    ) -> None:
        self.fields, self.regions, self.draws = fields, regions, draws

    def __call__(self, step: int) -> Tensor:
        if step == OF_IMAGE:
            return torch.tensor(self.draws).repeat(len(self.regions))
        return torch.stack([field.over(step, self.regions) for field in self.fields], dim=1).flatten(0, 1)
