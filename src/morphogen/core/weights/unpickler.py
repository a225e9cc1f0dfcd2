"""Tensors out of a torch file whose pickle names classes that torch's own safe reader refuses.

A pickle is a program that names functions to import and call. This reader imports nothing: the few names
that tensors are made of mean our own functions below, and every other name becomes an inert stand-in that
swallows what it is given. A file that names ``os.system`` yields a stand-in called "os.system", and nothing
runs.
"""

from __future__ import annotations

import io
import mmap
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any, Protocol

import torch
from torch import Tensor

from morphogen.core.weights.limits import MAX_BYTES, check_pickle

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


class _Source(Protocol):
    def read(self, key: str, dtype: torch.dtype, count: int) -> Tensor: ...


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, storages: _Source) -> None:
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
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or any(view):
            raise pickle.UnpicklingError("tensor data of an unknown kind")
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


class _Following:
    """Tensor data of a torch file before 1.6: behind the pickles, in the order of a list that comes after them."""

    def __init__(self, size: int) -> None:
        self._left = size
        self.tensors: dict[str, Tensor] = {}

    def read(self, key: str, dtype: torch.dtype, count: int) -> Tensor:
        if key not in self.tensors:
            self._left -= count * dtype.itemsize
            if count < 0 or self._left < 0:
                raise pickle.UnpicklingError("tensor data is cut short")
            self.tensors[key] = torch.empty(count, dtype=dtype)
        return self.tensors[key]

    def fill(self, file: IO[bytes], keys: list[str]) -> None:
        """Read all of them."""
        for key in keys:
            tensor = self.tensors[key]
            (count,) = struct.unpack("<q", file.read(8))
            data = tensor.view(torch.uint8).numpy() if tensor.numel() else bytearray()
            if count != tensor.numel() or file.readinto(memoryview(data)) != tensor.nbytes:  # type: ignore[attr-defined]
                raise pickle.UnpicklingError("tensor data is cut short")


def instructions(archive: zipfile.ZipFile, name: str) -> io.BytesIO:
    """One pickle of an archive, checked for its bounds (:mod:`morphogen.core.weights.limits`)."""
    if archive.getinfo(name).file_size > MAX_BYTES:
        raise pickle.UnpicklingError("its pickle is too large for a file of weights")
    data = io.BytesIO(archive.read(name))
    check_pickle(data)
    data.seek(0)
    return data


def read_inertly(path: Path) -> tuple[Any, tuple[str, ...]]:
    """The content of a torch zip file (torch ≥ 1.6), and the names of the classes left inert.

    Raises whatever a damaged file makes it raise; nothing that the file names is imported or called.
    """
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        prefix = next(name for name in names if name.endswith("/data.pkl")).removesuffix("/data.pkl")
        if f"{prefix}/byteorder" in names and archive.read(f"{prefix}/byteorder") != b"little":
            raise pickle.UnpicklingError("tensor data is big-endian")
        unpickler = _Unpickler(instructions(archive, f"{prefix}/data.pkl"), _Storages(archive, prefix, path))
        return unpickler.load(), unpickler.foreign


MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a torch file before 1.6


def read_legacy_inertly(path: Path) -> tuple[Any, tuple[str, ...]]:
    """:func:`read_inertly` for the format of torch before 1.6: five pickles one after the other, then the data."""
    with open(path, "rb") as file:
        source = _Following(path.stat().st_size)
        values, foreign = [], set()
        for number in range(5):  # mark, version of the format, system, content, order of the data
            start = file.tell()
            check_pickle(file)
            end = file.tell()
            file.seek(start)
            unpickler = _Unpickler(io.BytesIO(file.read(end - start)), source)
            values.append(unpickler.load())
            foreign |= set(unpickler.foreign)
            if not number and values[0] != MAGIC:
                raise pickle.UnpicklingError("a pickle of something else")
        if not all(isinstance(key, str) for key in values[4]) or set(values[4]) != set(source.tensors):
            raise pickle.UnpicklingError("tensor data is missing")
        source.fill(file, values[4])
    return values[3], tuple(sorted(foreign))
