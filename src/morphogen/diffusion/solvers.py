"""Solvers: from noise to data along the times given, one function per algorithm.

All share one signature. ``x`` is x at ``timesteps[start]``: a tensor, a :class:`~morphogen.diffusion.Canvas`, or the
:class:`~morphogen.diffusion.SolverState` of an earlier run to go on from. The timesteps fall; a step goes from one
entry to the next, and the last one to the data (``final="data"``) or to the schedule's first noise level
(``final="first"``, as samplers with ``set_alpha_to_one=False`` do). ``noise(step)`` gives the noise of a step, shaped
like x; ``condition`` is handed to the denoiser; ``callback(state, prediction)`` is called after each step.

The coefficients are plain numbers, computed in double precision before the first step: nothing in a loop waits for
the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from morphogen.core.errors import ConfigError
from morphogen.diffusion.predictions import Denoiser
from morphogen.diffusion.schedules import Schedule, level_lists
from morphogen.diffusion.state import Callback, SolverState, begin, reached, written

Noise = Callable[[int], Any]
Eta = float | Callable[[float], float] | Sequence[float]
Final = Literal["data", "first"]


@torch.no_grad()
def ddpm(
    denoiser: Denoiser,
    x: Any,
    timesteps: Sequence[float],
    schedule: Schedule,
    *,
    variance: Literal["model", "small", "large", "learned"] = "small",
    noise: Noise | None = None,
    final: Final = "data",
    condition: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    start: int = 0,
) -> Any:
    """Ancestral sampling (Ho et al. 2020, Algorithm 2), over all steps or a subset (Nichol & Dhariwal 2021, sec. 4).

    ``variance`` of a step: ``small`` is the posterior's beta~, ``large`` is beta, ``learned`` lies between as the
    denoiser says, ``model`` is learned where the denoiser says one and small elsewhere. Cutting the steps of this
    sampler shrinks the variance of its samples: use :func:`dpmpp_2m` to go fast.
    """
    if variance not in ("model", "small", "large", "learned"):
        raise ConfigError(
            f"unknown variance '{variance}'", where="variance", fix="Use model, small, large or learned"
        )
    alpha, sigma = path_levels(timesteps, schedule, final)
    state = begin(x, start)
    x = state.x
    for i in range(state.step, len(timesteps)):
        predicted = denoiser(x, timesteps[i], **(condition or {}))
        beta, beta_posterior = _betas(alpha, sigma, i)
        x_weight = alpha[i] / alpha[i + 1] * sigma[i + 1] ** 2 / sigma[i] ** 2
        mean = x_weight * x + alpha[i + 1] * beta / sigma[i] ** 2 * predicted.x0
        if beta_posterior == 0:  # into the data
            x = mean
        elif variance == "learned" or (variance == "model" and predicted.variance_position is not None):
            if predicted.variance_position is None:
                raise ConfigError(
                    "this denoiser has no learned variance", where="variance", fix="Use small or large"
                )
            part = 0.5 * (predicted.variance_position + 1)
            log_variance = part * math.log(beta) + (1 - part) * math.log(beta_posterior)
            x = mean + (0.5 * log_variance).exp() * _draw(noise, i, x)
        else:
            x = mean + math.sqrt(beta if variance == "large" else beta_posterior) * _draw(noise, i, x)
        x = reached(callback, i + 1, x, predicted)
    return x


@torch.no_grad()
def ddim(
    denoiser: Denoiser,
    x: Any,
    timesteps: Sequence[float],
    schedule: Schedule,
    *,
    eta: Eta = 0.0,
    noise: Noise | None = None,
    final: Final = "data",
    condition: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    start: int = 0,
) -> Any:
    """DDIM (Song et al. 2021, eq. 12 and 16).

    ``eta`` 0 is deterministic, 1 has the variance of the ancestral sampler. A function is asked for it with the
    progress i/(N−1), 0 at the noisiest step and 1 at the cleanest; a sequence holds one value per step.
    """
    alpha, sigma = path_levels(timesteps, schedule, final)
    etas = _etas(eta, len(timesteps))
    state = begin(x, start)
    x = state.x
    for i in range(state.step, len(timesteps)):
        predicted = denoiser(x, timesteps[i], **(condition or {}))
        std = etas[i] * math.sqrt(_betas(alpha, sigma, i)[1])
        x = alpha[i + 1] * predicted.x0 + math.sqrt(max(sigma[i + 1] ** 2 - std**2, 0)) * predicted.eps
        if std > 0:
            x = x + std * _draw(noise, i, x)
        x = reached(callback, i + 1, x, predicted)
    return x


@torch.no_grad()
def ddim_invert(
    denoiser: Denoiser,
    x: Any,
    timesteps: Sequence[float],
    schedule: Schedule,
    *,
    refine: int = 0,
    after_step: Callable[[Any], Any] | None = None,
    condition: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    start: int = 0,
) -> Any:
    """DDIM run upwards: from data to the noise that DDIM would make it from.

    ``timesteps`` is the falling list DDIM will use; it is walked from its end. A step goes from the level p that x is
    at (before the first step: the schedule's first level) up to t; the network is told t, while x0 and eps are taken
    at level p. The network's answer at p stands for the one at t, so going back down with :func:`ddim` misses the
    start by O(1/N). ``refine`` > 0 corrects each step that many times by what going back down missed
    (``x_t ← x_t + x_p − ddim(x_t)``), each at the cost of an evaluation. ``after_step`` is
    applied to x after every step.
    """
    upwards = list(timesteps)[::-1]
    alpha, sigma = level_lists(schedule, [schedule.first, *upwards])
    _check_falling(timesteps)
    conditions = dict(condition or {})
    state = begin(x, start)
    x = state.x
    for i in range(state.step, len(upwards)):
        level = upwards[i - 1] if i > 0 else schedule.first
        predicted = denoiser(x, level, network_time=upwards[i], **conditions)
        x_next = alpha[i + 1] * predicted.x0 + sigma[i + 1] * predicted.eps
        for _ in range(refine):
            x_next = written(x_next)
            down = denoiser(x_next, upwards[i], **conditions)
            x_next = x_next + (x - (alpha[i] * down.x0 + sigma[i] * down.eps))
        if after_step is not None:
            x_next = after_step(x_next)
        x = reached(callback, i + 1, x_next, predicted)
    return x


@torch.no_grad()
def dpmpp_2m(
    denoiser: Denoiser,
    x: Any,
    timesteps: Sequence[float],
    schedule: Schedule,
    *,
    sde: bool = False,
    noise: Noise | None = None,
    final: Final = "data",
    condition: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    start: int = 0,
) -> Any:
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2), or its SDE form (their section 5) when ``sde``.

    Second order in the step of λ = log(alpha/sigma) from one evaluation a step; meant for the ``log_snr`` spacing.
    Steps out of pure noise and into the data are infinitely long in λ and fall back to first order by themselves.
    """
    alpha, sigma = path_levels(timesteps, schedule, final)
    lam = [half_log_snr(a, s) for a, s in zip(alpha, sigma)]
    state = begin(x, start)
    x, before = state.x, state.history
    for i in range(state.step, len(timesteps)):
        predicted = denoiser(x, timesteps[i], **(condition or {}))
        h = lam[i + 1] - lam[i]
        target = predicted.x0
        if before and math.isfinite(h):
            slope = 0.5 * h / (lam[i] - lam[i - 1])  # 1/(2r) of the paper; 0 after a step out of pure noise
            target = (1 + slope) * predicted.x0 - slope * before[0]
        before = (predicted.x0,)
        if sde:
            x = sigma[i + 1] / sigma[i] * math.exp(-h) * x - alpha[i + 1] * math.expm1(-2 * h) * target
            if sigma[i + 1] > 0:
                x = x + sigma[i + 1] * math.sqrt(-math.expm1(-2 * h)) * _draw(noise, i, x)
        else:
            x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * math.expm1(-h) * target
        x = reached(callback, i + 1, x, predicted, before)
    return x


@torch.no_grad()
def plms(
    denoiser: Denoiser,
    x: Any,
    timesteps: Sequence[float],
    schedule: Schedule,
    *,
    final: Final = "data",
    condition: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    start: int = 0,
) -> Any:
    """Pseudo linear multistep (Liu et al. 2022, Algorithm 2, with one Heun step to warm up).

    Adams–Bashforth of order up to four on eps, put into the DDIM step. Here to reproduce published results.
    """
    alpha, sigma = path_levels(timesteps, schedule, final)
    if alpha[0] == 0:
        raise ConfigError(
            "PLMS works on eps and cannot start from pure noise", where="solver", fix="Use ddim"
        )

    def transfer(x: Any, eps: Any, i: int) -> Any:
        return alpha[i + 1] * ((x - sigma[i] * eps) / alpha[i]) + sigma[i + 1] * eps

    state = begin(x, start)
    x, past = state.x, state.history
    for i in range(state.step, len(timesteps)):
        predicted = denoiser(x, timesteps[i], **(condition or {}))
        eps = predicted.eps
        match past:
            case ():
                ahead = timesteps[min(i + 1, len(timesteps) - 1)]
                there = denoiser(written(transfer(x, eps, i)), ahead, **(condition or {})).eps
                slope = (eps + there) / 2
            case (e1,):
                slope = (3 * eps - e1) / 2
            case (e1, e2):
                slope = (23 * eps - 16 * e1 + 5 * e2) / 12
            case (e1, e2, e3):
                slope = (55 * eps - 59 * e1 + 37 * e2 - 9 * e3) / 24
        past = (eps, *past)[:3]
        x = reached(callback, i + 1, transfer(x, slope, i), predicted, past)
    return x


@torch.no_grad()
def euler(
    denoiser: Denoiser,
    x: Any,
    timesteps: Sequence[float],
    schedule: Schedule,
    *,
    condition: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    start: int = 0,
) -> Any:
    """Euler's method for the flow ``dx/dt = eps − x0`` (Liu et al. 2023). First order, one evaluation a step."""
    times = _flow_times(timesteps, schedule)
    state = begin(x, start)
    x = state.x
    for i in range(state.step, len(timesteps)):
        predicted = denoiser(x, times[i], **(condition or {}))
        x = x + (times[i + 1] - times[i]) * (predicted.eps - predicted.x0)
        x = reached(callback, i + 1, x, predicted)
    return x


@torch.no_grad()
def heun(
    denoiser: Denoiser,
    x: Any,
    timesteps: Sequence[float],
    schedule: Schedule,
    *,
    condition: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    start: int = 0,
) -> Any:
    """Heun's method for the flow (Karras et al. 2022, Algorithm 1, on straight lines).

    Second order; two evaluations a step, but one in the last, which ends at the data where there is nothing to ask.
    """
    times = _flow_times(timesteps, schedule)
    state = begin(x, start)
    x = state.x
    for i in range(state.step, len(timesteps)):
        h = times[i + 1] - times[i]
        predicted = denoiser(x, times[i], **(condition or {}))
        slope = predicted.eps - predicted.x0
        if times[i + 1] > 0:
            there = denoiser(written(x + h * slope), times[i + 1], **(condition or {}))
            slope = 0.5 * (slope + (there.eps - there.x0))
        x = reached(callback, i + 1, x + h * slope, predicted)
    return x


# -- coefficients ----------------------------------------------------------------------------------------------


def path_levels(
    timesteps: Sequence[float], schedule: Schedule, final: Final
) -> tuple[list[float], list[float]]:
    """alpha and sigma at every time and where the last step ends: N + 1 numbers each."""
    _check_falling(timesteps)
    if final not in ("data", "first"):
        raise ConfigError(f"unknown final '{final}'", where="final", fix="Use data or first")
    alpha, sigma = level_lists(schedule, timesteps)
    if sigma[-1] == 0:
        raise ConfigError(
            "the last time is the data itself: there is no step to make from it", where="timesteps"
        )
    end = (1.0, 0.0) if final == "data" else tuple(v[0] for v in level_lists(schedule, [schedule.first]))
    return [*alpha, end[0]], [*sigma, end[1]]


def _check_falling(timesteps: Sequence[float]) -> None:
    if len(timesteps) == 0 or any(b >= a for a, b in zip(timesteps, timesteps[1:])):
        raise ConfigError("timesteps must be a strictly falling list of at least one time", where="timesteps")


def _betas(alpha: list[float], sigma: list[float], i: int) -> tuple[float, float]:
    """Variance of the step i → i+1 and of its posterior, for any schedule (Kingma et al. 2021, eq. 25 and 31)."""
    beta = max(sigma[i] ** 2 - (alpha[i] / alpha[i + 1] * sigma[i + 1]) ** 2, 0.0)
    return beta, beta * sigma[i + 1] ** 2 / sigma[i] ** 2


def _etas(eta: Eta, n: int) -> list[float]:
    if callable(eta):
        values = [float(eta(i / max(n - 1, 1))) for i in range(n)]
    elif isinstance(eta, Sequence):
        values = [float(each) for each in eta]
    else:
        values = [float(eta)] * n
    if len(values) != n or not all(0 <= value <= 1 for value in values):
        raise ConfigError(f"eta must be within [0, 1] at each of the {n} steps", where="eta")
    return values


def half_log_snr(alpha: float, sigma: float) -> float:
    if alpha == 0:
        return -math.inf
    return math.inf if sigma == 0 else math.log(alpha) - math.log(sigma)


def _flow_times(timesteps: Sequence[float], schedule: Schedule) -> list[float]:
    if schedule.kind != "flow":
        raise ConfigError("Euler and Heun follow a flow", where="schedule", fix="Use ddim or dpmpp_2m here")
    path_levels(timesteps, schedule, "data")
    return [*timesteps, 0.0]


def _draw(noise: Noise | None, step: int, x: Any) -> Any:
    if noise is None:
        raise ConfigError(
            "this sampler adds noise at its steps", where="noise", fix="Give noise, e.g. an ItemNoise"
        )
    drawn = noise(step)
    if not isinstance(drawn, Tensor):
        return drawn
    if x.device.type == "cuda" and drawn.device.type == "cpu":
        return drawn.pin_memory().to(x.device, x.dtype, non_blocking=True)  # without waiting for the network
    return drawn.to(x.device, x.dtype)


__all__ = ["SolverState", "ddim", "ddim_invert", "ddpm", "dpmpp_2m", "euler", "heun", "plms"]
