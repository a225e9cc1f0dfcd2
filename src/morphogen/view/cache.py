"""What was made once and may be asked for again: bounded by its bytes, made once when many ask at a time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future


class Cache:
    """Bytes by key, the longest unused let go first.

    Parameters
    ----------
    most:
        Bytes that are kept; what is larger than a quarter of it is not.
    workers:
        How many are made at a time; further ones wait.

    >>> cache = Cache(1000)
    >>> cache.get("a", lambda: b"made"), cache.get("a", lambda: b"not made again")
    (b'made', b'made')
    """

    def __init__(self, most: int, workers: int = 1) -> None:
        self.most, self.size = most, 0
        self._kept: OrderedDict[Hashable, bytes] = OrderedDict()
        self._made: dict[Hashable, Future[bytes]] = {}
        self._lock, self._turn = threading.Lock(), threading.Semaphore(workers)

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        """The bytes of ``key``, made when they are not there; who asks meanwhile waits for the same. An error of
        ``make`` reaches all of them and is not kept."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            made = self._made.get(key)
            ours = made is None
            if made is None:
                made = self._made[key] = Future()
        if not ours:
            return made.result()
        try:
            with self._turn:
                value = make()
        except BaseException as error:
            with self._lock:
                del self._made[key]
            made.set_exception(error)
            raise
        with self._lock:
            del self._made[key]
            self._keep(key, value)
        made.set_result(value)
        return value

    def _keep(self, key: Hashable, value: bytes) -> None:
        if len(value) > self.most // 4:
            return
        self._kept[key] = value
        self.size += len(value)
        while self.size > self.most:
            self.size -= len(self._kept.popitem(last=False)[1])
