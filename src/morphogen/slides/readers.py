"""Readers of image files, on wsidata's reader base class.

OpenSlide reads the vendors' slide formats; flat images (PNG, JPEG, plain TIFF) and OME-TIFF, which it refuses or
reads without their pyramid, are read here. All give RGB uint8, white where the file holds nothing.
"""

from __future__ import annotations

import json
import math
import threading
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from wsidata.reader import OpenSlideReader
from wsidata.reader.base import AssociatedImages, ReaderBase, SlideProperties

from morphogen.core.errors import SlideError

WHITE = 255
IN_MEMORY_BYTES = 256 << 20  # a TIFF whose first level is larger is read piece by piece
FLAT_PIXELS = 2_000_000_000  # PNG and JPEG must be decoded whole: more than this does not fit anywhere


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
                        f"cannot be read at x {corner[0]}, y {corner[1]} ({error})",
                        where=self.file,
                        fix="The file is damaged or its copy is incomplete: copy it again",
                    ) from error
                out[row : row + size[1], column : column + size[0]] = _on_white(np.asarray(piece))
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

    def __init__(self, file: Path | str, **kwargs: Any) -> None:
        self.file = str(file)
        self.create_reader()
        facts = tiff_facts(self.file) if is_tiff(self.file) else {}
        self._set(facts.get("mpp"), facts.get("magnification"), facts)

    def create_reader(self) -> None:
        image = decode(self.file)
        levels = [image]
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

    def __init__(self, file: Path | str, **kwargs: Any) -> None:
        self.file = str(file)
        self._lock = threading.Lock()
        self.create_reader()
        facts = tiff_facts(self.file)
        self._set(facts.get("mpp"), facts.get("magnification"), facts)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def create_reader(self) -> None:
        import tifffile
        import zarr

        file = tifffile.TiffFile(self.file)
        levels = []
        for level in file.series[0].levels:
            axes = level.axes
            array = zarr.open(level.aszarr(), mode="r")
            levels.append((array if hasattr(array, "shape") else array["0"], axes))
        self.set_reader((file, levels))

    def detach_reader(self) -> None:
        if self._reader is not None:
            self._reader[0].close()
            self.set_reader(None)

    def _shapes(self) -> list[tuple[int, int]]:
        return [(a.shape[axes.index("Y")], a.shape[axes.index("X")]) for a, axes in self.reader[1]]

    def _window(self, level: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        array, axes = self.reader[1][level]
        index = tuple({"Y": slice(y0, y1), "X": slice(x0, x1)}.get(axis, slice(None)) for axis in axes)
        with self._lock:
            try:
                window = np.asarray(array[index])
            except Exception as error:
                raise SlideError(
                    f"cannot be read at x {x0}, y {y0} of level {level} ({error})",
                    where=self.file,
                    fix="The file is damaged or its copy is incomplete: copy it again",
                ) from error
        return as_rgb(window, axes, self.file)


def decode(path: Path | str) -> np.ndarray:
    """Decode a flat image whole to (H, W, 3) uint8: 16-bit is scaled, alpha laid on white, grey repeated."""
    if is_tiff(path):
        import tifffile

        try:
            with tifffile.TiffFile(path) as file:
                series = file.series[0]
                return as_rgb(series.levels[0].asarray(), series.axes, path)
        except SlideError:
            raise
        except Exception as error:
            raise SlideError(
                f"cannot be decoded ({_line(error)})", where=path, fix="The file may be damaged or incomplete"
            ) from error
    from PIL import Image

    try:
        with _large_images(Image), Image.open(path) as image:
            if image.mode in ("I;16", "I;16B", "I;16L", "I"):
                return as_rgb(np.asarray(image).astype(np.uint16), "YX", path)
            if image.mode in ("P", "LA", "PA", "RGBA"):
                return np.ascontiguousarray(_on_white(np.asarray(image.convert("RGBA"))))
            return np.array(image.convert("RGB"))
    except Exception as error:
        raise SlideError(
            f"cannot be decoded ({_line(error)})",
            where=path,
            fix="It is not an image, or it is damaged or incomplete",
        ) from error


def as_rgb(array: np.ndarray, axes: str, where: object = None) -> np.ndarray:
    """(H, W, 3) uint8 from an array with axes such as ``YXS``, ``SYX``, ``CYX`` or ``YX``."""
    colour = next((axis for axis in axes if axis in "SC"), None)
    squeeze = tuple(i for i, axis in enumerate(axes) if axis not in "YXSC")
    if any(array.shape[i] != 1 for i in squeeze):
        raise SlideError(f"is a stack with axes {axes}, not one colour image", where=where)
    array = array.reshape([n for i, n in enumerate(array.shape) if i not in squeeze])
    axes = "".join(axis for axis in axes if axis in "YXSC")
    if colour is None:
        array = np.repeat(array[..., None], 3, axis=-1)
    elif axes.index(colour) != 2:
        array = np.moveaxis(array, axes.index(colour), -1)
    if array.dtype == np.uint16:
        array = (array.astype(np.uint32) * 255 + 32767) // 65535
    elif array.dtype == bool:
        array = array * 255
    elif array.dtype != np.uint8:
        raise SlideError(
            f"holds {array.dtype} samples, not 8- or 16-bit colour", where=where, fix="Export it as 8-bit RGB"
        )
    array = array.astype(np.uint8, copy=False)
    if array.shape[-1] == 1:
        array = np.repeat(array, 3, axis=-1)
    if array.shape[-1] == 4:
        array = _on_white(array)
    if array.shape[-1] != 3:
        raise SlideError(f"has {array.shape[-1]} channels, not a colour image's 3", where=where)
    return np.ascontiguousarray(array)


def is_tiff(path: Path | str) -> bool:
    """Classic and Big TIFF in either byte order, by their first four bytes."""
    with open(path, "rb") as file:
        return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def tiff_facts(path: Path | str) -> dict[str, Any]:
    """What a TIFF says about itself: ``mpp`` (µm/px or None), ``mpp_source``, ``magnification``, ``levels``."""
    import tifffile

    facts: dict[str, Any] = {"mpp": None, "mpp_source": None, "magnification": None, "levels": 1}
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        facts["levels"] = len(file.series[0].levels)
        facts["is_ome"] = bool(file.is_ome)
        if file.is_ome and file.ome_metadata:
            size, power = _ome_pixels(file.ome_metadata)
            if size is not None:
                facts.update(mpp=size, mpp_source="OME PhysicalSizeX")
            facts["magnification"] = power
        resolution, unit = page.tags.get("XResolution"), page.tags.get("ResolutionUnit")
        if facts["mpp"] is None and resolution is not None and unit is not None:
            micrometres = {2: 25400.0, 3: 10000.0}.get(int(unit.value))
            number, of = resolution.value
            if micrometres and number:
                facts.update(mpp=micrometres * of / number, mpp_source="TIFF XResolution")
    return facts


def _ome_pixels(xml: str) -> tuple[float | None, float | None]:
    """(PhysicalSizeX in µm, nominal magnification) of the first image of an OME-XML text."""
    from xml.etree import ElementTree

    to_um = {"µm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return None, None
    pixels = root.find(".//{*}Pixels")
    size = power = None
    if pixels is not None and pixels.get("PhysicalSizeX"):
        unit = to_um.get(pixels.get("PhysicalSizeXUnit", "µm"))
        size = float(pixels.get("PhysicalSizeX", "nan")) * unit if unit else None
    objective = root.find(".//{*}Objective")
    if objective is not None and objective.get("NominalMagnification"):
        power = float(objective.get("NominalMagnification", "nan"))
    return size, power


def associated(reader: ReaderBase) -> list[str]:
    """Names of label, macro and the like."""
    images = reader.associated_images
    return sorted(images) if isinstance(images, AssociatedImages | dict) else []


def _on_white(rgba: np.ndarray) -> np.ndarray:
    """(…, 4) straight-alpha RGBA laid on white."""
    alpha = rgba[..., 3]
    if alpha.min(initial=255) == 255:
        return rgba[..., :3]
    weight = alpha[..., None].astype(np.uint16)
    return ((rgba[..., :3] * weight + WHITE * (255 - weight) + 127) // 255).astype(np.uint8)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextmanager
def _large_images(module: Any) -> Iterator[None]:
    # PIL refuses images of more than 179 megapixels, which a slide exported as JPEG easily has.
    before = module.MAX_IMAGE_PIXELS
    module.MAX_IMAGE_PIXELS = FLAT_PIXELS // 2
    try:
        yield
    finally:
        module.MAX_IMAGE_PIXELS = before


def decoded_bytes(path: Path | str) -> int:
    """Bytes that the first level of a TIFF takes once decoded."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        level = file.series[0].levels[0]
        return int(level.size) * int(level.dtype.itemsize)
