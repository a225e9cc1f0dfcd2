"""Work beside the main loop: what is needed next is made ahead, what is finished is written behind.

A loop that decodes, computes and writes in turn leaves two of the three idle. With :func:`ahead` and :class:`Behind`
each has a thread, bounded queues between them, and errors come up where the loop is::

    with Behind(write) as behind:
        for batch in ahead(read, batches):
            behind.put(compute(batch))
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(
    function: Callable[[T], R], items: Iterable[T], *, threads: int = 1, depth: int | None = None
) -> Generator[R, None, None]:
    """``function(item)`` of all items in their order, made by ``threads`` up to ``depth`` items (default: one more than
    threads) before they are asked for.

    An error comes up at its item; closing the generator drops what was not begun.

    >>> list(ahead(str, range(3), threads=2))
    ['0', '1', '2']
    """
    rest = iter(items)
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in islice(rest, threads + 1 if depth is None else depth):
                waiting.append(pool.submit(function, item))
            while waiting:
                value = waiting.popleft().result()
                for item in islice(rest, 1):
                    waiting.append(pool.submit(function, item))
                yield value
        finally:
            for future in waiting:
                future.cancel()


class Behind(Generic[T]):
    """``function`` of items that are put, in their order, in a thread behind the caller.

    Use as a context manager: it ends when all is done, also when the block fails, since what was put is finished work.
    An error comes up at the next ``put`` or at the end; what waits then is dropped.

    Parameters
    ----------
    depth:
        Items that may wait; a ``put`` beyond that waits itself.
    """

    def __init__(self, function: Callable[[T], Any], depth: int = 2) -> None:
        self._function = function
        self._queue: queue.Queue[T | None] = queue.Queue(depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="behind", daemon=True)

    def put(self, item: T) -> None:
        """The next item; ``None`` is none."""
        if self._error is None:
            self._queue.put(item)
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is not None:
                continue  # the queue is emptied, so that nobody waits at it
            try:
                self._function(item)
            except BaseException as error:
                self._error = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue.put(None)
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error
