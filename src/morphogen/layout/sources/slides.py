"""Slides with GeoJSON polygons (QuPath, EXACT): labels are drawn for every window that is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from skimage.draw import polygon as draw_polygon

from morphogen.core.errors import InputError
from morphogen.core.files import content_hash
from morphogen.core.fingerprints import fingerprint
from morphogen.layout.sources.sheets import WHITE, Classes, places_of

LOOKUP = 64  # level-0 pixels per pixel of the maps that places are drawn from, at most


@dataclass(frozen=True)
class Polygon:
    """One annotation: its class and its rings in level-0 pixels, the outer one first."""

    label: str
    rings: tuple[np.ndarray, ...]

    @cached_property
    def box(self) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1."""
        low, high = self.rings[0].min(0), self.rings[0].max(0)
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])

    @cached_property
    def inner(self) -> np.ndarray:
        """(2,) x, y of a point that lies in it."""
        from shapely import Polygon as Shape

        point = Shape(self.rings[0], self.rings[1:]).buffer(0).representative_point()
        return np.array([point.x, point.y])

    @cached_property
    def area(self) -> float:
        """Of the outer ring."""
        return abs(float(cv2.contourArea(self.rings[0].astype(np.float32))))


def read_polygons(path: Path | str) -> list[Polygon]:
    """The polygons of a GeoJSON file, largest first, so that small ones lie on top when they are drawn.

    A feature's class is ``properties.classification.name`` (QuPath), or ``classification``, ``class``, ``label`` or
    ``name`` in its properties. Points, lines and features without a class are left out.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"this is not GeoJSON ({str(error)[:80]})", where=path) from None
    features = content.get("features", [content]) if isinstance(content, dict) else content
    if not isinstance(features, list):
        raise InputError("this is not GeoJSON: it has no list of features", where=path)
    found = []
    for feature in features:
        if not isinstance(feature, dict):
            continue
        label = _label(feature.get("properties") or {})
        if label:
            found += [Polygon(label, rings) for rings in _rings(feature.get("geometry") or {}, path)]
    return sorted(found, key=lambda polygon: -polygon.area)


def _label(properties: Any) -> str:
    if not isinstance(properties, dict):
        return ""
    for key in ("classification", "class", "label", "name"):
        value = properties.get(key)
        value = value.get("name") if isinstance(value, dict) else value
        if isinstance(value, str) and value.strip():
            return value.strip()
    return ""


def _rings(geometry: dict[str, Any], where: Path) -> Iterator[tuple[np.ndarray, ...]]:
    kind, coordinates = geometry.get("type"), geometry.get("coordinates")
    if kind not in ("Polygon", "MultiPolygon"):
        return
    try:
        parts: Any = coordinates if kind == "MultiPolygon" else [coordinates]
        for part in parts:
            rings = tuple(np.asarray(ring, np.float64)[:, :2] for ring in part)
            if len(rings[0]) >= 3 and all(np.isfinite(ring).all() for ring in rings):
                yield rings
    except (TypeError, ValueError, IndexError):
        raise InputError("a polygon's coordinates are not rings of x, y pairs", where=where) from None


def drawn(
    polygons: Sequence[Polygon],
    classes: Sequence[str],
    box: tuple[float, float, float, float],
    shape: tuple[int, int],
) -> np.ndarray:
    """(height, width) uint8 classes of the level-0 rectangle ``box`` (x, y, w, h); ``polygons`` largest first."""
    labels = np.zeros(shape, np.uint8)
    scale = np.array([shape[1] / box[2], shape[0] / box[3]])
    for polygon in polygons:
        x0, y0, x1, y1 = polygon.box
        if x1 < box[0] or y1 < box[1] or x0 > box[0] + box[2] or y0 > box[1] + box[3]:
            continue
        value = classes.index(polygon.label) if polygon.label in classes else 0
        # Corners of the box that holds it, so that a small polygon costs little on a large map.
        low = np.floor((np.array([x0, y0]) - box[:2]) * scale).astype(int).clip(0)
        high = np.minimum(np.ceil((np.array([x1, y1]) - box[:2]) * scale).astype(int), shape[::-1])
        part = labels[low[1] : high[1], low[0] : high[0]]
        inside = np.zeros(part.shape, bool)
        for ring in polygon.rings:  # even-odd: a ring within a ring is a hole
            at = (ring - box[:2]) * scale - 0.5 - low  # a pixel is in when its middle is
            inside[draw_polygon(at[:, 1], at[:, 0], part.shape)] ^= True
        part[inside] = value
    return labels


@dataclass(frozen=True)
class SlideSheet:
    """A slide at ``mpp`` µm/px (None: its level-0 pixels), with the polygons that label it."""

    name: str
    patient: str
    path: Path
    mpp: float | None = None
    polygons: tuple[Polygon, ...] = ()
    classes: tuple[str, ...] = ()
    labelled: bool = True
    kind: str = ""
    given_mpp: float | None = None
    opened: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:  # workers open the slide themselves
        return {**self.__dict__, "opened": {}}

    @property
    def balanced(self) -> bool:
        """Never: a slide is whole."""
        return False

    @property
    def slide(self) -> Any:
        """The open slide, as QuPath shows it: polygons count from the corner of its bounds."""
        if "slide" not in self.opened:
            from morphogen.slides import open_slide

            self.opened["slide"] = open_slide(self.path, mpp=self.given_mpp).within_bounds()
        return self.opened["slide"]

    @cached_property
    def scale(self) -> float:
        """Level-0 pixels per pixel of the crops."""
        return 1.0 if self.mpp is None else self.mpp / self.slide.require_mpp()

    @cached_property
    def size(self) -> tuple[int, int]:
        return max(1, int(self.slide.height / self.scale)), max(1, int(self.slide.width / self.scale))

    @cached_property
    def present(self) -> tuple[int, ...]:
        return tuple(sorted(self._places)) if self.labelled else ()

    def image(self, top: int, left: int, side: int) -> np.ndarray:
        return self.slide.read_region(left * self.scale, top * self.scale, side, side, mpp=self.mpp)

    def labels(self, top: int, left: int, side: int) -> np.ndarray:
        box = left * self.scale, top * self.scale, side * self.scale, side * self.scale
        return drawn(self.polygons, self.classes, box, (side, side))

    def places(self, label: int) -> np.ndarray:
        return self._places[label] if label in self._places else np.zeros((0, 2), np.int64)

    @cached_property
    def _places(self) -> dict[int, np.ndarray]:
        """Of a label map of the whole slide at a few µm; the background only where there is tissue."""
        lookup = max(1, min(LOOKUP, round(32 * self.scale)))
        shape = -(-self.slide.height // lookup), -(-self.slide.width // lookup)
        box = 0.0, 0.0, shape[1] * lookup, shape[0] * lookup
        labels = drawn(self.polygons, self.classes, box, shape)
        found = places_of(labels, 1, 1)
        if 0 in found:
            overview = self.slide.overview(float(lookup))
            at = np.minimum(found[0], np.array(overview.shape[:2]) - 1)
            tissue = overview.min(2)[at[:, 0], at[:, 1]] < WHITE
            found[0] = found[0][tissue] if tissue.any() else found[0]
        places = {k: np.round((at + 0.5) * lookup / self.scale).astype(np.int64) for k, at in found.items()}
        for polygon in self.polygons:  # smaller than a pixel of the map
            label = self.classes.index(polygon.label) if polygon.label in self.classes else 0
            if label and label not in found:
                own = np.round(polygon.inner[::-1] / self.scale).astype(np.int64)[None]
                places[label] = np.concatenate([places[label], own]) if label in places else own
        return places

    def tissue(self, side: int) -> np.ndarray:
        """By :func:`morphogen.slides.tissue.tissue_of`; all cells where it finds none."""
        if side not in self.opened:
            from shapely import box, intersects_xy, prepare, union_all

            from morphogen.slides.tissue import tissue_of

            height, width = self.size
            corners = np.array(
                [(r, c) for r in range(0, max(1, height - side + 1), side)
                 for c in range(0, max(1, width - side + 1), side)], np.int64,
            )  # fmt: skip
            pieces = list(tissue_of(self.slide).geometry)
            area = union_all(pieces) if pieces else box(0, 0, self.slide.width, self.slide.height)
            prepare(area)
            middles = (corners + side / 2) * self.scale
            inside = intersects_xy(area, middles[:, 1], middles[:, 0])
            self.opened[side] = corners[inside] if inside.any() else corners
        found: np.ndarray = self.opened[side]
        return found

    def identity(self, labels: bool = True) -> list[Any]:
        drawn = content_hash([[each.label, *each.rings] for each in self.polygons]) if labels else ""
        return [self.name, self.patient, fingerprint(self.path), self.mpp, drawn if self.polygons else ""]


def slide_classes(polygons: Sequence[Sequence[Polygon]], wanted: Sequence[str]) -> Classes:
    """Background and the classes that the polygons name, or those that are wanted, in their order."""
    names = sorted({polygon.label for each in polygons for polygon in each})
    for name in wanted:
        if name not in names and name != "background":
            raise InputError(
                f"no polygon is of class '{name}', only {', '.join(names)}", where="data.classes"
            )
    chosen = [name for name in (wanted or names) if name != "background"]
    return Classes(("background", *chosen), {k: k for k in range(len(chosen) + 1)})
