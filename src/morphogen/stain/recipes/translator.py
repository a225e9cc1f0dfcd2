"""A stain model as what :mod:`morphogen.tasks.bands` translates images with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from morphogen.core.errors import ConfigError
from morphogen.slides.recolouring import Normaliser
from morphogen.stain.config import ApplyConfig
from morphogen.stain.model import StainTransfer
from morphogen.stain.recipes.sampling import noise_scales
from morphogen.stain.targets.config import TargetConfig
from morphogen.tasks.streams.noise import ImageNoise
from morphogen.tasks.windows import WindowPlan


@dataclass(frozen=True)
class Planes:
    """Which planes hold what: first sample, mean, uncertainty, then all samples that are kept."""

    target: TargetConfig

    @property
    def mean(self) -> int:
        """First plane of the mean; those of the first sample begin at 0."""
        return self.target.width

    @property
    def uncertainty(self) -> int:
        """First plane of the uncertainty."""
        return 2 * self.target.width

    @property
    def samples(self) -> int:
        """First plane of the samples that are kept."""
        return self.uncertainty + (1 if self.target.colour else self.target.width)


def check_settings(model: StainTransfer, config: ApplyConfig) -> None:
    """:class:`ConfigError` for settings that the model cannot follow, or of which nothing would be seen."""
    kinds = {
        "mean_weight": ("residuals", model.mean),
        "sample_spread": ("residuals", model.mean),
        "effect_spread": ("image_effects", model.config.image_effects),
    }
    for name, (kind, has) in kinds.items():
        if getattr(config, name) != 1 and has is None:
            raise ConfigError(f"this is no model of {kind}", where=name, fix="Leave it out")
    if config.samples > 1 and (model.config.regression or config.sampler.solver == "mean"):
        what = "a regression" if model.config.regression else "solver 'mean'"
        raise ConfigError(
            f"{what} has one answer, of which no uncertainty can be told", where="samples", fix="Use 1"
        )
    inverts = config.sampler.inversion_steps and config.sampler.solver != "mean"
    if inverts and not model.config.regression and not model.config.target.colour:
        raise ConfigError(
            "a model of channels cannot generate H&E, which inversion needs",
            where="sampler.inversion_steps",
            fix="Use --solver fast",
        )


class StainTranslator:
    """Windows of H&E → planes of the stain: first sample (C), mean (C), uncertainty (1 or C), and all K samples (C·K)
    where they are kept. Colours lie in 0…255 and their uncertainty is the SD of the DAB optical density; channels are
    intensities, with the SD of each.

    ``light`` sets windows of a slide beside all others, for a model that asks for it.
    """

    def __init__(
        self,
        model: StainTransfer,
        config: ApplyConfig | None = None,
        *,
        precision: str = "fp32",
        keep_samples: bool = False,
        light: Normaliser | None = None,
    ) -> None:
        self.model, self.config, self.precision = model, config or ApplyConfig(), precision
        check_settings(model, self.config)
        self.light, self.laid = light, Planes(model.config.target)
        self.kept = self.config.samples if keep_samples else 0
        self.multiple, self.factor = model.multiple, model.factor
        self.crop, self.mpp = model.crop, model.mpp
        self.planes = self.laid.samples + self.laid.target.width * self.kept
        self.device, self.lanes = model.device, model.lanes
        how: dict[str, Any] = {"precision": precision, "keep_samples": keep_samples, "light": light}
        self.replicas = [StainTranslator(other, self.config, **how) for other in model.others]

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
            scales=noise_scales(self.model.config),
        )

    def expect(self, batches: int) -> None:
        """So many batches are ahead: whether to compile (:meth:`~morphogen.tasks.pretrained.Pretrained.expect`)."""
        sampler = self.config.sampler
        calls = batches * (sampler.steps + sampler.inversion_steps) / (1 + len(self.model.others))
        for model in (self.model, *self.model.others):
            model.expect(calls)

    def make(
        self, images: np.ndarray, noise: Callable[[int], Tensor] | None, posterior_noise: Tensor | None
    ) -> Tensor:
        """One batch of windows (B, window, window, 3) uint8 through the model."""
        if self.light is not None:
            images = self.light(images)
        out = self.model(
            torch.from_numpy(images),
            self.config.sampler,
            stain=self.config.stain,
            samples=self.config.samples,
            noise=noise,
            posterior_noise=posterior_noise,
            precision=self.precision,
            mean_weight=self.config.mean_weight,
            sample_spread=self.config.sample_spread,
            effect_spread=self.config.effect_spread,
        )
        kept = out.samples[:, : self.kept].permute(0, 1, 4, 2, 3).flatten(1, 2)
        first, mean = (part.permute(0, 3, 1, 2) for part in (out.samples[:, 0], out.mean))
        doubt = out.uncertainty[:, None] if self.laid.target.colour else out.uncertainty.permute(0, 3, 1, 2)
        return torch.cat([first.float(), mean.float(), doubt.float(), kept.float()], dim=1)
