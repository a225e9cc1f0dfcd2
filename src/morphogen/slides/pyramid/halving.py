"""How a level of a pyramid is made of the one below it."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike


def halved(quad: np.ndarray, labels: bool = False, dtype: DTypeLike = np.uint8) -> np.ndarray:
    """(2h, 2w, …) of a type with room for the sum of four → (h, w, …) of ``dtype``: the rounded mean of every four
    pixels; of ``labels`` the commonest of the four, the first one where all differ or two pairs meet."""
    a, b, c, d = quad[0::2, 0::2], quad[1::2, 0::2], quad[0::2, 1::2], quad[1::2, 1::2]
    if not labels:
        return ((a + b + c + d + 2) >> 2).astype(dtype)
    rest = np.where((b == c) | (b == d), b, np.where(c == d, c, a))
    return np.where((a == b) | (a == c) | (a == d), a, rest).astype(dtype)


def level_sizes(width: int, height: int, tile: int) -> list[tuple[int, int]]:
    """(width, height) of all levels, each half the one before, rounded up, until one fits into a tile."""
    sizes = [(width, height)]
    while max(sizes[-1]) > tile:
        w, h = sizes[-1]
        sizes.append(((w + 1) // 2, (h + 1) // 2))
    return sizes
