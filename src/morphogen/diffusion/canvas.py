"""Canvases larger than memory: fields that live in arrays on disk and are computed block by block.

Everything a solver does to x, apart from asking the denoiser, is arithmetic point by point. A :class:`Canvas`
therefore only remembers how to compute itself in a region; ``0.9 * x + 0.1 * x0`` costs nothing until someone reads
it or a :class:`CanvasStore` writes it down, one block at a time. With it the solvers work on canvases of any size
without knowing.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from morphogen.core.errors import ConfigError, InputError
from morphogen.core.files import writable_folder
from morphogen.core.writing.places import own_place
from morphogen.diffusion.blending import Position
from morphogen.diffusion.noise import CanvasNoise

Region = tuple[slice, slice]


class ArrayLike(Protocol):
    """A float32 array (…, H, W) that is read and written by slices: NumPy, memory-mapped, zarr, h5py."""

    shape: tuple[int, ...]

    def __getitem__(self, key: Any, /) -> Any: ...
    def __setitem__(self, key: Any, value: Any, /) -> None: ...


class Canvas:
    """A field (…, H, W) known by how to read a region of it.

    Adding canvases and multiplying by numbers gives canvases again, not yet computed.
    """

    def __init__(self, read: Callable[[Region], Tensor], store: CanvasStore) -> None:
        self._read = read
        self.store = store
        self.shape = torch.Size(store.shape)
        self.device, self.dtype, self.ndim = store.device, torch.float32, len(store.shape)
        self.array: Array | None = None  # where it is written, once it is

    def read(self, rows: slice = slice(None), columns: slice = slice(None)) -> Tensor:
        """The region (…, rows, columns) on the canvas' device."""
        return self._read((rows, columns))

    def whole(self) -> Tensor:
        """All of it: only for canvases that fit into memory."""
        return self.read()

    def _with(self, other: Canvas | float, combine: Callable[[Any, Any], Tensor]) -> Canvas:
        if isinstance(other, Canvas):
            return Canvas(lambda r: combine(self._read(r), other._read(r)), self.store)
        return Canvas(lambda r: combine(self._read(r), other), self.store)

    def __add__(self, other: Canvas | float) -> Canvas:
        return self._with(other, lambda a, b: a + b)

    def __sub__(self, other: Canvas | float) -> Canvas:
        return self._with(other, lambda a, b: a - b)

    def __rsub__(self, other: Canvas | float) -> Canvas:
        return self._with(other, lambda a, b: b - a)

    def __mul__(self, other: Canvas | float) -> Canvas:
        return self._with(other, lambda a, b: a * b)

    def __truediv__(self, other: Canvas | float) -> Canvas:
        return self._with(other, lambda a, b: a / b)

    def exp(self) -> Canvas:
        """e to the power of it."""
        return Canvas(lambda region: self._read(region).exp(), self.store)

    __radd__ = __add__
    __rmul__ = __mul__


class Array:
    """One array of a store, in use as long as something refers to it."""

    def __init__(self, name: str, data: ArrayLike, device: torch.device) -> None:
        self.name, self.data, self.device = name, data, device

    def read(self, region: Region) -> Tensor:
        return torch.from_numpy(np.array(self.data[(..., *region)], dtype=np.float32)).to(self.device)

    def write(self, region: Region, value: Tensor) -> None:
        self.data[(..., *region)] = value.detach().to("cpu", torch.float32).numpy()

    def flush(self) -> None:
        """Make sure that what was written is on the disk, for arrays that can."""
        flush = getattr(self.data, "flush", None)
        if flush is not None:
            flush()


class CanvasStore:
    """Where canvases of one shape are kept. An array whose canvas nobody refers to any more is used again.

    Parameters
    ----------
    shape:
        (…, H, W) of every canvas.
    new:
        ``new(name)`` creates the array of that name, or opens it when it is there already, e.g.
        ``lambda name: zarr.open_array(f"{folder}/{name}.zarr", mode="a", shape=shape, dtype="f4", chunks=…)``.
    device:
        Where regions are computed.
    block:
        Side of the blocks in which canvases are written; the memory needed is a few blocks.
    """

    def __init__(
        self,
        shape: Sequence[int],
        new: Callable[[str], ArrayLike],
        *,
        device: torch.device | str = "cpu",
        block: int = 512,
    ) -> None:
        self.shape = tuple(shape)
        self.device, self.block = torch.device(device), block
        self._new = new
        self._in_use: weakref.WeakValueDictionary[str, Array] = weakref.WeakValueDictionary()

    @classmethod
    def memmap(
        cls, folder: Path | str, shape: Sequence[int], *, device: torch.device | str = "cpu", block: int = 512
    ) -> CanvasStore:
        """Arrays as ``.npy`` files in ``folder``, mapped only while a region is read or written."""
        folder = writable_folder(folder)
        return cls(
            shape, lambda name: _MappedFile(folder / f"{name}.npy", tuple(shape)), device=device, block=block
        )

    @classmethod
    def memory(
        cls, shape: Sequence[int], *, device: torch.device | str = "cpu", block: int = 512
    ) -> CanvasStore:
        """Arrays in main memory: for canvases that fit there but not on the device."""
        return cls(shape, lambda name: np.zeros(tuple(shape), np.float32), device=device, block=block)

    def empty(self) -> Canvas:
        """A canvas in a free array; it holds whatever was there before."""
        i = 0
        while f"canvas-{i}" in self._in_use:
            i += 1
        return self.open(f"canvas-{i}")

    def open(self, name: str) -> Canvas:
        """The canvas in the array of this name."""
        array = self._in_use.get(name)
        if array is None:
            data = self._new(name)
            if tuple(data.shape) != self.shape:
                raise InputError(
                    f"the array has shape {tuple(data.shape)}, the canvas {self.shape}",
                    where=name,
                    fix="Remove the old arrays or use another folder",
                )
            array = Array(name, data, self.device)
            self._in_use[name] = array
        canvas = Canvas(array.read, self)
        canvas.array = array
        return canvas

    def save(self, canvas: Canvas | Tensor) -> Canvas:
        """Compute a canvas block by block into a free array; one that is in an array already is returned as is."""
        if isinstance(canvas, Canvas) and canvas.array is not None:
            return canvas
        if tuple(canvas.shape) != self.shape:
            raise ConfigError(
                f"shape {tuple(canvas.shape)} does not fit the store's {self.shape}", where="canvas"
            )
        saved = self.empty()
        assert saved.array is not None
        for rows, columns in self.blocks():
            part = canvas.read(rows, columns) if isinstance(canvas, Canvas) else canvas[..., rows, columns]
            saved.array.write((rows, columns), part)
        return saved

    def noise(self, noise: CanvasNoise) -> Callable[[int], Canvas]:
        """A solver's ``noise`` that is computed where it is read."""
        if noise.shape != self.shape:
            raise ConfigError(
                f"noise of shape {noise.shape} does not fit the store's {self.shape}", where="noise"
            )
        return lambda step: Canvas(lambda region: noise(step, region).to(self.device), self)

    def blocks(self) -> Iterator[Region]:
        """The regions in which canvases are written."""
        height, width = self.shape[-2:]
        for top in range(0, height, self.block):
            for left in range(0, width, self.block):
                yield slice(top, min(top + self.block, height)), slice(left, min(left + self.block, width))


class _MappedFile:
    """A ``.npy`` file that is mapped for the moment of an access, so that its pages do not stay with the process."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path = path
        if not own_place(path).exists():
            np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        self.shape = np.load(path, mmap_mode="r").shape

    def __getitem__(self, key: Any) -> np.ndarray:
        return np.array(np.load(self.path, mmap_mode="r")[key])

    def __setitem__(self, key: Any, value: Any) -> None:
        np.load(self.path, mmap_mode="r+")[key] = value

    def flush(self) -> None:
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())


# -- parts of a canvas, in memory or on a disk -----------------------------------------------------------------


def read_part(field: Any, rows: slice, columns: slice) -> Tensor:
    """(B, C, h, w) of a tensor (a view) or a :class:`Canvas`; what lies beyond the far edges is left out."""
    rows, columns = (
        slice(each.start, min(each.stop, extent)) for each, extent in zip((rows, columns), field.shape[-2:])
    )
    return field.read(rows, columns) if isinstance(field, Canvas) else field[..., rows, columns]


def write_part(field: Any, rows: slice, columns: slice, value: Tensor) -> None:
    """Write a part of a tensor, or of a :class:`Canvas` that is an array of a store."""
    if isinstance(field, Canvas):
        assert field.array is not None
        field.array.write((rows, columns), value)
    else:
        field[..., rows, columns] = value


def empty_like(x: Any) -> Any:
    """Zeros shaped like ``x``, in its store where it has one."""
    return x.store.empty() if isinstance(x, Canvas) else torch.zeros_like(x)


def cut_windows(x: Any, positions: Sequence[Position], window: tuple[int, int]) -> list[Tensor]:
    """The windows at ``positions``; a canvas smaller than a window is mirrored at its far edge."""
    windows = []
    for row, columns in runs(positions):
        # Neighbours overlap: from a disk they are read in one go.
        left, right = min(columns), max(columns) + window[1]
        strip = read_part(x, slice(row, row + window[0]), slice(left, right))
        if strip.shape[-2] < window[0]:
            strip = strip[..., _mirrored(strip.shape[-2], window[0]), :]
        if x.shape[-1] < window[1]:
            strip = strip[..., _mirrored(strip.shape[-1], window[1])]
        windows += [strip[..., column - left : column - left + window[1]] for column in columns]
    return windows


def runs(positions: Sequence[Position]) -> Iterator[tuple[int, list[int]]]:
    """Neighbours in ``positions`` that lie in one row: the row and their columns."""
    for row, run in groupby(positions, key=lambda position: position[0]):
        yield row, [column for _, column in run]


def _mirrored(size: int, wanted: int) -> Tensor:
    around = torch.arange(wanted) % (2 * size)
    return torch.where(around < size, around, 2 * size - 1 - around)
