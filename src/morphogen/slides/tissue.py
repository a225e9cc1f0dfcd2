"""Where the tissue is, by LazySlide on an overview of known resolution."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from morphogen.slides.readers import ArrayReader
from morphogen.slides.store import TISSUES, shape_names

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

    from morphogen.slides.slide import Slide

OVERVIEW_MPP = 4.0  # what LazySlide's filter sizes are made for
_OVERVIEW_PX = (512, 3072)  # longer side: least, and most (the entropy filter takes 2 s per megapixel)
_NOISE = 6  # grey levels around the background colour that camera noise and JPEG reach after a median filter
_STRUCTURE = (0.02, 0.01)  # local deviation of optical density, and the share of a piece that must show it


def find_tissue(slide: Slide, method: str = "entropy") -> GeoDataFrame:
    """Tissue contours in level-0 pixels: ``tissue_id`` and ``geometry`` (polygons with holes); may be empty.

    LazySlide's detection runs on an overview of 4 µm/px, or of 512 to 3072 px where that would be smaller, larger or
    unknown; so the result depends neither on the pyramid the file happens to have nor on free memory. Before it, the
    background is calmed (noise around its colour is removed); after it, pieces without any structure are dropped, so
    that a blank slide has no tissue. ``entropy`` (local entropy of the stains) suits H&E, IHC and tinted backgrounds;
    ``otsu`` (colour threshold that rejects pen marks) suits H&E on a white background; ``all`` takes the whole slide
    as one piece, for smears and images that are all tissue.
    """
    import geopandas as gpd
    from shapely import box
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel
    from wsidata import WSIData

    if method == "all":
        whole = {"tissue_id": [0], "geometry": [box(0, 0, slide.width, slide.height)]}
        return ShapesModel.parse(gpd.GeoDataFrame(whole))
    longer = max(slide.width, slide.height)
    wanted = longer * slide.mpp / OVERVIEW_MPP if slide.mpp else longer / 16
    downsample = max(1.0, longer / min(max(wanted, _OVERVIEW_PX[0]), _OVERVIEW_PX[1]))
    image = cv2.medianBlur(slide.overview(downsample), 5)
    proxy = WSIData.from_spatialdata(
        SpatialData(), ArrayReader(_calm(image), slide.mpp and slide.mpp * downsample)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("lazyslide").setLevel(
            logging.ERROR
        )  # that no tissue is found is said by the caller
        from lazyslide.preprocess import find_tissues

        find_tissues(proxy, level=0, method=method, invert_check=False, key_added=TISSUES)
    pieces: Any = list(proxy.shapes[TISSUES].geometry) if TISSUES in proxy.shapes else []
    structure = _structure(image)
    pieces = [
        p for piece in pieces for p in _polygons(piece.buffer(0)) if _share(p, structure) > _STRUCTURE[1]
    ]
    if not pieces:
        return gpd.GeoDataFrame({"tissue_id": [], "geometry": []}, geometry="geometry")
    sx, sy = slide.width / image.shape[1], slide.height / image.shape[0]
    geometry = gpd.GeoSeries(pieces).scale(sx, sy, origin=(0, 0))
    return ShapesModel.parse(gpd.GeoDataFrame({"tissue_id": range(len(geometry)), "geometry": geometry}))


def tissue_of(slide: Slide, method: str = "entropy") -> GeoDataFrame:
    """The tissues in the slide's store (found earlier, or drawn by hand), else :func:`find_tissue`; in pixels of this
    slide, whole or within its bounds."""
    from morphogen.slides.store import read_store

    if TISSUES in shape_names(slide.store):
        stored = read_store(slide.whole, ("shapes",)).shapes[TISSUES]
        x, y = slide.origin  # stores count in pixels of the whole slide
        return stored if (x, y) == (0, 0) else stored.set_geometry(stored.geometry.translate(-x, -y))
    return find_tissue(slide, method)


def _calm(image: np.ndarray) -> np.ndarray:
    """Pixels within noise of the background colour, the commonest of the bright ones, become that colour."""
    bright = image.mean(axis=2) >= 200
    if bright.mean() < 0.02:
        return image
    colour = np.array([np.bincount(image[..., c][bright], minlength=256).argmax() for c in range(3)])
    near = (np.abs(image.astype(np.int16) - colour) <= _NOISE).all(axis=2)
    return np.where(near[..., None], colour.astype(np.uint8), image)


def _structure(image: np.ndarray) -> np.ndarray:
    """Pixels around which optical density varies more than dust, noise and shading make it vary."""
    density = -np.log10((image.astype(np.float32).mean(axis=2) + 1) / 256)
    mean = cv2.blur(density, (9, 9))
    variance = cv2.blur(density * density, (9, 9)) - mean * mean
    return variance > _STRUCTURE[0] ** 2


def _share(polygon: Any, mask: np.ndarray) -> float:
    """Share of a polygon's pixels that are set in ``mask``."""
    inside = np.zeros(mask.shape, dtype=np.uint8)
    cv2.fillPoly(inside, [np.asarray(polygon.exterior.coords, dtype=np.int32)], 1)
    for hole in polygon.interiors:
        cv2.fillPoly(inside, [np.asarray(hole.coords, dtype=np.int32)], 0)
    return float(mask[inside > 0].mean()) if inside.any() else 0.0


def _polygons(geometry: Any) -> list[Any]:
    """The polygons in a geometry that mending may have split."""
    parts = geometry.geoms if hasattr(geometry, "geoms") else [geometry]
    return [part for part in parts if part.geom_type == "Polygon" and part.area > 0]
