"""Readers of image files, on wsidata's reader base class.

OpenSlide reads the vendors' slide formats; flat images (PNG, JPEG, plain TIFF) and TIFFs that it refuses, or reads
without their pyramid or with other pixels, are read here. All give RGB uint8, white where the file holds nothing.
"""

from __future__ import annotations

import json
import math
import threading
from abc import abstractmethod
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from wsidata.reader import OpenSlideReader
from wsidata.reader.base import AssociatedImages, ReaderBase, SlideProperties

from morphogen.core.errors import SlideError
from morphogen.core.reading.codecs import check_codecs
from morphogen.slides.formats.ngff import axes_of, ome_zarr_attributes, scale_of
from morphogen.slides.formats.pixels import WHITE, Samples, on_white, stored_window, tiff_samples, turned
from morphogen.slides.formats.tiff import main_series
from morphogen.slides.images import open_tiff, read_image, short

IN_MEMORY_BYTES = 256 << 20  # a TIFF whose first level is larger is read piece by piece
_CHUNK_BYTES = 1 << 31  # a chunk of a Zarr array that takes more once decoded is not one
_PROBES = 8  # windows a side that stand for a large level


class VendorSlideReader(OpenSlideReader):
    """OpenSlide, with unscanned areas white (wsidata drops alpha, which makes them black)."""

    name = "openslide"

    def get_region(
        self, x: float, y: float, width: int, height: int, level: int = 0, **kwargs: Any
    ) -> np.ndarray:
        """(height, width, 3) uint8; ``x, y`` level-0 pixels, size in pixels of ``level``."""
        level = int(self.translate_level(level))
        x, y, width, height = int(x), int(y), int(width), int(height)
        out = np.empty((height, width, 3), dtype=np.uint8)
        downsample = self.reader.level_downsamples[level]
        for row in range(0, height, self._chunk_px):
            for column in range(0, width, self._chunk_px):
                size = (min(self._chunk_px, width - column), min(self._chunk_px, height - row))
                corner = (int(x + column * downsample), int(y + row * downsample))
                try:
                    piece = self.reader.read_region(corner, level, size)
                except Exception as error:  # OpenSlideError, or PIL's on a broken associated block
                    raise SlideError(
                        f"cannot be read at x {corner[0]}, y {corner[1]} ({short(error)})",
                        where=self.file,
                        fix="The file is damaged or its copy is incomplete: copy it again",
                    ) from error
                rgba = np.asarray(piece)
                out[row : row + size[1], column : column + size[0]] = on_white(rgba[..., :3], rgba[..., 3])
        return out


class _LevelReader(ReaderBase):
    """What in-memory and piecewise reading share: a list of levels, each giving windows of itself."""

    @abstractmethod
    def _shapes(self) -> list[tuple[int, int]]:
        """(height, width) of every level."""

    @abstractmethod
    def _window(self, level: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """RGB uint8 pixels of one level."""

    def _set(self, mpp: float | None, magnification: float | None, raw: dict[str, Any]) -> None:
        shapes = [list(shape) for shape in self._shapes()]
        height, width = shapes[0]
        downsamples = [(height / h + width / w) / 2 for h, w in shapes]
        self.set_properties(
            SlideProperties(
                shape=shapes[0],
                n_level=len(shapes),
                level_shape=shapes,
                level_downsample=downsamples,
                mpp=mpp,
                magnification=magnification,
                bounds=[0, 0, width, height],
                raw=json.dumps(raw),
            )
        )

    def get_region(
        self, x: float, y: float, width: int, height: int, level: int = 0, **kwargs: Any
    ) -> np.ndarray:
        """(height, width, 3) uint8; ``x, y`` level-0 pixels, size in pixels of ``level``; white outside."""
        level = int(self.translate_level(level))
        downsample = self.properties.level_downsample[level]
        # + a hair: 3 * 2.0005 / 2.0005 must not floor to 2
        left, top = math.floor(x / downsample + 1e-6), math.floor(y / downsample + 1e-6)
        rows, columns = self.properties.level_shape[level]
        y0, y1 = max(top, 0), min(top + int(height), rows)
        x0, x1 = max(left, 0), min(left + int(width), columns)
        if (y0, y1, x0, x1) == (top, top + int(height), left, left + int(width)):
            return np.ascontiguousarray(self._window(level, y0, y1, x0, x1))
        out = np.full((int(height), int(width), 3), WHITE, dtype=np.uint8)
        if y1 > y0 and x1 > x0:
            out[y0 - top : y1 - top, x0 - left : x1 - left] = self._window(level, y0, y1, x0, x1)
        return out

    def get_thumbnail(self, size: int, **kwargs: Any) -> np.ndarray:
        """The whole image, its longer side at most ``size`` pixels."""
        height, width = self.properties.shape
        scale = min(1.0, size / max(height, width))
        level = max(i for i, d in enumerate(self.properties.level_downsample) if d <= 1 / scale + 1e-6)
        image = self.get_level(level)
        shape = (max(1, round(width * scale)), max(1, round(height * scale)))
        return cv2.resize(image, shape, interpolation=cv2.INTER_AREA)


class FlatReader(_LevelReader):
    """A PNG, JPEG or moderate TIFF, decoded once; halved copies serve as its pyramid (memory × 4/3)."""

    name = "flat"
    pkg_namespaces = "PIL"

    def __init__(self, file: Path | str, facts: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.file = str(file)
        self.create_reader()
        facts = facts or {}
        self._set(facts.get("mpp"), facts.get("magnification"), facts)

    def create_reader(self) -> None:
        levels = [read_image(self.file)]
        while max(levels[-1].shape[:2]) > 1024:
            height, width = levels[-1].shape[:2]
            half = (max(1, width // 2), max(1, height // 2))
            levels.append(cv2.resize(levels[-1], half, interpolation=cv2.INTER_AREA))
        self.set_reader(levels)

    def detach_reader(self) -> None:
        self.set_reader(None)

    def _shapes(self) -> list[tuple[int, int]]:
        return [level.shape[:2] for level in self.reader]

    def _window(self, level: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        return self.reader[level][y0:y1, x0:x1]


class ArrayReader(_LevelReader):
    """An image already in memory, as a slide of one level; for libraries that want a reader."""

    name = "array"
    pkg_namespaces = "numpy"

    def __init__(self, image: np.ndarray, mpp: float | None = None) -> None:
        self.file = "image in memory"
        self.set_reader([image])
        self._set(mpp, None, {})

    def create_reader(self) -> None:
        raise SlideError("the image in memory was released")

    def detach_reader(self) -> None:
        """Nothing to close; the array goes with the object."""

    def _shapes(self) -> list[tuple[int, int]]:
        return [level.shape[:2] for level in self.reader]

    def _window(self, level: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        return self.reader[level][y0:y1, x0:x1]


class TiffReader(_LevelReader):
    """A large TIFF or OME-TIFF that OpenSlide does not read with its levels: windows through tifffile + zarr."""

    name = "tifffile"
    pkg_namespaces = "tifffile"

    def __init__(self, file: Path | str, facts: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.file = str(file)
        self._lock = threading.Lock()
        self._stack: ExitStack | None = None
        self.create_reader()
        facts = facts or {}
        self._set(facts.get("mpp"), facts.get("magnification"), facts)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_lock": None, "_stack": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def create_reader(self) -> None:
        import zarr

        with ExitStack() as stack:
            series = main_series(stack.enter_context(open_tiff(self.file)))
            samples = tiff_samples(series, self.file)
            levels = []
            for level in series.levels:
                array = zarr.open(level.aszarr(fillvalue=samples.blank), mode="r")
                levels.append(array if hasattr(array, "shape") else array["0"])
            self._samples = samples.settled(self._probe(levels[-1], samples.axes), self.file)
            self._stack = stack.pop_all()
        self.set_reader(levels)

    def detach_reader(self) -> None:
        if self._stack is not None:
            self._stack.close()
            self._stack = None
        self.set_reader(None)

    def _probe(self, level: Any, axes: str) -> np.ndarray:
        """Samples of the coarsest level, or of windows spread over it where it is large."""
        if level.size * level.dtype.itemsize <= IN_MEMORY_BYTES // 4:
            return np.asarray(level[...])
        height, width = (level.shape[axes.index(axis)] for axis in "YX")
        parts = []
        for row in range(_PROBES):
            for column in range(_PROBES):
                y, x = (int((k + 0.5) / _PROBES * n) for k, n in ((row, height), (column, width)))
                parts.append(np.asarray(level[_index(axes, y, y + 64, x, x + 64)]))
        shape = min(part.shape for part in parts)
        return np.concatenate(
            [part for part in parts if part.shape == shape] or parts[:1], axis=axes.index("Y")
        )

    def _shapes(self) -> list[tuple[int, int]]:
        axes = self._samples.axes
        shapes = [(a.shape[axes.index("Y")], a.shape[axes.index("X")]) for a in self.reader]
        return [(w, h) for h, w in shapes] if self._samples.orientation > 4 else shapes

    def _window(self, level: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        height, width = self.properties.level_shape[level]
        box = stored_window(self._samples.orientation, height, width, (y0, y1, x0, x1))
        with self._lock:
            try:
                window = np.asarray(self.reader[level][_index(self._samples.axes, *box)])
            except Exception as error:
                raise SlideError(
                    f"cannot be read at x {x0}, y {y0} of level {level} ({short(error)})",
                    where=self.file,
                    fix="The file is damaged or its copy is incomplete: copy it again",
                ) from error
        return turned(self._samples.to_rgb(window, self.file), self._samples.orientation)


class OmeZarrReader(_LevelReader):
    """The levels of an OME-Zarr image. Raises :class:`SlideError` for what is no colour or grey image."""

    name = "ome-zarr"
    pkg_namespaces = "zarr"

    def __init__(self, file: Path | str, **kwargs: Any) -> None:
        self.file = str(file)
        self._lock = threading.Lock()
        self.create_reader()
        self._set(self.scale.mpp, None, {"mpp": self.scale.mpp})

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def create_reader(self) -> None:
        import zarr

        attributes = ome_zarr_attributes(self.file)
        if attributes is None:
            raise SlideError("is not an OME-Zarr image", where=self.file)
        check_codecs(self.file)
        try:
            multiscale = attributes["multiscales"][0]
            paths = [str(each["path"]) for each in multiscale["datasets"]]
            group = zarr.open_group(self.file, mode="r")
            arrays = [group[path] for path in paths]
            axes = axes_of(multiscale, arrays[0].ndim)
            self.scale = scale_of(multiscale, axes)
        except Exception as error:  # zarr and what strangers wrote raise many kinds
            raise SlideError(
                f"is not a whole OME-Zarr image ({short(error)})", where=self.file, fix="Copy it again"
            ) from None
        if max(math.prod(array.chunks) * array.dtype.itemsize for array in arrays) > _CHUNK_BYTES:
            raise SlideError("says that its chunks are larger than 2 GB, which cannot be", where=self.file)
        self._axes = axes
        self._samples = self._colours(arrays[0], axes)
        arrays.sort(key=lambda array: -array.shape[axes.index("X")])
        self.set_reader(arrays)
        if self._samples.maximum is None:
            last = arrays[-1]
            self._samples = self._samples.settled(self._plane(last, 0, 4096, 0, 4096), self.file)

    def detach_reader(self) -> None:
        self.set_reader(None)

    def _colours(self, array: Any, axes: str) -> Samples:
        shape = dict(zip(axes, array.shape, strict=True))
        if any(n != 1 for axis, n in shape.items() if axis not in "YXC"):
            raise SlideError(f"is a stack with axes {axes.lower()}, not one colour image", where=self.file)
        channels = shape.get("C", 1)
        if channels not in (1, 3):
            raise SlideError(
                f"has {channels} channels of their own, not a colour image's 3",
                where=self.file,
                fix="Export it as RGB",
            )
        maximum = 255 if array.dtype == np.uint8 else None
        if channels == 1:
            return Samples(axes="YX", photometric="MINISBLACK", maximum=maximum)
        return Samples(axes="CYX", maximum=maximum)

    def _plane(self, array: Any, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        index = {"Y": slice(y0, y1), "X": slice(x0, x1), "C": slice(None)}
        window = np.asarray(array[tuple(index.get(axis, 0) for axis in self._axes)])
        return window[0] if "C" in self._axes and self._samples.axes == "YX" else window

    def _shapes(self) -> list[tuple[int, int]]:
        y, x = self._axes.index("Y"), self._axes.index("X")
        return [(int(array.shape[y]), int(array.shape[x])) for array in self.reader]

    def _window(self, level: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        try:
            window = self._plane(self.reader[level], y0, y1, x0, x1)
        except Exception as error:  # zarr and its codecs raise many kinds
            raise SlideError(
                f"cannot be read at x {x0}, y {y0} of level {level} ({short(error)})",
                where=self.file,
                fix="The store is damaged or its copy is incomplete: copy it again",
            ) from error
        return self._samples.to_rgb(window, self.file)


def _index(axes: str, y0: int, y1: int, x0: int, x1: int) -> tuple[slice, ...]:
    return tuple({"Y": slice(y0, y1), "X": slice(x0, x1)}.get(axis, slice(None)) for axis in axes)


def associated(reader: ReaderBase) -> list[str]:
    """Names of label, macro and the like."""
    images = reader.associated_images
    return sorted(images) if isinstance(images, AssociatedImages | dict) else []
