"""Tiles with their features in memory, as they pass between the store and the files of other tools."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from morphogen.core.errors import InputError, nearest
from morphogen.core.writing.hdf5 import writing_h5


@dataclass
class TileSet:
    """Tiles of one slide, of one size.

    Attributes
    ----------
    coords:
        (N, 2) int64 top-left corners, level-0 pixels.
    side:
        Side in level-0 pixels.
    tile_px, mpp, overlap:
        Side in pixels as read, µm per such pixel (``None`` = unknown), pixels shared by neighbours.
    features:
        Encoder name → (N, D) float32.
    barcodes:
        N names of spots or tiles, where the format has them.
    """

    coords: np.ndarray
    side: int
    tile_px: int
    mpp: float | None = None
    overlap: int = 0
    features: dict[str, np.ndarray] = field(default_factory=dict)
    barcodes: list[str] | None = None

    def __len__(self) -> int:
        return len(self.coords)


# How TRIDENT spells encoders that lazyslide-models spells otherwise.
TRIDENT_NAMES = {
    "uni": "uni_v1", "uni2": "uni_v2", "conch": "conch_v1", "conch_v1.5": "conch_v15", "phikonv2": "phikon_v2",
    "h-optimus-0": "hoptimus0", "h-optimus-1": "hoptimus1", "midnight": "midnight12k", "hibou-l": "hibou_l",
}  # fmt: skip


def ours(name: str) -> str:
    """Our spelling of an encoder that a TRIDENT or CLAM folder names."""
    return {theirs: our for our, theirs in TRIDENT_NAMES.items()}.get(name, name)


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """An h5 file for reading; :class:`InputError` when it is missing, cut short or not h5."""
    if not path.is_file():
        raise InputError("there is no such file", where=path)
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise InputError(
            "is not a readable h5 file; it may be cut short", where=path, fix="Copy it again"
        ) from error
    with file:
        yield file


def dataset(file: h5py.File, path: Path, *names: str) -> h5py.Dataset:
    """The first dataset of these names; :class:`InputError` that says what the file holds instead."""
    for name in names:
        if name in file and isinstance(file[name], h5py.Dataset):
            return file[name]
    raise InputError(
        f"holds no '{names[0]}' (it holds {', '.join(sorted(file)) or 'nothing'}).{nearest(names[0], file)}",
        where=path,
    )


def attribute(file: h5py.File, owner: h5py.Dataset, *names: str) -> Any:
    """An attribute of the dataset or else of the file, ``None`` when neither has it."""
    for attrs in (owner.attrs, file.attrs):
        for name in names:
            if name in attrs:
                value = attrs[name]
                return value.item() if isinstance(value, np.generic) else value
    return None


def read_coords(file: h5py.File, path: Path) -> np.ndarray:
    """(N, 2) int64; fractions of a pixel are refused, an empty list of any shape is (0, 2)."""
    values = np.asarray(dataset(file, path, "coords"))
    if values.size == 0:
        return np.zeros((0, 2), dtype=np.int64)
    if values.ndim != 2 or values.shape[1] != 2:
        raise InputError(f"'coords' has shape {values.shape}, not (N, 2)", where=path)
    whole = np.rint(values)
    if np.issubdtype(values.dtype, np.floating) and not np.array_equal(values, whole):
        raise InputError("'coords' are not whole level-0 pixels", where=path)
    return whole.astype(np.int64)


def read_features(file: h5py.File, path: Path, count: int, *names: str) -> np.ndarray:
    """(count, D) float32; a leading axis of 1 is dropped; NaN and a wrong count are refused."""
    values = np.asarray(dataset(file, path, *names))
    return check_features(values, count, path)


def check_features(values: np.ndarray, count: int, path: Path) -> np.ndarray:
    if values.size == 0 and count == 0:
        return np.zeros((0, values.shape[1] if values.ndim == 2 else 0), dtype=np.float32)
    if values.ndim == 3 and values.shape[0] == 1:
        values = values[0]
    if values.ndim != 2 or len(values) != count:
        raise InputError(f"features have shape {values.shape} for {count} tiles", where=path)
    values = values.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise InputError(f"the features of tile {row} are not all numbers", where=path)
    return values


def write_h5(path: Path, arrays: Mapping[str, tuple[np.ndarray, Mapping[str, Any]]], **attrs: Any) -> Path:
    """Write datasets with their attributes, whole or not at all."""
    with writing_h5(path) as file:
        for name, (values, notes) in arrays.items():
            options = (
                {"chunks": True, "maxshape": (None, *values.shape[1:])} if values.ndim and values.size else {}
            )
            made = file.create_dataset(name, data=values, **options)
            for key, value in notes.items():
                made.attrs[key] = value
        for key, value in attrs.items():
            file.attrs[key] = value
    return path
