"""HDF5 files that are whole or absent, also when the disk fills up while they are written.

Where a write fails, the HDF5 library keeps a file that it can no longer close, and ends the process with a
segmentation fault when it tries again at exit. So it writes through a Python file that keeps the first failure for
itself: the library closes its file in peace, and the failure is told after that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morphogen.core.files import atomic_path

if TYPE_CHECKING:
    import h5py
    from anndata import AnnData


@contextmanager
def writing_h5(final: Path | str) -> Iterator[h5py.File]:
    """A new HDF5 file that becomes ``final`` when the block ends well.

    Raises :class:`~morphogen.core.errors.OutputError` when it cannot be written; ``final`` is then as it was.
    """
    import h5py

    with atomic_path(final) as temporary, _Sink(temporary) as sink:
        try:
            with h5py.File(sink, "w") as file:
                yield file
        except Exception:
            sink.check()  # what the library makes of a failed write says less than the failure
            raise
        sink.check()


def write_h5ad(data: AnnData, final: Path | str, *, compression: str | None = "gzip") -> Path:
    """Write an AnnData, whole or not at all; text columns become categories, as in :meth:`AnnData.write_h5ad`."""
    from anndata.io import write_elem

    data.strings_to_categoricals()
    if data.raw is not None:
        data.strings_to_categoricals(data.raw.var)
    with writing_h5(final) as file:
        write_elem(file, "/", data, dataset_kwargs={"compression": compression})
        if data.raw is None and "raw" in file:
            del file["raw"]  # an entry that says "none", which write_h5ad leaves out
    return Path(final)


class _Sink:
    """A file as h5py wants one; after a failed write it takes all that comes and writes none of it."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "w+b", buffering=0)  # noqa: SIM115
        self._error: OSError | None = None

    def __enter__(self) -> _Sink:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def check(self) -> None:
        """Raise what went wrong, if anything did."""
        if self._error is not None:
            raise self._error

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while self._error is None and done < len(view):
            try:
                done += self._file.write(view[done:]) or 0
            except OSError as error:
                self._error = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        if self._error is None:
            try:
                return self._file.truncate(size)
            except OSError as error:
                self._error = error
        return size or 0

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = self._file.readinto(view) or 0
        if self._error is not None:  # what was not written reads as nothing
            view[count:] = bytes(len(view) - count)
            return len(view)
        return count

    def read(self, count: int = -1) -> bytes:
        return self._file.read(count) or b""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        """Nothing is held back."""
