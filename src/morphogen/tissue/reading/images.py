"""Images, regions and slides: cut into tiles on a grid, or taken from the tiles of a slide's store."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from morphogen.core.errors import InputError, MorphogenError
from morphogen.core.files import atomic_path, content_hash, writable_folder
from morphogen.core.fingerprints import fingerprint
from morphogen.core.progress import progress
from morphogen.core.reading.arrays import read_arrays
from morphogen.core.running.cohort import run_cohort
from morphogen.core.running.spread import Spread
from morphogen.core.running.work import Item
from morphogen.slides import Slide, get_encoder, open_slide
from morphogen.slides.batch import Job, collect
from morphogen.slides.encode import features_key
from morphogen.slides.fields import read_boxes
from morphogen.slides.images import open_flat, sniff
from morphogen.slides.store import read_table, table_names
from morphogen.slides.tiles import read_tiles as store_tiles
from morphogen.tissue.config import DataConfig
from morphogen.tissue.reading.table import TileTable

log = logging.getLogger("morphogen.tissue")

_TCGA = re.compile(r"TCGA-\w{2}-\w{4}", re.IGNORECASE)
_BATCH = 64


def group_of(path: Path, kind: str) -> str:
    """What a file is held out with: its patient (of a TCGA name, else the file itself), itself, or its folder."""
    match = _TCGA.search(path.stem)
    if kind == "patient" and match:
        return match.group().upper()
    return path.parent.name if kind == "folder" else path.stem


def read_images(
    paths: Sequence[Path],
    config: DataConfig,
    *,
    cache: Path | str | None = None,
    encoder: Any = None,
    spread: Spread | None = None,
) -> TileTable:
    """Tiles of all images. An image smaller than a tile is left out; one warning counts them.

    spread: where images are encoded; here, one after another, when not said. Their features come back by ``cache``.
    """
    jobs = collect(paths, recursive=True)
    files = [Path(job.path) for job in jobs]
    if spread is not None and not spread.plain and cache is not None and encoder is None:
        _spread_out(jobs, config, cache, spread)
    made = encoder
    parts: list[TileTable] = []
    small: list[str] = []
    failed: list[str] = []
    for number, job in enumerate(progress(jobs, total=len(jobs), what="images")):
        path = files[number]
        try:
            slide = open_slide(path, mpp=job.mpp or _mpp(path, config))
            stored = _stored(slide, config)
            if stored is None:
                boxes, places = grid_boxes(slide, config)
                if not len(boxes):
                    small.append(path.name)
                    continue
                made = made or get_encoder(config.encoder, config.encoder_weights, device="auto")
                keep, features = _encoded(slide, boxes, config, made, cache)
                boxes, places = boxes[keep], places[keep]
            else:
                boxes, places, features = stored
        except MorphogenError as error:
            failed.append(str(error))
            continue
        if len(boxes):
            parts.append(_part(slide, number, boxes, places, features, config))
    if small:
        log.warning(
            "%d of %d images are smaller than a tile of %d px at %g µm/px and are left out (%s)",
            len(small),
            len(files),
            config.tile_px,
            config.tile_mpp,
            ", ".join(small[:3]),
        )
    if not parts and failed:
        others = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise InputError(f"no image can be read: {failed[0].rstrip('.')}{others}")
    if not parts:
        raise InputError(f"no image holds a tile of {config.tile_px} px", where=paths[0])
    if failed:  # said now: training may take hours, or stop for want of them
        log.warning("%d of %d images cannot be read and are left out: %s", len(failed), len(files), failed[0])
    table = joined(parts, {"encoder": config.encoder, "layout": "images", **codecs(files)})
    return replace(table, failed=tuple(failed))


@dataclass(frozen=True)
class _Encode:
    """The tiles of an image encoded into the cache, as the engine of many items takes it."""

    config: DataConfig
    cache: Path

    def load(self) -> Any:
        return get_encoder(self.config.encoder, self.config.encoder_weights, device="auto")

    def __call__(self, loaded: Any, item: Item, path: Path | None) -> None:
        job: Job = item.more
        with open_slide(job.path, mpp=job.mpp or _mpp(Path(job.path), self.config), staged=path) as slide:
            if _stored(slide, self.config) is None:
                boxes, _ = grid_boxes(slide, self.config)
                if len(boxes):
                    _encoded(slide, boxes, self.config, loaded, self.cache)


def _spread_out(jobs: Sequence[Job], config: DataConfig, cache: Path | str, spread: Spread) -> None:
    """Encode all images where ``spread`` says. What fails is met again, and told, when its features are read."""
    workers = spread.processes(len(jobs), on_gpu=config.encoder != "texture") if spread.gpus else 1
    items = [Item(job.path, Path(job.path), job) for job in jobs]
    work = _Encode(config, Path(cache))
    for _ in run_cohort(
        work, items, spread, out=Path(cache).parent, what="tiles encoded", workers=workers, unit="images"
    ):
        pass


def _mpp(path: Path, config: DataConfig) -> float | None:
    """What ``config.mpp`` says where the file does not; a file's own µm/px is kept."""
    if config.mpp is None:
        return None
    return config.mpp if open_slide(path).mpp is None else None


def grid_boxes(slide: Slide, config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Tiles on a regular grid over the whole image: (N, 4) level-0 boxes and (N, 2) rows and columns.

    Of the last row and column nothing is left over: where a rest remains, the grid is centred.
    """
    scale = config.tile_mpp / slide.require_mpp()
    side, step = config.tile_px * scale, (config.stride or config.tile_px) * scale
    # A tile may stick out by half a pixel: sizes are rounded when images are halved.
    counts = [int((extent - side + 0.5 * scale) // step) + 1 for extent in (slide.height, slide.width)]
    if min(counts) < 1 or min(slide.height, slide.width) + 0.5 * scale < side:
        return np.zeros((0, 4)), np.zeros((0, 2), np.int64)
    rows, columns = np.meshgrid(np.arange(counts[0]), np.arange(counts[1]), indexing="ij")
    first = [
        max(0.0, (extent - side - (count - 1) * step) / 2)
        for extent, count in zip((slide.height, slide.width), counts, strict=True)
    ]
    y, x = first[0] + rows.ravel() * step, first[1] + columns.ravel() * step
    boxes = np.stack([x, y, np.full(x.shape, side), np.full(x.shape, side)], axis=1)
    return boxes, np.stack([rows.ravel(), columns.ravel()], axis=1)


def _encoded(
    slide: Slide, boxes: np.ndarray, config: DataConfig, encoder: Any, cache: Path | str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows with tissue, and their features (n, D); kept in ``cache`` by what they were made from."""
    mark = content_hash(encoder.identity(), fingerprint(slide.path), boxes, config.tile_px, config.min_tissue)
    path = writable_folder(cache) / f"{mark[:24]}.npz" if cache is not None else None
    if path is not None and path.is_file():
        with suppress(InputError, KeyError):  # a damaged one is made again
            kept_before = read_arrays(path)
            return kept_before["keep"], kept_before["features"]
    kept, features = [], []
    for start in range(0, len(boxes), _BATCH):
        images = read_boxes(slide, boxes[start : start + _BATCH], config.tile_px)
        here = np.flatnonzero(tissue_share(images) >= config.min_tissue)
        if len(here):
            features.append(encoder(images[here]).cpu().numpy())
            kept.append(here + start)
    keep = np.concatenate(kept) if kept else np.zeros(0, np.int64)
    found = np.concatenate(features) if features else np.zeros((0, encoder.spec.width or 0), np.float32)
    if path is not None:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, keep=keep, features=found)
    return keep, found


def tissue_share(images: np.ndarray) -> np.ndarray:
    """(N,) share of pixels that are not bright and colourless: optical density above 0.08 in some channel.

    images: (N, H, W, 3) uint8, looked at on every fourth pixel.
    """
    return (images[:, ::4, ::4].min(axis=3) < 255 * 10**-0.08).mean(axis=(1, 2))


def bare_glass(images: np.ndarray) -> np.ndarray:
    """(N,) bool: tiles (N, H, W, 3) uint8 that show glass and no tissue, less than 0.5 % of it."""
    return tissue_share(images) < 0.005


def _stored(slide: Slide, config: DataConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Boxes, places and features of a slide's store; ``None`` without a store.

    Raises :class:`InputError` when the store's tiles are not those asked for.
    """
    key = features_key(config.encoder)
    if not slide.store.is_dir() or key not in table_names(slide.store):
        return None
    tiles = store_tiles(slide)
    if tiles.tile_px != config.tile_px or (
        tiles.mpp is not None and abs(tiles.mpp / config.tile_mpp - 1) > 0.02
    ):
        at = "unknown" if tiles.mpp is None else f"{tiles.mpp:g}"
        raise InputError(
            f"its tiles are {tiles.tile_px} px at {at} µm/px, not {config.tile_px} px at {config.tile_mpp:g}",
            where=slide.store,
            fix="Set data.tile_px and data.tile_mpp to those, or tile again with 'morphogen slide tile --overwrite'",
        )
    table = read_table(slide, key)
    features = np.asarray(table.X, dtype=np.float32)
    if len(features) != len(tiles):
        raise InputError(
            f"there are {len(features)} features for {len(tiles)} tiles",
            where=slide.store,
            fix="Encode again with 'morphogen slide encode --overwrite'",
        )
    side = tiles.boxes[:, 2:].mean() if len(tiles) else 1.0
    corner = tiles.boxes[:, :2].min(axis=0) if len(tiles) else np.zeros(2)
    places = np.rint((tiles.boxes[:, 1::-1] - corner[::-1]) / side).astype(np.int64)
    return tiles.boxes, places, features


def _part(
    slide: Slide,
    number: int,
    boxes: np.ndarray,
    places: np.ndarray,
    features: np.ndarray,
    config: DataConfig,
) -> TileTable:
    def read(indices: Sequence[int]) -> np.ndarray:
        return read_boxes(slide, boxes[np.asarray(indices, dtype=np.int64)], config.tile_px)

    count = len(boxes)
    one = count == 1
    names = [slide.path.stem if one else f"{slide.path.stem}-{row}-{column}" for row, column in places]
    return TileTable(
        names=[f"{slide.path.parent.name}/{name}" for name in names],
        groups=[group_of(slide.path, config.group)] * count,
        features={"patch": np.asarray(features, dtype=np.float32)},
        read=read,
        tile_px=config.tile_px,
        mpp=config.tile_mpp,
        labels=[slide.path.parent.name] * count,
        places=np.column_stack([np.full(count, number), places]).astype(np.int64),
    )


def joined(parts: Sequence[TileTable], facts: dict[str, Any]) -> TileTable:
    """One table of several; their embeddings must be of one width."""
    first = parts[0]
    for part in parts[1:]:
        for name, values in first.features.items():
            if part.features[name].shape[1] != values.shape[1]:
                raise InputError(
                    f"embeddings of {part.features[name].shape[1]} and of {values.shape[1]} columns cannot be one set",
                    where=part.names[0],
                    fix="Encode all with one encoder",
                )
    ends = np.cumsum([len(part) for part in parts])
    starts = ends - [len(part) for part in parts]

    def read(indices: Sequence[int]) -> np.ndarray:
        wanted = np.asarray(indices, dtype=np.int64)
        out = np.empty((len(wanted), first.tile_px, first.tile_px, 3), np.uint8)
        owner = np.searchsorted(ends, wanted, side="right")
        for part in np.unique(owner):
            rows = np.flatnonzero(owner == part)
            out[rows] = parts[part].read(wanted[rows] - starts[part])
        return out

    places = [part.places for part in parts if len(part.places)]
    return TileTable(
        names=[name for part in parts for name in part.names],
        groups=[group for part in parts for group in part.groups],
        features={name: np.concatenate([part.features[name] for part in parts]) for name in first.features},
        read=read,
        tile_px=first.tile_px,
        mpp=first.mpp,
        labels=[label for part in parts for label in part.labels],
        places=np.concatenate(places) if len(places) == len(parts) else np.zeros((0, 3), np.int64),
        facts=facts,
    )


def codecs(files: Sequence[Path]) -> dict[str, Any]:
    """File formats, and the JPEG quality where files are JPEGs: generators and metrics feel both."""
    kinds = Counter(path.suffix.lower().lstrip(".") for path in files)
    qualities = [quality for path in files[:50] if (quality := jpeg_quality(path)) is not None]
    facts: dict[str, Any] = {"formats": dict(sorted(kinds.items()))}
    if qualities:
        facts["jpeg_quality"] = [min(qualities), max(qualities)]
    return facts


def jpeg_quality(path: Path) -> int | None:
    """The libjpeg quality (1–100) whose luminance table is nearest to the file's; ``None`` for other formats."""
    if sniff(path) != "JPEG":
        return None
    with open_flat(path) as image:
        tables = getattr(image, "quantization", None)
    if not tables:
        return None
    # The standard table's mean entry is 57.6; libjpeg scales it by 50/q below 50 and by 2 − q/50 above.
    ratio = float(np.mean(next(iter(tables.values())))) / 57.625
    return int(np.clip(round(50 / ratio if ratio > 1 else 100 - 50 * ratio), 1, 100))
