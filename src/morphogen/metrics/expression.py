"""Scores of predicted gene expression: accuracy per gene, variance, structure over genes and over space.

Conventions: ``truth`` and ``prediction`` are (N, G) in one stated transform, rows are the spots of ONE slide.
A score per gene is a float64 array (G,) in which an undefined value (a gene that is constant in the truth) is
NaN; :func:`macro` turns it into a mean that says how many were undefined instead of dropping them silently.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.spatial import cKDTree
from scipy.stats import rankdata

from morphogen.core.errors import InputError

Floats = NDArray[np.float64]


class Mean(NamedTuple):
    """A mean over genes with its bookkeeping: over how many, and how many were undefined."""

    value: float
    defined: int
    undefined: int


def matrices(truth: ArrayLike, prediction: ArrayLike) -> tuple[Floats, Floats]:
    """Both as finite float64 (N, G) of one shape, else :class:`InputError`."""
    y, p = np.asarray(truth, dtype=np.float64), np.asarray(prediction, dtype=np.float64)
    if y.ndim != 2 or y.shape != p.shape:
        raise InputError(f"truth {y.shape} and prediction {p.shape} must be one (spots, genes) shape")
    if len(y) < 2:
        raise InputError(f"scores across spots need at least 2 spots, got {len(y)}")
    for name, values in (("truth", y), ("prediction", p)):
        if not np.isfinite(values).all():
            raise InputError(f"the {name} holds {int((~np.isfinite(values)).sum())} NaN or infinite values")
    return y, p


def is_constant(values: Floats) -> NDArray[np.bool_]:
    """(G,) which columns do not vary beyond rounding."""
    spread = values.max(axis=0) - values.min(axis=0)
    return spread <= 1e-7 * np.maximum(1.0, np.abs(values).max(axis=0))


def pearson(truth: ArrayLike, prediction: ArrayLike) -> Floats:
    """Pearson correlation per gene across spots, (G,).

    NaN where the truth is constant: nothing can be scored there. 0 where only the prediction is constant: it
    follows nothing, and counting it as undefined would reward a model for giving up on hard genes.
    """
    y, p = matrices(truth, prediction)
    flat_truth, flat_prediction = is_constant(y), is_constant(p)
    yc, pc = y - y.mean(axis=0), p - p.mean(axis=0)
    scale = np.sqrt((yc**2).sum(axis=0) * (pc**2).sum(axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.clip((yc * pc).sum(axis=0) / scale, -1.0, 1.0)
    r[flat_prediction] = 0.0
    r[flat_truth] = np.nan
    return r


def spearman(truth: ArrayLike, prediction: ArrayLike) -> Floats:
    """Rank correlation per gene (ties get mean ranks), (G,); undefined values as in :func:`pearson`."""
    y, p = matrices(truth, prediction)
    return pearson(rankdata(y, axis=0), rankdata(p, axis=0))


def macro(values: ArrayLike) -> Mean:
    """Mean over the genes where the score is defined; ``value`` is NaN only when it is defined nowhere."""
    v = np.asarray(values, dtype=np.float64)
    good = np.isfinite(v)
    return Mean(float(v[good].mean()) if good.any() else float("nan"), int(good.sum()), int((~good).sum()))


def pcc_at(correlations: ArrayLike, k: int) -> float:
    """PCC-k: mean of the k highest per-gene correlations (Stem, section 4.1).

    The genes are chosen on the test scores themselves, so this is optimistic by construction. With fewer than k
    defined genes it is the mean over all of them.
    """
    v = np.asarray(correlations, dtype=np.float64)
    v = np.sort(v[np.isfinite(v)])[::-1]
    return float(v[:k].mean()) if len(v) else float("nan")


def mse(truth: ArrayLike, prediction: ArrayLike) -> Floats:
    """Mean squared error per gene, (G,)."""
    y, p = matrices(truth, prediction)
    return ((y - p) ** 2).mean(axis=0)


def mae(truth: ArrayLike, prediction: ArrayLike) -> Floats:
    """Mean absolute error per gene, (G,)."""
    y, p = matrices(truth, prediction)
    return np.abs(y - p).mean(axis=0)


def rvd(truth: ArrayLike, prediction: ArrayLike) -> Floats:
    """Relative variance distance per gene, (Var ŷ − Var y)² / (Var y)², population variances (Stem, eq. 9).

    Its mean over genes is the published RVD. A mean over samples has less variance than the truth even when the
    samples are right, so state which of the two is scored. NaN where the truth is constant.
    """
    y, p = matrices(truth, prediction)
    flat = is_constant(y)
    variance = np.where(flat, np.nan, y.var(axis=0))
    return (p.var(axis=0) - variance) ** 2 / variance**2


class GeneVariation(NamedTuple):
    """Means and variances per gene (G,) of truth and prediction, genes ordered by the mean of the truth."""

    order: NDArray[np.int64]
    truth_mean: Floats
    truth_variance: Floats
    mean: Floats
    variance: Floats


def gene_variation(truth: ArrayLike, prediction: ArrayLike) -> GeneVariation:
    """The gene variation curves of Stem (section 4.2): how mean and variance go over the genes."""
    y, p = matrices(truth, prediction)
    order = np.argsort(y.mean(axis=0), kind="stable")
    y, p = y[:, order], p[:, order]
    return GeneVariation(order, y.mean(axis=0), y.var(axis=0), p.mean(axis=0), p.var(axis=0))


# --- structure over genes ---------------------------------------------------------------------------------


def correlation_matrix(values: ArrayLike) -> Floats:
    """Gene–gene Pearson correlations across spots, (G, G); rows and columns of constant genes are NaN."""
    v = np.asarray(values, dtype=np.float64)
    centred = v - v.mean(axis=0)
    norm = np.sqrt((centred**2).sum(axis=0))
    norm[is_constant(v)] = np.nan
    z = centred / norm
    return np.clip(z.T @ z, -1.0, 1.0)


class CoExpression(NamedTuple):
    """Agreement of two gene–gene correlation matrices over their off-diagonal pairs."""

    correlation: float  # Pearson of the two sets of pair correlations
    error: float  # root mean squared difference of the pair correlations
    pairs: int
    undefined: int  # pairs with a gene that is constant in either


def co_expression(truth: ArrayLike, prediction: ArrayLike) -> CoExpression:
    """How well the gene–gene correlations of the truth are kept.

    Score single samples with it, not their mean: averaging over samples removes what genes do not share with the
    image and makes every pair look more correlated than it is.
    """
    y, p = matrices(truth, prediction)
    upper = np.triu_indices(y.shape[1], k=1)
    return pair_agreement(correlation_matrix(y)[upper], correlation_matrix(p)[upper])


def pair_agreement(truth: ArrayLike, prediction: ArrayLike) -> CoExpression:
    """:class:`CoExpression` from two vectors of pair correlations (NaN where undefined)."""
    a, b = np.asarray(truth, dtype=np.float64), np.asarray(prediction, dtype=np.float64)
    good = np.isfinite(a) & np.isfinite(b)
    a, b = a[good], b[good]
    if len(a) < 2:
        return CoExpression(float("nan"), float("nan"), len(a), int((~good).sum()))
    r = float(pearson(a[:, None], b[:, None])[0])
    return CoExpression(r, float(np.sqrt(((a - b) ** 2).mean())), len(a), int((~good).sum()))


# --- structure over space ---------------------------------------------------------------------------------


def spatial_weights(coords: ArrayLike, k: int = 6) -> sparse.csr_matrix:
    """Row-standardised weights of the k nearest spots (without the spot itself), (N, N) sparse.

    coords: (N, 2) in any one unit. k = 6 is the hexagonal neighbourhood of Visium. Fewer spots: all there are.
    """
    xy = np.asarray(coords, dtype=np.float64)
    n = len(xy)
    if n < 2:
        raise InputError("spatial weights need at least 2 spots")
    k = min(k, n - 1)
    index = np.atleast_2d(cKDTree(xy).query(xy, k + 1)[1])
    rows = np.repeat(np.arange(n), k)
    # Two spots at one place may list each other first: drop the spot itself wherever it stands.
    columns = np.concatenate([[j for j in row if j != i][:k] for i, row in enumerate(index)])
    return sparse.csr_matrix((np.full(len(rows), 1.0 / k), (rows, columns)), shape=(n, n))


def morans_i(values: ArrayLike, weights: sparse.spmatrix) -> Floats:
    """Moran's I per gene, (G,): N/W · Σ w_ij z_i z_j / Σ z_i² (Moran 1950). NaN for constant genes."""
    v = np.asarray(values, dtype=np.float64)
    z = v - v.mean(axis=0)
    total = float(weights.sum())
    denominator = (z**2).sum(axis=0)
    denominator[is_constant(v)] = np.nan
    return len(v) / total * (z * (weights @ z)).sum(axis=0) / denominator


class MoranAgreement(NamedTuple):
    """Agreement of Moran's I per gene between truth and prediction."""

    correlation: float  # Pearson across genes
    error: float  # mean absolute difference
    bias: float  # mean of predicted − measured; > 0: maps smoother than measured
    defined: int
    undefined: int


def moran_agreement(truth: ArrayLike, prediction: ArrayLike) -> MoranAgreement:
    """Compare two arrays of Moran's I per gene (G,), NaN where undefined."""
    a, b = np.asarray(truth, dtype=np.float64), np.asarray(prediction, dtype=np.float64)
    good = np.isfinite(a) & np.isfinite(b)
    lost = int((~good).sum())
    a, b = a[good], b[good]
    if len(a) < 2:
        return MoranAgreement(float("nan"), float("nan"), float("nan"), len(a), lost)
    r = float(pearson(a[:, None], b[:, None])[0])
    return MoranAgreement(r, float(np.abs(a - b).mean()), float((b - a).mean()), len(a), lost)
