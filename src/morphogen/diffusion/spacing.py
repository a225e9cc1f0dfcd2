"""Which times a solver visits.

Every function returns a strictly descending list; the solver goes from each entry to the REAL next one, whatever the
spacing, and from the last to the data (or to the first noise level, ``final="first"``).
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch

from morphogen.core.errors import ConfigError, nearest
from morphogen.diffusion.schedules import Schedule

Spacing = Literal["trailing", "leading", "linspace", "strided", "log_snr", "log_snr_few"]

LOWEST_LOG_SNR, HIGHEST_LOG_SNR = -8.0, 8.0
"""The widest range of a grid uniform in log-SNR. At its ends the signal, or the noise, is 1.8 % of x; beyond them there
is nothing left to resolve, so what lies outside is crossed in one long first step and one long last step."""

FEW_LOG_SNR = (-6.0, 5.0)
"""The range of about ten steps. At its ends the signal is 5 %, the noise 8 % of x; with so few steps what they resolve
in between is worth more than what lies outside (measured on a gene transformer: docs/benchmarks.md, *expression*)."""


def timesteps(
    schedule: Schedule, n: int, spacing: Spacing = "trailing", *, steps_offset: int = 0
) -> list[float]:
    """``n`` times to visit, noisiest first.

    ``trailing``
        T−1 downwards in equal steps, e.g. 999, 989, …, 9 for n = 100 (Lin et al. 2024, table 2). For ``flow``:
        1, 1−1/n, …, 1/n.
    ``leading``
        Multiples of T // n, plus ``steps_offset``: 990, 980, …, 0.
    ``linspace``
        Both ends: 999 … 0 (Nichol & Dhariwal 2021).
    ``strided``
        1, 1 + T//n, … while below T: the spacing of latent-diffusion code. It holds MORE than n times when n does
        not divide T (n = 128 gives 143).
    ``log_snr``
        Uniform in log-SNR within ±8, real-valued: for DPM-Solver++ (Lu et al. 2022). The first time is always the
        schedule's last one, where x starts.
    ``log_snr_few``
        The same within −6 … 5: for about ten evaluations of data of unit scale.

    >>> timesteps(Schedule.linear(), 5)
    [999, 799, 599, 399, 199]
    >>> timesteps(Schedule.flow(), 4)
    [1.0, 0.75, 0.5, 0.25]
    """
    if spacing not in get_args(Spacing):
        hint = nearest(spacing, get_args(Spacing))
        raise ConfigError(
            f"unknown spacing '{spacing}'.{hint}", fix=f"Use one of {', '.join(get_args(Spacing))}"
        )
    if steps_offset and spacing != "leading":
        raise ConfigError("steps_offset belongs to the leading spacing", where="steps_offset")
    if n < 1:
        raise ConfigError(f"at least one step is needed, not {n}", where="steps")
    if spacing == "log_snr":
        return _uniform_log_snr(schedule, n, LOWEST_LOG_SNR, HIGHEST_LOG_SNR)
    if spacing == "log_snr_few":
        return _uniform_log_snr(schedule, n, *FEW_LOG_SNR)
    if schedule.kind == "flow":
        if spacing != "trailing":
            raise ConfigError(
                f"the {spacing} spacing needs integer times", fix="Use trailing or log_snr for a flow"
            )
        return [1 - i / n for i in range(n)]
    T = schedule.T
    if n > T:
        raise ConfigError(f"{n} steps are more than the schedule's {T}", where="steps")
    if spacing == "trailing":
        times = [round(T - i * T / n) - 1 for i in range(n)]
    elif spacing == "leading":
        times = [i * (T // n) + steps_offset for i in reversed(range(n))]
    elif spacing == "linspace":
        times = [round(i * (T - 1) / max(n - 1, 1)) for i in reversed(range(n))] if n > 1 else [T - 1]
    else:
        times = [t + 1 for t in reversed(range(0, T, T // n)) if t + 1 < T]
    if times[0] > T - 1:
        raise ConfigError(
            f"steps_offset {steps_offset} leads past the last step {T - 1}", where="steps_offset"
        )
    return [int(t) for t in times]


def _uniform_log_snr(schedule: Schedule, n: int, low: float, high: float) -> list[float]:
    lowest = schedule.log_snr(schedule.last)
    highest = min(schedule.log_snr(schedule.first), high)
    start = [schedule.last] if lowest < low else []
    levels = torch.linspace(max(lowest, low), highest, n - len(start), dtype=torch.float64).tolist()
    return start + [time_at_log_snr(schedule, level) for level in levels]


def time_at_log_snr(schedule: Schedule, level: float) -> float:
    """The time at which log(alpha²/sigma²) is ``level``: the inverse of :meth:`Schedule.log_snr`."""
    if schedule.kind == "flow":
        return 1 / (1 + math.exp(level / 2))
    bar = schedule.alpha_bar
    table = torch.logit(bar)  # = log-SNR of a variance-preserving schedule, falling
    wanted = torch.tensor(level, dtype=torch.float64)
    high = int(torch.searchsorted(-table, -wanted).clamp(1, schedule.T - 1))
    a, b = float(table[high - 1]), float(table[high])
    if level >= a:
        return float(high - 1)
    if level <= b:
        return float(high)
    if math.isinf(b):  # next to pure noise the schedule is linear in the root of alpha_bar
        root = math.sqrt(1 / (1 + math.exp(-level)))
        return high - 1 + (math.sqrt(float(bar[high - 1])) - root) / math.sqrt(float(bar[high - 1]))
    return high - 1 + (a - level) / (a - b)


def respaced(schedule: Schedule, spec: str | int) -> list[float]:
    """The subset of times of guided diffusion's respacing (Nichol & Dhariwal 2021), noisiest first.

    ``"ddim25"``
        25 times 0, s, 2s, … with the integer stride s that gives exactly 25.
    ``"20"`` or ``20``
        20 times from 0 to T−1, evenly spaced and rounded.
    ``"10,15,20"``
        T cut into equal sections, with that many evenly spaced times in each, noisiest section last.

    >>> respaced(Schedule.linear(), "ddim4")
    [750, 500, 250, 0]
    """
    T, text = schedule.T, str(spec)
    if text.startswith("ddim"):
        n = _positive(text[4:], spec)
        for stride in range(1, T):
            if len(range(0, T, stride)) == n:
                return [int(t) for t in reversed(range(0, T, stride))]
        raise ConfigError(f"no integer stride cuts {T} steps into {n}", where=f"respacing '{spec}'")
    counts = [_positive(part, spec) for part in text.split(",")]
    times: list[float] = []
    start = 0
    for i, count in enumerate(counts):
        size = T // len(counts) + (1 if i < T % len(counts) else 0)
        if count > size:
            raise ConfigError(
                f"{count} times do not fit into a section of {size}", where=f"respacing '{spec}'"
            )
        stride_real = (size - 1) / (count - 1) if count > 1 else 1.0
        times += [start + round(stride_real * k) for k in range(count)]
        start += size
    return times[::-1]


def _positive(text: str, spec: str | int) -> int:
    if not text.strip().isdigit() or int(text) < 1:
        raise ConfigError(f"'{text}' is not a number of steps", where=f"respacing '{spec}'")
    return int(text)
