"""TRIDENT's files: ``patches/{slide}_patches.h5`` and ``features_{encoder}/{slide}.h5``.

Both lie in a folder named by magnification, tile side and overlap: ``{mag}x_{px}px_{ov}px_overlap``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from morphogen.core.errors import InputError
from morphogen.core.names import path_name
from morphogen.core.reading.listing import list_folders
from morphogen.slides.exchange.tileset import (
    TRIDENT_NAMES,
    TileSet,
    attribute,
    dataset,
    opened,
    ours,
    read_coords,
    read_features,
    write_h5,
)

if TYPE_CHECKING:
    from morphogen.slides.slide import Slide

_FOLDER = re.compile(r"(?P<mag>[\d.]+)x_(?P<px>\d+)px_(?P<overlap>\d+)px_overlap$")


def read(slide: Slide, source: Path, encoder: str | None = None) -> TileSet:
    """Tiles and features of one slide.

    ``source`` is TRIDENT's job folder, one of its ``…x_…px_…px_overlap`` folders, or one h5 file. All encoders found
    are read, or the one named.
    """
    if source.is_file():
        return _read_file(slide, source, encoder)
    stem = slide.path.stem
    folder = _folder(source, stem)
    patches = folder / "patches" / f"{stem}_patches.h5"
    files = sorted(folder.glob(f"features_*/{stem}.h5"))
    found = {ours(path.parent.name.removeprefix("features_")): path for path in files}
    if encoder is not None:
        if encoder not in found:
            there = ", ".join(found) or "none"
            raise InputError(
                f"has no features of '{encoder}' for {slide.path.stem} (there: {there})", where=folder
            )
        found = {encoder: found[encoder]}
    if not patches.is_file() and not found:
        raise InputError(f"has neither patches nor features of {slide.path.stem}", where=folder)
    first = _read_file(slide, patches if patches.is_file() else next(iter(found.values())), None)
    for name, path in found.items():
        with opened(path) as file:
            coords = read_coords(file, path)
            values = read_features(file, path, len(coords), "features")
        first.features[name] = values[_order(first.coords, coords, path)]
    return first


def write(slide: Slide, tiles: TileSet, target: Path) -> list[Path]:
    """Write the tiles and every encoder's features; returns the files."""
    magnification = _whole(10 / tiles.mpp) if tiles.mpp else _whole(slide.magnification or 0)
    folder = target / f"{magnification:g}x_{tiles.tile_px}px_{tiles.overlap}px_overlap"
    notes = {
        "patch_size": tiles.tile_px,
        "patch_size_level0": tiles.side,
        "level0_magnification": _whole(slide.magnification or (10 / slide.mpp if slide.mpp else 0)),
        "target_magnification": magnification,
        "overlap": tiles.overlap,
        "name": slide.path.stem,
        "savetodir": ".",
        "level0_width": slide.width,
        "level0_height": slide.height,
    }
    coords = tiles.coords.astype(np.int64)
    paths = [write_h5(folder / "patches" / f"{slide.path.stem}_patches.h5", {"coords": (coords, notes)})]
    for name, values in tiles.features.items():
        theirs = path_name(TRIDENT_NAMES.get(name, name), "encoder")
        # TRIDENT writes features of shape (0,) for a slide without tissue.
        stored = values.astype(np.float32) if len(values) else np.zeros(0, dtype=np.float32)
        facts = {"name": slide.path.stem, "savetodir": ".", "encoder": theirs}
        paths.append(
            write_h5(
                folder / f"features_{theirs}" / f"{slide.path.stem}.h5",
                {"features": (stored, facts), "coords": (coords, notes)},
                encoder=theirs,
            )
        )
    return paths


def _folder(source: Path, stem: str) -> Path:
    if not source.is_dir():
        raise InputError("there is no such folder", where=source)
    if (source / "patches").is_dir() or _FOLDER.search(source.name):
        return source
    holds = [
        p
        for p in list_folders(source)
        if _FOLDER.match(p.name)
        and ((p / "patches" / f"{stem}_patches.h5").is_file() or any(p.glob(f"features_*/{stem}.h5")))
    ]
    if not holds:
        raise InputError(f"no '…x_…px_…px_overlap' folder here holds {stem}", where=source)
    if len(holds) > 1:
        names = ", ".join(p.name for p in holds)
        raise InputError(f"several folders hold {stem}: {names}", where=source, fix="Name one of them")
    return holds[0]


def _read_file(slide: Slide, path: Path, encoder: str | None) -> TileSet:
    with opened(path) as file:
        coords = read_coords(file, path)
        owner = dataset(file, path, "coords")

        def note(name: str) -> Any:
            return attribute(file, owner, name)

        width, height = note("level0_width"), note("level0_height")
        if width is not None and (int(width), int(height)) != (slide.width, slide.height):
            raise InputError(
                f"is of a slide of {width}×{height} px, not of {slide.path.name} ({slide.width}×{slide.height} px)",
                where=path,
            )
        in_name = _FOLDER.search(path.parent.parent.name)
        px = note("patch_size") or (in_name and in_name["px"])
        if px is None:
            raise InputError("'coords' lacks the attribute patch_size", where=path)
        target = note("target_magnification") or (in_name and in_name["mag"])
        mpp = 10 / float(target) if target else None
        side = note("patch_size_level0")
        if side is None:
            if mpp is None:
                raise InputError("'coords' lacks the attribute patch_size_level0", where=path)
            side = round(int(px) * mpp / slide.require_mpp())
        overlap = note("overlap")
        tiles = TileSet(coords, int(side), int(px), mpp, int(overlap or 0))
        if "features" in file:
            name = (
                encoder
                or attribute(file, file["features"], "encoder")
                or path.parent.name.removeprefix("features_")
            )
            tiles.features[ours(str(name))] = read_features(file, path, len(coords), "features")
    return tiles


def _order(wanted: np.ndarray, given: np.ndarray, path: Path) -> np.ndarray:
    """Rows of ``given`` in the order of ``wanted``; the two must be the same tiles."""
    if np.array_equal(wanted, given):
        return np.arange(len(given))
    a, b = (np.lexsort((c[:, 1], c[:, 0])) for c in (wanted, given))
    if len(a) != len(b) or not np.array_equal(wanted[a], given[b]):
        raise InputError("its tiles are not those of the patches file", where=path)
    order = np.empty(len(a), dtype=np.int64)
    order[a] = b
    return order


def _whole(value: float) -> float | int:
    """20.0 → 20, and 10/0.499 stays what it is to three decimals."""
    return round(value) if abs(value - round(value)) < 1e-6 else round(value, 3)
