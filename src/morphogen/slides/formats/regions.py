"""Parts of large images of channels, whose samples keep their values: slides of fluorescence, stains that were made."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np

from morphogen.core.errors import SlideError
from morphogen.slides.formats.channels import channel_facts
from morphogen.slides.formats.scale import tiff_scale
from morphogen.slides.formats.tiff import main_series
from morphogen.slides.images import open_tiff, short
from morphogen.slides.resample import margin, resample


class ChannelRegions:
    """Parts of level 0 of a TIFF or OME-TIFF of channels, read as they are asked for.

    Attributes
    ----------
    size:
        (height, width) in pixels.
    channels, dtype:
        Number C, and ``uint8``, ``uint16`` or ``float32``.
    mpp:
        µm per pixel, where the file says it.

    >>> with ChannelRegions("slide_SHG.ome.tif") as slide:  # doctest: +SKIP
    ...     slide.read_box(0, 0, 512, 512, 256, 256).shape
    (256, 256, 1)
    """

    def __init__(self, path: Path | str, names: tuple[str, ...] = ()) -> None:
        import zarr

        self.path, facts = Path(path), channel_facts(path)
        self._chosen = facts.places(names, path) if names else list(range(facts.channels))
        self._all = facts.channels
        self.size, self.channels, self.dtype = facts.size, len(self._chosen), facts.dtype
        with ExitStack() as stack:
            file = stack.enter_context(open_tiff(self.path))
            series = main_series(file)
            self.mpp = tiff_scale(file, series).mpp
            array = zarr.open(series.levels[0].aszarr(), mode="r")
            self._level: Any = array if hasattr(array, "shape") else array["0"]
            self._axes, self._stack = series.levels[0].axes, stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def read_box(self, x: float, y: float, w: float, h: float, width: int, height: int) -> np.ndarray:
        """The level-0 rectangle ``(x, y, w, h)`` as (height, width, C) of its type, 0 outside the image; reduced with
        an antialiasing filter. :class:`SlideError` for what cannot be read."""
        around = margin(max(w / width, h / height))
        left, top = math.floor(x) - around, math.floor(y) - around
        block = self._block(left, top, math.ceil(x + w) + around, math.ceil(y + h) + around)
        box = x - left, y - top, x + w - left, y + h - top
        planes = [resample(np.ascontiguousarray(plane), box, width, height) for plane in block]
        made = np.stack(planes, axis=-1)
        if self.dtype == "float32":
            return made
        return np.clip(np.rint(made), 0, np.iinfo(self.dtype).max).astype(self.dtype)

    def _block(self, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        """(C, bottom − top, right − left) float32."""
        out = np.zeros((self.channels, bottom - top, right - left), np.float32)
        (y0, y1), (x0, x1) = (
            (min(max(0, a), n), min(max(0, b), n))
            for a, b, n in ((top, bottom, self.size[0]), (left, right, self.size[1]))
        )
        if y0 == y1 or x0 == x1:
            return out
        index = tuple({"Y": slice(y0, y1), "X": slice(x0, x1)}.get(axis, slice(None)) for axis in self._axes)
        try:
            found = np.asarray(self._level[index])
        except Exception as error:  # codecs raise many kinds
            raise SlideError(
                f"cannot be read at x {x0}, y {y0} ({short(error)})", where=self.path, fix="Copy it again"
            ) from error
        others = [k for k, axis in enumerate(self._axes) if axis not in "YX"]
        order = [*others, self._axes.index("Y"), self._axes.index("X")]
        found = found.transpose(order).reshape(self._all, y1 - y0, x1 - x0)[self._chosen]
        out[:, y0 - top : y1 - top, x0 - left : x1 - left] = found
        return out
