"""How a file or folder takes the place of another so that a kill at any moment leaves one of the two.

What is being written lies beside its place under ``.NAME.PID.tmp.SUFFIX``. A killed run leaves that behind: it is never
read, and the next run that writes there removes it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
from functools import lru_cache
from pathlib import Path

_LONGEST_NAME = 255  # bytes
_TEMPORARY = re.compile(r"(?P<start>\..+)\.(?P<pid>\d+)\.tmp(?P<end>\.[^.]+)?", re.DOTALL)
_AT_FDCWD, _EXCHANGE = -100, 2


def temporary_name(final: Path) -> str:
    """The name under which this process writes ``final``; the suffix stays last because libraries choose by it."""
    stem, end = final.stem, f".{os.getpid()}.tmp{final.suffix}"
    while len(os.fsencode(f".{stem}{end}")) > _LONGEST_NAME:
        stem = stem[:-1]
    return f".{stem}{end}"


def remove(path: Path) -> None:
    """Remove a file, a link (not what it points to) or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def put(temporary: Path, final: Path) -> None:
    """Give ``temporary`` the name ``final``; a folder that is there is replaced whole."""
    if not (final.is_dir() and temporary.is_dir()):
        os.replace(temporary, final)
        return
    if _exchange(temporary, final):
        remove(temporary)
        return
    # This file system cannot exchange two names: the old folder steps aside and comes back in `recover`.
    old = _aside(final)
    remove(old)
    os.rename(final, old)
    os.rename(temporary, final)
    remove(old)


def recover(final: Path) -> None:
    """Bring back the folder that a run killed between two renames left aside; nothing to do in all other cases."""
    old = _aside(final)
    if not os.path.isdir(old):
        return
    if os.path.lexists(final):
        remove(old)  # the new folder came to its place
    else:
        os.rename(old, final)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed runs were writing in ``folder`` and below it, and bring back what they left aside.

    For a folder that no other run works in; what a living process of this machine writes stays.
    """
    for path in list(folder.rglob(".*.old")):
        recover(path.with_name(path.name[1 : -len(".old")]))
    for path in list(folder.rglob(".*.tmp*")):
        found = _TEMPORARY.fullmatch(path.name)
        if found and not alive(int(found["pid"])):
            remove(path)


def remove_leftovers_of(final: Path) -> None:
    """Remove what killed runs left that was to become ``final``; other runs may work in its folder.

    A folder is looked through once in a process, so that writing many files into it stays cheap.
    """
    start, end = temporary_name(final).rsplit(f".{os.getpid()}.tmp", 1)
    for name in _left(str(final.parent)).pop((start, end), ()):
        remove(final.with_name(name))


@lru_cache(maxsize=1024)
def _left(folder: str) -> dict[tuple[str, str], list[str]]:
    """Names that dead processes left in a folder, by what comes before and after the process in them."""
    left: dict[tuple[str, str], list[str]] = {}
    for name in os.listdir(folder):
        found = _TEMPORARY.fullmatch(name)
        if found and not alive(int(found["pid"])):
            left.setdefault((found["start"], found["end"] or ""), []).append(name)
    return left


def alive(pid: int) -> bool:
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _aside(final: Path) -> Path:
    return final.with_name(f".{final.name}.old")


def _exchange(one: Path, two: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):  # not Linux, or an old C library
        return False
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(two), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code), str(two))
