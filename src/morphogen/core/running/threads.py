"""How many threads a computation uses, and how they wait: decided here for every command.

Two kinds of work. *Large products* (large networks, factorisations) are spread by torch and BLAS over all cores of the
process. *Many small tensors* (the texture encoder, networks of a few million numbers) lose as much by waking threads as
they gain: batches and items are shared out over lanes, Python threads with one torch thread each (:func:`in_lanes`).
On two cores the packaged stain model takes 0.59 s an image so, 1.1 s with one thread or with two that sleep while they
wait, 0.73 s with two that spin; beside a busy process 0.85, 1.1 and 2.3 s.

OpenMP's threads spin while they wait, for a tenth of a second and more, and take the cores from whoever works there:
from other processes, and from their own once another process holds a core. :func:`wait_passively` puts them to sleep
instead; it counts for processes that have not loaded a library with OpenMP yet.

The number of threads follows from the cores that the process may use and the kind of work, never from the load of the
moment: sums are split by it, and a run that goes on must give the same bytes. ``OMP_NUM_THREADS`` decides otherwise,
for numba, too, whose parallel code sets OpenMP's number for the whole process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from morphogen.core.running.pipeline import ahead

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
R = TypeVar("R")

COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
LARGE = 50_000_000  # numbers of a network from which its own products fill the cores
_LANE_BYTES = 3 << 30  # of this machine's memory, for what a lane computes with
_NUMBA = "NUMBA_NUM_THREADS"
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
    if environment is not None or "numba" not in sys.modules:  # it fails where this changes under it
        for name, value in _as_numba(target).items():
            target.setdefault(name, value)
    return "torch" not in sys.modules


def _as_numba(environment: Mapping[str, str]) -> dict[str, str]:
    """As many threads for numba as for OpenMP, where a number is named."""
    count = environment.get("OMP_NUM_THREADS", "")
    return {_NUMBA: count} if count.isdecimal() and int(count) > 0 else {}


def thread_settings(processes: int, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """``environment`` for one of ``processes`` equal processes that share the cores of this one: passive waiting, and
    its share of threads where the user named no number.
    """
    share = str(max(1, cpu_cores() // processes))
    ours = {_OURS: share}
    ours |= {name: share for name in COUNTS if name not in environment or _OURS in environment}
    settings = {**_WAITING, **environment, **ours}
    return settings | (_as_numba(settings) if _NUMBA not in environment or _OURS in environment else {})


def lanes(device: torch.device | str = "cpu", numbers: int = 0) -> int:
    """How many pieces of small work go beside one another on a device: on a CPU as many as torch may use threads (and
    the memory of the machine has room for); one on other devices, for networks of :data:`LARGE` ``numbers``, and
    within a lane.
    """
    import psutil
    import torch

    threads = torch.get_num_threads()
    if torch.device(device).type != "cpu" or numbers >= LARGE or threads < 2:
        return 1
    return max(1, min(threads, psutil.virtual_memory().total // _LANE_BYTES))


def in_lanes(
    function: Callable[[T], R], items: Iterable[T], count: int | None = None
) -> Generator[R, None, None]:
    """``function`` of all items, in their order, ``count`` (by default :func:`lanes`) of them at a time, each with its
    share of torch's threads and in the caller's grad mode and autocast.

    No more items than lanes are taken ahead of what was asked for. What a function gives must not depend on which
    items are beside it. An error comes up at its item.

    >>> list(in_lanes(str, range(3), 2))
    ['0', '1', '2']
    """
    import torch

    count = lanes() if count is None else count
    if count < 2:
        yield from map(function, items)
        return
    inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    reduced, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def alone(item: T) -> R:  # these modes are each thread's own
        with (
            torch.inference_mode(inference),
            torch.set_grad_enabled(grad and not inference),
            torch.autocast("cpu", dtype, enabled=reduced),
        ):
            return function(item)

    with fewer_threads(count), closing(ahead(alone, items, threads=count, depth=count)) as made:
        yield from made


@contextmanager
def fewer_threads(count: int) -> Iterator[int]:
    """Within the block torch uses a ``count``-th of its threads per operation; gives how many it may use elsewhere."""
    import torch

    before = torch.get_num_threads()
    each = max(1, before // count)
    if each < before:
        torch.set_num_threads(each)
    try:
        yield before
    finally:
        if each < before:
            torch.set_num_threads(before)


def over_threads(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """:func:`in_lanes` of items that are all there and long enough to give numpy's and scipy's BLAS its share, too."""
    import torch
    from threadpoolctl import threadpool_limits

    count = min(torch.get_num_threads(), len(items))
    if count < 2:
        return list(map(function, items))
    with threadpool_limits(max(1, cpu_cores() // count), user_api="blas"):
        return list(in_lanes(function, items, count))
