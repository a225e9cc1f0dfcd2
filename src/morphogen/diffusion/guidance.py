"""Classifier-free guidance, as denoisers made from denoisers.

One convention everywhere: ``eps = eps_u + s·(eps_c − eps_u)``; s = 1 is no guidance. Papers that write
``(1 + w)·eps_c − w·eps_u`` have s = 1 + w. The conditional and the unconditional half go through the network as one
batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from morphogen.core.errors import ConfigError
from morphogen.diffusion.predictions import Denoiser, Prediction, from_x0_eps, to_x0_eps
from morphogen.diffusion.schedules import Schedule, Time


def guided(
    denoiser: Denoiser,
    null: Mapping[str, Any],
    scale: float,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
    *,
    of: Literal["epsilon", "x0", "v", "flow"] = "v",
    schedule: Schedule | None = None,
) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2022).

    Parameters
    ----------
    null:
        The conditions of the unconditional half, by name: a tensor with one row per item or one row for all, or a
        number to fill it with. Conditions not named here are the same in both halves.
    scale:
        s. At s = 1 the unconditional half is not evaluated.
    interval:
        ``(low, high)``: guide only at times low ≤ t ≤ high (Kynkäänniemi et al. 2024), else conditional only.
    rescale:
        φ in [0, 1] of Lin et al. 2024, eq. 14–16: pull the standard deviation over an item towards that of the
        conditional prediction, against over-exposure at high scales. It acts on the quantity ``of`` (the
        paper's networks predict v) and needs the ``schedule``.
    """
    if not 0 <= rescale <= 1:
        raise ConfigError(f"rescale must be within [0, 1], not {rescale}", where="guidance")
    if rescale and schedule is None:
        raise ConfigError("rescaled guidance needs the schedule", where="guidance", fix="Give schedule=")

    def guide(x: Tensor, t: Time, /, **condition: Any) -> Prediction:
        if scale == 1 or not _within(t, interval):
            return denoiser(x, t, **condition)
        with_c, without = _both(denoiser, null, x, t, condition)
        x0 = torch.lerp(without.x0, with_c.x0, scale)
        eps = torch.lerp(without.eps, with_c.eps, scale)
        if rescale and schedule is not None:
            alpha, sigma = schedule.levels_like(t, x)
            wanted = from_x0_eps(of, with_c.x0, with_c.eps, alpha, sigma)
            got = from_x0_eps(of, x0, eps, alpha, sigma)
            dims = tuple(range(1, x.ndim))
            factor = wanted.std(dims, keepdim=True) / got.std(dims, keepdim=True)
            x0, eps = to_x0_eps(of, got * (rescale * factor + (1 - rescale)), x, alpha, sigma)
        return Prediction(x0, eps, with_c.variance_position)

    return guide


def gradient_guided(
    denoiser: Denoiser,
    distance: Callable[[Tensor, Tensor], Tensor],
    schedule: Schedule,
    *,
    rate: float = 1.0,
    steps: int = 1,
    interval: tuple[float, float] | None = None,
    wanted: str = "wanted",
    space: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None = None,
    over: Callable[[Callable[[Tensor, Tensor], Tensor], Any, Any], Any] | None = None,
) -> Denoiser:
    """Pull what is predicted towards what a differentiable measure says it should be.

    The gradient is taken at the predicted x0 alone and not through the network (manifold-preserving guidance, He et
    al. 2024; the backward guidance of Bansal et al. 2023), so that it costs evaluations of the measure only. The next
    steps of the solver turn the corrected x0 into something the network finds likely.

    Parameters
    ----------
    distance:
        ``distance(x0, wanted)`` → (B,), at least 0, with a gradient to x0 (B, …).
    rate, steps:
        Each of ``steps`` corrections goes ``rate`` times as far as would bring the distance to 0 if it were linear
        (Polyak 1969), but no pixel further on average than the noise level σ that the prediction is made at.
    interval:
        ``(low, high)``: act only at times low ≤ t ≤ high, else not at all.
    wanted:
        Name of the condition that says what is wanted, one row per item; the denoiser is not given it.
    space:
        ``(there, back)``: an exact change of coordinates in which the gradient is taken and ``distance`` is given x0.
        Which way is steepest depends on the coordinates: in latents whose channels stand for unequal amounts of the
        picture, a correction would nearly all lie in the largest. ``None``: those of x.
    over:
        ``over(pull, x0, wanted)`` → x0, how ``pull(items, wanted)`` is carried over a canvas, such as
        :func:`~morphogen.diffusion.map_windows` does. ``None``: x0 is itself a batch of items.
    """

    def guide(x: Tensor, t: Time, /, **condition: Any) -> Prediction:
        aim = condition.pop(wanted)
        predicted = denoiser(x, t, **condition)
        if not rate or not _within(t, interval):
            return predicted
        alpha, sigma = schedule.levels_like(t, x)
        most = float(sigma) / steps

        def pull(items: Tensor, wanted: Tensor) -> Tensor:
            return items - _polyak(distance, items, wanted, rate, most, space)

        x0 = predicted.x0
        for _ in range(steps):
            x0 = pull(x0, aim) if over is None else over(pull, x0, aim)
        return Prediction(x0, (x - alpha * x0) / sigma, predicted.variance_position)

    return guide


def _polyak(
    distance: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    aim: Tensor,
    rate: float,
    most: float,
    space: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None,
) -> Tensor:
    """The correction of one step per item, of root mean square ``most`` at most."""
    there, back = space or (_same, _same)
    with torch.enable_grad():
        free = there(x0.detach()).detach().requires_grad_(True)
        size = distance(free, aim)
        (slope,) = torch.autograd.grad(size.sum(), free)
    dims = tuple(range(1, x0.ndim))
    power = slope.square().sum(dims, keepdim=True).clamp(min=1e-20)
    moved = free.detach() - rate * size.detach().view(-1, *(1,) * len(dims)) / power * slope
    step = x0 - back(moved)
    spread = step.square().mean(dims, keepdim=True).sqrt()
    return step * (most / spread.clamp(min=1e-12)).clamp(max=1)


def _same(x: Tensor) -> Tensor:
    return x


def column_guided(denoiser: Denoiser, null: Mapping[str, Any], scale: float, schedule: Schedule) -> Denoiser:
    """The guidance of STEDM's published code, to reproduce its images; otherwise use :func:`guided`.

    eps is guided, its standard deviation over channel and height (so one per image column) is set to that of the
    conditional eps, and the result is mixed 0.7 : 0.3 with the conditional eps. x is (B, C, H, W).
    """

    def guide(x: Tensor, t: Time, /, **condition: Any) -> Prediction:
        with_c, without = _both(denoiser, null, x, t, condition)
        eps = torch.lerp(without.eps, with_c.eps, scale)
        factor = with_c.eps.std((1, 2), keepdim=True) / eps.std((1, 2), keepdim=True)
        eps = 0.7 * (eps * factor) + 0.3 * with_c.eps
        alpha, sigma = schedule.levels_like(t, x)
        return Prediction(*to_x0_eps("epsilon", eps, x, alpha, sigma), with_c.variance_position)

    return guide


def _both(
    denoiser: Denoiser, null: Mapping[str, Any], x: Tensor, t: Time, condition: Mapping[str, Any]
) -> tuple[Prediction, Prediction]:
    """The conditional and the unconditional prediction from one batch of 2B."""
    n = x.shape[0]
    for name in null:
        if name not in condition:
            raise ConfigError(f"guidance needs the condition '{name}'", where="guidance", fix="Give it")
        if not isinstance(condition[name], Tensor):
            raise ConfigError(
                f"the condition '{name}' is not a tensor of items, so it has no unconditional half",
                where="guidance",
                fix="Guide inside the windows: windowed(guided(denoiser, …), …)",
            )
    doubled = {name: _pair(value, null.get(name, value), n) for name, value in condition.items()}
    times = torch.cat([t, t]) if isinstance(t, Tensor) and t.ndim else t
    both = denoiser(torch.cat([x, x]), times, **doubled)
    halves = [(None, None) if part is None else (part[:n], part[n:]) for part in both]
    return Prediction(*(half[0] for half in halves)), Prediction(*(half[1] for half in halves))


def _pair(value: Any, null: Any, n: int) -> Any:
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    other = null.to(value) if isinstance(null, Tensor) else torch.full_like(value[:1], null)
    if other.ndim < value.ndim:  # one row without the axis of items
        other = other[None]
    return torch.cat([part.expand(n, *part.shape[1:]) for part in (value, other)])


def _within(t: Time, interval: tuple[float, float] | None) -> bool:
    if interval is None:
        return True
    if isinstance(t, Tensor):
        raise ConfigError(
            "a guidance interval needs one time for the batch, not one per item", where="interval"
        )
    return interval[0] <= t <= interval[1]


def pinned(denoiser: Denoiser, known: Tensor, keep: Tensor, schedule: Schedule) -> Denoiser:
    """The denoiser, but x0 is ``known`` where ``keep`` is 1 and mixed with it in between.

    known: (B, C, H, W) clean data. keep: (B or 1, 1, H, W) in [0, 1]. eps is taken anew from x, so that
    ``x = alpha·x0 + sigma·eps`` holds: under a deterministic solver that starts at ``alpha·known + sigma·noise`` the
    known part of x is at every level the known data with that same noise (Lugmayr et al. 2022, eq. 8, without draws).
    """

    def denoise(x: Tensor, t: Time, /, **condition: Any) -> Prediction:
        predicted = denoiser(x, t, **condition)
        alpha, sigma = schedule.levels_like(t, x)
        x0 = predicted.x0.lerp(known.to(x), keep.to(x))
        return Prediction(x0, (x - alpha * x0) / sigma)

    return denoise


def anchored(
    denoiser: Denoiser,
    source: Denoiser,
    known: Tensor,
    noise: Tensor,
    schedule: Schedule,
    condition: Mapping[str, Any],
) -> Denoiser:
    """The denoiser with its error on ``known`` taken off: what it makes differs from ``known`` by what its conditions
    differ in from ``condition``, which describes ``known``, and keeps everything else.

    ``source`` is asked, under ``condition``, for x0 of ``known`` (B, …) with ``noise`` (B, …) at the same level; what
    it misses is added. A solver starts at ``alpha·known + sigma·noise``. With equal conditions, and no guidance,
    it gives ``known`` back exactly, however few the steps. For DDIM this is CycleDiffusion (Wu & De la Torre 2023),
    whose encoder keeps what the model misses as the noise of the steps.

    >>> schedule, known = Schedule.cosine(), torch.randn(1, 3)
    >>> poor = lambda x, t, **condition: Prediction(0.5 * x, x)
    >>> same = anchored(poor, poor, known, torch.ones(1, 3), schedule, {})
    >>> alpha, sigma = schedule.levels(300)
    >>> bool(torch.allclose(same(alpha * known + sigma, 300).x0, known))
    True
    """

    def denoise(x: Tensor, t: Time, /, **told: Any) -> Prediction:
        alpha, sigma = schedule.levels_like(t, x)
        past = source(alpha * known + sigma * noise, t, **condition)
        x0 = denoiser(x, t, **told).x0 + (known - past.x0)
        return Prediction(x0, (x - alpha * x0) / sigma)

    return denoise
