"""Scores of predictive distributions given by samples: proper scores, interval coverage, calibration.

Conventions: ``truth`` (N, G), ``samples`` (N, K, G), one transform, rows are spots.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from morphogen.core.errors import InputError

Floats = NDArray[np.float64]
_BLOCK = 1 << 22  # values worked on at a time: bounds memory on slides of any size


def draws(truth: ArrayLike, samples: ArrayLike) -> tuple[Floats, NDArray]:
    """Checked ``(truth, samples)``; samples keep their dtype (float16 stores stay small)."""
    y, s = np.asarray(truth, dtype=np.float64), np.asarray(samples)
    if y.ndim != 2 or s.ndim != 3 or s.shape[0] != y.shape[0] or s.shape[2] != y.shape[1]:
        raise InputError(f"truth {y.shape} must be (spots, genes) and samples {s.shape} (spots, K, genes)")
    if s.shape[1] < 1:
        raise InputError("there are no samples to score")
    return y, s


def _blocks(y: Floats, s: NDArray) -> list[slice]:
    rows = max(1, _BLOCK // max(1, s.shape[1] * s.shape[2]))
    return [slice(i, i + rows) for i in range(0, len(y), rows)]


def crps(truth: ArrayLike, samples: ArrayLike) -> Floats:
    """Continuous ranked probability score per spot and gene, (N, G), in units of the transform; lower is better.

    Unbiased (fair) estimator from K samples, mean|x_k − y| − Σ_{i<j}|x_i − x_j| / (K(K−1))
    (Gneiting & Raftery 2007, eq. 21; Ferro 2014). With K = 1 it is |x − y|, the score of a point forecast.
    """
    y, s = draws(truth, samples)
    k = s.shape[1]
    out = np.empty(y.shape)
    # Σ_{i<j}(x_(j) − x_(i)) = Σ_j (2j − K − 1)·x_(j) over order statistics: K log K instead of K².
    ranks = (2.0 * np.arange(1, k + 1) - k - 1)[None, :, None]
    for block in _blocks(y, s):
        x = np.sort(s[block].astype(np.float64), axis=1)
        out[block] = np.abs(x - y[block, None]).mean(axis=1)
        if k > 1:
            out[block] -= (ranks * x).sum(axis=1) / (k * (k - 1))
    return out


def energy_score(truth: ArrayLike, samples: ArrayLike, scale: ArrayLike | None = None) -> Floats:
    """Energy score per spot over all genes jointly, (N,); lower is better.

    mean‖x_k − y‖ − Σ_{i<j}‖x_i − x_j‖ / (K(K−1)) (Gneiting & Raftery 2007, eq. 22, unbiased form); with K = 1 the
    distance alone. It sees the dependence between genes, which CRPS does not. scale: (G,) divides each gene first
    (for example by its training standard deviation).
    """
    y, s = draws(truth, samples)
    k = s.shape[1]
    inverse = np.ones(y.shape[1]) if scale is None else 1.0 / np.asarray(scale, dtype=np.float64)
    out = np.empty(len(y))
    for block in _blocks(y, s):
        x, t = s[block].astype(np.float64) * inverse, y[block] * inverse
        out[block] = np.linalg.norm(x - t[:, None], axis=2).mean(axis=1)
        for i in range(k - 1):
            between = np.linalg.norm(x[:, i + 1 :] - x[:, i : i + 1], axis=2).sum(axis=1)
            out[block] -= between / (k * (k - 1))
    return out


class Coverage(NamedTuple):
    """Fraction of truths inside the central interval, and how wide that interval is.

    On counts many truths sit exactly on a bound. ``observed`` takes the closed interval, which then covers more than
    its level even for perfect samples; ``split`` divides the ties (the mass of the PIT between the two tails), which
    is the level for calibrated samples of any kind. Without ties the two agree.
    """

    level: float
    observed: float
    split: float
    width: float  # mean width of the interval, units of the transform
    per_gene: Floats


def coverage(truth: ArrayLike, samples: ArrayLike, level: float = 0.9) -> Coverage | None:
    """Coverage of the central ``level`` interval, from K samples.

    The bounds are order statistics at p·(K+1) (Weibull positions, interpolated): for exchangeable truth and
    samples these cover ``level`` exactly on average, while the usual linear quantiles of 20 samples would cover
    81 % where 90 % is asked. ``None`` when K is too small for the level (19 samples for 90 %, 3 for 50 %).
    """
    y, s = draws(truth, samples)
    if not 0 < level < 1:
        raise InputError(f"the level of an interval must be between 0 and 1, got {level}")
    k = s.shape[1]
    position = (1 - level) / 2 * (k + 1)
    if position < 1 - 1e-9:
        return None
    inside = np.zeros(y.shape[1])
    width = between = 0.0
    for block in _blocks(y, s):
        x = np.sort(s[block].astype(np.float64), axis=1)
        low, high = _order_statistic(x, position), _order_statistic(x, k + 1 - position)
        # Counts sit on a lattice: compare within rounding of half-precision stores.
        slack = 1e-3 * np.maximum(1.0, np.abs(y[block])) if s.dtype == np.float16 else _same(y[block])
        inside += ((y[block] >= low - slack) & (y[block] <= high + slack)).sum(axis=0)
        width += float((high - low).sum())
        first, last = _rank_interval(y[block], x)
        overlap = np.minimum(last, (1 + level) / 2) - np.maximum(first, (1 - level) / 2)
        between += float((np.clip(overlap, 0, None) / (last - first)).sum())
    return Coverage(level, float(inside.sum() / y.size), between / y.size, width / y.size, inside / len(y))


def _rank_interval(y: Floats, x: NDArray) -> tuple[Floats, Floats]:
    """The part of [0, 1] that the PIT of each truth (N, G) may lie in, given samples (N, K, G): ties and the cell of
    width 1/(K+1) are left open."""
    t = y[:, None]
    close = np.abs(x - t) <= (1e-3 * np.maximum(1.0, np.abs(t)) if x.dtype == np.float16 else _same(t))
    below = ((x < t) & ~close).sum(axis=1) / (x.shape[1] + 1)
    return below, below + (close.sum(axis=1) + 1) / (x.shape[1] + 1)


def _same(t: Floats) -> Floats:
    """Values this close are one count, stored in single precision."""
    return 1e-6 * np.maximum(1.0, np.abs(t))


def _order_statistic(ordered: Floats, position: float) -> Floats:
    """Value at 1-based fractional ``position`` of samples sorted along axis 1."""
    k = ordered.shape[1]
    position = min(max(position, 1.0), float(k))
    lower = int(np.floor(position)) - 1
    upper = min(lower + 1, k - 1)
    part = position - 1 - lower
    return ordered[:, lower] * (1 - part) + ordered[:, upper] * part


def sample_quantile(samples: ArrayLike, p: float) -> Floats:
    """Quantile ``p`` over the K samples, (N, K, G) → (N, G), at the Weibull position of :func:`coverage`.

    Positions outside the samples give the smallest or largest one.
    """
    s = np.sort(np.asarray(samples, dtype=np.float64), axis=1)
    return _order_statistic(s, p * (s.shape[1] + 1))


def variance_ratio(truth: ArrayLike, samples: ArrayLike) -> Floats:
    """Variance over spots of single samples ÷ variance over spots of the truth, per gene (G,), mean over K.

    1 for samples that look like measured sections. NaN where the truth is constant.
    """
    y, s = draws(truth, samples)
    true = y.var(axis=0)
    true[true <= 1e-14] = np.nan
    single = np.mean([s[:, i].astype(np.float64).var(axis=0) for i in range(s.shape[1])], axis=0)
    return single / true


class Pit(NamedTuple):
    """Histogram of the probability integral transform; flat for calibrated samples."""

    edges: Floats
    density: Floats  # 1 everywhere is calibrated; U-shape: too narrow, hump: too wide
    deviation: float  # mean |density − 1|


def pit_histogram(truth: ArrayLike, samples: ArrayLike, bins: int = 10) -> Pit:
    """PIT histogram over all spots and genes (Gneiting, Balabdaoui & Raftery 2007).

    The rank of the truth among the K samples is spread uniformly over its ties and over the cells of width
    1/(K+1), in expectation rather than at random (Czado, Gneiting & Held 2009: the non-randomised form), so counts
    with many equal values give a flat histogram when they are calibrated, and no draw is involved.
    """
    y, s = draws(truth, samples)
    edges = np.linspace(0.0, 1.0, bins + 1)
    mass = np.zeros(bins)
    for block in _blocks(y, s):
        below, above = (v.ravel() for v in _rank_interval(y[block], s[block]))
        # Share of each [below, above] interval that falls into every bin.
        overlap = np.minimum(above[:, None], edges[1:]) - np.maximum(below[:, None], edges[:-1])
        mass += (np.clip(overlap, 0, None) / (above - below)[:, None]).sum(axis=0)
    density = mass / mass.sum() * bins
    return Pit(edges, density, float(np.abs(density - 1).mean()))
