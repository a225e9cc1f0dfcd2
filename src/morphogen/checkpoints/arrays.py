"""Pickles of NumPy arrays, lists, dicts and text, read without importing what they name.

A pickle names the functions that build its objects. Only those that arrays and plain containers are made of are
known here; any other name ends the reading.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from morphogen.core.errors import InputError


def _reconstruct(kind: Any, shape: tuple, code: Any) -> np.ndarray:
    if kind is not np.ndarray:
        raise pickle.UnpicklingError("an array of a foreign class")
    return np.ndarray.__new__(np.ndarray, shape, dtype=code)


def _scalar(dtype: Any, data: Any = None) -> Any:
    if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(data, bytes):
        raise pickle.UnpicklingError("a number that is not plain bytes")
    return np.frombuffer(data, dtype=dtype, count=1)[0]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"text encoded as {encoding}")
    return text.encode("latin1")


_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_KNOWN: dict[tuple[str, str], Any] = {
    **{(module, "_reconstruct"): _reconstruct for module in _NUMPY},
    **{(module, "scalar"): _scalar for module in _NUMPY},
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
}


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of an array")
        return _KNOWN[module, name]


def read_pickled_arrays(path: Path | str) -> Any:
    """The arrays, lists, dicts and text of a pickle file; nothing else is built.

    Raises :class:`InputError` for a pickle that names anything else, or is damaged.
    """
    with _opened(path) as file:
        return _load(file, path)


def read_object_array(path: Path | str) -> np.ndarray:
    """A ``.npy`` file whose array is pickled, by the same reader."""
    with _opened(path) as file:
        try:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
            shape = (header or np.lib.format.read_array_header_2_0)(file)[0]
        except ValueError as error:
            raise InputError(f"is not an array file ({error})", where=path) from None
        values = np.asarray(_load(file, path))
    if values.shape != shape:
        raise InputError(f"says it holds {shape}, but holds {values.shape}", where=path)
    return values


def _opened(path: Path | str) -> Any:
    try:
        return open(path, "rb")
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path) from None


def _load(file: Any, path: Path | str) -> Any:
    try:
        return _Arrays(file).load()
    except Exception as error:  # a damaged pickle can raise anything
        line = " ".join(str(error).split())[:140] or type(error).__name__
        raise InputError(f"the pickle is not read ({line})", where=path) from None
