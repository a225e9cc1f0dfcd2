"""Arrays of NumPy files, whatever has happened to the file."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from morphogen.core.errors import InputError

#: What ``numpy.load`` raises for files that are cut, changed or something else.
DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError)


def read_arrays(path: Path | str, kind: str = "a file of arrays") -> dict[str, np.ndarray]:
    """All arrays of an ``.npz`` by name; an ``.npy``'s under the empty name. :class:`InputError` for anything else,
    pickles among it. kind: what the file should be, as the error says it."""
    try:
        read = np.load(path, allow_pickle=False)
        if isinstance(read, np.ndarray):
            return {"": read}
        with read:
            return {name: read[name] for name in read.files}
    except FileNotFoundError:
        raise InputError("there is no such file", where=path) from None
    except DAMAGED as error:
        line = " ".join(str(error).split())[:120] or type(error).__name__
        if line.startswith("Object arrays"):
            raise InputError(
                f"is not {kind}: it holds a pickle, which can run code when it is read",
                where=path,
                fix="Save plain arrays of numbers",
            ) from None
        raise InputError(f"is not {kind}, or damaged ({line})", where=path, fix="Copy it again") from None
