"""The five folders of the published code (Graikos et al. 2024), each list, feature file and split as it lies there.

Paths in a list are joined below the folder and must stay there. Tiles of another size than the others are left out,
counted in one warning. Lists are text arrays; pickled ones are read only with ``data.trust``, by the reader that
imports nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from morphogen.checkpoints.arrays import read_object_array
from morphogen.core.errors import InputError, SlideError
from morphogen.core.reading.arrays import DAMAGED
from morphogen.slides.exchange.tileset import dataset, opened
from morphogen.slides.images import image_size, read_image
from morphogen.tissue.config import DataConfig
from morphogen.tissue.reading.images import codecs, group_of
from morphogen.tissue.reading.table import TileTable

log = logging.getLogger("morphogen.tissue")


@dataclass(frozen=True)
class _Published:
    """Where one layout keeps things; ``{mag}`` and ``{split}`` are filled in."""

    listed: str
    images: str
    features: str
    patch: str
    region: str | None = None
    split: str | None = None
    split_key: str = "indices_{split}_{mag}"


LAYOUTS = {
    "crc": _Published("patches_{mag}_all.npy", "", "features.h5", "feat_{mag}"),
    "brca-patch": _Published(
        "patch_list_{mag}.npy",
        "pyramid",
        "ssl_features/features_hipt_ctr.h5",
        "feat_{mag}",
        split="train_test_split/{split}_all.npz",
    ),
    "brca-ibot": _Published(
        "patch_list_20x.npy",
        "",
        "features_ibot.h5",
        "feat_20x",
        split="train_test_split/{split}.npz",
        split_key="indices_{split}_20x",
    ),
    "brca-two": _Published(
        "patch_list_20x.npy",
        "",
        "ssl_features/features.h5",
        "feat_20x",
        region="feat_5x",
        split="train_test_split/{split}.npz",
        split_key="indices_{split}_20x",
    ),
    "naip": _Published(
        "naip_ldm_metadata/patch_list.npz", "naip_patches", "naip_ldm_metadata/features.h5", "feat_{split}"
    ),
}
"""The published layouts by name."""


def recognise(paths: Sequence[Path]) -> str:
    """The layout that ``paths`` are in; :class:`InputError` when a folder fits several of them."""
    if all(path.suffix == ".h5ad" for path in paths):
        return "h5ad"
    if len(paths) != 1 or not paths[0].is_dir():
        return "images"
    folder = paths[0]
    fitting = [name for name, layout in LAYOUTS.items() if (folder / layout.features).is_file()]
    if len(fitting) > 1:
        raise InputError(
            f"this folder fits several layouts: {', '.join(fitting)}",
            where=folder,
            fix=f"Choose one with --data.layout {fitting[0]}",
        )
    return fitting[0] if fitting else "images"


def read_layout(folder: Path, name: str, config: DataConfig) -> TileTable:
    """Tiles of a published folder; its own split, where it has one, becomes the groups ``train`` and ``test``.

    ``config.hold_out`` > 0 then holds the test tiles out; the CRC layout has no split, and its tiles are grouped by
    patient or slide as their names say.
    """
    layout, mag = LAYOUTS[name], config.magnification
    if name == "naip":
        return _naip(folder, layout, config)
    paths = _listed(folder / layout.listed.format(mag=mag), config.trust)
    with opened(folder / layout.features) as file:
        patch = np.asarray(dataset(file, folder / layout.features, layout.patch.format(mag=mag)), np.float32)
        region = (
            None
            if layout.region is None
            else np.asarray(dataset(file, folder / layout.features, layout.region), np.float32)
        )
    if layout.split is None:
        if len(patch) != len(paths):
            raise InputError(f"there are {len(patch)} features for {len(paths)} tiles", where=folder)
        files = [_below(folder / layout.images, path) for path in paths]
        groups = [group_of(path, config.group) for path in files]
        return _table(folder, files, {"patch": patch}, groups, config, name)
    rows: list[int] = []
    region_rows: list[int] = []
    groups = []
    for split in ("train", "test"):
        at = folder / layout.split.format(split=split)
        if not at.is_file():
            continue
        with _arrays(at) as split_file:
            indices = _array(split_file, layout.split_key.format(split=split, mag=mag), at)
            rows += indices.tolist()
            groups += [split] * len(indices)
            if region is not None:
                paired = _array(split_file, f"indices_{split}_5x", at)
                if len(paired) != len(indices):
                    raise InputError(
                        f"indices_{split}_20x and indices_{split}_5x are pairs, "
                        f"but of {len(indices)} and {len(paired)}",
                        where=at,
                    )
                region_rows += paired.tolist()
    _within(rows, min(len(paths), len(patch)), folder)
    files = [_below(folder / layout.images, paths[i]) for i in rows]
    features = {"patch": patch[rows]}
    if region is not None:
        _within(region_rows, len(region), folder)
        features["region"] = region[region_rows]
    return _table(folder, files, features, groups, config, name)


def region_image(path: Path) -> Path:
    """The image of the region that a tile of the two-token layout lies in: its parent folder with ``.jpg``."""
    return path.parent.with_name(f"{path.parent.name}.jpg")


def _naip(folder: Path, layout: _Published, config: DataConfig) -> TileTable:
    files: list[Path] = []
    groups: list[str] = []
    parts: list[np.ndarray] = []
    listed = folder / layout.listed
    with (
        _arrays(listed) as lists,
        opened(folder / layout.features) as features,
    ):
        for split in ("train", "test", "val"):
            key = layout.patch.format(split=split)
            if split in lists and key in features:
                paths = _texts(_array(lists, split, listed), listed)
                values = np.asarray(features[key], np.float32)
                if len(paths) != len(values):
                    raise InputError(f"there are {len(values)} features for {len(paths)} tiles", where=listed)
                files += [_below(folder / layout.images, path) for path in paths]
                groups += [split] * len(paths)
                parts.append(values)
    if not parts:
        raise InputError("there is no split with both a list and features", where=folder)
    return _table(folder, files, {"patch": np.concatenate(parts)}, groups, config, "naip")


def _table(
    folder: Path,
    files: list[Path],
    features: dict[str, np.ndarray],
    groups: list[str],
    config: DataConfig,
    name: str,
) -> TileTable:
    px = config.tile_px
    wrong = [i for i, path in enumerate(files) if _size(path) != (px, px)]
    if wrong:
        log.warning(
            "%d of %d tiles are not %d × %d px and are left out (first: %s)",
            len(wrong),
            len(files),
            px,
            px,
            files[wrong[0]].name,
        )
    if len(wrong) == len(files):
        raise InputError(f"none of its {len(files)} tiles is {px} × {px} px", where=folder)
    keep = np.setdiff1d(np.arange(len(files)), wrong)
    kept = [files[i] for i in keep]
    return TileTable(
        names=[path.relative_to(folder).as_posix() for path in kept],
        groups=[groups[i] for i in keep],
        features={key: values[keep] for key, values in features.items()},
        read=lambda indices: np.stack([read_image(kept[i]) for i in indices]),
        tile_px=px,
        mpp=config.tile_mpp,
        facts={"layout": name, "encoder": None, **codecs(kept)},
    )


def _size(path: Path) -> tuple[int, int] | None:
    """(height, width), or ``None`` for a file that is there and no image."""
    if not path.is_file():
        raise InputError("a tile of the list is not there", where=path)
    try:
        return image_size(path)
    except SlideError:
        return None


def _listed(path: Path, trust: bool) -> list[str]:
    if not path.is_file():
        raise InputError("the list of tiles is not there", where=path)
    try:
        values = np.load(path, allow_pickle=False)
    except DAMAGED as error:
        if "pickle" not in str(error).lower():
            raise InputError(f"is not an array file ({error})", where=path) from error
        if not trust:
            raise InputError(
                "the list is a pickle, which can run code when it is read carelessly",
                where=path,
                fix="Add --data.trust true to read it with a reader that imports nothing",
            ) from None
        values = read_object_array(path)
    return _texts(values, path)


def _texts(values: Any, path: Path) -> list[str]:
    texts = [
        each.decode() if isinstance(each, bytes) else each for each in np.asarray(values).ravel().tolist()
    ]
    wrong = next((each for each in texts if not isinstance(each, str)), None)
    if wrong is not None:
        raise InputError(f"the list holds {type(wrong).__name__}, not paths", where=path)
    return texts


def _arrays(path: Path) -> Any:
    """An ``.npz``, opened; its arrays are read one by one."""
    try:
        return np.load(path, allow_pickle=False)
    except DAMAGED as error:
        raise InputError(
            f"is not a file of arrays ({str(error)[:120]})", where=path, fix="Copy it again"
        ) from None


def _array(file: Any, key: str, path: Path) -> np.ndarray:
    if key not in file:
        raise InputError(f"holds no '{key}' (it holds {', '.join(file)})", where=path)
    try:
        return file[key]
    except ValueError:
        raise InputError(f"'{key}' is a pickle", where=path, fix="Save it as a plain array") from None
    except DAMAGED as error:
        raise InputError(
            f"'{key}' is damaged ({str(error)[:120]})", where=path, fix="Copy it again"
        ) from None


def _within(rows: list[int], count: int, where: Path) -> None:
    if rows and not 0 <= min(rows) <= max(rows) < count:
        raise InputError(f"the split points at tile {max(rows)} of {count}", where=where)


def _below(root: Path, text: str) -> Path:
    """A listed path under ``root``; one that leads out of it is refused."""
    inner = PurePosixPath(str(text).replace("\\", "/"))
    if inner.is_absolute() or ".." in inner.parts:
        raise InputError(f"the list leads out of the folder ('{text}')", where=root)
    return root / inner
