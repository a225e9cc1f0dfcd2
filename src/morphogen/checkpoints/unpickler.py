"""Tensors out of a torch file whose pickle names classes that torch's own safe reader refuses.

A pickle is a program that names functions to import and call. This reader imports nothing: the few names
that tensors are made of mean our own functions below, and every other name becomes an inert stand-in that
swallows what it is given. A file that names ``os.system`` yields a stand-in called "os.system", and nothing
runs.
"""

from __future__ import annotations

import mmap
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _STORAGES.values()}


# Left inert like all others, but not worth a word to the user.
_HARMLESS = {
    *(
        f"{module}.{name}"
        for module in ("builtins", "__builtin__")
        for name in ("dict", "list", "set", "tuple", "int", "long", "float", "str", "bool", "object")
    ),
    "collections.defaultdict",
    "typing.Any",
}


class Inert:
    """Stands for an object of a class that was not imported. Keeps what it was built from, does nothing."""

    foreign = "?"

    def __new__(cls, *arguments: Any, **keywords: Any) -> Inert:
        instance = object.__new__(cls)
        instance.arguments = arguments  # type: ignore[attr-defined]
        return instance

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *arguments: Any) -> Inert:
        return Inert(*arguments)

    def __repr__(self) -> str:
        return f"<inert {self.foreign}>"

    # What a pickle does to lists, dicts and sets of a foreign class.
    def append(self, item: Any) -> None:
        """Swallow an item."""

    def extend(self, items: Any) -> None:
        """Swallow items."""

    def add(self, item: Any) -> None:
        """Swallow an item."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Swallow an item."""


class _Callable:
    """A function the pickle may call, as an object without attributes, so that no pickle can change it."""

    __slots__ = ("_function",)
    _function: Any

    def __init__(self, function: Any) -> None:
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("the pickle tries to change a function")

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)


def _tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    if not isinstance(storage, Tensor):
        raise pickle.UnpicklingError("a tensor without a storage")
    return torch.as_strided(storage, tuple(size), tuple(stride), offset)  # checks its bounds


def _parameter(data: Tensor, *_: Any) -> Tensor:
    return data


_FUNCTIONS = {
    ("torch._utils", "_rebuild_tensor_v2"): _Callable(_tensor),
    ("torch._utils", "_rebuild_tensor"): _Callable(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Callable(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): _Callable(_parameter),
    ("torch", "Size"): _Callable(tuple),
    ("collections", "OrderedDict"): OrderedDict,
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, storages: _Storages) -> None:
        super().__init__(file, encoding="utf-8")
        self._storages = storages
        self._inert: dict[str, type] = {}

    @property
    def foreign(self) -> tuple[str, ...]:
        return tuple(sorted(set(self._inert) - _HARMLESS))

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _FUNCTIONS:
            return _FUNCTIONS[module, name]
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        full = f"{module}.{name}"
        if full not in self._inert:
            self._inert[full] = type("Inert", (Inert,), {"foreign": full})
        return self._inert[full]

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"unknown storage {pid!r}")
        return self._storages.read(str(key), dtype, int(count))


class _Storages:
    """The tensor data of a torch zip file, mapped and not copied, so that only what is used is read."""

    def __init__(self, archive: zipfile.ZipFile, prefix: str, path: Path) -> None:
        self._archive, self._prefix, self._path = archive, prefix, path
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._read: dict[str, Tensor] = {}

    def read(self, key: str, dtype: torch.dtype, count: int) -> Tensor:
        if key not in self._read:
            info = self._archive.getinfo(f"{self._prefix}/data/{key}")
            if info.compress_type != zipfile.ZIP_STORED:
                raise pickle.UnpicklingError("compressed tensor data")
            header = self._map[info.header_offset : info.header_offset + 30]
            name, extra = struct.unpack("<HH", header[26:30])
            start = info.header_offset + 30 + name + extra
            if (
                count < 0
                or count * dtype.itemsize > info.file_size
                or start + info.file_size > len(self._map)
            ):
                raise pickle.UnpicklingError("tensor data is cut short")
            self._read[key] = (
                torch.frombuffer(self._map, dtype=dtype, count=count, offset=start)
                if count
                else torch.empty(0, dtype=dtype)
            )
        return self._read[key]


def read_inertly(path: Path) -> tuple[Any, tuple[str, ...]]:
    """The content of a torch zip file (torch ≥ 1.6), and the names of the classes left inert.

    Raises whatever a damaged file makes it raise; nothing that the file names is imported or called.
    """
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        prefix = next(name for name in names if name.endswith("/data.pkl")).removesuffix("/data.pkl")
        if f"{prefix}/byteorder" in names and archive.read(f"{prefix}/byteorder") != b"little":
            raise pickle.UnpicklingError("tensor data is big-endian")
        with archive.open(f"{prefix}/data.pkl") as file:
            unpickler = _Unpickler(file, _Storages(archive, prefix, path))
            return unpickler.load(), unpickler.foreign
