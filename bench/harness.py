"""Paired timing: two ways of doing one thing, in turn, in one process; the result is a ratio with its spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Row:
    """One figure: ``value`` with ``low``–``high`` over repeats. ``goal`` is what the project asks of it."""

    name: str
    value: float
    unit: str = "x"
    low: float | None = None
    high: float | None = None
    goal: str = ""
    detail: str = ""

    def as_dict(self) -> dict:
        return asdict(self)


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call; waits for the GPU when one is in use."""
    _synchronise()
    start = time.perf_counter()
    function()
    _synchronise()
    return time.perf_counter() - start


def _synchronise() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compare(
    name: str,
    ours: Callable[[], object],
    other: Callable[[], object],
    *,
    pairs: int = 7,
    warmup: int = 1,
    goal: str = "",
    detail: str = "",
    inverse: bool = False,
) -> Row:
    """Median of the paired ratios ``other / ours`` (how many times faster ours is); ``inverse`` gives ours/other.

    The two run in turn, A B A B …, so that a machine whose speed drifts moves both.
    """
    for _ in range(warmup):
        ours(), other()
    ratios, mine, theirs = [], [], []
    for _ in range(pairs):
        a, b = seconds(ours), seconds(other)
        mine.append(a)
        theirs.append(b)
        ratios.append(a / b if inverse else b / a)
    note = f"{_milliseconds(mine)} against {_milliseconds(theirs)}"
    return Row(
        name=name,
        value=statistics.median(ratios),
        unit="x",
        low=min(ratios),
        high=max(ratios),
        goal=goal,
        detail=f"{detail}; {note}" if detail else note,
    )


def _milliseconds(times: list[float]) -> str:
    median = statistics.median(times)
    return f"{median * 1e3:.3g} ms" if median < 1 else f"{median:.3g} s"


def rate(
    name: str, function: Callable[[], object], items: int, *, unit: str, repeats: int = 5, goal: str = ""
) -> Row:
    """Items per second: median, lowest and highest of ``repeats`` calls after one warm-up."""
    function()
    rates = [items / seconds(function) for _ in range(repeats)]
    return Row(name, statistics.median(rates), unit, min(rates), max(rates), goal)


def child_peak_memory(code: str, *, timeout: float = 1800) -> tuple[float, str]:
    """Run Python ``code`` in a fresh process: ``(peak resident memory in MiB, what it printed)``."""
    import subprocess
    import sys

    # Not getrusage: its peak is inherited from the process that started this one.
    tail = "\nprint('\\nPEAK', open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    done = subprocess.run(
        [sys.executable, "-c", code + tail], capture_output=True, text=True, timeout=timeout, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    printed, _, peak = done.stdout.rpartition("PEAK")
    return int(peak) / 1024, printed.strip()
