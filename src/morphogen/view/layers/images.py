"""Images and slides in tiles: read where they are, shown as colour, stain, map or classes.

Tiles are those of a pyramid of halvings of the full resolution, whatever levels the file has. A tile of a level that
the file has is the file's own pixels; others are reduced from the next finer one. What is coarser than every level of
the file comes from one small picture of the whole, which is made once.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import unescape

import imagecodecs
import numpy as np

from morphogen.core.errors import InputError, SlideError
from morphogen.slides.formats.ngff import ome_zarr_attributes
from morphogen.slides.formats.opening import Opened
from morphogen.slides.formats.scale import Scale
from morphogen.slides.images import first_bytes, open_tiff, read_raw, sniff
from morphogen.slides.readers import ArrayReader
from morphogen.slides.resample import resample
from morphogen.slides.slide import Slide, open_slide
from morphogen.view.layers.display import (
    MAPS,
    STAINS,
    class_colour,
    shown_classes,
    shown_stain,
    shown_values,
    stain_density,
)

_SMALL = 2048  # px; the longer side of the picture of the whole
_MOST = 48_000_000  # pixels read for one tile; what would take more is shown from the picture of the whole
_WITHOUT_LEVELS = (
    1_500_000_000  # pixels of the coarsest level that are read once for the picture of the whole
)
_NOTES = re.compile(r'<M K="([^"]{1,80})">([^<]{0,2000})</M>')


class ImageLayer:
    """An image as the viewer sees it.

    Attributes
    ----------
    name, path, slide:
        What it is called, where it lies, and the slide (within its bounds) that gives its pixels.
    width, height, mpp:
        Size in pixels, µm/px or ``None``.
    grey, classes:
        Whether all channels are one; names of the classes where it is a map of them.
    modes:
        Ways to show it, the usual one first.
    """

    kind = "image"

    def __init__(
        self,
        name: str,
        path: Path,
        slide: Slide,
        *,
        tile: int = 512,
        quality: int = 90,
        notes: Mapping[str, str] | None = None,
        raw: np.ndarray | None = None,
    ) -> None:
        self.name, self.path, self.slide = name, path, slide.within_bounds()
        self.origin = slide.bounds[:2]
        self.width, self.height, self.mpp = self.slide.width, self.slide.height, slide.mpp
        self.tile, self.quality = tile, quality
        self.levels = max(0, math.ceil(math.log2(max(self.width, self.height) / tile))) + 1
        self.notes, self._raw = dict(notes or {}), raw
        height, width = slide.level_shapes[-1]
        if height * width > _WITHOUT_LEVELS:
            raise SlideError(
                f"is an image of {self.width} × {self.height} px without reduced levels, too large to be shown",
                where=path,
                fix="Write it as a pyramidal TIFF",
            )
        self._whole: np.ndarray | None = None
        self._lock = threading.Lock()
        classes = self.notes.get("classes", "")
        self.classes = [each.strip() for each in classes.split(",")] if classes else []
        self.grey = bool(self.classes) or self._raw is not None or _is_grey(self.whole())
        self.limits = self._usual_limits() if self.grey and not self.classes else (0.0, 255.0)
        self.modes = ["classes"] if self.classes else list(MAPS) if self.grey else ["colour", *STAINS]

    # ------------------------------------------------------------------ description

    def described(self) -> dict[str, Any]:
        """What the page must know of it, plain values."""
        return {
            "kind": self.kind,
            "name": self.name,
            "width": self.width,
            "height": self.height,
            "mpp": self.mpp,
            "tile": self.tile,
            "levels": self.levels,
            "modes": self.modes,
            "type": "png" if self.grey else "jpg",
            "limits": list(self.limits),
            "classes": [
                {"name": name, "colour": "#{:02x}{:02x}{:02x}".format(*class_colour(label))}
                for label, name in enumerate(self.classes)
            ],
            "notes": {key: value for key, value in self.notes.items() if key in ("unit", "made by")},
        }

    def level_size(self, level: int) -> tuple[int, int]:
        """(width, height) of a level; 0 is the coarsest, ``levels - 1`` the full resolution."""
        if not 0 <= level < self.levels:
            raise InputError(f"there is no level {level}", where=self.name)
        halvings = self.levels - 1 - level
        return -(-self.width >> halvings), -(-self.height >> halvings)

    # ------------------------------------------------------------------ pixels

    def whole(self) -> np.ndarray:
        """The whole image with a longer side of up to 2048 px, (H, W, 3) uint8; made once."""
        with self._lock:
            if self._whole is None:
                self._whole = self.slide.thumbnail(_SMALL)
            return self._whole

    def pixels(self, level: int, column: int, row: int) -> np.ndarray:
        """(h, w, 3) uint8 of a tile, (h, w) uint16 of a deep map: what the file holds there.

        Raises :class:`InputError` for a tile that is not in the image.
        """
        width, height = self.level_size(level)
        left, top = column * self.tile, row * self.tile
        if not (0 <= left < width and 0 <= top < height):
            raise InputError(f"there is no tile {column}, {row} in level {level}", where=self.name)
        w, h = min(self.tile, width - left), min(self.tile, height - top)
        across, down = self.width / width, self.height / height
        box = (left * across, top * down, w * across, h * down)
        if self._raw is not None:
            return _nearest(self._raw, box, w, h)
        if self.classes:
            return self._labels(box, w, h)
        reduced = min(across, down) / self.slide.level_downsamples[self.slide.level_for(min(across, down))]
        if (reduced > 2 and max(width, height) <= _SMALL) or w * h * reduced**2 > _MOST:
            whole = self.whole()
            sx, sy = whole.shape[1] / self.width, whole.shape[0] / self.height
            x, y = box[0] * sx, box[1] * sy
            return resample(whole, (x, y, x + box[2] * sx, y + box[3] * sy), w, h)
        return self.slide.read_box(*box, w, h)

    def _labels(self, box: tuple[float, ...], w: int, h: int) -> np.ndarray:
        """Classes are never averaged: the nearest pixel of the nearest finer level."""
        x, y, across, down = box
        level = self.slide.level_for(min(across / w, down / h))
        d = self.slide.level_downsamples[level]
        block, left, top = self.slide.read_block(level, x, y, x + across, y + down, 1)
        return _nearest(block, (x / d - left, y / d - top, across / d, down / d), w, h)

    def tile_bytes(self, mode: str, level: int, column: int, row: int) -> bytes:
        """A tile as the browser takes it: JPEG of colours, PNG of maps and classes."""
        if mode not in self.modes:
            raise InputError(f"'{mode[:40]}' is no way to show this image", where=self.name)
        pixels = self.pixels(level, column, row)
        if not self.grey:
            shown = pixels if mode == "colour" else shown_stain(pixels, mode)
            return bytes(
                imagecodecs.jpeg8_encode(
                    np.ascontiguousarray(shown),
                    level=self.quality,
                    colorspace="RGB",
                    outcolorspace="YCBCR",
                    subsampling="444",
                )
            )
        values = pixels if pixels.ndim == 2 else pixels[..., 0]
        shown = shown_classes(values) if mode == "classes" else shown_values(values, mode, self.limits)
        return bytes(imagecodecs.png_encode(np.ascontiguousarray(shown), level=1))

    def value(self, x: float, y: float, mode: str = "colour") -> dict[str, Any]:
        """What the file holds at a pixel of the full resolution; nothing outside of the image. With a stain's mode its
        optical density is there too."""
        column, row = math.floor(x), math.floor(y)
        if not (0 <= column < self.width and 0 <= row < self.height):
            return {}
        if self._raw is not None:
            return {"value": int(self._raw[row, column])}
        pixel = self.slide.read_box(column, row, 1, 1, 1, 1)
        red, green, blue = (int(each) for each in pixel[0, 0])
        if self.classes:
            return {"class": self.classes[red] if red < len(self.classes) else str(red)}
        if self.grey:
            return {"value": red}
        found: dict[str, Any] = {"rgb": [red, green, blue]}
        if mode in STAINS:
            found["density"] = round(float(stain_density(pixel, mode)[0, 0]), 3)
        return found

    def _usual_limits(self) -> tuple[float, float]:
        values = self._raw if self._raw is not None else self.whole()[..., 0]
        step = max(1, max(values.shape) // _SMALL)
        high = float(np.quantile(values[::step, ::step], 0.998)) if values.size else 0.0
        return 0.0, high or 255.0


def _nearest(block: np.ndarray, box: tuple[float, ...], w: int, h: int) -> np.ndarray:
    x, y, across, down = box
    columns = np.clip((x + (np.arange(w) + 0.5) * across / w).astype(int), 0, block.shape[1] - 1)
    rows = np.clip((y + (np.arange(h) + 0.5) * down / h).astype(int), 0, block.shape[0] - 1)
    return block[rows[:, None], columns[None]]


def _is_grey(pixels: np.ndarray) -> bool:
    return bool((np.ptp(pixels, axis=2) == 0).all())


def open_image(
    path: Path, name: str, *, mpp: float | None = None, tile: int = 512, quality: int = 90
) -> ImageLayer:
    """The layer of an image or slide file. Raises :class:`SlideError` as :func:`morphogen.slides.open_slide` does."""
    raw = _deep_grey(path)
    if raw is not None:  # a map of numbers, which 8 bits would flatten
        step = max(1, int(raw.max(initial=1)) // 255)
        slide = picture(path, np.repeat(np.minimum(raw // step, 255).astype(np.uint8)[..., None], 3, axis=2))
    else:
        slide = open_slide(path, mpp=mpp)
    return ImageLayer(name, path, slide, tile=tile, quality=quality, notes=_notes_of(path), raw=raw)


def picture(path: Path, pixels: np.ndarray, mpp: float | None = None) -> Slide:
    """(H, W, 3) uint8 in memory as a slide."""
    return Slide(path, Opened(ArrayReader(pixels), "picture", Scale(mpp, "picture"), ()), None, path / "none")


def _deep_grey(path: Path) -> np.ndarray | None:
    if not path.is_file() or sniff(path) != "PNG":
        return None
    return read_raw(path) if first_bytes(path, 26)[24:26] == b"\x10\x00" else None


def _notes_of(path: Path) -> dict[str, str]:
    """Pairs that this package writes into the metadata of its pyramids: unit, classes, what made it."""
    if path.is_dir():
        noted = (ome_zarr_attributes(path) or {}).get("morphogen")
        return {str(key): str(value) for key, value in noted.items()} if isinstance(noted, dict) else {}
    if not path.is_file() or sniff(path) != "TIFF":
        return {}
    with open_tiff(path) as file:
        text = file.ome_metadata or ""
    return {unescape(key): unescape(value) for key, value in _NOTES.findall(text[:1_000_000])}
