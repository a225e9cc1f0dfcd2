"""Segmentation of images and whole slides: label maps, mask pyramids, polygons for QuPath."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import zarr

from morphogen.core.files import writable_folder, write_json, write_text
from morphogen.core.writing.locks import locks_folder
from morphogen.layout.segmenter.model import Segmenter
from morphogen.slides.formats.ngff import is_ome_zarr
from morphogen.slides.images import list_images, name_of, open_tiff
from morphogen.tasks import Band, WindowConfig, make_images
from morphogen.tasks.folders import translate_images
from morphogen.tasks.layers import Format, Layer
from morphogen.tasks.pyramids import make_slide

LARGEST = 512  # px of a side of a window, where nothing is said and a crop is not larger
LONGEST = 8192  # px of the longer side of the map that outlines are traced on
_ROWS = 256  # of the reduced mask, read at a time


def labelled(
    segmenter: Segmenter, image: np.ndarray, windows: WindowConfig | None = None, mpp: float | None = None
) -> np.ndarray:
    """(H, W) uint8 classes of an image (H, W, 3) of any size: logits of overlapping windows, blended."""
    (band,) = make_images(segmenter, [image], ["image"], windows_of(segmenter, windows), mpp=mpp)
    return classes_of(band)


def windows_of(segmenter: Segmenter, windows: WindowConfig | None = None) -> WindowConfig:
    """Windows with their defaults filled in: 4 crops a side, at most 512 px or one crop; they fade over a quarter of
    that.

    A network of convolutions labels windows of any size, and the fewer borders they have and the longer they fade the
    less of them is left.
    """
    windows = windows or WindowConfig()
    if windows.window is None:
        side = max(
            segmenter.crop, min(4 * segmenter.crop, LARGEST) // segmenter.multiple * segmenter.multiple
        )
        windows = windows.replace(window=side)
    return windows


def classes_of(band: Band) -> np.ndarray:
    """(h, width) uint8: the class of the largest logit; background where no window was."""
    return np.where(band.covered, band.planes.argmax(0), 0).astype(np.uint8)


@dataclass(frozen=True)
class SegmentedImages:
    """Folder of the label maps, names done, and what failed by name."""

    folder: Path
    done: tuple[str, ...]
    failed: dict[str, str]


@locks_folder()
def segment_images(
    segmenter: Segmenter,
    source: Path | str | Sequence[Path],
    out: Path | str,
    *,
    windows: WindowConfig | None = None,
    mpp: float | None = None,
    format: Format = "tiff",
) -> SegmentedImages:
    """Label maps of the images of a folder, or of files, as ``out/masks/NAME.png``; values are classes, named in
    ``out/labels.json``. With the ``format`` ``zarr`` they are OME-Zarr. A bad image is told and the rest goes on; a
    killed run goes on where it was; images of one window each go through the network together."""
    out = writable_folder(out)
    found = list_images(source) if isinstance(source, (str, Path)) else {name_of(p): Path(p) for p in source}
    windows, classes = windows_of(segmenter, windows), segmenter.config.classes
    result = translate_images(
        segmenter,
        found,
        out,
        [label_layer("masks", classes)],
        {"model": segmenter.identity, "windows": windows.to_dict(), "mpp": mpp},
        windows=windows,
        mpp=mpp,
        kind="label maps",
        notes={"classes": classes},
        doing="segmenting images",
        format=format,
    )
    write_json(out / "labels.json", {str(k): name for k, name in enumerate(classes)})
    return SegmentedImages(out, tuple(name for name in found if name not in result.failed), result.failed)


def label_layer(name: str, classes: Sequence[str]) -> Layer:
    """A picture of classes, which are never averaged."""
    return Layer(
        name,
        classes_of,
        channels=1,
        codec="deflate",
        background=0,
        labels=True,
        facts={"classes": ", ".join(classes)},
    )


@dataclass(frozen=True)
class SegmentedSlide:
    """The mask pyramid, the file of polygons, the share of the slide that each class has, and how many polygons."""

    mask: Path
    polygons: Path
    shares: dict[str, float]
    count: int


def segment_slide(
    segmenter: Segmenter,
    slide: Any,
    out: Path | str,
    *,
    windows: WindowConfig | None = None,
    least_um2: float = 200.0,
    format: Format = "tiff",
) -> SegmentedSlide:
    """Label a whole slide: ``NAME_mask.ome.tif``, a pyramid of classes, and ``NAME.geojson``, polygons for QuPath.

    With the ``format`` ``zarr`` the mask is OME-Zarr (``.ome.zarr``).
    Windows are labelled where there is tissue, their logits blended where they overlap; memory is bounded. A killed run
    goes on with the row of windows it was at, to the same bytes. Polygons are traced on the mask at up to 8192 px;
    those below ``least_um2`` are left out. Mask and polygons cover what was scanned (``slide.bounds``), as QuPath shows
    it; the GeoJSON states its corner as ``origin`` (level-0 pixels of the whole slide).
    """
    out = writable_folder(out)
    windows = windows_of(segmenter, windows)
    classes = segmenter.config.classes
    name = name_of(slide.path)
    _, _, width, height = slide.bounds
    scale = max(1, -(-max(width, height) // LONGEST))
    result = make_slide(
        segmenter,
        slide,
        out,
        f"{name}_mask",
        [label_layer("", classes)],
        {"model": segmenter.identity},
        windows=windows,
        what="a mask of the slide",
        doing="segmenting windows",
        format=format,
    )
    labels = reduced(result.images[""], scale)
    polygons = out / f"{name}.geojson"
    found = geojson(labels, classes, scale, least_um2 / (slide.require_mpp() * scale) ** 2)
    write_text(polygons, json.dumps(found | {"origin": [float(corner) for corner in slide.bounds[:2]]}))
    counts = np.bincount(labels.ravel(), minlength=len(classes))
    shares = {each: float(n / labels.size) for each, n in zip(classes, counts)}
    return SegmentedSlide(result.images[""], polygons, shares, len(found["features"]))


def reduced(mask: Path, scale: int) -> np.ndarray:
    """(H, W) uint8: every ``scale``-th pixel of a mask pyramid's finest level, read in bands of tiles."""
    if is_ome_zarr(mask):
        array = zarr.open_group(str(mask), mode="r")["0"]
        rows_of = range(0, array.shape[0], _ROWS * scale)
        return np.concatenate([array[top : top + _ROWS * scale][::scale, ::scale] for top in rows_of])
    with open_tiff(mask) as file:
        page = file.pages[0]
        height, width, side = page.imagelength, page.imagewidth, page.tilelength
        out = np.zeros((-(-height // scale), -(-width // scale)), np.uint8)
        for tile, (_, _, top, left, _), _ in page.segments():
            if tile is None:
                continue
            rows = np.arange(-(-top // scale) * scale, min(top + side, height), scale)
            columns = np.arange(-(-left // scale) * scale, min(left + side, width), scale)
            values = tile.reshape(tile.shape[-3:])[..., 0][rows[:, None] - top, columns[None] - left]
            if len(rows) and len(columns):
                out[
                    rows[0] // scale : rows[-1] // scale + 1, columns[0] // scale : columns[-1] // scale + 1
                ] = values
    return out


def outlines(labels: np.ndarray, label: int, scale: float, least: float) -> Iterator[list[np.ndarray]]:
    """Rings of every connected piece of a class in level-0 pixels, the outer one first; corners of pixels."""
    mask = (labels == label).astype(np.uint8)
    contours, tree = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    for index, outer in enumerate(contours):
        if tree[0][index][3] != -1 or cv2.contourArea(outer) < least:
            continue
        rings = [_ring(outer, scale)]
        hole = tree[0][index][2]
        while hole != -1:
            if cv2.contourArea(contours[hole]) >= least:
                rings.append(_ring(contours[hole], scale))
            hole = tree[0][hole][0]
        yield rings


def _ring(contour: np.ndarray, scale: float) -> np.ndarray:
    """(N+1, 2) closed ring. Contours run through the middles of pixels: half a pixel is added."""
    points = cv2.approxPolyDP(contour, 0.75, True)[:, 0].astype(np.float64)
    points = (points + 0.5) * scale
    return np.concatenate([points, points[:1]])


def geojson(labels: np.ndarray, classes: Sequence[str], scale: float, least: float) -> dict[str, Any]:
    """The polygons of all foreground classes as QuPath reads them: a FeatureCollection of annotations."""
    features = []
    for label, name in list(enumerate(classes))[1:]:
        for rings in outlines(labels, label, scale, least):
            rings = [ring for ring in rings if len(ring) >= 4]
            if rings:
                features.append(
                    {
                        "type": "Feature",
                        "geometry": {
                            "type": "Polygon",
                            "coordinates": [np.round(ring, 2).tolist() for ring in rings],
                        },
                        "properties": {"objectType": "annotation", "classification": {"name": name}},
                    }
                )
    return {"type": "FeatureCollection", "features": features}
