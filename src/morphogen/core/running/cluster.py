"""Items on a dask cluster: one at a time for each worker, each bound to a GPU of its host, a lost one tried elsewhere.

The workers are given items by their addresses, as the processes of this machine are; so a worker is never at two items
at once however many threads it has, and one that joins later gets its share.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from morphogen.core.errors import InputError, MorphogenError, shortened
from morphogen.core.processes import Crash, Finished
from morphogen.core.running.work import Task

_PATIENCE = 60.0  # seconds for which a cluster may be without any worker
_POLL = 1.0


def on_cluster(
    function: Callable[[Task], Any], tasks: Iterable[Task], scheduler: str, retries: int = 1
) -> Generator[Finished, None, None]:
    """``function(task)`` of all tasks on the workers of the scheduler at this address, each as it is finished.

    Raises :class:`InputError` when no scheduler answers, when it has no workers, or when they lack the package.
    """
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise InputError(
            "dask.distributed is not installed", where="--scheduler", fix="pip install distributed"
        ) from error
    try:
        client = Client(scheduler, timeout=20)
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(
            f"no dask scheduler answers ({' '.join(str(error).split())[:120]})",
            where=scheduler,
            fix="Start one with 'dask scheduler', and 'dask worker ADDRESS' on each machine",
        ) from error
    with client:
        yield from _dispatch(client, function, tasks, scheduler, retries)


def _dispatch(
    client: Any, function: Callable[[Task], Any], tasks: Iterable[Task], scheduler: str, retries: int
) -> Generator[Finished, None, None]:
    from distributed import wait

    waiting = iter(enumerate(tasks))
    again: list[tuple[int, Task, int]] = []
    running: dict[Any, tuple[int, Task, int, str]] = {}
    gpus: dict[str, str] = {}
    without = time.monotonic()
    try:
        while True:
            there = _workers(client)
            if there:
                without = time.monotonic()
            elif time.monotonic() - without > _PATIENCE:
                raise InputError(
                    "has had no workers for a minute",
                    where=scheduler,
                    fix=f"Start them with 'dask worker {scheduler}'",
                )
            busy = {address for *_, address in running.values()}
            for address in there:
                if address in busy:
                    continue
                if address not in gpus:
                    gpus[address] = _own_gpu(client, address, there)
                if again:
                    index, task, tries = again.pop()
                else:
                    found = next(waiting, None)
                    if found is None:
                        break
                    index, task, tries = (*found, 0)
                future = client.submit(
                    function, replace(task, device=gpus[address]), workers=[address], pure=False, retries=0
                )
                running[future] = index, task, tries + 1, address
            if not running:
                if there and not again:
                    return
                time.sleep(_POLL)
                continue
            with suppress(TimeoutError):
                wait(list(running), timeout=_POLL, return_when="FIRST_COMPLETED")
            for future in list(running):
                index, task, tries, address = running[future]
                gone = address not in there
                if not future.done() and not gone:
                    continue
                del running[future]
                failure = None if future.done() and future.status == "finished" else _why(future, gone)
                if failure is None:
                    yield Finished(index, future.result(), tries=tries)
                elif isinstance(failure, Crash) and tries <= retries:
                    again.append((index, task, tries))
                else:
                    yield Finished(index, error=failure, tries=tries)
                with suppress(Exception):
                    future.cancel()
    finally:
        with suppress(Exception):
            client.cancel(list(running))


def _workers(client: Any) -> dict[str, dict[str, Any]]:
    """Workers by address, with what the scheduler knows of them."""
    return dict(client.scheduler_info(n_workers=-1).get("workers", {}))


def _own_gpu(client: Any, address: str, there: dict[str, dict[str, Any]]) -> str:
    """The GPU of a worker: those of one host share them out by their order; ``""`` where it sees one or none."""
    count = client.run(cuda_devices, workers=[address]).get(address, 0)
    if not isinstance(count, int) or count < 2:
        return ""
    host = there[address].get("host")
    beside = sorted(other for other, facts in there.items() if facts.get("host") == host)
    return f"cuda:{beside.index(address) % count}"


def cuda_devices() -> int:
    """CUDA devices that this process sees."""
    import torch

    return torch.cuda.device_count()


def _why(future: Any, gone: bool) -> BaseException:
    failure = None
    if not gone or future.done():
        with suppress(Exception):
            failure = future.exception(timeout=5)
    if isinstance(failure, MorphogenError):
        return failure
    if isinstance(failure, ModuleNotFoundError):
        return InputError(
            f"a worker of the cluster lacks a package ({failure.name or failure})",
            fix="Install morphogen in the environment of every worker",
        )
    words = shortened(str(failure), 120) if failure is not None else "it left the cluster"
    return Crash(f"its worker stopped ({words})")
