"""Data whose exact denoiser is known in closed form: to test samplers without a network.

For a mixture of Gaussians noised to ``x = alpha·x0 + sigma·eps``, every component stays Gaussian, so
``E[x0 | x]`` is a weighted mean of linear functions. A solver run with this denoiser makes no error but its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from morphogen.core.errors import ConfigError
from morphogen.diffusion.predictions import Denoiser, Prediction
from morphogen.diffusion.schedules import Schedule, Time


class Mixture:
    """A mixture of K Gaussians per element.

    Parameters
    ----------
    weights:
        (K,) or (K, *item): probabilities, summing to 1 over K.
    means, stds:
        (K, *item): mean and standard deviation of each component at each element; a standard deviation may be zero.
    joint:
        ``False``: elements are independent. ``True``: an item has one component for all its elements, which makes
        them dependent (weights must be (K,)).
    """

    def __init__(self, weights: Tensor, means: Tensor, stds: Tensor, *, joint: bool = False) -> None:
        self.means, self.stds = torch.broadcast_tensors(means.double(), stds.double())
        shape = (len(weights),) + (1,) * (self.means.ndim - weights.ndim) + tuple(weights.shape[1:])
        if len(weights) != len(self.means) or (joint and weights.ndim > 1):
            raise ConfigError("one weight per component is needed", where="Mixture")
        self.weights = weights.double().reshape(shape)
        self.joint = joint

    @classmethod
    def gaussian(cls, mean: Tensor, std: Tensor) -> Mixture:
        """One Gaussian per element: ``mean`` and ``std`` (*item)."""
        return cls(torch.ones(1), mean[None], std[None])

    @classmethod
    def zero_inflated(cls, zero: Tensor, mean: Tensor, std: Tensor, spike: float = 0.02) -> Mixture:
        """Gene-like: with probability ``zero`` a spike of standard deviation ``spike`` at 0, else a Gaussian."""
        return cls(
            torch.stack([zero, 1 - zero]),
            torch.stack([torch.zeros_like(mean), mean]),
            torch.stack([torch.full_like(std, spike), std]),
        )

    @property
    def mean(self) -> Tensor:
        """(*item): mean of the data."""
        return (self.weights * self.means).sum(0)

    @property
    def variance(self) -> Tensor:
        """(*item): variance of the data."""
        return (self.weights * (self.stds**2 + self.means**2)).sum(0) - self.mean**2

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, *item) draws, float64."""
        item = self.means.shape[1:]
        weights = self.weights.expand(-1, *((1,) * len(item) if self.joint else item))
        cumulated = weights.cumsum(0)[:-1]
        u = torch.rand(n, *weights.shape[1:], generator=generator, dtype=torch.float64)
        which = (u[:, None] >= cumulated).sum(1).expand(n, *item)
        normal = torch.randn(n, *item, generator=generator, dtype=torch.float64)
        return self.means.gather(0, which) + self.stds.gather(0, which) * normal

    def denoiser(self, schedule: Schedule) -> Denoiser:
        """The exact ``E[x0 | x]`` and ``E[eps | x]``, in x's precision; conditions are ignored."""

        def denoise(x: Tensor, t: Time, /, **condition: Any) -> Prediction:
            alpha, sigma = schedule.levels_like(t, x)
            mean, std, log_weight = (
                part.to(x.device, x.dtype)[:, None] for part in (self.means, self.stds, self.weights.log())
            )
            variance = (alpha * std) ** 2 + sigma * sigma  # (K, 1, *item)
            away = x - alpha * mean  # (K, B, *item)
            if len(mean) == 1:
                share = torch.ones_like(mean)
            else:
                log_density = -0.5 * (away**2 / variance + torch.log(variance))
                if self.joint:
                    log_density = log_density.flatten(2).sum(-1).view(*away.shape[:2], *(1,) * (x.ndim - 1))
                # Not softmax, whose rounding depends on the size of the batch.
                share = log_weight + log_density
                share = torch.exp(share - share.amax(0))
                share = share / share.sum(0)
            x0 = (share * (mean + alpha * std**2 / variance * away)).sum(0)
            eps = (share * (sigma / variance * away)).sum(0)
            return Prediction(x0, eps)

        return denoise

    def transport(self, schedule: Schedule, x: Tensor, t_from: float, t_to: float) -> Tensor:
        """Where the probability-flow ODE takes ``x`` from one time to another, exactly; one component only.

        ``x_t = alpha_t·mean + s_t·z`` with z fixed and ``s_t² = alpha_t²·std² + sigma_t²``. Data itself is reached by
        :meth:`to_data`.
        """
        here, there = schedule.levels(t_from), schedule.levels(t_to)
        return self._move(x, here, there)

    def to_data(self, schedule: Schedule, x: Tensor, t_from: float) -> Tensor:
        """The data point whose flow passes through ``x`` at ``t_from``; one component only."""
        return self._move(x, schedule.levels(t_from), (1.0, 0.0))

    def _move(self, x: Tensor, here: tuple[Any, Any], there: tuple[Any, Any]) -> Tensor:
        if len(self.means) != 1:
            raise ConfigError("the flow has a closed form for one Gaussian only", where="Mixture")
        mean, std = self.means[0].to(x), self.stds[0].to(x)
        spread = [torch.sqrt((alpha * std) ** 2 + sigma**2) for alpha, sigma in (here, there)]
        return there[0] * mean + spread[1] / spread[0] * (x - here[0] * mean)
