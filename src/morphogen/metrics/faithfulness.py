"""Does a drawn image show what its condition says? Embeddings of what was drawn against those it was drawn from.

All functions take features ``(N, D)`` of one encoder, row i of both belonging together, in the order (real,
generated); they work in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from morphogen.core.errors import InputError
from morphogen.metrics.images import as_features


@dataclass(frozen=True)
class Faithfulness:
    """matched, shuffled: mean cosine with the own and with another item's vector. top1, top5: share of drawn items
    whose own vector is the nearest, or among the five nearest, of a group; ties count against. group: size of the
    groups, so that chance is 1/group. values: (N,) matched − shuffled per item, NaN for those in no group."""

    matched: float
    shuffled: float
    top1: float
    top5: float
    group: int
    values: np.ndarray

    @property
    def gain(self) -> float:
        """matched − shuffled."""
        return self.matched - self.shuffled


def standardise(values: Any, by: Any, name: str = "features") -> np.ndarray:
    """Features (N, D) with the columns' mean and SD of ``by`` (M, D); columns that are constant there are left out."""
    values, by = as_features(values, name), as_features(by, "real")
    if values.shape[1] != by.shape[1]:
        raise InputError(f"features have {values.shape[1]} columns and {by.shape[1]}", where=name)
    sd = by.std(axis=0)
    varied = sd > 1e-8 * np.maximum(1, np.abs(by.mean(axis=0)))
    return (values[:, varied] - by.mean(axis=0)[varied]) / sd[varied]


def faithfulness(
    real: Any, generated: Any, generator: np.random.Generator, *, group: int = 100, by: Any = None
) -> Faithfulness:
    """Cosine and retrieval of paired features, both standardised by the columns of ``by`` (``real`` when not given).

    Without standardising, features of a common offset are nearly parallel and every cosine is high. Retrieval ranks
    within random groups of ``group`` items (fewer where there are fewer); the rest that fills no group is left out.
    """
    base = real if by is None else by
    a, b = (
        _unit(standardise(values, base, name)) for values, name in ((real, "real"), (generated, "generated"))
    )
    if len(a) != len(b):
        raise InputError(f"{len(a)} real and {len(b)} generated items are no pairs", where="faithfulness")
    if len(a) < 2:
        raise InputError("2 or more pairs are needed", where="faithfulness")
    group = min(group, len(a))
    order = generator.permutation(len(a))[: len(a) // group * group].reshape(-1, group)
    first, fifth = [], []
    matched, shuffled = np.full(len(a), np.nan), np.full(len(a), np.nan)
    for rows in order:
        cosine = b[rows] @ a[rows].T
        own = np.diag(cosine)
        better = (cosine >= own[:, None]).sum(axis=1) - 1
        first.append(better == 0)
        fifth.append(better < 5)
        matched[rows] = own
        shuffled[rows] = (cosine.sum(axis=1) - own) / (group - 1)
    used = order.ravel()
    return Faithfulness(
        float(matched[used].mean()),
        float(shuffled[used].mean()),
        float(np.concatenate(first).mean()),
        float(np.concatenate(fifth).mean()),
        group,
        matched - shuffled,
    )


def embedding_similarity(real: Any, generated: Any) -> float:
    """Mean plain cosine of paired features, as Graikos et al. (2024) report it."""
    a, b = as_features(real, "real"), as_features(generated, "generated")
    if a.shape != b.shape:
        raise InputError(f"features are {a.shape} and {b.shape}, no pairs", where="embedding similarity")
    return float((_unit(a) * _unit(b)).sum(axis=1).mean())


@dataclass(frozen=True)
class Memorisation:
    """nearer: share of generated items nearer to the training set than the 5th percentile of held-out real ones (0.05
    = as new as real tissue). c_t: z of the rank sum of both kinds of distances (Meehan et al. 2020): below −3 copies,
    about 0 does not. nearest: (N,) the training item nearest to each generated one."""

    nearer: float
    c_t: float
    nearest: np.ndarray
    distance: np.ndarray


def memorisation(training: Any, held_out: Any, generated: Any) -> Memorisation:
    """Whether generated items lie nearer to the training items than held-out real ones do; columns standardised by the
    training set."""
    from scipy.spatial.distance import cdist

    base = standardise(training, training, "training")
    real, made = (
        cdist(standardise(values, training, name), base)
        for values, name in ((held_out, "held out"), (generated, "generated"))
    )
    a, b = real.min(axis=1), made.min(axis=1)
    if min(len(a), len(b)) < 2:
        raise InputError("2 or more items of each kind are needed", where="memorisation")
    from scipy.stats import mannwhitneyu

    u = mannwhitneyu(b, a, method="asymptotic").statistic
    n, m = len(b), len(a)
    z = (u - n * m / 2) / np.sqrt(n * m * (n + m + 1) / 12)
    return Memorisation(float((b < np.quantile(a, 0.05)).mean()), float(z), made.argmin(axis=1), b)


def _unit(values: np.ndarray) -> np.ndarray:
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
