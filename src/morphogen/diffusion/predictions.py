"""What a network predicts, and the one place that converts between the ways of saying it.

With ``x = alpha·x0 + sigma·eps`` known, any one of x0, eps, v and the flow velocity gives all others:

===========  ==========================  =================================
``epsilon``  the noise                   eps
``x0``       the data                    x0
``v``        Salimans & Ho 2022          alpha·eps − sigma·x0
``flow``     velocity of a straight line eps − x0
===========  ==========================  =================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from morphogen.core.devices import autocast
from morphogen.core.errors import ConfigError, nearest
from morphogen.diffusion.schedules import Schedule, Time

PredictionType = Literal["epsilon", "x0", "v", "flow"]


class Prediction(NamedTuple):
    """What a denoiser says about x: ``x = alpha·x0 + sigma·eps`` holds for the first two."""

    x0: Tensor
    """The expected clean data, shaped like x."""
    eps: Tensor
    """The expected noise, shaped like x."""
    variance_position: Tensor | None = None
    """The learned log-variance of a reverse step, as a position in [−1, 1] between its two bounds: −1 is log beta~,
    +1 is log beta (Nichol & Dhariwal 2021, eq. 15). The bounds depend on where the step goes, which only the solver
    knows; that is why the position and not the variance is handed on."""

    @property
    def log_variance(self) -> Tensor | None:
        """The earlier name of :attr:`variance_position`."""
        return self.variance_position


class Denoiser(Protocol):
    """``denoiser(x, t, **condition) -> Prediction``: the contract that everything here composes around.

    ``x`` (B, …) is at the level of time ``t``, a number or one per item (B,). A denoiser ignores conditions
    it does not know.
    """

    def __call__(self, x: Tensor, t: Time, /, **condition: Any) -> Prediction: ...


def check_prediction(prediction: str, schedule: Schedule) -> None:
    """:class:`ConfigError` when ``prediction`` is unknown, or undefined at this schedule's last step."""
    if prediction not in get_args(PredictionType):
        raise _unknown(prediction)
    if prediction == "epsilon" and schedule.zero_snr:
        raise ConfigError(
            "an epsilon-model cannot start from pure noise: at zero signal-to-noise ratio its output is x itself "
            "and says nothing about the data",
            where="prediction",
            fix="Use v or x0 with this schedule, or a schedule without zero terminal SNR",
        )


def to_x0_eps(kind: str, output: Tensor, x: Tensor, alpha: Time, sigma: Time) -> tuple[Tensor, Tensor]:
    """``(x0, eps)`` from a network's ``output`` of type ``kind`` at ``x``; any schedule kind."""
    if kind == "epsilon":
        return (x - sigma * output) / alpha, output
    if kind == "x0":
        if not isinstance(sigma, Tensor) and sigma == 0:
            raise ConfigError("an x0-model says nothing about the noise of clean data", where="prediction")
        return output, (x - alpha * output) / sigma
    if kind == "v":
        norm = alpha * alpha + sigma * sigma  # 1 for variance-preserving schedules
        return (alpha * x - sigma * output) / norm, (sigma * x + alpha * output) / norm
    if kind != "flow":
        raise _unknown(kind)
    total = alpha + sigma  # 1 for flow schedules
    return (x - sigma * output) / total, (x + alpha * output) / total


def from_x0_eps(kind: str, x0: Tensor, eps: Tensor, alpha: Time, sigma: Time) -> Tensor:
    """What a perfect network of type ``kind`` would put out: the training target, too."""
    if kind == "epsilon":
        return eps
    if kind == "x0":
        return x0
    if kind == "v":
        return alpha * eps - sigma * x0
    if kind != "flow":
        raise _unknown(kind)
    return eps - x0


def _unknown(kind: str) -> ConfigError:
    hint = nearest(kind, get_args(PredictionType))
    return ConfigError(f"unknown prediction type '{kind}'.{hint}", fix="Use epsilon, x0, v or flow")


def split_variance(output: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean output and variance position of a network with learned variance.

    The output is (B, 2C, …) for x (B, C, …), or (B, 2, G) for x (B, G).
    """
    if output.ndim == x.ndim + 1 and output.shape[1] == 2:
        return output[:, 0], output[:, 1]
    if output.ndim != x.ndim or output.shape[1] != 2 * x.shape[1]:
        raise ConfigError(
            f"a network with learned variance must give twice the channels of its input {tuple(x.shape)}, "
            f"not {tuple(output.shape)}",
            where="learned_variance",
        )
    mean, variance = output.chunk(2, dim=1)
    return mean, variance


def network_denoiser(
    network: Callable[..., Tensor],
    schedule: Schedule,
    prediction: PredictionType = "epsilon",
    *,
    learned_variance: bool = False,
    precision: str = "fp32",
) -> Denoiser:
    """Turn ``network(x, t, **condition)`` into a denoiser, once.

    Parameters
    ----------
    network:
        Given x (B, …), times (B,) float32 and the conditions; answers with a tensor shaped like x, or with twice the
        channels when ``learned_variance``.
    prediction:
        What the output means. ``epsilon`` with a zero-SNR schedule is a :class:`ConfigError`.
    precision:
        ``fp32``, ``bf16`` or ``fp16``: autocast around the network alone. Levels, conversions and the solver's state
        stay in x's own precision.

    The denoiser takes one keyword of its own, ``network_time``: the time the network is told when that is not the
    level x is at (the DDIM inversion of :func:`~morphogen.diffusion.ddim_invert`).
    """
    check_prediction(prediction, schedule)

    def denoiser(x: Tensor, t: Time, /, *, network_time: Time | None = None, **condition: Any) -> Prediction:
        told = schedule.network_time(t if network_time is None else network_time, x)
        with autocast(x.device, precision):
            output = network(x, told, **condition)
        position = None
        if learned_variance:
            output, position = split_variance(output, x)
            position = position.to(x.dtype)
        alpha, sigma = schedule.levels_like(t, x)
        return Prediction(*to_x0_eps(prediction, output.to(x.dtype), x, alpha, sigma), position)

    return denoiser


def clipped(denoiser: Denoiser, schedule: Schedule, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """Keep x0 within the range of the data, and eps consistent with it (Ho et al. 2020 for images in [−1, 1])."""

    def clip(x: Tensor, t: Time, /, **condition: Any) -> Prediction:
        predicted = denoiser(x, t, **condition)
        alpha, sigma = schedule.levels_like(t, x)
        x0 = torch.clamp(predicted.x0, low, high)
        return Prediction(x0, (x - alpha * x0) / sigma, predicted.variance_position)

    return clip
