"""The scratch file of a pyramid that is being written: compressed tiles in the order in which they came.

One append-only file beside the output. A killed run leaves it, and the next run goes on from the tiles it
holds; a record that was cut short is dropped. Records are ``kind, level, row, column, size, checksum`` and
the bytes.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from morphogen.core.errors import OutputError
from morphogen.core.writing.places import open_own

_MAGIC = b"MORPHOGEN-SPOOL1"
_RECORD = struct.Struct("<cBIIQI")

TILE, PART = b"T", b"P"
Key = tuple[int, int, int]  # level, row, column


class Spool:
    """Tiles by level, row and column, on disk.

    Parameters
    ----------
    path:
        The scratch file.
    facts:
        What decides the tiles' bytes (size, codec, …). A scratch file with other facts is started over.
    resume:
        Keep what an earlier run left. ``False`` starts over.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], *, resume: bool = True) -> None:
        self.path = path
        self._index: dict[bytes, dict[Key, tuple[int, int, int]]] = {TILE: {}, PART: {}}
        header = json.dumps(dict(facts), sort_keys=True).encode()
        self._header = _MAGIC + struct.pack("<I", len(header)) + header
        self._file: IO[bytes] = open_own(path, "r+b", buffering=1 << 20)
        try:
            self._lock()
            self._end = self._scan() if resume else 0
            if not self._end:
                self._start_over()
            self._file.truncate(self._end)
            self._file.seek(self._end)
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise OutputError(
                    "another run is writing this file",
                    where=self.path,
                    fix="Wait for it, or choose another name",
                ) from None  # file systems without locks give other codes and go unguarded

    def _start_over(self) -> None:
        self._file.seek(0)
        self._file.truncate(0)
        self._file.write(self._header)
        self._end = len(self._header)

    def _scan(self) -> int:
        """Read the records of an earlier run; the position after the last whole one, 0 for another's file."""
        size = os.fstat(self._file.fileno()).st_size
        self._file.seek(0)
        if self._file.read(len(self._header)) != self._header:
            return 0
        position = len(self._header)
        while position + _RECORD.size <= size:
            self._file.seek(position)
            kind, level, row, column, length, checksum = _RECORD.unpack(self._file.read(_RECORD.size))
            start = position + _RECORD.size
            if kind not in self._index or start + length > size:
                break
            if start + length == size and zlib.crc32(self._file.read(length)) != checksum:
                break  # only the last record can have been cut in the middle
            self._index[kind][level, row, column] = (start, length, checksum)
            position = start + length
        return position

    def __contains__(self, key: Key) -> bool:
        return key in self._index[TILE]

    def has_part(self, key: Key) -> bool:
        """Whether an unfinished tile was put away."""
        return key in self._index[PART]

    def parts(self) -> list[Key]:
        """Unfinished tiles that were put away and have not been finished since."""
        return sorted(self._index[PART].keys() - self._index[TILE].keys())

    def size(self, key: Key) -> int:
        """Bytes of a tile; 0 stands for a tile of nothing but background."""
        return self._index[TILE][key][1]

    def add(self, key: Key, data: bytes, kind: bytes = TILE) -> None:
        """Append a tile (or an unfinished one)."""
        checksum = zlib.crc32(data)
        self._file.seek(self._end)
        self._file.write(_RECORD.pack(kind, *key, len(data), checksum))
        self._file.write(data)
        self._index[kind][key] = (self._end + _RECORD.size, len(data), checksum)
        self._end += _RECORD.size + len(data)

    def read(self, key: Key, kind: bytes = TILE) -> bytes:
        """The bytes of a tile. Raises :class:`OutputError` when the scratch file was damaged."""
        start, length, checksum = self._index[kind][key]
        self._file.seek(start)
        data = self._file.read(length)
        if zlib.crc32(data) != checksum:
            raise OutputError("the scratch file is damaged", where=self.path, fix="Delete it and run again")
        return data

    def sync(self) -> None:
        """All records on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self, *, delete: bool = False) -> None:
        """Close; ``delete`` removes the file too."""
        if not self._file.closed:
            try:
                self._file.close()
            except OSError:
                if not delete:
                    raise
        if delete:
            self.path.unlink(missing_ok=True)
