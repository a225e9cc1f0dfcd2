"""Seams of an image that was made window by window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from morphogen.core.errors import InputError


@dataclass(frozen=True)
class SeamScore:
    """Mean absolute difference across window borders over that elsewhere; 1.00 means that no seam shows.

    ``vertical`` judges borders between columns, ``horizontal`` between rows; ``worst`` is the larger one.
    NaN where an axis has no border, or none that counts.
    """

    vertical: float
    horizontal: float

    @property
    def worst(self) -> float:
        scores = [score for score in (self.vertical, self.horizontal) if score == score]
        return max(scores, default=float("nan"))


def seam_score(
    image: Any, columns: Sequence[int] = (), rows: Sequence[int] = (), mask: Any = None
) -> SeamScore:
    """Seam score of an image ``(H, W)`` or ``(H, W, C)`` of any numeric type.

    Parameters
    ----------
    columns, rows:
        Border positions: position ``p`` is the border between pixel ``p − 1`` and pixel ``p``, 0 < p < size.
    mask:
        ``(H, W)`` bool, pixels that count (tissue); a difference counts when both its pixels do.

    Raises :class:`InputError` for positions outside the image or when no border is given.
    """
    pixels = np.asarray(image, dtype=np.float32)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3:
        raise InputError(f"an image must be (H, W) or (H, W, C), not {pixels.shape}", where="seam_score")
    if not len(columns) and not len(rows):
        raise InputError("no border positions are given", where="seam_score")
    keep = np.ones(pixels.shape[:2], bool) if mask is None else np.asarray(mask, bool)
    if keep.shape != pixels.shape[:2]:
        raise InputError(f"the mask is {keep.shape}, the image {pixels.shape[:2]}", where="seam_score")
    return SeamScore(
        vertical=_axis_score(pixels, keep, columns),
        horizontal=_axis_score(pixels.transpose(1, 0, 2), keep.T, rows),
    )


def _axis_score(pixels: np.ndarray, keep: np.ndarray, borders: Sequence[int]) -> float:
    if not len(borders):
        return float("nan")
    width = pixels.shape[1]
    positions = np.unique(np.asarray(borders, dtype=np.int64))
    if positions.min() < 1 or positions.max() >= width:
        raise InputError(f"border positions must lie in 1…{width - 1}", where="seam_score")
    # One total and one count per border position keeps memory at a single column of differences.
    totals, counts = np.zeros(width), np.zeros(width)
    for p in range(1, width):
        both = keep[:, p] & keep[:, p - 1]
        counts[p] = both.sum()
        if counts[p]:
            totals[p] = np.abs(pixels[both, p] - pixels[both, p - 1]).mean(axis=1).sum()
    at = np.zeros(width, bool)
    at[positions] = True
    if not counts[at].any() or not counts[~at].any():
        return float("nan")
    across = totals[at].sum() / counts[at].sum()
    elsewhere = totals[~at].sum() / counts[~at].sum()
    if elsewhere == 0:
        return 1.0 if across == 0 else float("inf")
    return float(across / elsewhere)
