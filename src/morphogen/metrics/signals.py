"""Agreement of measured signals: maps of intensity or of the density of a dye, by tiles and by thresholds.

Arguments are always (real, generated), maps (H, W). A figure that is not defined is NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import erf

from morphogen.core.errors import InputError
from morphogen.metrics.segmentation import confusion, dice, iou
from morphogen.metrics.stain import correlation, tile_means

Floats = NDArray[np.float64]
_SHARES = np.linspace(0.05, 1.0, 20)


class Overlap(NamedTuple):
    """Of pixels above a threshold: Dice, IoU, and the 95th percentile of the Hausdorff distance in pixels."""

    dice: float
    iou: float
    hausdorff95: float


def overlap(
    real: ArrayLike, generated: ArrayLike, threshold: float, mask: ArrayLike | None = None
) -> Overlap:
    """How well the pixels above ``threshold`` coincide, within ``mask``; NaN where neither map has any.

    The distance is infinite where one map alone has some. Source: Huttenlocher et al., IEEE TPAMI 15 (1993); the
    percentile as in segmentation challenges.

    >>> overlap([[0, 1]], [[0, 1]], 0.5)
    Overlap(dice=1.0, iou=1.0, hausdorff95=0.0)
    """
    a, b = np.asarray(real) > threshold, np.asarray(generated) > threshold
    if a.shape != b.shape:
        raise InputError(f"maps of shapes {a.shape} and {b.shape} cannot be compared")
    keep = np.ones(a.shape, bool) if mask is None else np.asarray(mask, bool)
    a, b = a & keep, b & keep
    table = confusion(a[keep], b[keep], 2)
    return Overlap(float(dice(table)[1]), float(iou(table)[1]), _hausdorff95(a, b))


def _hausdorff95(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    import cv2

    if not a.any() or not b.any():
        return float("inf") if a.any() or b.any() else float("nan")
    away = [cv2.distanceTransform((~each).astype(np.uint8), cv2.DIST_L2, 5) for each in (a, b)]
    return float(max(np.percentile(away[1][a], 95), np.percentile(away[0][b], 95)))


class CellAgreement(NamedTuple):
    """Of the mean signal of every cell: correlation, mean absolute difference, and Dice of those above a threshold."""

    correlation: float
    mae: float
    dice: float


def cell_agreement(
    real: ArrayLike,
    generated: ArrayLike,
    labels: ArrayLike,
    threshold: float | None = None,
    mask: ArrayLike | None = None,
) -> CellAgreement:
    """Agreement of two maps (H, W) by the cells of ``labels`` (H, W), integers, 0 for none, that lie within ``mask``.

    >>> cell_agreement([[1, 3, 0, 5]], [[2, 2, 9, 4]], [[1, 1, 0, 7]], 3)
    CellAgreement(correlation=1.0, mae=0.5, dice=1.0)
    """
    number = np.asarray(labels)
    a, b = np.asarray(real, np.float64), np.asarray(generated, np.float64)
    if not a.shape == b.shape == number.shape:
        raise InputError(f"maps of {a.shape} and {b.shape} cannot be compared by labels of {number.shape}")
    names, where = np.unique(number, return_inverse=True)
    where, counts = where.reshape(-1), np.bincount(where.reshape(-1))
    keep = names > 0
    if mask is not None:
        keep &= np.bincount(where, ~np.asarray(mask, bool).reshape(-1)) == 0
    x, y = (np.bincount(where, each.reshape(-1))[keep] / counts[keep] for each in (a, b))
    if not x.size:
        return CellAgreement(float("nan"), float("nan"), float("nan"))
    share = float("nan")
    if threshold is not None:
        share = float(dice(confusion(x > threshold, y > threshold, 2))[1])
    return CellAgreement(correlation(x, y), float(np.abs(x - y).mean()), share)


def seen_tiles(mask: ArrayLike | None, shape: tuple[int, int], tile: int) -> NDArray[np.bool_]:
    """(rows, columns): tiles of which every pixel is in the mask."""
    whole = np.ones(shape) if mask is None else np.asarray(mask, np.float64)
    return np.asarray(tile_means(whole, tile) > 1 - 1e-9)


class RiskCoverage(NamedTuple):
    """Mean error of what is kept when the most uncertain is left out. shares: kept, 0…1. risks: mean errors.
    area: mean risk over all shares, as part of the error of all; 1 for an uncertainty that says nothing."""

    shares: Floats
    risks: Floats
    area: float


def risk_coverage(error: ArrayLike, uncertainty: ArrayLike) -> RiskCoverage:
    """Error against the share that is kept, the most certain first (Geifman and El-Yaniv, NeurIPS 2017).

    Among equal uncertainties the order is that of the arrays.

    >>> risk_coverage([0.0, 1.0], [0.1, 0.9]).area < 1
    True
    """
    e, u = np.asarray(error, np.float64).ravel(), np.asarray(uncertainty, np.float64).ravel()
    if e.size != u.size or not e.size:
        raise InputError(f"{e.size} errors and {u.size} uncertainties do not belong together")
    sums = np.cumsum(e[np.argsort(u, kind="stable")])
    kept = np.maximum(1, np.rint(_SHARES * e.size)).astype(int)
    risks = sums[kept - 1] / kept
    overall = float(e.mean())
    return RiskCoverage(_SHARES, risks, float(risks.mean() / overall) if overall > 0 else float("nan"))


def gaussian_crps(real: ArrayLike, mean: ArrayLike, sd: ArrayLike) -> Floats:
    """CRPS of a normal forecast (Gneiting and Raftery 2007, eq. 21 in closed form); lower is better.

    >>> round(float(gaussian_crps(0.0, 0.0, 1.0)), 4)
    0.2337
    """
    y, m, s = (np.asarray(each, np.float64) for each in (real, mean, sd))
    z = (y - m) / s
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    return np.asarray(s * (z * erf(z / np.sqrt(2)) + 2 * density - 1 / np.sqrt(np.pi)))
