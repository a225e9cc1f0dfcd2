"""Uncertainty of a score: the bootstrap over what is independent, never over spots or pixels.

Spots of one slide share its stain, its tissue and its patient; resampling them gives intervals several times too
narrow. The unit here is the patient, else the slide, else the image. One unit alone has no such interval: then
:func:`bootstrap` says so, and :func:`spatial_blocks` offers the weaker statement of what another part of the SAME
section would have given, which must be labelled as that.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from morphogen.core.errors import InputError

Floats = NDArray[np.float64]
FEWEST = 6  # units; all of 5 lie on one side of the truth by chance in 2 · ½⁵ = 6 % of cases


class Interval(NamedTuple):
    """A mean over units with its bootstrap interval; the bounds are NaN when there is one unit only."""

    value: float
    low: float
    high: float
    units: int
    unit: str  # "patient", "slide", "image", "block of one section"

    @property
    def caution(self) -> str:
        """Why this interval shows no difference even where it leaves out 0: a resample of few units holds nothing
        beyond the lowest and the highest of them. Empty where there are enough.

        >>> Interval(0.004, 0.003, 0.006, 3, "patient").caution
        '3 patients agree by chance in 25 % of cases: at least 6 are needed to show a difference'
        >>> Interval(0.004, 0.003, 0.006, 20, "patient").caution
        ''
        """
        if not 2 <= self.units < FEWEST:
            return ""
        chance = f"{2 * 0.5**self.units:.0%}".replace("%", " %")
        name, of, whole = self.unit.partition(" ")
        return (
            f"{self.units} {name}s{of}{whole} agree by chance in {chance} of cases: "
            f"at least {FEWEST} are needed to show a difference"
        )


def unit_means(values: ArrayLike, units: Sequence[Hashable]) -> tuple[Floats, list[Hashable]]:
    """Mean of ``values`` (N,) within each unit, in order of first appearance. NaN values are an error here:
    count and report undefined ones before."""
    v = np.asarray(values, dtype=np.float64)
    if len(v) != len(units):
        raise InputError(f"{len(v)} values but {len(units)} units")
    if not np.isfinite(v).all():
        raise InputError(
            f"{int((~np.isfinite(v)).sum())} of {len(v)} values are undefined; report them apart"
        )
    groups: dict[Hashable, list[float]] = {}
    for value, unit in zip(v, units, strict=True):
        groups.setdefault(unit, []).append(float(value))
    return np.array([np.mean(g) for g in groups.values()]), list(groups)


def bootstrap(
    values: ArrayLike,
    units: Sequence[Hashable],
    *,
    unit: str,
    generator: np.random.Generator,
    level: float = 0.95,
    resamples: int = 10_000,
) -> Interval:
    """Mean over units of the means within units, with its percentile bootstrap interval (Efron 1979).

    values: (N,), one per slide or image; units: (N,) names of what is independent, e.g. patients. To compare two
    methods hand in the differences of their scores on the same items: the pairing is what makes it sharp.
    """
    means, names = unit_means(values, units)
    value = float(means.mean()) if len(means) else float("nan")
    if len(names) < 2:
        return Interval(value, float("nan"), float("nan"), len(names), unit)
    picks = generator.integers(0, len(means), size=(resamples, len(means)))
    low, high = np.quantile(means[picks].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), len(names), unit)


def moments(x: ArrayLike, y: ArrayLike) -> Floats:
    """What a correlation over several units needs of one: n, Σx, Σy, Σx², Σy², Σxy, shape (6,)."""
    a, b = np.asarray(x, np.float64).ravel(), np.asarray(y, np.float64).ravel()
    if a.shape != b.shape:
        raise InputError(f"arrays differ in size: {a.size} and {b.size}", where="moments")
    return np.array([a.size, a.sum(), b.sum(), a @ a, b @ b, a @ b])


def pooled_correlation(
    sums: ArrayLike,
    units: Sequence[Hashable],
    *,
    unit: str,
    generator: np.random.Generator,
    against: ArrayLike | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
) -> Interval:
    """Pearson correlation over the values of all units, with its percentile bootstrap interval over units.

    sums: (N, 6) :func:`moments`, one row per slide or image; units: (N,) names of what is independent.
    ``against``: the moments of another method on the same items; the interval is then that of the difference, both
    correlations being taken of the same resample. Resamples where a correlation is undefined are left out.
    """
    names = {name: k for k, name in enumerate(dict.fromkeys(units))}
    index = np.array([names[name] for name in units])

    def by_unit(values: ArrayLike) -> Floats:
        out = np.zeros((len(names), 6))
        np.add.at(out, index, np.asarray(values, np.float64))
        return out

    tables = [by_unit(sums)] + ([] if against is None else [by_unit(against)])

    def statistic(weights: Floats) -> Floats:
        found = [_pearson(weights @ table) for table in tables]
        return found[0] if len(found) == 1 else found[0] - found[1]

    value = float(statistic(np.ones((1, len(names))))[0])
    if len(names) < 2:
        return Interval(value, float("nan"), float("nan"), len(names), unit)
    picks = generator.integers(0, len(names), size=(resamples, len(names)))
    drawn = statistic(np.stack([np.bincount(row, minlength=len(names)) for row in picks]).astype(np.float64))
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Interval(value, float("nan"), float("nan"), len(names), unit)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), len(names), unit)


def moments_correlation(sums: ArrayLike) -> float:
    """Pearson correlation from the sum (6,) of the :func:`moments` of several units; NaN where a side is constant.

    >>> round(moments_correlation(moments([0, 1], [1, 2]) + moments([2], [3])), 9)
    1.0
    """
    return float(_pearson(np.asarray(sums, np.float64)[None])[0])


def _pearson(sums: Floats) -> Floats:
    """(R, 6) moments → (R,) correlations; NaN where a side is constant."""
    n, x, y, xx, yy, xy = sums.T
    spread = (xx - x * x / n) * (yy - y * y / n)
    defined = spread > 1e-18 * n * n
    out = np.full(len(sums), np.nan)
    out[defined] = (xy - x * y / n)[defined] / np.sqrt(spread[defined])
    return out


def spatial_blocks(coords: ArrayLike, side: float) -> NDArray[np.int64]:
    """Number of the square block of ``side`` (units of coords) that each point (N, 2) lies in, 0 … B−1."""
    xy = np.asarray(coords, dtype=np.float64)
    cells = np.floor((xy - xy.min(axis=0)) / side).astype(np.int64)
    return np.unique(cells, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def block_weights(blocks: ArrayLike, generator: np.random.Generator, resamples: int = 1000) -> Floats:
    """How often each item counts in each resample of whole blocks, (resamples, N)."""
    b = np.asarray(blocks)
    names, index = np.unique(b, return_inverse=True)
    picks = generator.integers(0, len(names), size=(resamples, len(names)))
    counts = np.stack([np.bincount(row, minlength=len(names)) for row in picks])
    return counts[:, index].astype(np.float64)


def block_bootstrap(
    value: float,
    statistic: Callable[[Floats], Floats],
    blocks: ArrayLike,
    *,
    generator: np.random.Generator,
    level: float = 0.95,
    resamples: int = 1000,
) -> Interval:
    """Interval of a statistic of ONE section over its tissue blocks: not an interval over patients.

    statistic: (resamples, N) weights of the items → (resamples,) values; ``value`` is the one of equal weights.
    """
    count = len(np.unique(np.asarray(blocks)))
    if count < 2:
        return Interval(value, float("nan"), float("nan"), count, "block of one section")
    found = statistic(block_weights(blocks, generator, resamples))
    found = found[np.isfinite(found)]
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), count, "block of one section")


def weighted_macro_pearson(truth: ArrayLike, prediction: ArrayLike) -> Callable[[Floats], Floats]:
    """The macro PCC of (N, G) matrices as a function of spot weights (R, N) → (R,), for
    :func:`block_bootstrap`.

    Genes constant in the whole truth are left out; a gene constant within a resample counts as 0.
    """
    y, p = np.asarray(truth, dtype=np.float64), np.asarray(prediction, dtype=np.float64)
    keep = np.ptp(y, axis=0) > 1e-9
    y, p = y[:, keep] - y[:, keep].mean(axis=0), p[:, keep] - p[:, keep].mean(axis=0)

    def statistic(weights: Floats) -> Floats:
        w = weights / weights.sum(axis=1, keepdims=True)
        my, mp = w @ y, w @ p
        vy, vp, cov = w @ y**2 - my**2, w @ p**2 - mp**2, w @ (y * p) - my * mp
        defined = (vy > 1e-12) & (vp > 1e-12)
        r = np.where(defined, cov / np.sqrt(np.where(defined, vy * vp, 1.0)), 0.0)
        return r.mean(axis=1)

    return statistic
