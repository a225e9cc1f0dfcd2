"""Glass stays white: where a slide is translated, and how the picture fades into the glass around it.

A network paints glass in its own off-white, so that a window beside one that was left out would end in a step. The
picture therefore fades along the contour of the tissue, not along borders of windows: it is whole up to ``MARGIN_UM``
outside of the contour, gone ``FADE_UM`` further out, and every window that shows any of it is computed.

A room asks :func:`glass_of` a slide, leaves out the windows that :meth:`Glass.wants` not, and hands every band through
:meth:`Glass.over`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from morphogen.core.files import content_hash
from morphogen.tasks.bands import Band

if TYPE_CHECKING:
    from morphogen.slides import Slide

MARGIN_UM, FADE_UM = 16.0, 32.0
_STEP_UM = 4.0  # resolution of the map: that of the overview on which tissue is found
_LONGEST = 8192  # cells of the map along the longer side, at most (64 MiB)


class Glass:
    """Weights of the picture over a slide, 1 on tissue and 0 on glass.

    Parameters
    ----------
    polygons:
        Tissue contours in level-0 pixels (shapely), holes included. Holes that the margin fills are no glass.
    width, height:
        Size of the slide in level-0 pixels.
    mpp:
        µm per level-0 pixel.
    """

    def __init__(self, polygons: Sequence[Any], width: int, height: int, mpp: float) -> None:
        import cv2

        self.width, self.height = width, height
        self.step = max(1.0, _STEP_UM / mpp, max(width, height) / _LONGEST)  # level-0 pixels per cell
        shape = math.ceil(height / self.step), math.ceil(width / self.step)
        inside = np.zeros(shape, np.uint8)
        for polygon in _parts(polygons):
            rings = [polygon.exterior, *polygon.interiors]
            # Cell i spans [i, i + 1) · step; contours are drawn between cell centres.
            corners = [
                np.rint(np.asarray(ring.coords)[:, :2] / self.step - 0.5).astype(np.int32) for ring in rings
            ]
            own = np.zeros(shape, np.uint8)
            cv2.fillPoly(own, corners, 1)
            inside |= own
        distance = (
            cv2.distanceTransform(1 - inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            if inside.any()
            else np.full(shape, np.inf, np.float32)
        )
        away = np.clip((distance * self.step * mpp - MARGIN_UM) / FADE_UM, 0, 1)
        self.map = np.rint(255 * (1 - away * away * (3 - 2 * away))).astype(np.uint8)
        # Between cells the weight is interpolated: it reaches one cell further than the map.
        self._reached = cv2.dilate((self.map > 0).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0

    @property
    def identity(self) -> str:
        """Hash of the map: the same tissue, the same slide size."""
        return content_hash(self.map)

    def wants(self, x: int, y: int, side: int) -> bool:
        """Whether the square of ``side`` level-0 pixels at (x, y) shows any of the picture."""
        rows, columns = (
            slice(max(0, int(at / self.step)), max(0, math.ceil((at + side) / self.step))) for at in (y, x)
        )
        return bool(self._reached[rows, columns].any())

    def weights(self, top: int, bottom: int) -> np.ndarray:
        """(bottom − top, width) float32 weights of rows of the slide, bilinear between cells."""
        rows = _between(np.arange(top, bottom), self.step, self.map.shape[0])
        columns = _between(np.arange(self.width), self.step, self.map.shape[1])
        first = rows[0][0]
        part = self.map[first : rows[1][-1] + 1].astype(np.float32) / 255
        across = part[:, columns[0]] * (1 - columns[2]) + part[:, columns[1]] * columns[2]
        low, high = across[rows[0] - first], across[rows[1] - first]
        return low + (high - low) * rows[2][:, None]

    def over(self, band: Band) -> Band:
        """The band with its glass white and certain."""
        return replace(band, weights=self.weights(band.top, band.top + len(band)))


def glass_of(slide: Slide, tissue: Sequence[Any] | None = None, tissue_only: bool = True) -> Glass | None:
    """The glass around ``tissue`` (polygons in level-0 pixels; default: the tissue of the slide's store, else what is
    found in it), on the slide within its bounds; ``None`` where the whole slide is wanted and nothing fades."""
    from morphogen.slides.tissue import tissue_of

    if tissue is None and not tissue_only:
        return None
    polygons = list(tissue_of(slide).geometry) if tissue is None else list(tissue)
    x, y, width, height = slide.bounds
    if (x, y) != (0, 0):
        from shapely.affinity import translate

        polygons = [translate(polygon, -x, -y) for polygon in polygons]
    return Glass(polygons, width, height, slide.require_mpp())


def _between(positions: np.ndarray, step: float, cells: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower cell, upper cell and the weight of the upper one, for pixels seen at their centres."""
    at = np.clip((positions + 0.5) / step - 0.5, 0, cells - 1)
    low = np.floor(at).astype(np.int64)
    return low, np.minimum(low + 1, cells - 1), (at - low).astype(np.float32)


def _parts(polygons: Sequence[Any]) -> list[Any]:
    """Polygons alone, of polygons and multipolygons."""
    parts = [part for each in polygons for part in getattr(each, "geoms", [each])]
    return [part for part in parts if part.geom_type == "Polygon" and not part.is_empty]
