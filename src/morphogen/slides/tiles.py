"""Tiles over the tissue of a slide, by LazySlide, in exact level-0 pixels; and regular windows over tissue."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from morphogen.core.errors import InputError, OutputError
from morphogen.core.files import content_hash
from morphogen.slides.config import TileConfig
from morphogen.slides.store import (
    NOTES,
    TILES,
    TISSUES,
    read_attrs,
    read_store,
    shape_names,
    table_names,
    write_store,
)
from morphogen.slides.tissue import find_tissue, tissue_of

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

    from morphogen.slides.slide import Slide


@dataclass(frozen=True)
class Tiles:
    """Tiles of one slide.

    Attributes
    ----------
    boxes:
        (N, 4) x, y, width, height in level-0 pixels; float64, whole numbers for tiles made here.
    tile_px, mpp:
        Side in pixels and µm/px they are read at.
    tissue_id:
        (N,) which tissue each lies in.
    """

    boxes: np.ndarray
    tile_px: int
    mpp: float | None
    tissue_id: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def centres(self) -> np.ndarray:
        """(N, 2) x, y of the tile centres in level-0 pixels."""
        return self.boxes[:, :2] + self.boxes[:, 2:] / 2

    def identity(self) -> str:
        """Hex digest of where the tiles are and how they are read."""
        return content_hash(np.ascontiguousarray(self.boxes, dtype=np.float64), self.tile_px)


def tile_slide(
    slide: Slide, config: TileConfig | None = None, *, overwrite: bool = False
) -> tuple[Tiles, bool]:
    """Find tissue, lay tiles over it, keep both in the slide's store; returns the tiles and whether they are new.

    Tiles made before with the same settings are kept. With other settings they are replaced only when ``overwrite``,
    together with the features computed on them, which would no longer fit. Hand-made ``tissues`` in the store that
    were not found here are used as they are.

    Raises
    ------
    SlideError
        When µm/px is not known, or the slide cannot be read.
    OutputError
        When tiles with other settings are there, or the store cannot be written.
    """
    planned = plan_tiles(slide, config, overwrite=overwrite)
    if planned.write is None:
        return planned.tiles, False
    write_store(slide, **planned.write)
    return planned.tiles, True


@dataclass(frozen=True)
class PlannedTiles:
    """Tiles, and what :func:`~morphogen.slides.store.write_store` is to be told of them; ``None`` where they are
    there."""

    tiles: Tiles
    write: dict[str, Any] | None


def plan_tiles(slide: Slide, config: TileConfig | None = None, *, overwrite: bool = False) -> PlannedTiles:
    """The tiles of :func:`tile_slide`, which see, before anything is written: old ones and their features stay until
    there is something to put in their place."""
    config = config or TileConfig()
    slide.require_mpp()
    settings = _settings(slide, config)
    notes = dict(read_attrs(slide.store).get(NOTES, {}))
    before = notes.get(TILES)
    if before == settings and not overwrite:
        return PlannedTiles(read_tiles(slide), None)
    if TILES in shape_names(slide.store) and not overwrite:
        changed = [key for key, value in settings.items() if before and before.get(key) != value]
        raise OutputError(
            f"already holds tiles made with other settings ({', '.join(changed) or 'not by morphogen'})",
            where=slide.store,
            fix="Keep them, replace them and their features with --overwrite, or choose another --out",
        )
    hand_made = TISSUES in shape_names(slide.store) and before is None
    tissues = tissue_of(slide) if hand_made else find_tissue(slide, config.tissue)
    frame, spec = _lay(slide, tissues, config)
    stale = [*table_names(slide.store), TILES, *([] if hand_made else [TISSUES])]
    shapes: dict[str, Any] = {} if hand_made or not len(tissues) else {TISSUES: tissues}
    if len(frame):
        shapes[TILES] = frame
    specs = {**read_attrs(slide.store).get("tile_spec", {}), TILES: spec}
    notes[TILES] = settings
    write = {"shapes": shapes, "attrs": {"tile_spec": specs, NOTES: notes}, "drop": stale}
    return PlannedTiles(_tiles(frame, spec), write)


def read_tiles(slide: Slide, key: str = TILES) -> Tiles:
    """The tiles in the slide's store, whoever made them; empty when tiling found no tissue."""
    attrs = read_attrs(slide.store)
    if key not in shape_names(slide.store):
        if key == TILES and TILES in attrs.get(NOTES, {}):
            return _tiles(None, attrs.get("tile_spec", {}).get(TILES, {}))
        raise InputError("has no tiles", where=slide.store, fix="Run 'morphogen slide tile' first")
    return _tiles(read_store(slide, ("shapes",)).shapes[key], attrs.get("tile_spec", {}).get(key, {}))


def _settings(slide: Slide, config: TileConfig) -> dict[str, Any]:
    return {**config.to_dict(), "slide_mpp": slide.mpp}


def _lay(slide: Slide, tissues: GeoDataFrame, config: TileConfig) -> tuple[GeoDataFrame, dict[str, Any]]:
    """Tiles by LazySlide in level-0 pixels (rounded, not cut, from µm), and the specification they are read by."""
    import geopandas as gpd
    from lazyslide.preprocess import tile_tissues
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel
    from wsidata import WSIData

    scale = config.tile_mpp / slide.require_mpp()
    side = max(1, round(config.tile_px * scale))
    stride_px = config.tile_px - config.overlap
    if stride_px < 1:
        raise InputError(
            f"an overlap of {config.overlap} px leaves nothing of a {config.tile_px} px tile",
            where="--overlap",
        )
    stride = max(1, round(stride_px * scale))
    spec = tile_spec(slide, side, config.tile_px, stride_px, config.tile_mpp)
    empty = gpd.GeoDataFrame({"tile_id": [], "tissue_id": [], "geometry": []}, geometry="geometry")
    if not len(tissues) or side > min(slide.width, slide.height):
        return empty, spec
    plan = WSIData.from_spatialdata(SpatialData(shapes={TISSUES: tissues}), slide.reader)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = tile_tissues(
            plan,
            side,
            stride_px=stride,
            edge=True,
            background_fraction=1 - config.min_tissue,
            tissue_key=TISSUES,
            key_added=None,
            return_tiles=True,
        )
    if made is None:
        return empty, spec
    frame = made[0]
    bounds = frame.bounds
    inside = (
        (bounds.minx >= 0) & (bounds.miny >= 0) & (bounds.maxx <= slide.width) & (bounds.maxy <= slide.height)
    )
    frame = frame[inside].reset_index(drop=True)
    frame["tile_id"] = np.arange(len(frame))
    return (ShapesModel.parse(frame) if len(frame) else empty), spec


def tile_spec(slide: Slide, side: int, tile_px: int, stride_px: int, mpp: float | None) -> dict[str, Any]:
    """wsidata's ``TileSpec`` of tiles of ``side`` level-0 pixels, as it stands in the attributes of a store."""
    from wsidata import TileSpec

    level = slide.level_for(side / tile_px)
    # TileSpec derives level-0 sizes by truncation: nudged so that they come out as the integers laid here.
    base = math.nextafter(side / tile_px, math.inf)
    return TileSpec(
        height=tile_px,
        width=tile_px,
        stride_height=stride_px,
        stride_width=stride_px,
        mpp=mpp,
        ops_level=level,
        ops_downsample=base / slide.level_downsamples[level],
        base_downsample=base,
        tissue_name=TISSUES,
    ).to_dict()


def _tiles(frame: GeoDataFrame | None, spec: dict[str, Any]) -> Tiles:
    if frame is None or not len(frame):
        px = int(spec.get("width", 0)) or 224
        return Tiles(np.zeros((0, 4)), px, spec.get("mpp"), np.zeros(0, dtype=np.int64))
    bounds = frame.bounds.to_numpy()
    boxes = np.column_stack([bounds[:, :2], bounds[:, 2:] - bounds[:, :2]])
    tissue = frame["tissue_id"].to_numpy() if "tissue_id" in frame else np.zeros(len(frame), dtype=np.int64)
    px = int(spec["width"]) if spec else round(float(boxes[0, 2]))
    return Tiles(boxes, px, spec.get("mpp"), tissue)


@dataclass(frozen=True)
class Windows:
    """Square windows on a regular lattice, those that tissue needs.

    Attributes
    ----------
    px, scale:
        Side of a window in output pixels; level-0 pixels per output pixel.
    out_xy:
        (N, 2) int64 top-left corners in output pixels, row by row.
    canvas:
        (width, height) of the whole slide in output pixels.
    """

    px: int
    scale: float
    out_xy: np.ndarray
    canvas: tuple[int, int]

    def __len__(self) -> int:
        return len(self.out_xy)

    @property
    def xy(self) -> np.ndarray:
        """(N, 2) float64 top-left corners in level-0 pixels, exactly ``out_xy * scale``."""
        return self.out_xy * self.scale

    @property
    def boxes(self) -> np.ndarray:
        """(N, 4) x, y, width, height in level-0 pixels, as :func:`morphogen.slides.read_boxes` takes them."""
        return np.column_stack([self.xy, np.full((len(self), 2), self.px * self.scale)])

    @property
    def centres(self) -> np.ndarray:
        """(N, 2) window centres in level-0 pixels."""
        return self.xy + self.px * self.scale / 2


def tissue_windows(
    slide: Slide,
    px: int,
    *,
    mpp: float | None = None,
    stride: int | None = None,
    min_tissue: float = 0.0,
    tissues: GeoDataFrame | None = None,
    keep_inside: bool = True,
) -> Windows:
    """Windows of ``px`` output pixels every ``stride`` pixels over the whole slide, where there is tissue.

    Parameters
    ----------
    slide:
        The slide.
    px, stride:
        Side and spacing in output pixels; ``stride`` < ``px`` overlaps, > ``px`` leaves gaps (spots of an array),
        ``None`` means side by side.
    mpp:
        µm per output pixel; level-0 pixels when ``None``.
    min_tissue:
        Least share of a window that is tissue; 0 keeps every window that touches tissue, so all tissue is covered.
    tissues:
        Contours in level-0 pixels; those of the store, else found, when ``None``.
    keep_inside:
        Move the windows of the last row and column back inside the slide (where it is large enough), so that nothing
        outside it is read. Their spacing is then smaller.
    """
    import shapely

    if px < 1 or (stride is not None and stride < 1):
        raise InputError(f"windows of {px} px every {stride} px cannot be laid", where="tissue_windows")
    scale = 1.0 if mpp is None else mpp / slide.require_mpp()
    canvas = (math.ceil(slide.width / scale - 1e-9), math.ceil(slide.height / scale - 1e-9))
    step = stride or px
    xs, ys = (_lattice(length, px, step, keep_inside) for length in canvas)
    corners = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)
    frame = tissue_of(slide) if tissues is None else tissues
    if not len(frame):
        return Windows(px, scale, np.zeros((0, 2), dtype=np.int64), canvas)
    low = corners * scale
    squares = shapely.box(low[:, 0], low[:, 1], low[:, 0] + px * scale, low[:, 1] + px * scale)
    union = shapely.union_all(shapely.make_valid(frame.geometry.to_numpy()))
    shapely.prepare(union)
    keep = shapely.intersects(union, squares)
    if min_tissue > 0:
        border = np.flatnonzero(keep & ~shapely.contains(union, squares))
        covered = shapely.area(shapely.intersection(squares[border], union)) / (px * scale) ** 2
        keep[border] = covered >= min_tissue
    return Windows(px, scale, corners[keep], canvas)


def _lattice(length: int, px: int, step: int, keep_inside: bool) -> np.ndarray:
    """Start positions that cover [0, length) (with gaps when step > px)."""
    count = max(1, math.ceil((length - px) / step) + 1) if length > px else 1
    starts = np.arange(count, dtype=np.int64) * step
    if keep_inside and length >= px:
        starts = np.unique(np.minimum(starts, length - px)) if step <= px else starts[starts <= length - px]
    return starts
