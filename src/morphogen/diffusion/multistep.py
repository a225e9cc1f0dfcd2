"""DPM-Solver++ of third order: for few evaluations of a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from morphogen.diffusion.predictions import Denoiser
from morphogen.diffusion.schedules import Schedule
from morphogen.diffusion.solvers import Final, half_log_snr, path_levels
from morphogen.diffusion.state import Callback, begin, reached


@torch.no_grad()
def dpmpp_3m(
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
    """DPM-Solver++(3M) (Lu et al. 2022): third order in the step of λ = log(alpha/sigma), one evaluation a step.

    x0 is taken for the parabola in λ through its last three values, and the probability flow is solved exactly for it
    (:func:`step_weights`). The first steps have fewer values and are of lower order, as are those out of pure noise and
    into the data, which are infinitely long in λ. Meant for a spacing that is even in λ.
    """
    alpha, sigma = path_levels(timesteps, schedule, final)
    lam = [half_log_snr(a, s) for a, s in zip(alpha, sigma)]
    state = begin(x, start)
    x, before = state.x, state.history
    for i in range(state.step, len(timesteps)):
        predicted = denoiser(x, timesteps[i], **(condition or {}))
        before = (predicted.x0, *before)[:3]
        levels = [lam[i - k] for k in range(len(before)) if math.isfinite(lam[i - k])]
        weights = step_weights(levels, lam[i + 1]) if math.isfinite(lam[i + 1] - lam[i]) else [1.0]
        target = weights[0] * before[0]
        for weight, earlier in zip(weights[1:], before[1:], strict=False):
            target = target + weight * earlier
        x = sigma[i + 1] / sigma[i] * x + alpha[i + 1] * target
        x = reached(callback, i + 1, x, predicted, before)
    return x


def step_weights(levels: Sequence[float], end: float) -> list[float]:
    """What each value of x0 counts in the step from ``levels[0]`` to ``end``, times alpha there.

    levels: λ of the values, the latest first. The weights are those of ``∫ exp(λ − end) x0(λ) dλ`` over the step, x0
    being the polynomial through the values (Lu et al. 2022, eq. 8, with its derivatives by differences).

    >>> step_weights([0.0], 1.0) == [-math.expm1(-1.0)]
    True
    """
    h = end - levels[0]
    if h == 0:
        return [0.0]
    places = [(level - levels[0]) / h for level in levels]
    moments = [-math.expm1(-h)]  # of u^k over u in 0…1, weighted by h·exp((u − 1)h)
    for k in range(1, len(levels)):
        # Integration by parts; the first terms of the series where that would cancel.
        series = sum((-h) ** n * math.factorial(k) / math.factorial(k + n + 1) for n in range(8))
        moments.append(1 - k / h * moments[-1] if h > 0.1 else h * series)
    return [float(w) for w in np.linalg.solve(np.vander(places, increasing=True).T, moments)]
