"""Finished parts of a result that is one file in the end: a killed run goes on from them.

A room names the result and the key of its plan (settings, model, source), asks :meth:`Shards.read` before it computes
part ``number`` and hands what it computed to :meth:`Shards.write`; parts of another plan are never read.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from morphogen.core.errors import InputError
from morphogen.core.files import atomic_path, writable_folder
from morphogen.core.reading.arrays import read_arrays
from morphogen.core.writing.places import own_place


class Shards:
    """Parts of ``out``, in ``<out>.shards`` until the result is whole.

    Parameters
    ----------
    out:
        File of the result.
    key:
        Hash of all that decides it.
    """

    def __init__(self, out: Path | str, key: str) -> None:
        out = Path(out)
        self.folder = own_place(out.with_name(out.name + ".shards"))
        self.key = key[:24]
        writable_folder(self.folder)

    def path(self, number: int) -> Path:
        """File of a part."""
        return self.folder / f"{self.key}-{number:06d}.npz"

    def read(self, number: int) -> dict[str, np.ndarray] | None:
        """Arrays of a part by name; ``None`` when it is not finished, or damaged."""
        path = self.path(number)
        if not path.is_file():
            return None
        try:
            return read_arrays(path)
        except InputError:
            return None  # a damaged part is made again

    def write(self, number: int, values: dict[str, np.ndarray]) -> None:
        """Keep a part, whole or not at all."""
        with atomic_path(self.path(number)) as temporary:
            with open(temporary, "wb") as file:
                np.savez(file, **values)  # type: ignore[arg-type]

    def remove(self) -> None:
        """Throw all parts away, when the result is whole."""
        shutil.rmtree(self.folder, ignore_errors=True)
