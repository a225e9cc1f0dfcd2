"""Who is next to whom: the nearest spots of each spot, itself first, as indices."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree


def nearest_spots(coords: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k nearest spots of each spot INCLUDING itself, in order of distance, (N, k) int32.

    A section with fewer than k spots gives what there is, the rest −1 (= no such spot). Ties in distance are
    broken by row number, so a regular grid gives the same neighbours on every machine; the spot itself is always
    first.
    """
    xy = np.asarray(coords, dtype=np.float64).reshape(-1, 2)
    n = len(xy)
    out = np.full((n, k), -1, dtype=np.int32)
    if n == 0:
        return out
    take = min(k, n)
    wide = min(n, take + 8)  # a few more, so that a ring of ties at the border is seen whole
    distance, index = cKDTree(xy).query(xy, wide)
    distance, index = distance.reshape(n, wide), index.reshape(n, wide)
    itself = index != np.arange(n)[:, None]  # False sorts first
    order = np.lexsort((index, np.round(distance, 6), itself), axis=1)[:, :take]
    out[:, :take] = np.take_along_axis(index, order, axis=1)
    missing = out[:, 0] != np.arange(n)  # more than `wide` spots at one place
    out[missing, 0] = np.flatnonzero(missing)
    return out


def neighbourhood_mean(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Mean of ``values`` (N, D) over each spot's neighbours (N, k; −1 = none), (N, D)."""
    present = index >= 0
    total = np.zeros((len(index), values.shape[1]), dtype=np.float64)
    for column in range(index.shape[1]):  # k passes over (N, D) instead of one (N, k, D) gather
        rows = np.where(present[:, column], index[:, column], 0)
        total += np.where(present[:, column, None], values[rows], 0.0)
    return (total / np.maximum(present.sum(axis=1), 1)[:, None]).astype(values.dtype)
