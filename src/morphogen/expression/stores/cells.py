"""Cells as units: their outlines from GeoJSON, an instance mask or a SpatialData store, and a section of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import cv2
import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from morphogen.core.errors import InputError, nearest
from morphogen.expression.data import SectionFacts, log, set_facts
from morphogen.expression.stores.elements import affine, place_image, read_store
from morphogen.slides.formats.spatial import is_image_of_store, slide_name
from morphogen.slides.images import FLAT_SUFFIXES, TIFF_SUFFIXES, read_raw
from morphogen.slides.slide import Slide

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

JSON = (".geojson", ".json")
MASKS = (*FLAT_SUFFIXES, *TIFF_SUFFIXES)


def read_cells(cells: Path | str, slide: Slide) -> GeoDataFrame:
    """Outlines of cells in level-0 pixels of a slide, indexed by their names.

    cells: GeoJSON of QuPath and others (polygons or points; coordinates count from the corner of the slide's bounds, as
    QuPath's do); a mask of instances (PNG or TIFF of 16 or 32 bits, 0 = none, of the slide's size or reduced); or, on
    an image of a SpatialData store, the name of its shapes or labels. Cells beyond the image are left out, and said.
    Raises :class:`InputError` where there are none.
    """
    path = Path(cells)
    if path.suffix.lower() in JSON:
        found = _of_geojson(path, slide)
    elif path.suffix.lower() in MASKS:
        found = _of_mask(path, slide)
    elif is_image_of_store(slide.path):
        found = _of_store(str(cells), slide)
    else:
        raise InputError(
            f"cells come as {', '.join(JSON)} or a mask ({', '.join(MASKS[:3])} …), not as '{path.name}'",
            where="--cells",
        )
    if not len(found):
        raise InputError("there are no cells in it", where=cells)
    centres = found.geometry.centroid
    inside = (centres.x >= 0) & (centres.y >= 0) & (centres.x < slide.width) & (centres.y < slide.height)
    if not inside.any():
        raise InputError(
            f"all {len(found)} cells lie outside the image of {slide.width} × {slide.height} px", where=cells
        )
    if not inside.all():
        log.warning(
            "%s: %d of %d cells lie outside the image and are left out", cells, (~inside).sum(), len(found)
        )
    return found[inside.to_numpy()]


def cell_section(slide: Slide, cells: GeoDataFrame, pitch_um: float) -> ad.AnnData:
    """A section without genes whose spots are cells: ``obsm["spatial"]`` their centroids.

    pitch_um: distance of the spots that the model was trained on: where its neighbourhoods are looked for.
    """
    centres = cells.geometry.centroid
    mpp = slide.require_mpp()
    names = [str(name) for name in cells.index]
    section = ad.AnnData(obs=pd.DataFrame({"instance": list(cells.index), "region": "cells"}, index=names))
    section.obsm["spatial"] = np.stack([centres.x, centres.y], axis=1)
    area = float(np.median(cells.geometry.area))
    set_facts(
        section,
        SectionFacts(
            section=slide_name(slide.path),
            image=str(slide.path),
            mpp=mpp,
            mpp_source=slide.mpp_source or "",
            technology="cells",
            pitch_um=pitch_um,
            pitch_px=pitch_um / mpp,
            spot_diameter_px=float(np.sqrt(area)) if area > 0 else 8 / mpp,
            origin_x=float(slide.bounds[0]),
            origin_y=float(slide.bounds[1]),
        ),
    )
    return section


def pitched_neighbours(coords: np.ndarray, k: int, pitch: float) -> np.ndarray:
    """(N, k) int32: of each cell, itself and the cells nearest to where its neighbours would lie on a square grid of
    ``pitch``; −1 where none lies within half a pitch of such a place.

    A model that learnt from spots 100 µm apart sees neighbourhoods of that size, not of cells that touch.
    """
    reach = int(np.ceil(np.sqrt(k)))
    grid = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1).T
    order = np.lexsort((grid[:, 0], grid[:, 1], (grid**2).sum(axis=1)))[:k]
    tree = cKDTree(coords)
    out = np.full((len(coords), k), -1, np.int32)
    out[:, 0] = np.arange(len(coords))
    for column, (down, right) in enumerate(grid[order[1:]], start=1):
        places = coords + np.array([right, down]) * pitch
        away, found = tree.query(places, distance_upper_bound=pitch / 2)
        out[:, column] = np.where(np.isfinite(away), found, -1)
    return out


# --- where outlines come from -----------------------------------------------------------------------------


def _frame(geometries: list[Any], names: list[Any]) -> GeoDataFrame:
    import geopandas as gpd

    if len(set(map(str, names))) < len(names):
        names = list(range(1, len(names) + 1))
    return gpd.GeoDataFrame(geometry=geometries, index=pd.Index(names))


def _of_geojson(path: Path, slide: Slide) -> GeoDataFrame:
    from shapely import affinity
    from shapely.errors import ShapelyError
    from shapely.geometry import shape

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"this is not GeoJSON ({' '.join(str(error).split())[:80]})", where=path) from None
    features = content.get("features", [content]) if isinstance(content, dict) else content
    if not isinstance(features, list):
        raise InputError("this is not GeoJSON: it has no list of features", where=path)
    geometries, names = [], []
    for number, feature in enumerate(features, start=1):
        if not isinstance(feature, dict) or not isinstance(feature.get("geometry"), dict):
            continue
        try:
            geometry = shape(feature["geometry"])
        except (ShapelyError, TypeError, ValueError, AttributeError, KeyError, IndexError):
            raise InputError(f"the geometry of feature {number} cannot be read", where=path) from None
        if geometry.geom_type not in ("Polygon", "MultiPolygon", "Point") or geometry.is_empty:
            continue
        if not np.isfinite(geometry.bounds).all():
            raise InputError(
                f"the geometry of feature {number} has coordinates that are no numbers", where=path
            )
        geometries.append(affinity.translate(geometry, slide.bounds[0], slide.bounds[1]))
        names.append(str(feature.get("id") or number))
    return _frame(geometries, names)


def _of_mask(path: Path, slide: Slide) -> GeoDataFrame:
    mask = read_raw(path)
    if mask.ndim != 2 or mask.dtype.kind not in "iu":
        raise InputError(
            f"the mask is {mask.dtype} of shape {mask.shape}, not whole numbers of one channel", where=path
        )
    across, down = slide.width / mask.shape[1], slide.height / mask.shape[0]
    if abs(across / down - 1) > 0.02:
        raise InputError(
            f"the mask of {mask.shape[1]} × {mask.shape[0]} px is not of the shape of the image, "
            f"{slide.width} × {slide.height} px",
            where=path,
        )
    outlines = list(_outlines(mask))
    return _frame([_scaled(each, across, down) for _, each in outlines], [label for label, _ in outlines])


def _outlines(mask: np.ndarray) -> Iterator[tuple[int, Any]]:
    """Label and polygon of every instance, in pixels of the mask (corners, not middles of pixels)."""
    from shapely.geometry import Polygon
    from shapely.ops import unary_union
    from skimage.measure import regionprops

    for region in regionprops(mask.astype(np.int64)):
        part = np.pad(region.image.astype(np.uint8), 1)
        rings, _ = cv2.findContours(part, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        top, left = region.bbox[:2]
        shapes = []
        for ring in rings:
            points = ring[:, 0].astype(np.float64) - 1 + (left, top) + 0.5  # middles of the border's pixels
            whole = Polygon(points) if len(points) > 2 else Polygon(np.repeat(points, 4, axis=0)[:4])
            shapes.append(whole.buffer(0.5, join_style="mitre", cap_style="square"))
        yield int(region.label), unary_union(shapes)


def _scaled(geometry: Any, x: float, y: float) -> Any:
    from shapely import affinity

    return geometry if x == y == 1 else affinity.scale(geometry, x, y, origin=(0, 0))


def _of_store(name: str, slide: Slide) -> GeoDataFrame:
    """Shapes or labels of the store, on the pixels of its image."""
    import geopandas as gpd
    from shapely import affinity

    store = slide.path.parents[1]
    data = read_store(store)
    there = [*data.shapes, *data.labels]
    if name not in there:
        raise InputError(
            f"there are no shapes or labels '{name}', only {', '.join(there) or 'none'}.{nearest(name, there)}",
            where=store,
        )
    element = data.shapes[name] if name in data.shapes else data.labels[name]
    image = place_image(data, [element], slide.path.name, store)
    matrix = image.matrix @ affine(element, image.system, store)
    if name in data.shapes:
        whole = element.buffer(element["radius"]) if "radius" in element.columns else element.geometry
        geometries, index = list(whole), element.index
    else:
        if hasattr(element, "children"):
            element = next(iter(element["scale0"].data_vars.values()))
        outlines = list(_outlines(np.asarray(element.transpose("y", "x").data)))
        geometries, index = [each for _, each in outlines], pd.Index([label for label, _ in outlines])
    numbers = [*matrix[0, :2], *matrix[1, :2], matrix[0, 2], matrix[1, 2]]
    return gpd.GeoDataFrame(
        geometry=[affinity.affine_transform(each, numbers) for each in geometries], index=index
    )
