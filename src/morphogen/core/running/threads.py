"""How many threads a computation uses, and how they wait: decided here for every command.

Two kinds of work. *Large products* (networks, factorisations) are spread by torch and BLAS over all cores of the
process. *Many small tensors* (the texture encoder) lose more by waking threads than they gain: their items are shared
out over Python threads with one torch thread each (:func:`over_threads`).

OpenMP's threads spin while they wait, for a tenth of a second and more, and take the cores from whoever works there:
from other processes, and from their own once another process holds a core. :func:`wait_passively` puts them to sleep
instead; it counts for processes that have not loaded a library with OpenMP yet.

The number of threads follows from the cores that the process may use and the kind of work, never from the load of the
moment: sums are split by it, and a run that goes on must give the same bytes. ``OMP_NUM_THREADS`` decides otherwise.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_OURS = "MORPHOGEN_THREADS"
# GNU's OpenMP (torch, scikit-learn), Intel's and LLVM's, and OpenBLAS, whose threads spin for 2^n cycles.
_WAITING = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "KMP_BLOCKTIME": "0",
    "OPENBLAS_THREAD_TIMEOUT": "4",
}


def cpu_cores() -> int:
    """Cores that this process may use: of its affinity (taskset, SLURM) and its share (containers)."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(own, _share(Path("/sys/fs/cgroup")) or own))


def _share(root: Path) -> int | None:
    """Whole cores a container may use, of cgroup v2 or v1; ``None`` where nothing limits them."""
    try:
        if (root / "cpu.max").is_file():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota, period = (
                (root / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
            )
        return max(1, int(quota) // int(period)) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # no cgroup, or "max"
        return None


def wait_passively(environment: MutableMapping[str, str] | None = None) -> bool:
    """Threads of numeric libraries sleep while they wait, in this process and those it starts; what the user set
    stays. ``False`` where torch was loaded before: too late for this process.

    >>> own: dict[str, str] = {"OMP_WAIT_POLICY": "ACTIVE"}
    >>> _ = wait_passively(own)
    >>> own["OMP_WAIT_POLICY"], own["KMP_BLOCKTIME"]
    ('ACTIVE', '0')
    """
    target = os.environ if environment is None else environment
    for name, value in _WAITING.items():
        target.setdefault(name, value)
    if not any(name in target for name in COUNTS) and cpu_cores() < (os.cpu_count() or 1):
        # Libraries count the cores of the machine; the mark tells our numbers from the user's.
        target.update(dict.fromkeys((*COUNTS, _OURS), str(cpu_cores())))
    return "torch" not in sys.modules


def thread_settings(processes: int, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """``environment`` for one of ``processes`` equal processes that share the cores of this one: passive waiting, and
    its share of threads where the user named no number.
    """
    share = str(max(1, cpu_cores() // processes))
    ours = {_OURS: share}
    ours |= {name: share for name in COUNTS if name not in environment or _OURS in environment}
    return {**_WAITING, **environment, **ours}


@contextmanager
def one_thread() -> Iterator[int]:
    """Within the block torch uses one thread per operation; gives how many it may use elsewhere."""
    import torch

    before = torch.get_num_threads()
    if before > 1:
        torch.set_num_threads(1)
    try:
        yield before
    finally:
        if before > 1:
            torch.set_num_threads(before)


def over_threads(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """``function`` of all items in their order, for work on many small tensors: as many at a time as torch may use
    threads, with one torch thread each.

    ``function`` sets its own grad modes: they belong to a thread.
    """
    with one_thread() as threads:
        if threads == 1 or len(items) < 2:
            return [function(item) for item in items]
        with ThreadPoolExecutor(min(threads, len(items)), thread_name_prefix="small") as pool:
            return list(pool.map(function, items))
