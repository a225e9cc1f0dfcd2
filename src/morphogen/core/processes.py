"""Work in processes of this machine, each item for itself: a process that crashes loses one item, and is replaced.

Processes are reached through socket pairs that nothing else can connect to. They know neither the caller's ``__main__``
(so a script needs no guard) nor Ctrl-C, and end with the process that started them, however that ends.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from morphogen.core.errors import ConfigError, MorphogenError
from morphogen.core.running.threads import thread_settings

_NUMBER = "MORPHOGEN_WORKER"
_START = "import sys; from morphogen.core.processes import _serve; _serve(int(sys.argv[1]), int(sys.argv[2]))"
_GRACE = 3.0  # seconds until a process that was asked to end is killed


class Crash(RuntimeError):
    """A process ended in the middle of an item; the text says how."""


class Finished(NamedTuple):
    """An item (by its index) that is done with: ``error`` is what the function raised, or :class:`Crash`; ``tries``
    counts the processes that it was given to."""

    item: int
    value: Any = None
    error: BaseException | None = None
    tries: int = 1


def check_workers(workers: int | None) -> None:
    """:class:`ConfigError` for a number of workers below one."""
    if workers is not None and workers < 1:
        raise ConfigError(f"there must be at least one worker, not {workers}", where="--workers")


def worker_number() -> int | None:
    """Number of this process among the workers, from 0; ``None`` in a process of another kind."""
    text = os.environ.get(_NUMBER)
    return int(text) if text is not None and text.isdigit() else None


def run_apart(
    function: Callable[[Any], Any],
    items: Iterable[Any],
    workers: int,
    *,
    retries: int = 0,
    environment: Callable[[int], Mapping[str, str]] = lambda number: {},
) -> Generator[Finished, None, None]:
    """``function(item)`` of all items in ``workers`` processes, each :class:`Finished` as it comes, in any order.

    ``function`` is one of a module, and items, results and errors can be pickled. Items are taken from their iterator
    when a process is free for them. An item whose process ends is given to another up to ``retries`` times.
    ``environment(number)`` is what a process finds in its environment beside that of this one. Closing the generator
    (or an error in the caller) ends the processes at once. Each has as many threads as there are cores for it, if
    nothing else is said.
    """
    check_workers(workers)
    waiting = _Waiting(items)
    team: dict[Connection, _Worker] = {}

    def start(number: int) -> None:
        worker = _Worker(number, workers, function, environment(number))
        team[worker.line] = worker

    try:
        for number in range(workers):
            if not waiting.more(number + 1):
                break
            start(number)
        while team:
            for line in wait(list(team)):
                worker = team[line]  # type: ignore[index]
                try:
                    kind, value = worker.line.recv()
                except (EOFError, ConnectionError):
                    del team[worker.line]
                    lost, text = worker.item, worker.how_it_ended()
                    if lost is None:
                        raise MorphogenError(
                            f"a worker process did not start: it {text}",
                            fix="Run it again, with --workers 1 or after `morphogen doctor`",
                        ) from None
                    tries = waiting.tries(lost)
                    again = waiting.again(lost, retries)
                    if waiting.more():
                        start(worker.number)
                    if not again:
                        yield Finished(lost, error=Crash(f"its process {text}"), tries=tries)
                    continue
                done = worker.item
                if waiting.more():
                    worker.give(*waiting.take())
                else:
                    del team[worker.line]
                    worker.dismiss()
                if done is not None:
                    tries = waiting.tries(done)
                    waiting.forget(done)
                    if kind == "value":
                        yield Finished(done, value, tries=tries)
                    else:
                        yield Finished(done, error=value, tries=tries)
    finally:
        _end(list(team.values()))


class _Waiting:
    """Items that no process has yet, and those that one has, until they are done."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._rest = iter(enumerate(items))
        self._ahead: deque[tuple[int, Any]] = deque()
        self._given: dict[int, tuple[Any, int]] = {}

    def more(self, than: int = 1) -> bool:
        """Whether so many items wait; looks that far ahead and no further."""
        while len(self._ahead) < than:
            found = next(self._rest, None)
            if found is None:
                return False
            self._ahead.append(found)
        return True

    def take(self) -> tuple[int, Any]:
        index, item = self._ahead.popleft()
        self._given[index] = item, self._given.get(index, (item, 0))[1] + 1
        return index, item

    def again(self, index: int, retries: int) -> bool:
        """Put an item back that was lost, unless that was its last try."""
        item, tries = self._given[index]
        if tries > retries:
            del self._given[index]
            return False
        self._ahead.appendleft((index, item))
        return True

    def tries(self, index: int) -> int:
        return self._given[index][1]

    def forget(self, index: int) -> None:
        del self._given[index]


class _Worker:
    """A process, the line to it, and the item it is at."""

    def __init__(
        self, number: int, workers: int, function: Callable[[Any], Any], environment: Mapping[str, str]
    ) -> None:
        self.number = number
        self.item: int | None = None
        ours, theirs = socket.socketpair()
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _START, str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                env={
                    **thread_settings(workers),
                    **environment,
                    _NUMBER: str(number),
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                },
                stdin=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is for the process that started it
            )
        finally:
            theirs.close()
        self.line = Connection(ours.detach())
        with suppress(BrokenPipeError):
            self.line.send(function)

    def give(self, index: int, item: Any) -> None:
        self.item = index
        with suppress(
            BrokenPipeError, ConnectionError
        ):  # it died just now: its line says so at the next look
            self.line.send(item)

    def dismiss(self) -> None:
        self.line.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_GRACE)

    def how_it_ended(self) -> str:
        self.line.close()
        try:
            code = self.process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        if code >= 0:
            return f"ended with status {code}"
        name = signal.Signals(-code).name
        memory = ", most likely for want of memory" if name == "SIGKILL" else ""
        return f"was ended by {name}{memory}"


def _end(team: list[_Worker]) -> None:
    for worker in team:
        worker.process.terminate()
    deadline = time.monotonic() + _GRACE
    for worker in team:
        try:
            worker.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        worker.line.close()


def _serve(line: int, parent: int) -> None:
    """The life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    connection = Connection(line)
    function = connection.recv()
    connection.send(("ready", None))
    while True:
        try:
            item = connection.recv()
        except (EOFError, ConnectionError):
            os._exit(0)  # nothing more to do; libraries that tear down threads may not hold this up
        try:
            answer = ("value", function(item))
        except Exception as error:
            answer = ("error", error)
        try:
            connection.send(answer)
        except (ConnectionError, BrokenPipeError):
            os._exit(0)
        except Exception:  # what cannot be pickled is told in words
            text = f"{type(answer[1]).__name__}: {' '.join(str(answer[1]).split())[:200]}"
            connection.send(("error", MorphogenError(text)))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
