"""Resampling an exact, possibly fractional, box of an image to a wanted size."""

from __future__ import annotations

import math

import cv2
import numpy as np
from PIL import Image


def margin(scale: float) -> int:
    """Pixels around a box that the filter of a reduction by ``scale`` sees."""
    return math.ceil(2 * max(scale, 1.0)) + 1


def resample(
    block: np.ndarray, box: tuple[float, float, float, float], width: int, height: int
) -> np.ndarray:
    """Resample ``box`` = (left, top, right, bottom), in pixel edges of ``block``, to (height, width, 3) uint8.

    An exact copy when the box is on the pixel grid and keeps its size, the exact average when it is reduced by whole
    numbers there. Otherwise bicubic, widened by the reduction (antialiased); from a reduction by 2 on, a
    Hamming-windowed filter, which is faster and as good there but would misplace fractions of a pixel near 1. The
    filter also sees the pixels around the box, so neighbouring boxes join without a seam. Box edges are rounded to
    1/1024 pixel, so that the result does not depend on which larger block the box is cut from.
    """
    left, top, right, bottom = (round(edge * 1024) / 1024 for edge in box)
    if (right - left, bottom - top) == (width, height) and left.is_integer() and top.is_integer():
        return np.ascontiguousarray(block[int(top) : int(bottom), int(left) : int(right)])
    across, down = (right - left) / width, (bottom - top) / height
    if (
        all(edge.is_integer() for edge in (left, top, across, down))
        and min(across, down) >= 1
        and _within(block, box)
    ):
        exact = block[int(top) : int(bottom), int(left) : int(right)]
        return cv2.resize(exact, (width, height), interpolation=cv2.INTER_AREA)
    scale = max(across, down)
    around = margin(scale)
    x0, y0 = max(0, math.floor(left) - around), max(0, math.floor(top) - around)
    x1, y1 = min(block.shape[1], math.ceil(right) + around), min(block.shape[0], math.ceil(bottom) + around)
    inside = (max(0.0, left - x0), max(0.0, top - y0), min(x1 - x0, right - x0), min(y1 - y0, bottom - y0))
    method = Image.Resampling.HAMMING if scale >= 2 else Image.Resampling.BICUBIC
    part = Image.fromarray(np.ascontiguousarray(block[y0:y1, x0:x1]))
    return np.asarray(part.resize((width, height), method, box=inside))


def _within(block: np.ndarray, box: tuple[float, float, float, float]) -> bool:
    return box[0] >= 0 and box[1] >= 0 and box[2] <= block.shape[1] and box[3] <= block.shape[0]
