"""CLAM's files: ``patches/{slide}.h5``, ``h5_files/{slide}.h5`` (features, coords) and ``pt_files/{slide}.pt``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from morphogen.core.errors import CheckpointError, InputError
from morphogen.core.files import atomic_path
from morphogen.slides.exchange.tileset import (
    TileSet,
    attribute,
    check_features,
    dataset,
    opened,
    ours,
    read_coords,
    read_features,
    write_h5,
)

if TYPE_CHECKING:
    from morphogen.slides.slide import Slide


def read(slide: Slide, source: Path, encoder: str | None = None) -> TileSet:
    """Tiles and features of one slide.

    ``source`` holds ``patches`` and, for one encoder, ``h5_files`` or ``pt_files``; or one folder per encoder that
    does. A ``pt`` file has no coordinates: its rows are those of the patches file.
    """
    if not source.is_dir():
        raise InputError("there is no such folder", where=source)
    stem = slide.path.stem
    folders = {
        p.parent.name: p.parent for kind in ("h5_files", "pt_files") for p in sorted(source.glob(f"*/{kind}"))
    }
    if (source / "h5_files").is_dir() or (source / "pt_files").is_dir():
        folders = {encoder or "clam": source}
    folders = {ours(name): path for name, path in folders.items() if encoder in (None, ours(name))}
    patches = source / "patches" / f"{stem}.h5"
    tiles = _read_patches(slide, patches) if patches.is_file() else None
    for name, folder in folders.items():
        h5, pt = folder / "h5_files" / f"{stem}.h5", folder / "pt_files" / f"{stem}.pt"
        if h5.is_file():
            with opened(h5) as file:
                coords = read_coords(file, h5)
                values = read_features(file, h5, len(coords), "features")
            if tiles is None:
                raise InputError(
                    f"there is no patches file of {stem}, so the size of its tiles is unknown", where=patches
                )
            if not np.array_equal(coords, tiles.coords):
                raise InputError("its tiles are not those of the patches file", where=h5)
        elif pt.is_file():
            if tiles is None:
                raise InputError(
                    "a pt file has no coordinates; the patches file is needed too", where=patches
                )
            values = check_features(_read_pt(pt), len(tiles), pt)
        else:
            continue
        tiles.features[name] = values
    if tiles is None or (encoder is not None and encoder not in tiles.features):
        what = f"features of '{encoder}' for" if encoder else "patches or features of"
        raise InputError(f"has no {what} {stem}", where=source)
    return tiles


def write(slide: Slide, tiles: TileSet, target: Path) -> list[Path]:
    """Write patches, and features as h5 and pt (in a folder per encoder when there are several); returns the files.

    Tiles are written at level 0 with their level-0 side, which every CLAM reader understands; their side and µm/px as
    encoded stand in two more attributes.
    """
    import torch

    stem = slide.path.stem
    size = np.array([slide.width, slide.height])
    notes = {
        "patch_size": tiles.side,
        "patch_level": 0,
        "downsample": np.array([1.0, 1.0]),
        "downsampled_level_dim": size,
        "level_dim": size,
        "name": stem,
        "save_path": ".",
        "tile_px": tiles.tile_px,
        "overlap": tiles.overlap,
        **({"tile_mpp": tiles.mpp} if tiles.mpp else {}),
    }
    coords = tiles.coords.astype(np.int32)
    paths = [write_h5(target / "patches" / f"{stem}.h5", {"coords": (coords, notes)})]
    for name, values in tiles.features.items():
        folder = target if len(tiles.features) == 1 else target / name
        arrays = {"features": (values.astype(np.float32), {"encoder": name}), "coords": (coords, {})}
        paths.append(write_h5(folder / "h5_files" / f"{stem}.h5", arrays))
        pt = folder / "pt_files" / f"{stem}.pt"
        with atomic_path(pt) as temporary:
            torch.save(torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)), temporary)
        paths.append(pt)
    return paths


def _read_patches(slide: Slide, path: Path) -> TileSet:
    with opened(path) as file:
        coords = read_coords(file, path)
        owner = dataset(file, path, "coords")
        size, level = attribute(file, owner, "patch_size"), attribute(file, owner, "patch_level")
        if size is None:
            raise InputError("'coords' lacks the attribute patch_size", where=path)
        level = int(level or 0)
        if not 0 <= level < len(slide.level_downsamples):
            raise InputError(
                f"names pyramid level {level}, which {slide.path.name} does not have", where=path
            )
        dims = attribute(file, owner, "level_dim")
        if dims is not None and tuple(int(n) for n in dims) != slide.level_shapes[level][::-1]:
            shape = "×".join(str(int(n)) for n in dims)
            raise InputError(
                f"is of a slide of {shape} px at level {level}, not of {slide.path.name}", where=path
            )
        downsample = attribute(file, owner, "downsample")
        factor = (
            float(np.atleast_1d(downsample)[0]) if downsample is not None else slide.level_downsamples[level]
        )
        px = attribute(file, owner, "tile_px")
        mpp = attribute(file, owner, "tile_mpp")
        overlap = attribute(file, owner, "overlap")
    if mpp is None and slide.mpp is not None and px is None:
        mpp = slide.mpp * factor
    side = round(int(size) * factor)
    return TileSet(coords, side, int(px or size), None if mpp is None else float(mpp), int(overlap or 0))


def _read_pt(path: Path) -> np.ndarray:
    import torch

    from morphogen.core.weights.reading import read_weights

    try:
        value = read_weights(path).content
    except CheckpointError as error:
        raise InputError(error.what, where=path, fix=error.fix) from error
    if not isinstance(value, torch.Tensor):
        raise InputError("does not hold one tensor", where=path)
    return value.float().numpy()
