"""What a model has to beat: training mean, coordinates, library size (an oracle), k nearest neighbours, tuned ridge.

All are fitted on training tables and predict a test table; nothing is chosen on the test. Each gives a mean and
samples, so that probabilistic scores compare like with like.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from scipy.spatial import cKDTree

from morphogen.core.errors import InputError
from morphogen.core.seeds import numpy_generator
from morphogen.expression.recipes.features import Projection, principal_axes
from morphogen.expression.recipes.readout import squared_distances
from morphogen.expression.sections.tables import SectionTable, fold_numbers, inner_folds
from morphogen.metrics.expression import macro, pearson

RIDGE_ALPHAS = (1.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0, 30000.0, 100000.0)
KNN_K = (3, 5, 10, 20, 50)
PCA = 256


class Baseline(Protocol):
    """A fitted baseline."""

    name: str
    oracle: bool  # uses something of the test section's counts

    def mean(self, table: SectionTable) -> np.ndarray:
        """(N, G) prediction in the targets' transform."""
        ...

    def samples(self, table: SectionTable, k: int, seed: int) -> np.ndarray:
        """(N, K, G) float32."""
        ...


class ResidualCovariance:
    """Gaussian residual over genes, shrunk towards its diagonal (Ledoit & Wolf 2004), from out-of-fold residuals."""

    def __init__(self, residuals: np.ndarray) -> None:
        from sklearn.covariance import ledoit_wolf

        std = residuals.std(axis=0)
        self.std = np.where(std > 1e-6, std, 1e-6)
        correlation = ledoit_wolf(residuals / self.std)[0]
        values, vectors = np.linalg.eigh(correlation)
        self.root = (vectors * np.sqrt(np.maximum(values, 0))).T * self.std

    def draw(self, n: int, k: int, rng: np.random.Generator) -> np.ndarray:
        """(n, k, G)."""
        out = np.empty((n, k, self.root.shape[1]), dtype=np.float32)
        for i in range(k):
            out[:, i] = rng.standard_normal((n, len(self.root))) @ self.root
        return out


class TrainingMean:
    """Per-gene mean of the training spots; samples are training spots drawn at random."""

    name, oracle = "training mean", False

    def __init__(self, tables: Sequence[SectionTable]) -> None:
        self.values = np.concatenate([t.y for t in tables])

    def mean(self, table: SectionTable) -> np.ndarray:
        return np.repeat(self.values.mean(axis=0, keepdims=True), len(table), axis=0)

    def samples(self, table: SectionTable, k: int, seed: int) -> np.ndarray:
        pick = numpy_generator(seed, self.name, table.section).integers(0, len(self.values), (len(table), k))
        return self.values[pick].astype(np.float32)


class _Regression:
    """Shared by the regressions: a mean from ``_predict`` and a Gaussian residual from inner folds."""

    name, oracle = "", False
    residual: ResidualCovariance

    def _predict(self, table: SectionTable) -> np.ndarray:
        raise TypeError("a regression gives _predict")

    def mean(self, table: SectionTable) -> np.ndarray:
        return self._predict(table).astype(np.float32)

    def samples(self, table: SectionTable, k: int, seed: int) -> np.ndarray:
        rng = numpy_generator(seed, self.name, table.section)
        return self.mean(table)[:, None] + self.residual.draw(len(table), k, rng)


class Ridge(_Regression):
    """StandardScaler → PCA-256 → ridge with intercept on some description of a spot; α by inner folds.

    α is the one with the best macro PCC per held-out training section, the figure it is compared by. The residual of
    its samples is that of the held-out spots at this α, with full covariance over genes.
    """

    def __init__(
        self,
        tables: Sequence[SectionTable],
        describe: Callable[[SectionTable], np.ndarray],
        name: str = "tuned ridge",
        oracle: bool = False,
    ) -> None:
        self.describe, self.name, self.oracle = describe, name, oracle
        x, y = [describe(t) for t in tables], [t.y for t in tables]
        folds = inner_folds(tables)
        held: dict[float, list[np.ndarray]] = {a: [np.zeros_like(v) for v in y] for a in RIDGE_ALPHAS}
        for k in fold_numbers(folds):
            fit = _RidgePath(*(np.concatenate([v[f != k] for v, f in zip(part, folds)]) for part in (x, y)))
            for v, f, i in zip(x, folds, range(len(x))):
                if (f == k).any():
                    for alpha in RIDGE_ALPHAS:
                        held[alpha][i][f == k] = fit.predict(v[f == k], alpha)
        scores = {a: np.mean([macro(pearson(v, h)).value for v, h in zip(y, held[a])]) for a in RIDGE_ALPHAS}
        self.alpha = max(scores, key=lambda a: scores[a])
        self.inner_pcc = float(scores[self.alpha])
        self.residual = ResidualCovariance(np.concatenate([v - h for v, h in zip(y, held[self.alpha])]))
        self.fit = _RidgePath(np.concatenate(x), np.concatenate(y))

    def _predict(self, table: SectionTable) -> np.ndarray:
        return self.fit.predict(self.describe(table), self.alpha)


class _RidgePath:
    """Ridge at every α from one decomposition."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.center = x.mean(axis=0)
        std = x.std(axis=0)
        self.std = np.where(std > 1e-6, std, 1.0)
        z = (x - self.center) / self.std
        self.axes = principal_axes(z, min(PCA, z.shape[1], len(z) - 1))
        t = z @ self.axes
        self.intercept = y.mean(axis=0, dtype=np.float64)
        self.power, self.cross = (t**2).sum(axis=0), t.T @ (y - self.intercept)

    def predict(self, x: np.ndarray, alpha: float) -> np.ndarray:
        t = (x - self.center) / self.std @ self.axes
        return t @ (self.cross / (self.power + alpha)[:, None]) + self.intercept


def tuned_ridge(tables: Sequence[SectionTable]) -> Ridge:
    """On the spot's own embedding."""
    return Ridge(tables, lambda t: t.embedding.astype(np.float64))


def coordinates_only(tables: Sequence[SectionTable]) -> Ridge:
    """Third-degree polynomial of the position within the section; knows no image at all."""
    return Ridge(tables, polynomial_of_position, "coordinates only")


def polynomial_of_position(table: SectionTable) -> np.ndarray:
    """(N, 9) monomials up to degree 3 of coordinates standardised within the section."""
    x, y = ((table.coords - table.coords.mean(axis=0)) / (table.coords.std() + 1e-9)).T
    return np.stack([x, y, x * x, x * y, y * y, x**3, x * x * y, x * y * y, y**3], axis=1)


def library_size(tables: Sequence[SectionTable]) -> Ridge:
    """ORACLE: the test spots' own measured library sizes; what total depth alone explains."""
    return Ridge(tables, _log_totals, "library size (oracle)", oracle=True)


def _log_totals(table: SectionTable) -> np.ndarray:
    if table.totals is None:
        raise InputError("library sizes are not known", where=table.section)
    return np.log1p(table.totals)[:, None]


class NearestNeighbours(_Regression):
    """Mean of the k training spots with the nearest embeddings (standardised, PCA-256); k by inner folds.

    Samples are those neighbours, drawn at random with replacement.
    """

    name = "kNN"

    def __init__(self, tables: Sequence[SectionTable]) -> None:
        folds = inner_folds(tables)
        best: float = -np.inf
        for k in KNN_K:
            held = [np.zeros_like(t.y) for t in tables]
            for fold in fold_numbers(folds):
                x = np.concatenate([t.embedding[f != fold] for t, f in zip(tables, folds)])
                y = np.concatenate([t.y[f != fold] for t, f in zip(tables, folds)])
                projection = Projection.fit(x, PCA)
                index = _Index(projection.apply_to(x))
                for t, f, h in zip(tables, folds, held):
                    if (f == fold).any():
                        near = index.nearest(projection.apply_to(t.embedding[f == fold]), k)
                        h[f == fold] = y[near].mean(axis=1)
            score = float(np.mean([macro(pearson(t.y, h)).value for t, h in zip(tables, held)]))
            if score > best:
                best, self.k = score, k
        x = np.concatenate([t.embedding for t in tables])
        self.y = np.concatenate([t.y for t in tables])
        self.projection = Projection.fit(x, PCA)
        self.index = _Index(self.projection.apply_to(x))

    def _near(self, table: SectionTable) -> np.ndarray:
        return self.index.nearest(self.projection.apply_to(table.embedding), self.k)

    def _predict(self, table: SectionTable) -> np.ndarray:
        return self.y[self._near(table)].mean(axis=1)

    def samples(self, table: SectionTable, k: int, seed: int) -> np.ndarray:
        near = self._near(table)
        pick = numpy_generator(seed, self.name, table.section).integers(0, near.shape[1], (len(near), k))
        return self.y[np.take_along_axis(near, pick, axis=1)].astype(np.float32)


class _Index:
    """Exact nearest neighbours, in blocks."""

    def __init__(self, points: np.ndarray) -> None:
        self.points = points.astype(np.float64)
        self.tree = cKDTree(self.points) if points.shape[1] <= 8 else None

    def nearest(self, queries: np.ndarray, k: int) -> np.ndarray:
        k = min(k, len(self.points))
        if self.tree is not None:
            return np.asarray(self.tree.query(queries, k)[1]).reshape(len(queries), k)
        out = [
            np.argsort(squared_distances(queries[i : i + 1024].astype(np.float64), self.points), axis=1)[
                :, :k
            ]
            for i in range(0, len(queries), 1024)
        ]
        return np.concatenate(out)


def all_baselines(tables: Sequence[SectionTable]) -> list[Baseline]:
    """Every baseline of the protocol, fitted."""
    return [
        TrainingMean(tables),
        coordinates_only(tables),
        library_size(tables),
        NearestNeighbours(tables),
        tuned_ridge(tables),
    ]
