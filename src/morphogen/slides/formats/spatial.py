"""The H&E image of a SpatialData store, opened like a slide: read in windows, nothing converted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from morphogen.core.errors import SlideError
from morphogen.core.reading.codecs import check_codecs
from morphogen.slides.formats.opening import Opened
from morphogen.slides.formats.pixels import on_white
from morphogen.slides.formats.scale import Scale
from morphogen.slides.images import short
from morphogen.slides.readers import _LevelReader
from morphogen.slides.slide import Slide, open_slide

IMAGES = "images"


def image_of(store: Path | str, name: str) -> Path:
    """What names an image element in files and facts: ``STORE/images/NAME``."""
    return Path(store) / IMAGES / name


def is_image_of_store(path: Path | str) -> bool:
    """Whether a path names an image element of a store."""
    path = Path(path)
    return path.parent.name == IMAGES and path.is_dir()


def slide_name(path: Path | str) -> str:
    """What a slide is called: the stem of its file, or of its store."""
    path = Path(path)
    return path.parents[1].name.removesuffix(".zarr") if is_image_of_store(path) else path.stem


def open_image(path: Path | str, mpp: float | None = None, *, staged: Path | str | None = None) -> Slide:
    """:func:`~morphogen.slides.open_slide`, for image elements of SpatialData stores too."""
    if not is_image_of_store(path):
        return open_slide(path, mpp=mpp, staged=staged)
    return element_slide(read_element(path), path, mpp)


def element_slide(element: Any, path: Path | str, mpp: float | None = None) -> Slide:
    """An image element (DataArray or DataTree) as a slide of the name ``path``; :class:`SlideError` for no RGB."""
    reader = ElementReader(element, path)
    return Slide(
        Path(path),
        Opened(reader, "SpatialData image", Scale(), ()),
        mpp,
        Path(path).with_suffix(".results.zarr"),
    )


def read_element(path: Path | str) -> Any:
    """An image element from disk, lazily: a DataTree of levels, or a DataArray of one."""
    from spatialdata import read_zarr

    path = Path(path)
    check_codecs(path)
    try:
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = read_zarr(path.parents[1], selection=(IMAGES,))
        return data.images[path.name]
    except Exception as error:
        raise SlideError(
            f"cannot be read as an image of a SpatialData store ({short(error)})", where=path
        ) from None


class ElementReader(_LevelReader):
    """Windows of an image element: dask arrays (c, y, x) of uint8, of uint16 or of floats in 0…1."""

    name = "spatialdata"
    pkg_namespaces = "spatialdata"

    def __init__(self, element: Any, path: Path | str) -> None:
        self.file = str(path)
        self.set_reader(levels_of(element))
        first = self.reader[0]
        if first.ndim != 3 or first.shape[0] not in (3, 4) or min(first.shape[1:]) < 1:
            raise SlideError(
                f"the image has {first.shape[0] if first.ndim == 3 else first.ndim} channels, not red, green and blue",
                where=path,
                fix="Name the H&E: --data.image NAME",
            )
        if first.dtype.kind not in "uf" or first.dtype.itemsize > 8:
            raise SlideError(f"the pixels are {first.dtype}, not uint8, uint16 or floats in 0…1", where=path)
        self._set(None, None, {})

    def create_reader(self) -> None:
        self.set_reader(levels_of(read_element(self.file)))

    def detach_reader(self) -> None:
        """Nothing is open between reads."""

    def _shapes(self) -> list[tuple[int, int]]:
        return [(int(level.shape[1]), int(level.shape[2])) for level in self.reader]

    def _window(self, level: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        values = np.asarray(self.reader[level][:, y0:y1, x0:x1]).transpose(1, 2, 0)
        if values.dtype.kind == "f":
            if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
                raise SlideError(
                    f"the pixels are floats from {values.min():.3g} to {values.max():.3g}, not in 0…1",
                    where=self.file,
                )
            values = np.rint(values * 255).astype(np.uint8)
        elif values.dtype != np.uint8:
            values = np.rint(values / (np.iinfo(values.dtype).max / 255)).astype(np.uint8)
        return (
            on_white(values[..., :3], values[..., 3])
            if values.shape[2] == 4
            else np.ascontiguousarray(values)
        )


def levels_of(element: Any) -> list[Any]:
    """The arrays (c, y, x) of an image element, finest first."""
    if not hasattr(element, "children"):
        return [element.transpose("c", "y", "x").data]
    found = [next(iter(element[name].data_vars.values())) for name in element.children]
    arrays = [array.transpose("c", "y", "x").data for array in found]
    return sorted(arrays, key=lambda array: -int(array.shape[1]) * int(array.shape[2]))
