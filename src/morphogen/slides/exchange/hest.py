"""HEST-1k's files: ``patches/{id}.h5`` (img, coords, barcode) and the embeddings of hest.bench."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from morphogen.core.errors import InputError
from morphogen.core.names import path_name
from morphogen.core.writing.hdf5 import writing_h5
from morphogen.slides.exchange.tileset import (
    TileSet,
    attribute,
    dataset,
    opened,
    ours,
    read_coords,
    read_features,
    write_h5,
)
from morphogen.slides.fields import read_boxes

if TYPE_CHECKING:
    from morphogen.slides.slide import Slide

PATCH_MPP = 0.5  # HEST-1k cuts 224 px at 0.5 µm/px: 112 µm
_BATCH = 256


def read(slide: Slide, source: Path, encoder: str | None = None) -> TileSet:
    """Tiles of ``patches/{id}.h5`` and the embeddings in ``embeddings/{encoder}/{id}.h5``, joined by barcode.

    ``source`` is a HEST folder, or one embeddings file of hest.bench (its tiles are then those of HEST: 224 px at
    0.5 µm/px). The slide's µm/px must be known: the files hold no size in level-0 pixels.
    """
    stem = slide.path.stem
    if source.is_file():
        return _read_embeddings(slide, source, None, encoder or source.parent.name)
    if not source.is_dir():
        raise InputError("there is no such folder", where=source)
    patches = source / "patches" / f"{stem}.h5"
    tiles = _read_patches(slide, patches) if patches.is_file() else None
    files = {ours(p.parent.name): p for p in sorted(source.glob(f"embeddings/*/{stem}.h5"))}
    if encoder is not None:
        files = {name: path for name, path in files.items() if name == encoder}
        if not files:
            raise InputError(f"has no embeddings of '{encoder}' for {stem}", where=source)
    for name, path in files.items():
        tiles = _read_embeddings(slide, path, tiles, name)
    if tiles is None:
        raise InputError(f"has neither patches nor embeddings of {stem}", where=source)
    return tiles


def write(slide: Slide, tiles: TileSet, target: Path) -> list[Path]:
    """Write the pixels of the tiles (read again, a batch at a time) and every encoder's embeddings."""
    stem, names = slide.path.stem, tiles.barcodes or [f"{x}x{y}" for x, y in tiles.coords]
    barcodes = np.array([[name.encode()] for name in names], dtype=object).reshape(-1, 1)
    text = h5py.special_dtype(vlen=bytes)
    path = target / "patches" / f"{stem}.h5"
    boxes = np.column_stack([tiles.coords, np.full((len(tiles), 2), tiles.side)]).astype(np.float64)
    with writing_h5(path) as file:
        shape = (len(tiles), tiles.tile_px, tiles.tile_px, 3)
        chunks = (1, *shape[1:]) if len(tiles) else None
        image = file.create_dataset("img", shape, np.uint8, chunks=chunks)
        image.attrs["patch_size"] = tiles.tile_px
        image.attrs["patch_size_src"] = tiles.side
        if tiles.mpp:
            image.attrs["pixel_size"] = tiles.mpp
        for start in range(0, len(tiles), _BATCH):
            image[start : start + _BATCH] = read_boxes(slide, boxes[start : start + _BATCH], tiles.tile_px)
        file.create_dataset("coords", data=tiles.coords.astype(np.int64))
        file.create_dataset("barcode", data=barcodes, dtype=text)
    paths = [path]
    for name, values in tiles.features.items():
        arrays: dict[str, tuple[np.ndarray, dict[str, str]]] = {
            "embeddings": (values.astype(np.float32), {"encoder": name}),
            "coords": (tiles.coords.astype(np.int64), {}),
            "barcodes": (np.array(names, dtype="S"), {}),
        }
        paths.append(write_h5(target / "embeddings" / path_name(name, "encoder") / f"{stem}.h5", arrays))
    return paths


def patch_index(path: Path) -> tuple[list[str], np.ndarray]:
    """Barcodes (N) and top-left corners (N, 2) int64 of the patches of ``patches/{id}.h5``.

    Their images must be (N, px, px, 3) uint8. Raises :class:`InputError` for anything else."""
    with opened(path) as file:
        corners = read_coords(file, path)
        images = dataset(file, path, "img")
        shape, kind = images.shape, images.dtype
        names = _barcodes(file, path, len(corners))
    if names is None:
        raise InputError("holds no 'barcode', so its patches cannot be joined to spots", where=path)
    if len(shape) != 4 or shape != (len(corners), shape[1], shape[1], 3) or kind != np.uint8:
        raise InputError(
            f"'img' is {kind} of shape {shape}, not ({len(corners)}, px, px, 3) of 8 bits", where=path
        )
    return names, corners


def _read_patches(slide: Slide, path: Path) -> TileSet:
    with opened(path) as file:
        coords = read_coords(file, path)
        images = dataset(file, path, "img", "imgs", "images")
        if images.ndim != 4 or len(images) != len(coords):
            raise InputError(f"'img' has shape {images.shape} for {len(coords)} coordinates", where=path)
        px = int(images.shape[1])
        mpp = float(attribute(file, images, "pixel_size") or PATCH_MPP)
        side = attribute(file, images, "patch_size_src")
        barcodes = _barcodes(file, path, len(coords))
    side = int(side) if side is not None else round(px * mpp / slide.require_mpp())
    return TileSet(coords, side, px, mpp, barcodes=barcodes)


def _read_embeddings(slide: Slide, path: Path, tiles: TileSet | None, encoder: str) -> TileSet:
    with opened(path) as file:
        coords = read_coords(file, path)
        values = read_features(file, path, len(coords), "embeddings", "features")
        barcodes = _barcodes(file, path, len(coords))
    if tiles is None:
        side = round(224 * PATCH_MPP / slide.require_mpp())
        return TileSet(coords, side, 224, PATCH_MPP, features={encoder: values}, barcodes=barcodes)
    if tiles.barcodes is not None and barcodes is not None:
        rows = {name: row for row, name in enumerate(barcodes)}
        missing = [name for name in tiles.barcodes if name not in rows]
        if missing:
            raise InputError(f"lacks {len(missing)} of {len(tiles)} spots, first '{missing[0]}'", where=path)
        values = values[[rows[name] for name in tiles.barcodes]]
    elif not np.array_equal(coords, tiles.coords):
        raise InputError("its tiles are not those of the patches file, and it has no barcodes", where=path)
    tiles.features[encoder] = values
    return tiles


def _barcodes(file: h5py.File, path: Path, count: int) -> list[str] | None:
    name = next((key for key in ("barcode", "barcodes") if key in file), None)
    if name is None:
        return None
    values = np.asarray(file[name]).reshape(-1)
    if len(values) != count:
        raise InputError(f"'{name}' has {len(values)} entries for {count} coordinates", where=path)
    names = [value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in values]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"the barcode '{twice}' occurs twice", where=path)
    return names
