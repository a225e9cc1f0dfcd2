"""Pixels of windows, cut from an image in memory or from a slide whose tiles are decoded about once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from morphogen.slides import Slide
from morphogen.tasks.windows import WindowPlan

Reader = Callable[[int, int, int, int], np.ndarray]
"""``read(x, y, size, model_size)``: the square of ``size`` source pixels at (x, y), which may overhang the
source, as (model_size, model_size, 3) uint8."""

BLOCK = 512  # source pixels: the side of most files' tiles, or a multiple of it
_KEPT_BYTES = 256 << 20  # a row of blocks of a slide 160,000 px wide, two of one half as wide


def array_reader(image: np.ndarray) -> Reader:
    """A reader of an image in memory (H, W, 3), mirrored where a window overhangs it."""
    height, width = image.shape[:2]

    def read(x: int, y: int, side: int, model_side: int) -> np.ndarray:
        if x + side <= width and y + side <= height:
            part = image[y : y + side, x : x + side]
        else:
            rows = _mirrored(np.arange(y, y + side), height)
            columns = _mirrored(np.arange(x, x + side), width)
            part = image[rows[:, None], columns[None]]
        if side != model_side:
            from morphogen.slides.resample import resample

            part = resample(np.ascontiguousarray(part), (0, 0, side, side), model_side, model_side)
        return part

    return read


def _mirrored(positions: np.ndarray, size: int) -> np.ndarray:
    around = positions % (2 * size)
    return np.where(around < size, around, 2 * size - 1 - around)


def slide_reader(slide: Slide, plan: WindowPlan) -> Reader:
    """Windows of a slide at the plan's scale."""
    if plan.side != plan.window:
        return lambda x, y, side, model_side: slide.read_box(x, y, side, side, model_side, model_side)
    return _Blocks(slide).read


class _Blocks:
    """Level-0 pixels of a slide by way of aligned blocks that are kept: rows of windows overlap, and are lower than a
    tile of the file, which would be decoded for each of them anew. Used by one thread."""

    def __init__(self, slide: Slide) -> None:
        self.slide = slide
        self._kept: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def read(self, x: int, y: int, side: int, model_side: int) -> np.ndarray:
        out = np.empty((side, side, 3), np.uint8)
        for i in range(y // BLOCK, (y + side - 1) // BLOCK + 1):
            y0, y1 = max(y, i * BLOCK), min(y + side, (i + 1) * BLOCK)
            for j in range(x // BLOCK, (x + side - 1) // BLOCK + 1):
                x0, x1 = max(x, j * BLOCK), min(x + side, (j + 1) * BLOCK)
                block = self._block(i, j)
                out[y0 - y : y1 - y, x0 - x : x1 - x] = block[
                    y0 - i * BLOCK : y1 - i * BLOCK, x0 - j * BLOCK : x1 - j * BLOCK
                ]
        return out

    def _block(self, row: int, column: int) -> np.ndarray:
        key = row, column
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        block = self.slide.read_region(column * BLOCK, row * BLOCK, BLOCK, BLOCK)
        self._kept[key] = block
        while len(self._kept) * block.nbytes > _KEPT_BYTES:
            self._kept.popitem(last=False)
        return block


def read_windows(read: Reader, places: Sequence[tuple[int, int]], side: int, model_side: int) -> np.ndarray:
    """(n, model_side, model_side, 3) uint8: a batch of windows by their (x, y)."""
    out: Any = np.empty((len(places), model_side, model_side, 3), np.uint8)
    for window, (x, y) in zip(out, places, strict=True):
        window[...] = read(x, y, side, model_side)
    return out
