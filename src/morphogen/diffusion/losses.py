"""Training losses, one number per item."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from morphogen.core.errors import ConfigError
from morphogen.diffusion.predictions import (
    PredictionType,
    check_prediction,
    from_x0_eps,
    split_variance,
    to_x0_eps,
)
from morphogen.diffusion.schedules import Schedule

Likelihood = Literal["continuous", "discretised"]


def diffusion_loss(
    network: Callable[..., Tensor],
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    schedule: Schedule,
    *,
    prediction: PredictionType = "epsilon",
    kind: Literal["mse", "l1"] = "mse",
    weight: Literal["min_snr", "wiener"] | None = None,
    gamma: float = 5.0,
    variance: Tensor | None = None,
    learned_variance: bool = False,
    vlb: Likelihood = "continuous",
    condition: Mapping[str, Any] | None = None,
    seen: Tensor | None = None,
) -> dict[str, Tensor]:
    """Loss of ``network(x_t, t, **condition)`` at times ``t``.

    Parameters
    ----------
    x0, noise:
        (B, …) clean data and standard normal noise.
    t:
        (B,) times, see :meth:`Schedule.random_times`.
    kind:
        ``mse`` or ``l1`` on the prediction target.
    weight:
        ``min_snr``: weights of Hang et al. 2023 with ``gamma``. ``wiener``, for networks that predict x0: the error
        counts in units of what the best linear estimate from the same noisy value leaves over
        (:func:`wiener_error`), so that no noise level and no channel outweighs the others.
    variance:
        ``wiener``: of the data, broadcast to ``x0``, for example (C, 1, 1).
    learned_variance:
        The network gives twice the channels; the variational bound (Nichol & Dhariwal 2021) is added, with the mean
        detached so that it trains the variance alone.
    vlb:
        Likelihood of the last step (t = 0). ``continuous`` is a Gaussian density; ``discretised`` has bins of
        1/127.5 and makes sense only for 8-bit images in [−1, 1] (the published Stem and HisDiff use it on genes).

    seen:
        1 where the data are known and 0 where they are not, broadcast to ``x0``; ``None`` for everywhere.

    Returns
    -------
    dict of (B,) tensors: ``loss``; ``mse`` or ``l1`` before weighting; ``vb`` in bits per dimension when
    ``learned_variance``.
    """
    check_prediction(prediction, schedule)
    if kind not in ("mse", "l1"):
        raise ConfigError(f"unknown loss '{kind}'", where="loss", fix="Use mse or l1")
    if weight is not None and (kind != "mse" or weight not in ("min_snr", "wiener")):
        raise ConfigError(
            f"no weight '{weight}' for {kind}", where="loss", fix="Use min_snr with mse, or none"
        )
    if weight == "wiener" and (prediction != "x0" or schedule.kind != "vp"):
        raise ConfigError(
            f"weight '{weight}' is for x0, not for {prediction}", where="loss", fix="Use min_snr or none"
        )
    if (weight == "wiener") != (variance is not None):
        raise ConfigError("weight 'wiener' and the variance of the data belong together", where="loss")
    if learned_variance and schedule.kind != "vp":
        raise ConfigError(
            "a flow has no variance to learn", where="learned_variance", fix="Use a vp schedule"
        )
    x_t = schedule.add_noise(x0, noise, t)
    output = network(x_t, schedule.network_time(t, x_t), **(condition or {}))
    position = None
    if learned_variance:
        output, position = split_variance(output, x_t)
    alpha, sigma = schedule.levels_like(t, x0)
    target = from_x0_eps(prediction, x0, noise, alpha, sigma)
    difference = output.float() - target.float()
    distance = difference.abs() if kind == "l1" else difference**2
    plain = item_means(distance, seen)
    terms = {"loss": plain, kind: plain.detach()}
    if weight == "min_snr":
        terms["loss"] = plain * min_snr_weight(schedule, t, prediction, gamma)
    elif variance is not None:
        terms["loss"] = item_means(distance / wiener_error(variance, alpha, sigma), seen)
    if position is not None:
        predicted_x0 = to_x0_eps(prediction, output.detach().float(), x_t.float(), alpha, sigma)[0]
        terms["vb"] = variational_bound(
            schedule, x0.float(), x_t.float(), t, predicted_x0, position.float(), vlb
        )
        terms["loss"] = terms["loss"] + terms["vb"]
    return terms


def item_means(values: Tensor, seen: Tensor | None = None) -> Tensor:
    """(B,) means of (B, …) per item, over what is ``seen`` (1 or 0, broadcast) only; 0 for an item without any."""
    if seen is None:
        return values.flatten(1).mean(dim=1)
    seen = seen.expand_as(values)
    return (values * seen).flatten(1).sum(dim=1) / seen.flatten(1).sum(dim=1).clamp(min=1)


def min_snr_weight(schedule: Schedule, t: Tensor, prediction: PredictionType, gamma: float = 5.0) -> Tensor:
    """(B,) weights of min-SNR-γ (Hang et al. 2023): a squared error in x0 weighs min(SNR, γ), whatever is predicted.

    On a variance-preserving schedule that is min(SNR, γ) for x0, min(SNR, γ)/SNR for epsilon and
    min(SNR, γ)/(SNR + 1) for v.
    """
    alpha, sigma = schedule.levels(t)
    snr = (alpha / sigma) ** 2
    # How much the target moves, at a fixed x_t, when x0 moves by one.
    moves = {
        "epsilon": alpha / sigma,
        "x0": torch.ones_like(sigma),
        "v": (alpha**2 + sigma**2) / sigma,
        "flow": (alpha + sigma) / sigma,
    }
    return snr.clamp(max=gamma) / moves[prediction] ** 2


def v_weight(schedule: Schedule, t: Tensor, most: float) -> Tensor:
    """(B,) weights with which an error in x0 counts as that in v does on a variance-preserving schedule, 1/σ², but
    ``most`` at most."""
    return (1 / torch.as_tensor(schedule.sigma(t)) ** 2).clamp(max=most)


def wiener_error(variance: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Mean squared error of the best linear estimate of x0 from α·x0 + σ·ε alone: V·σ² / (α²·V + σ²).

    variance: of the data, per channel. A network that is worth its evaluation stays below it.

    >>> wiener_error(torch.tensor(4.0), torch.tensor(0.6), torch.tensor(0.8))
    tensor(1.2308)
    """
    return variance * sigma**2 / (alpha**2 * variance + sigma**2)


def variational_bound(
    schedule: Schedule,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    predicted_x0: Tensor,
    position: Tensor,
    likelihood: Likelihood = "continuous",
) -> Tensor:
    """(B,) terms of the variational bound in bits per dimension (Ho et al. 2020, eq. 5), with learned variance.

    t > 0: KL of the true posterior from the predicted one. t = 0: negative log-likelihood of x0.
    """
    posterior = Posterior.of(schedule, t, x_t)
    true_mean = posterior.mean(x0, x_t)
    mean = posterior.mean(predicted_x0, x_t)
    log_variance = posterior.log_variance(position)
    kl = 0.5 * (
        log_variance
        - posterior.log_small
        - 1
        + torch.exp(posterior.log_small - log_variance)
        + (true_mean - mean) ** 2 * torch.exp(-log_variance)
    )
    if likelihood == "discretised":
        nll = -discretised_log_likelihood(x0, mean, log_variance)
    elif likelihood == "continuous":
        nll = 0.5 * (math.log(2 * math.pi) + log_variance + (x0 - mean) ** 2 * torch.exp(-log_variance))
    else:
        raise ConfigError(
            f"unknown likelihood '{likelihood}'", where="vlb", fix="Use continuous or discretised"
        )
    bits = torch.where(t == 0, nll.flatten(1).mean(1), kl.flatten(1).mean(1))
    return bits / math.log(2)


class Posterior:
    """q(x_{t−1} | x_t, x0) of single training steps (Ho et al. 2020, eq. 6–7), one per item.

    ``log_small`` is log beta~ (at t = 0, where beta~ is zero, that of t = 1), ``log_large`` is log beta.
    """

    def __init__(self, x0_weight: Tensor, x_weight: Tensor, log_small: Tensor, log_large: Tensor) -> None:
        self.x0_weight, self.x_weight = x0_weight, x_weight
        self.log_small, self.log_large = log_small, log_large

    @classmethod
    def of(cls, schedule: Schedule, t: Tensor, like: Tensor) -> Posterior:
        """For integer times (B,), shaped to multiply ``like`` (B, …)."""
        rows = posterior_table(schedule).to(like.device, like.dtype)[:, t]
        return cls(*rows.view(4, -1, *(1,) * (like.ndim - 1)))

    def mean(self, x0: Tensor, x_t: Tensor) -> Tensor:
        """Mean of x_{t−1}."""
        return self.x0_weight * x0 + self.x_weight * x_t

    def log_variance(self, position: Tensor) -> Tensor:
        """From a position in [−1, 1] between the two bounds (Nichol & Dhariwal 2021, eq. 15)."""
        part = 0.5 * (position + 1)
        return part * self.log_large + (1 - part) * self.log_small


def posterior_table(schedule: Schedule) -> Tensor:
    """(4, T) float64: weights of x0 and of x_t in the posterior mean, log beta~ and log beta."""
    bar, beta = schedule.alpha_bar, schedule.betas
    before = torch.cat([bar.new_ones(1), bar[:-1]])
    variance = beta * (1 - before) / (1 - bar)
    log_small = torch.cat([variance[1:2], variance[1:]]).log()
    return torch.stack(
        [
            before.sqrt() * beta / (1 - bar),
            (1 - beta).sqrt() * (1 - before) / (1 - bar),
            log_small,
            beta.log(),
        ]
    )


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log-probability of 8-bit values scaled to [−1, 1] under a Gaussian (Ho et al. 2020, eq. 13).

    The normal distribution function is the tanh approximation of the published code, so that losses agree with it.
    """
    half_bin = 1.0 / 255.0
    scale = torch.exp(-0.5 * log_variance)
    upper = _normal_cdf(scale * (x - mean + half_bin))
    lower = _normal_cdf(scale * (x - mean - half_bin))
    floor = 1e-12
    inside = (upper - lower).clamp(min=floor).log()
    log_upper, log_above = upper.clamp(min=floor).log(), (1 - lower).clamp(min=floor).log()
    return torch.where(x < -0.999, log_upper, torch.where(x > 0.999, log_above, inside))


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
