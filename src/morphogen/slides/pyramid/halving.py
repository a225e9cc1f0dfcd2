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
