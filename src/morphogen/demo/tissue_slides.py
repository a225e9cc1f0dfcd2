"""Simulated whole slides: rendered in bands to a spool on disk, then written as a tiled pyramid."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from morphogen.core.errors import InputError
from morphogen.core.files import (
    atomic_path,
    content_hash,
    output_error,
    read_json,
    writable_folder,
    write_json,
)
from morphogen.core.progress import progress
from morphogen.demo.simulator import TissueSimulator

_BAND = 512  # rows rendered at a time
_TILE = 256
_SMALLEST = 512  # no pyramid level below this many pixels on the longer side


def write_slide(
    path: Path | str,
    width: int,
    height: int,
    *,
    simulator: TissueSimulator,
    ihc_path: Path | str | None = None,
    quality: int = 90,
) -> Path:
    """A tiled pyramidal TIFF of the simulator's window (0, 0, width, height), and its immunostained partner.

    JPEG tiles of 256 px, levels of half size as further pages (what OpenSlide reads), µm/px in the resolution tags.
    Memory stays within a few bands of 512 rows; the uncompressed pixels are spooled beside ``path``. A run that was
    killed continues from the last finished band, to the same pixels. Returns ``path``.
    """
    path = Path(path)
    targets = {"he": path} | ({"ihc": Path(ihc_path)} if ihc_path is not None else {})
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise InputError("a simulated slide is a TIFF file", where=path, fix="Name it .tif")
    if width < 1 or height < 1:
        raise InputError(f"a slide of {width} × {height} pixels holds nothing", where=path)
    if all(target.exists() for target in targets.values()):
        return path
    writable_folder(path.parent)
    spool = path.with_name(f".{path.name}.spool")
    try:
        _render_to(spool, width, height, simulator, list(targets))
        for name, target in targets.items():
            if not target.exists():
                base = np.memmap(spool / f"{name}.raw", dtype=np.uint8, mode="r", shape=(height, width, 3))
                with atomic_path(target) as temporary:
                    _write_pyramid(temporary, base, spool, simulator.mpp, quality)
    except OSError as error:
        raise output_error(error, path) from error
    shutil.rmtree(spool, ignore_errors=True)
    return path


def _render_to(spool: Path, width: int, height: int, simulator: TissueSimulator, names: list[str]) -> None:
    """Raw pixels of the whole slide in ``spool``, band by band, continuing what is there."""
    settings = {"what": content_hash(simulator.describe()), "size": [width, height], "names": names}
    ledger = spool / "progress.json"
    done = 0
    if ledger.is_file():
        before = read_json(ledger)
        if {key: before.get(key) for key in settings} == settings:
            done = before["rows"]
        else:
            shutil.rmtree(spool)
    writable_folder(spool)
    shape = (height, width, 3)
    layers = {}
    for name in names:
        raw = spool / f"{name}.raw"
        layers[name] = np.memmap(
            raw, dtype=np.uint8, mode="r+" if done and raw.is_file() else "w+", shape=shape
        )
    for row in progress(list(range(done, height, _BAND)), what="rendering bands"):
        rows = min(_BAND, height - row)
        for col in range(0, width, _BAND):
            part = simulator.render(col, row, min(_BAND, width - col), rows, ihc="ihc" in names)
            for name, layer in layers.items():
                layer[row : row + rows, col : col + part.he.shape[1]] = getattr(part, name)
        for layer in layers.values():
            layer.flush()
        write_json(ledger, {**settings, "rows": row + rows})


def _tiles(image: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    for y in range(0, image.shape[0], _TILE):
        for x in range(0, image.shape[1], _TILE):
            part = image[y : y + _TILE, x : x + _TILE]
            if part.shape[:2] != (_TILE, _TILE):
                padding = ((0, _TILE - part.shape[0]), (0, _TILE - part.shape[1]), (0, 0))
                part = np.pad(part, padding, mode="edge")
            yield np.ascontiguousarray(part)


def _half(image: NDArray[np.uint8], path: Path) -> NDArray[np.uint8]:
    """The image at half size (mean of 2 × 2), as a memory map."""
    height, width = image.shape[0] // 2, image.shape[1] // 2
    half = np.memmap(path, dtype=np.uint8, mode="w+", shape=(height, width, 3))
    for y in range(0, height, _BAND):
        rows = min(_BAND, height - y)
        part = image[2 * y : 2 * (y + rows), : 2 * width].astype(np.uint16)
        mean = part[0::2, 0::2] + part[1::2, 0::2] + part[0::2, 1::2] + part[1::2, 1::2]
        half[y : y + rows] = (mean + 2) // 4
    return half


def _write_pyramid(path: Path, base: NDArray[np.uint8], spool: Path, mpp: float, quality: int) -> None:
    image, level = base, 0
    big = base.size > 2_000_000_000
    with tifffile.TiffWriter(path, bigtiff=big) as writer:
        while True:
            per_cm = 1e4 / (mpp * base.shape[1] / image.shape[1])
            writer.write(
                _tiles(image),
                shape=image.shape,
                dtype=np.uint8,
                tile=(_TILE, _TILE),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": quality},
                resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER",
                subfiletype=1 if level else 0,
                metadata=None,
            )
            if max(image.shape[:2]) < 2 * _SMALLEST or min(image.shape[:2]) < 2:
                return
            level += 1
            image = _half(image, spool / f"level-{level}.raw")
