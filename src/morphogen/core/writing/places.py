"""Scratch files and folders beside a result: made by us, never somebody's link to elsewhere.

What is written in place (scratch files, journals, parts) would follow a symbolic link that lies there and overwrite
what it points to. A link, a pipe or a file that is known under a second name is removed and the file made anew; what
the link points to is not touched. Whole results go through :mod:`morphogen.core.files`, whose rename replaces a link.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

_FLAGS = {"r+b": os.O_RDWR, "w+b": os.O_RDWR, "w": os.O_WRONLY, "a": os.O_WRONLY | os.O_APPEND}


def own_place(path: Path | str) -> Path:
    """``path`` free of anything but a file or folder of our own making: links, pipes and devices are removed."""
    path = Path(path)
    with suppress(FileNotFoundError, NotADirectoryError):
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) and (not stat.S_ISREG(found.st_mode) or found.st_nlink > 1):
            path.unlink()
    return path


def open_own(path: Path | str, mode: str, **options: Any) -> IO[Any]:
    """``open`` for writing in place ("r+b", "w+b", "w", "a"; made where it is missing) that follows no link.

    "r+b" keeps what is there and, unlike ``open``, makes the file where there is none. Raises :class:`OSError` as
    ``open`` does.
    """
    flags = _FLAGS[mode] | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_TRUNC if mode[0] == "w" else 0)
    handle = os.open(own_place(path), flags, 0o666)
    return open(handle, mode, **options)
