"""One fingerprint of files for the whole package: it tells whether a result was made of this very file.

It depends on contents alone: a file keeps its fingerprint when it is copied, moved, renamed or touched.
"""

from __future__ import annotations

import hashlib
import os
import stat
from functools import lru_cache
from pathlib import Path

from morphogen.core.errors import InputError
from morphogen.core.reading.listing import list_files

WHOLE = 64 << 20  # files up to this size are hashed in full
_PIECES, _PIECE = 64, 1 << 16
_CHUNK = 1 << 20
_STORE = ("zarr.json", ".zgroup", ".zattrs")  # what a folder that is a Zarr store holds


def fingerprint(path: Path | str) -> str:
    """SHA-256 in hex of a file's bytes; over 64 MiB, of its size and 64 evenly spaced pieces of 64 KiB, ends included.

    Of a Zarr store: of the names and sizes of its files, and of those of 64 of them, its own metadata included.

    A fingerprint is computed once in a process while size and time of change stay the same. Raises
    :class:`~morphogen.core.errors.InputError` when there is no such file, or it is none (another folder, a
    pipe, a device).

    Examples
    --------
    >>> from pathlib import Path
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     one, two = Path(folder, "one"), Path(folder, "two")
    ...     _ = one.write_bytes(b"tissue"), two.write_bytes(b"tissue")
    ...     fingerprint(one) == fingerprint(two)
    True
    """
    try:
        facts = os.stat(path)
        if stat.S_ISDIR(facts.st_mode) and any((Path(path) / name).is_file() for name in _STORE):
            return _of_store(Path(path))
        if not stat.S_ISREG(facts.st_mode):
            raise InputError("this is not a file", where=path)
        return _computed(os.path.realpath(path), facts.st_size, facts.st_mtime_ns, facts.st_ino)
    except FileNotFoundError:
        raise InputError("there is no such file", where=path) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})", where=path) from error


def fingerprints(path: Path | str) -> list[tuple[str, str]]:
    """Name and :func:`fingerprint` of a file, or of every file in a folder (a Zarr store) by its name there, sorted."""
    path = Path(path)
    if not path.is_dir():
        return [("", fingerprint(path))]
    return [(str(each.relative_to(path)), fingerprint(each)) for each in list_files(path, recursive=True)]


@lru_cache(maxsize=65536)
def _computed(path: str, size: int, _changed: int, _inode: int) -> str:
    with open(path, "rb") as file:
        if size <= WHOLE:
            digest = hashlib.sha256()
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
            return digest.hexdigest()
        digest = hashlib.sha256(str(size).encode())
        for number in range(_PIECES):
            file.seek((size - _PIECE) * number // (_PIECES - 1))
            digest.update(file.read(_PIECE))
        return digest.hexdigest()


def _of_store(store: Path) -> str:
    files = sorted((path.relative_to(store).as_posix(), path) for path in store.rglob("*") if path.is_file())
    some = {round(number * (len(files) - 1) / (_PIECES - 1)) for number in range(_PIECES)}
    digest = hashlib.sha256()
    for number, (name, path) in enumerate(files):
        facts, own = path.stat(), ""
        if number in some or path.name in _STORE:
            own = _computed(os.path.realpath(path), facts.st_size, facts.st_mtime_ns, facts.st_ino)
        digest.update(f"{name}\0{facts.st_size}\0{own}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
