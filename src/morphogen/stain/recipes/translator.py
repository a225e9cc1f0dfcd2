"""A stain model as what :mod:`morphogen.tasks.bands` translates images with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from morphogen.stain.config import ApplyConfig
from morphogen.stain.model import StainTransfer
from morphogen.tasks.streams.noise import ImageNoise
from morphogen.tasks.windows import WindowPlan

SAMPLE, MEAN, UNCERTAINTY, SAMPLES = 0, 3, 6, 7  # first planes of what is made of a window


class StainTranslator:
    """Windows of H&E → planes of the stain: first sample (3), mean (3), uncertainty (1), and all K samples (3·K) where
    they are kept. Colours lie in 0…255, the uncertainty is the SD of the DAB optical density.
    """

    def __init__(
        self,
        model: StainTransfer,
        config: ApplyConfig | None = None,
        *,
        precision: str = "fp32",
        keep_samples: bool = False,
    ) -> None:
        self.model, self.config, self.precision = model, config or ApplyConfig(), precision
        self.kept = self.config.samples if keep_samples else 0
        self.multiple, self.factor = model.multiple, model.factor
        self.crop, self.mpp = model.crop, model.mpp
        self.planes = SAMPLES + 3 * self.kept

    def noise(self, plan: WindowPlan, name: str) -> ImageNoise:
        """The K noise fields over an image: a function of the seed and its name."""
        return ImageNoise(
            self.model.network.channels,
            plan,
            seed=self.config.seed,
            purpose="stain",
            name=name,
            samples=self.config.samples,
            antithetic=self.config.antithetic,
            posterior=self.config.sampler.inversion_steps > 0,
            device=self.model.device,
        )

    def make(
        self, images: np.ndarray, noise: Callable[[int], Tensor] | None, posterior_noise: Tensor | None
    ) -> Tensor:
        """One batch of windows (B, window, window, 3) uint8 through the model."""
        out = self.model(
            torch.from_numpy(images),
            self.config.sampler,
            stain=self.config.stain,
            samples=self.config.samples,
            noise=noise,
            posterior_noise=posterior_noise,
            precision=self.precision,
        )
        kept = out.samples[:, : self.kept].permute(0, 1, 4, 2, 3).flatten(1, 2)
        first, mean = (part.permute(0, 3, 1, 2) for part in (out.samples[:, 0], out.mean))
        return torch.cat([first.float(), mean.float(), out.uncertainty[:, None].float(), kept.float()], dim=1)
