"""One run at a time works on a result: a second one is refused in one sentence that names the first.

The system holds the lock for the process (``flock``), so that it is gone with the process, however that ends; the file
of the lock only says who holds it. File systems that know no locks go unguarded.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import inspect
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

from morphogen.core.errors import BusyError
from morphogen.core.files import output_error, writable_folder
from morphogen.core.writing.replacing import remove_leftovers

_BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
_held: dict[str, tuple[int, int]] = {}  # lock file: the thread that holds it, and how many times


@contextmanager
def folder_lock(folder: Path | str) -> Iterator[None]:
    """Within the block this run alone writes into ``folder``; what killed runs left in it is removed first.

    The same thread may take the lock again. Of the processes of a launcher the first holds it for all of them. Raises
    :class:`~morphogen.core.errors.BusyError` when another run holds it.
    """
    folder = writable_folder(folder)
    if int(os.environ.get("RANK", "0")):
        yield
        return
    with _lock(folder / ".lock", folder) as first:
        if first:
            remove_leftovers(folder)
        yield


@contextmanager
def file_lock(path: Path | str) -> Iterator[None]:
    """The same for one file or store, beside which other runs may write others."""
    path = Path(path)
    writable_folder(path.parent)
    with _lock(path.with_name(f".{path.name[:200]}.lock"), path):
        yield


@contextmanager
def _lock(lock: Path, where: Path) -> Iterator[bool]:
    key, thread = os.path.realpath(lock), threading.get_ident()
    holder, count = _held.get(key, (thread, 0))
    if count and holder == thread:
        _held[key] = (thread, count + 1)
        try:
            yield False
        finally:
            _held[key] = (thread, count)
        return
    handle = _taken(lock, where)
    _held[key] = (thread, 1)
    try:
        yield True
    finally:
        _held.pop(key, None)
        with suppress(OSError):
            os.unlink(lock)  # while it is held: whoever opened it meanwhile sees that it is gone
        os.close(handle)


def _taken(lock: Path, where: Path) -> int:
    while True:
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno == errno.ELOOP:  # a link in its place
                lock.unlink()
                continue
            raise output_error(error, where) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _BUSY:
                holder = _holder(handle)
                os.close(handle)
                raise BusyError(
                    f"another run is writing here ({holder})",
                    where=where,
                    fix="Wait for it, or choose another --out",
                ) from None
        # Its holder may have removed it between the opening and the lock.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(lock)):
                facts = {
                    "host": socket.gethostname(),
                    "pid": os.getpid(),
                    "since": time.strftime("%Y-%m-%d %H:%M:%S"),
                }
                with suppress(OSError):  # a full disk
                    os.ftruncate(handle, 0)
                    os.pwrite(handle, json.dumps(facts).encode(), 0)
                return handle
        os.close(handle)


def _holder(handle: int) -> str:
    try:
        facts = json.loads(os.pread(handle, 4096, 0))
        return f"process {int(facts['pid'])} on {str(facts['host'])[:60]}, since {str(facts['since'])[:19]}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it does not say who it is"


F = TypeVar("F", bound=Callable[..., Any])


def locks_folder(parameter: str = "out") -> Callable[[F], F]:
    """Decorator: the function holds :func:`folder_lock` of its argument ``parameter``, unless that is ``None``."""
    return _locking(folder_lock, parameter)


def locks_file(parameter: str = "out") -> Callable[[F], F]:
    """Decorator: the function holds :func:`file_lock` of its argument ``parameter``, unless that is ``None``."""
    return _locking(file_lock, parameter)


def _locking(lock: Callable[[Any], AbstractContextManager[None]], parameter: str) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def locked(*args: Any, **options: Any) -> Any:
            place = signature.bind(*args, **options).arguments.get(parameter)
            if place is None:
                return function(*args, **options)
            with lock(place):
                return function(*args, **options)

        return cast(F, locked)

    return decorate
