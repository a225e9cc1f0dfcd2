"""Elements of a SpatialData store: read safely, and where each lies on the pixels of the H&E."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from morphogen.core.errors import InputError, MorphogenError, SlideError, nearest
from morphogen.core.reading.codecs import check_codecs
from morphogen.core.writing.h5ad import check_stored_matrices
from morphogen.slides.formats.spatial import image_of, levels_of

if TYPE_CHECKING:
    from spatialdata import SpatialData

T = TypeVar("T")

# Coordinate systems by these names are taken to count µm.
MICROMETRES = {
    "um",
    "µm",
    "μm",
    "micron",
    "microns",
    "micrometer",
    "micrometers",
    "micrometre",
    "micrometres",
}


def read_store(store: Path | str) -> SpatialData:
    """All of a store, lazily; :class:`InputError` where it cannot be read, or holds what could run code."""
    from spatialdata import read_zarr

    store = Path(store)
    check_codecs(store)
    for tables in ("tables", "table"):
        if (store / tables).is_dir():
            check_stored_matrices(store / tables)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read_zarr(store)
    except Exception as error:
        line = " ".join(str(error).split())[:160]
        raise InputError(f"is not a readable SpatialData store ({line})", where=store) from None


def fetched(read: Callable[[], T], name: str, store: Path) -> T:
    """What ``read`` gets from the files of a lazy element; :class:`InputError` where they are damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read()
    except MorphogenError:
        raise
    except Exception as error:
        line = " ".join(str(error).split())[:160]
        raise InputError(f"'{name}' cannot be read ({line})", where=store) from None


@dataclass(frozen=True)
class Placed:
    """The H&E of a store and a coordinate system that it shares with what is to be placed on it.

    matrix: (3, 3), from that system to level-0 pixels of the image. mpp: µm per pixel where the store says it, else 0.
    """

    name: str
    element: Any
    system: str
    matrix: np.ndarray
    mpp: float

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """(N, 2) x, y of the shared system → level-0 pixels."""
        return points @ self.matrix[:2, :2].T + self.matrix[:2, 2]

    @property
    def scale(self) -> float:
        """Pixels per unit of the shared system."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix[:2, :2]))))


def place_image(
    data: SpatialData, others: list[Any], wanted: str | None, where: Path, *, elsewhere: bool = False
) -> Placed:
    """The image that sections lie on.

    wanted: by name; else the largest one in red, green and blue that shares a coordinate system with all of ``others``
    (``global`` where several are shared). elsewhere: the H&E is a file of its own, and the shared coordinate system
    counts its pixels. Raises :class:`InputError` where there is none, or nothing is shared.
    """
    if elsewhere:
        shared_all = set.intersection(*(_systems(element) for element in others)) or {"global"}
        return Placed("", None, "global" if "global" in shared_all else min(shared_all), np.eye(3), 0.0)
    names = list(data.images)
    if wanted is not None and wanted not in names:
        raise InputError(
            f"there is no image '{wanted}', only {', '.join(names) or 'none'}.{nearest(wanted, names)}",
            where=where,
        )
    coloured = [name for name in names if name == wanted or (wanted is None and _coloured(data.images[name]))]
    if not coloured:
        said = (
            f"its images ({', '.join(names)}) are not in red, green and blue" if names else "it has no image"
        )
        raise InputError(
            f"{said}, so there is no H&E", where=where, fix="Give the slide itself: --data.images FILE"
        )
    systems = [_systems(element) for element in others]
    shared = {name: set.intersection(_systems(data.images[name]), *systems) for name in coloured}
    fitting = [name for name in coloured if shared[name]]
    if not fitting:
        raise InputError(
            f"the image '{coloured[0]}' shares no coordinate system with what is counted "
            f"({', '.join(sorted(_systems(data.images[coloured[0]]))) or 'none'} against "
            f"{', '.join(sorted(set.union(*systems))) or 'none'})",
            where=where,
            fix="Set its transformation (spatialdata.transformations)",
        )
    name = max(fitting, key=lambda each: _area(data.images[each]))
    system = "global" if "global" in shared[name] else min(shared[name])
    element = data.images[name]
    to_system = affine(element, system, where)
    return Placed(name, element, system, _inverse(to_system, name, where), _stated_mpp(element, where))


def stored_image(store: Path) -> tuple[Path, float | None]:
    """The H&E of a store, its largest image in red, green and blue, as a path; its µm/px where the store says it."""
    data = read_store(store)
    coloured = [name for name in data.images if _coloured(data.images[name])]
    if not coloured:
        raise InputError("it has no image in red, green and blue", where=store)
    name = max(coloured, key=lambda each: _area(data.images[each]))
    return image_of(store, name), _stated_mpp(data.images[name], store) or None


def affine(element: Any, system: str, where: Path) -> np.ndarray:
    """(3, 3) matrix of an element's transformation into a coordinate system, on x and y."""
    from spatialdata.transformations import get_transformation

    try:
        found = get_transformation(element, to_coordinate_system=system)
        matrix = np.asarray(found.to_affine_matrix(("x", "y"), ("x", "y")), np.float64)
    except Exception as error:
        line = " ".join(str(error).split())[:120]
        raise InputError(f"a transformation into '{system}' cannot be used ({line})", where=where) from None
    if not np.isfinite(matrix).all():
        raise InputError(f"a transformation into '{system}' holds NaN or infinite numbers", where=where)
    return matrix


def _inverse(matrix: np.ndarray, name: str, where: Path) -> np.ndarray:
    linear = matrix[:2, :2]
    stretch = np.linalg.svd(linear, compute_uv=False)
    if stretch[1] < 1e-12 * max(stretch[0], 1e-300) or stretch[0] == 0:
        raise InputError(f"the transformation of the image '{name}' flattens it to a line", where=where)
    if stretch[0] / stretch[1] > 1.03:
        raise InputError(
            f"the transformation of the image '{name}' stretches it by {stretch[0] / stretch[1]:.3g}, "
            "so its pixels are not square",
            where=where,
            fix="Resample the image, or give the slide itself: --data.images FILE",
        )
    return np.linalg.inv(matrix)


def _stated_mpp(element: Any, where: Path) -> float:
    """µm per pixel from a transformation into a coordinate system that is named after them; 0 = not said."""
    for system in sorted(_systems(element)):
        if system.casefold() in MICROMETRES:
            return float(np.sqrt(abs(np.linalg.det(affine(element, system, where)[:2, :2]))))
    return 0.0


def _systems(element: Any) -> set[str]:
    from spatialdata.transformations import get_transformation

    try:
        return set(get_transformation(element, get_all=True))
    except Exception:  # an element without any
        return set()


def _coloured(element: Any) -> bool:
    try:
        first = levels_of(element)[0]
    except (ValueError, StopIteration, SlideError):
        return False
    return first.ndim == 3 and first.shape[0] in (3, 4)


def _area(element: Any) -> int:
    first = levels_of(element)[0]
    return int(first.shape[1]) * int(first.shape[2])
