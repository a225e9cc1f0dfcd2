"""Features of other tools into the stores of slides, and out of them: TRIDENT, CLAM, HEST."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from morphogen.core.errors import ConfigError, InputError, MorphogenError, OutputError, nearest
from morphogen.core.files import content_hash, writable_folder
from morphogen.core.progress import progress
from morphogen.core.writing.locks import file_lock
from morphogen.slides.batch import Job, collect
from morphogen.slides.encode import Outcome, feature_table, features_key
from morphogen.slides.exchange import clam, hest, trident
from morphogen.slides.exchange.tileset import TileSet
from morphogen.slides.slide import Slide, open_slide
from morphogen.slides.store import (
    NOTES,
    TILES,
    read_attrs,
    read_table,
    shape_names,
    table_names,
    write_store,
)
from morphogen.slides.tiles import Tiles, read_tiles, tile_spec

if TYPE_CHECKING:
    import pandas as pd

FORMATS: dict[str, Any] = {"trident": trident, "clam": clam, "hest": hest}


def import_features(
    slide: Slide, format: str, source: Path, *, encoder: str | None = None, overwrite: bool = False
) -> TileSet:
    """Read one slide's tiles and features of another tool into its store.

    Tiles that are there already must be the same ones, else they (and features on them) are replaced only when
    ``overwrite``. Raises :class:`InputError` when the files are missing, damaged, of another slide or do not agree.
    """
    with file_lock(slide.store):
        given: TileSet = _format(format).read(slide, source, encoder)
        _check_on_slide(given, slide, source)
        return _imported(slide, given, format, overwrite)


def _imported(slide: Slide, given: TileSet, format: str, overwrite: bool) -> TileSet:
    tiles = _as_tiles(given)
    fresh = TILES not in shape_names(slide.store) or read_tiles(slide).identity() != tiles.identity()
    drop: list[str] = []
    if fresh and TILES in shape_names(slide.store):
        if not overwrite:
            raise OutputError(
                "already holds other tiles",
                where=slide.store,
                fix="Replace them and their features with --overwrite, or choose another --out",
            )
        drop = [TILES, *table_names(slide.store)]
    tables = {}
    for name, values in given.features.items() if len(tiles) else ():  # a table needs rows
        key = features_key(name)
        if key in table_names(slide.store) and not overwrite and not fresh:
            raise OutputError(
                f"already holds '{key}'", where=slide.store, fix="Pass --overwrite to replace it"
            )
        fingerprint = content_hash("import", format, tiles.identity(), values)
        table = feature_table(tiles, values, fingerprint, {"encoder": name, "source": format})
        if given.barcodes is not None:
            table.obs["barcode"] = given.barcodes
        tables[key] = table
    attrs, shapes = dict(read_attrs(slide.store)), {}
    if fresh:
        spec = tile_spec(slide, given.side, given.tile_px, given.tile_px - given.overlap, given.mpp)
        attrs["tile_spec"] = {**attrs.get("tile_spec", {}), TILES: spec}
        attrs[NOTES] = {**attrs.get(NOTES, {}), TILES: {"imported": format, "slide_mpp": slide.mpp}}
        if len(tiles):
            shapes[TILES] = _frame(tiles)
    write_store(slide, shapes=shapes, tables=tables, attrs=attrs, drop=drop)
    return given


def export_features(slide: Slide, format: str, target: Path, *, encoder: str | None = None) -> list[Path]:
    """Write the tiles in a slide's store, and the features of one or all encoders, as another tool's files."""
    tiles = read_tiles(slide)
    suffix = f"_{TILES}"
    names = [key.removesuffix(suffix) for key in table_names(slide.store) if key.endswith(suffix)]
    if encoder is not None:
        wanted = features_key(encoder).removesuffix(suffix)
        if wanted not in names and len(tiles):
            read_table(slide, features_key(encoder))  # raises, and says what there is
        names = [wanted] if wanted in names else []
    boxes = tiles.boxes
    if len(boxes) and (np.ptp(boxes[:, 2:]) > 0 or not np.array_equal(boxes, np.rint(boxes))):
        raise InputError("its tiles are not squares of one size on whole pixels", where=slide.store)
    spec = read_attrs(slide.store).get("tile_spec", {}).get(TILES, {})
    overlap = int(spec.get("width", tiles.tile_px)) - int(spec.get("stride_width", tiles.tile_px))
    side = int(boxes[0, 2]) if len(boxes) else int(spec.get("width", 0) * spec.get("base_downsample", 1))
    given = TileSet(boxes[:, :2].astype(np.int64), side, tiles.tile_px, tiles.mpp, overlap)
    for name in names:
        given.features[name], given.barcodes = _rows(slide, features_key(name), len(tiles))
    if not len(tiles) and encoder is not None:
        given.features[encoder] = np.zeros((0, 0), dtype=np.float32)
    writable_folder(target)
    paths: list[Path] = _format(format).write(slide, given, target)
    return paths


def import_slides(
    slides: Iterable[Path],
    format: str,
    source: Path,
    *,
    encoder: str | None = None,
    mpp: float | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    recursive: bool = False,
) -> list[Outcome]:
    """:func:`import_features` for many slides; one outcome each, as :func:`morphogen.slides.batch.run_jobs`."""

    def work(slide: Slide) -> TileSet:
        return import_features(slide, format, Path(source), encoder=encoder, overwrite=overwrite)

    _format(format)
    return _each(collect(slides, recursive=recursive, mpp=mpp), out, work)


def export_slides(
    slides: Iterable[Path],
    format: str,
    target: Path,
    *,
    encoder: str | None = None,
    mpp: float | None = None,
    out: Path | None = None,
    recursive: bool = False,
) -> list[Outcome]:
    """:func:`export_features` for many slides; ``out`` is the folder of their stores, if not beside them."""

    def work(slide: Slide) -> TileSet:
        export_features(slide, format, Path(target), encoder=encoder)
        tiles = read_tiles(slide)
        return TileSet(tiles.boxes[:, :2], 0, tiles.tile_px)

    _format(format)
    outcomes = _each(collect(slides, recursive=recursive, mpp=mpp), out, work)
    for outcome in outcomes:
        outcome.store = str(Path(target) / Path(outcome.slide).name) if outcome.status != "failed" else ""
    return outcomes


def _each(jobs: list[Job], out: Path | None, work: Callable[[Slide], TileSet]) -> list[Outcome]:
    outcomes = []
    for job in progress(jobs, what="slides") if len(jobs) > 1 else jobs:
        began = time.perf_counter()
        try:
            with open_slide(job.path, job.mpp, out) as slide:
                tiles = work(slide)
                width = max((v.shape[1] for v in tiles.features.values()), default=0)
                outcomes.append(Outcome(job.path, "done", len(tiles), width, store=str(slide.store)))
        except MorphogenError as error:
            if len(jobs) == 1:
                raise
            outcomes.append(Outcome(job.path, "failed", message=str(error)))
        outcomes[-1].seconds = time.perf_counter() - began
    return outcomes


def _format(name: str) -> Any:
    if name not in FORMATS:
        raise ConfigError(f"unknown format '{name}'.{nearest(name, FORMATS)}", where="--format")
    return FORMATS[name]


def _check_on_slide(given: TileSet, slide: Slide, source: Path) -> None:
    """Tiles may overhang the slide; :class:`InputError` when some show nothing of it."""
    corners, ends = given.coords, given.coords + given.side
    outside = (ends <= 0).any(axis=1) | (corners >= (slide.width, slide.height)).any(axis=1)
    if outside.any():
        x, y = corners[np.flatnonzero(outside)[0]]
        raise InputError(
            f"{int(outside.sum())} of {len(given)} tiles lie outside of {slide.path.name} "
            f"({slide.width}×{slide.height} px), the first at x {x}, y {y}",
            where=source,
            fix="They are of another slide, or not in level-0 pixels",
        )


def _as_tiles(given: TileSet) -> Tiles:
    boxes = (
        np.column_stack([given.coords, np.full((len(given), 2), given.side)])
        .astype(np.float64)
        .reshape(-1, 4)
    )
    return Tiles(boxes, given.tile_px, given.mpp, np.zeros(len(given), dtype=np.int64))


def _frame(tiles: Tiles) -> Any:
    import geopandas as gpd
    import shapely
    from spatialdata.models import ShapesModel

    x, y, w, h = tiles.boxes.T
    ids = np.arange(len(tiles))
    frame = gpd.GeoDataFrame(
        {"tile_id": ids, "tissue_id": tiles.tissue_id}, geometry=shapely.box(x, y, x + w, y + h)
    )
    return ShapesModel.parse(frame)


def _rows(slide: Slide, key: str, count: int) -> tuple[np.ndarray, list[str] | None]:
    """(features, barcodes) of a table, in the order of the tiles."""
    table = read_table(slide, key)
    obs: pd.DataFrame = table.obs
    order = np.argsort(obs["tile_id"].to_numpy()) if "tile_id" in obs else np.arange(len(obs))
    if len(order) != count:
        raise InputError(f"'{key}' has {len(order)} rows for {count} tiles", where=slide.store)
    values = table.X.toarray() if hasattr(table.X, "toarray") else np.asarray(table.X)
    barcodes = obs["barcode"].astype(str).to_numpy()[order].tolist() if "barcode" in obs else None
    return values[order].astype(np.float32, copy=False), barcodes
