"""Agreement of a virtual stain with the real one in brown (DAB) optical density.

Structural similarity hardly follows staining; what a pathologist reads is how much DAB there is and where.
Maps of DAB optical density ``(H, W)`` (base 10) come from :func:`morphogen.slides.colour.dab_density`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from morphogen.core.errors import InputError

POSITIVE = 0.15  # DAB optical density above which a pixel counts as stained
BINS = (0.15, 0.35, 0.60)  # lower ends of 1+, 2+, 3+


@dataclass(frozen=True)
class DabSummary:
    """One image: mean DAB optical density, fraction of positive pixels, H-score in 0–300.

    ``fractions`` are the shares of negative, 1+, 2+ and 3+ pixels; they add up to 1. H-score is
    100 × (1·f₁ + 2·f₂ + 3·f₃), here of pixels instead of cells.
    """

    mean: float
    positive: float
    h_score: float
    fractions: tuple[float, float, float, float]


def dab_summary(
    density: Any, mask: Any = None, *, positive: float = POSITIVE, bins: Sequence[float] = BINS
) -> DabSummary:
    """Summary of one DAB map ``(H, W)``; ``mask`` (bool) keeps tissue pixels, ``bins`` are the ends of 1+,
    2+, 3+.
    """
    values = _masked(density, mask)
    if len(bins) != 3 or list(bins) != sorted(bins):
        raise InputError(f"three ascending bin ends are needed, not {tuple(bins)}", where="bins")
    edges = np.array([-np.inf, *bins, np.inf])
    counts = np.histogram(values, edges)[0] / values.size
    return DabSummary(
        mean=float(values.mean(dtype=np.float64)),
        positive=float((values > positive).mean()),
        h_score=float(100 * (counts * np.arange(4)).sum()),
        fractions=tuple(float(c) for c in counts),  # type: ignore[arg-type]
    )


def _masked(density: Any, mask: Any) -> np.ndarray:
    values = np.asarray(density)
    if values.ndim != 2:
        raise InputError(f"a DAB map must be (H, W), not {values.shape}")
    if mask is not None:
        mask = np.asarray(mask, bool)
        if mask.shape != values.shape:
            raise InputError(f"the mask is {mask.shape}, the DAB map {values.shape}")
        values = values[mask]
    if values.size == 0:
        raise InputError("the mask leaves no pixel", where="DAB map")
    return values


def tile_means(values: Any, tile: int, *, least: float = 1.0) -> np.ndarray:
    """Means ``(rows, columns)`` over ``tile`` × ``tile`` px of a map ``(H, W)``, float64.

    Tiles at the right and lower edge that are cut short count when they keep ``least`` or more of their area.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or min(array.shape) < 1 or tile < 1:
        raise InputError(f"a map (H, W) and a tile ≥ 1 px are needed, not {array.shape} and {tile}")
    rows, columns = (_starts(size, tile, least) for size in array.shape)
    if not len(rows) or not len(columns):
        raise InputError(f"the map {array.shape} is smaller than one tile of {tile} px")
    padded = np.pad(array, ((1, 0), (1, 0))).cumsum(0).cumsum(1)  # summed-area table
    top, left = rows[:, None], columns[None, :]
    bottom, right = np.minimum(top + tile, array.shape[0]), np.minimum(left + tile, array.shape[1])
    total = padded[bottom, right] - padded[top, right] - padded[bottom, left] + padded[top, left]
    return total / ((bottom - top) * (right - left))


def _starts(size: int, tile: int, least: float) -> np.ndarray:
    starts = np.arange(0, size, tile)
    return starts[np.minimum(starts + tile, size) - starts >= least * tile]


def correlation(a: Any, b: Any) -> float:
    """Pearson correlation of two arrays of one shape; NaN when either is constant (undefined) or has < 2
    values.
    """
    a, b = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    if a.shape != b.shape:
        raise InputError(f"arrays differ in size: {a.size} and {b.size}", where="correlation")
    if a.size < 2:
        return float("nan")
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / scale) if scale > 1e-12 * a.size else float("nan")


def tile_correlation(real: Any, generated: Any, tile: int = 64) -> float:
    """Pearson correlation of tile means of two DAB maps ``(H, W)``; NaN when a map is flat over its tiles.

    >>> real = np.kron(np.eye(4), np.ones((8, 8)))
    >>> round(tile_correlation(real, 2 * real + 1, tile=8), 3)
    1.0
    """
    if np.shape(generated) != np.shape(real):
        raise InputError(f"DAB maps differ in shape: {np.shape(generated)} and {np.shape(real)}")
    return correlation(tile_means(generated, tile), tile_means(real, tile))


@dataclass(frozen=True)
class DabAgreement:
    """Over a set of images: Pearson correlation and mean absolute error of each summary.

    Pearson is NaN for fewer than two images or where a summary does not vary.
    """

    n: int
    mean_pearson: float
    mean_mae: float
    positive_pearson: float
    positive_mae: float
    h_score_pearson: float
    h_score_mae: float


def dab_agreement(real: Sequence[DabSummary], generated: Sequence[DabSummary]) -> DabAgreement:
    """How well the summaries of generated images follow those of the real ones, pair by pair."""
    if len(generated) != len(real) or not generated:
        raise InputError(f"{len(generated)} generated and {len(real)} real summaries do not pair up")
    figures: dict[str, float] = {}
    for name in ("mean", "positive", "h_score"):
        a = np.array([getattr(s, name) for s in generated])
        b = np.array([getattr(s, name) for s in real])
        figures[f"{name}_pearson"] = correlation(a, b)
        figures[f"{name}_mae"] = float(np.abs(a - b).mean())
    return DabAgreement(n=len(real), **figures)


def sharpness_ratio(real: Any, generated: Any, mask: Any = None) -> float:
    """Mean gradient magnitude of ``generated`` over that of ``real``, images ``(H, W)`` or ``(H, W, C)``, where all
    pixels of a difference lie within ``mask`` (H, W).

    Below 1 the prediction is blurred, above 1 noisier than the real image. Inf when ``real`` is constant, NaN where
    the mask leaves nothing.
    """
    return _ratio(_gradient(generated, mask), _gradient(real, mask))


def detail_ratio(real: Any, generated: Any, mask: Any = None) -> float:
    """Energy (mean square) of the 5-point Laplacian of ``generated`` over that of ``real``: the finest
    detail; ``mask`` as in :func:`sharpness_ratio`.
    """
    return _ratio(_laplacian_energy(generated, mask), _laplacian_energy(real, mask))


def _ratio(a: float, b: float) -> float:
    if np.isnan(b):
        return b
    return float(a / b) if b > 0 else float("inf")


def _image(image: Any) -> np.ndarray:
    x = np.asarray(image, dtype=np.float32)
    if x.ndim not in (2, 3) or min(x.shape[:2]) < 3:
        raise InputError(f"an image must be (H, W) or (H, W, C) of 3 px or more, not {x.shape}")
    return x


def _mean_within(values: np.ndarray, *within: np.ndarray) -> float:
    """The mean of values (h, w) or (h, w, C) where all of ``within`` (h, w) hold; NaN where they do nowhere."""
    if within:
        values = values[np.logical_and.reduce(within)]
    return float(values.mean(dtype=np.float64)) if values.size else float("nan")


def _gradient(image: Any, mask: Any = None) -> float:
    x, m = _image(image), None if mask is None else np.asarray(mask, bool)
    down, right = x[1:, :-1] - x[:-1, :-1], x[:-1, 1:] - x[:-1, :-1]
    within = () if m is None else (m[:-1, :-1], m[1:, :-1], m[:-1, 1:])
    return _mean_within(np.sqrt(down**2 + right**2), *within)


def _laplacian_energy(image: Any, mask: Any = None) -> float:
    x, m = _image(image), None if mask is None else np.asarray(mask, bool)
    around = (np.s_[:-2, 1:-1], np.s_[2:, 1:-1], np.s_[1:-1, :-2], np.s_[1:-1, 2:])
    middle = np.s_[1:-1, 1:-1]
    laplacian = sum(x[each] for each in around) - 4 * x[middle]
    within = () if m is None else (m[middle], *(m[each] for each in around))
    return _mean_within(laplacian**2, *within)
