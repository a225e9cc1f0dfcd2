"""Generated against real images, unpaired: distances between two clouds of features.

Every function takes features ``(N, D)`` of any encoder (arrays or tensors) and works in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from morphogen.core.errors import InputError


def as_features(values: Any, name: str = "features") -> np.ndarray:
    """``(N, D)`` float64 from an array or tensor; :class:`InputError` on a wrong shape or a non-finite
    value.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu().float().numpy() if values.is_floating_point() else values.cpu().numpy()
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or len(array) == 0:
        raise InputError(f"features must be a non-empty (N, D) array, not {array.shape}", where=name)
    bad = ~np.isfinite(array).all(axis=1)
    if bad.any():
        raise InputError(
            f"{int(bad.sum())} of {len(array)} feature rows hold NaN or inf (first: row {int(bad.argmax())})",
            where=name,
        )
    return array


def _two_sets(real: Any, generated: Any, least: int) -> tuple[np.ndarray, np.ndarray]:
    real, generated = as_features(real, "real"), as_features(generated, "generated")
    if real.shape[1] != generated.shape[1]:
        raise InputError(
            f"real features have {real.shape[1]} columns and generated ones {generated.shape[1]}"
        )
    for name, array in (("real", real), ("generated", generated)):
        if len(array) < least:
            raise InputError(f"{least} or more images are needed, there are {len(array)}", where=name)
    return real, generated


def frechet_distance(real: Any, generated: Any) -> float:
    """Fréchet distance of two feature sets ``(N, D)`` and ``(M, D)``, N, M ≥ 2, taken as Gaussians.

    ``|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½)`` with unbiased covariances (Heusel et al. 2017, eq. 6). With
    Inception features this is FID; with any other encoder say so. Sets smaller than D are fine: see
    :func:`frechet_from_moments`.
    """
    real, generated = _two_sets(real, generated, least=2)
    return frechet_from_moments(*moments(real), *moments(generated))


def moments(features: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean ``(D,)`` and unbiased covariance ``(D, D)`` of features ``(N, D)``, float64."""
    array = as_features(features)
    return array.mean(axis=0), np.atleast_2d(np.cov(array, rowvar=False))


def frechet_from_moments(
    mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray
) -> float:
    """Fréchet distance of two Gaussians; exact for singular covariances too.

    ``tr (Σ₁Σ₂)^½`` is the sum of the square roots of the eigenvalues of the symmetric ``Σ₁^½ Σ₂ Σ₁^½``: no
    matrix square root of a non-symmetric product, so nothing complex and no jitter on the diagonal.
    """
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    product = root @ cov_b @ root
    eigenvalues = np.linalg.eigvalsh((product + product.T) / 2)
    overlap = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    distance = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * overlap
    return float(max(distance, 0.0))


@dataclass(frozen=True)
class KernelDistance:
    """KID over subsets: ``mean`` and ``sd`` (population) of the ``values`` (one unbiased MMD² per subset)."""

    mean: float
    sd: float
    values: np.ndarray


def polynomial_kernel(
    a: np.ndarray, b: np.ndarray, degree: int = 3, gamma: float | None = None, coef: float = 1.0
) -> np.ndarray:
    """``(γ a·b + c)^degree`` for rows of ``a (N, D)`` and ``b (M, D)``; γ = 1/D when not given."""
    return (a @ b.T * (1.0 / a.shape[1] if gamma is None else gamma) + coef) ** degree


def kernel_distance_exact(real: Any, generated: Any) -> float:
    """Unbiased MMD² of all features with the polynomial kernel of KID (Bińkowski et al. 2018); may be
    negative.
    """
    return _mmd2(*_two_sets(real, generated, least=2))


def _mmd2(a: np.ndarray, b: np.ndarray) -> float:
    n, m = len(a), len(b)
    k_aa, k_bb, k_ab = polynomial_kernel(a, a), polynomial_kernel(b, b), polynomial_kernel(a, b)
    within_a = (k_aa.sum() - np.trace(k_aa)) / (n * (n - 1))
    within_b = (k_bb.sum() - np.trace(k_bb)) / (m * (m - 1))
    return float(within_a + within_b - 2 * k_ab.mean())


def kernel_distance(
    real: Any,
    generated: Any,
    generator: np.random.Generator | None = None,
    *,
    n_subsets: int = 100,
    subset_size: int = 1000,
    subsets: tuple[np.ndarray, np.ndarray] | None = None,
) -> KernelDistance:
    """KID: mean and SD of the unbiased MMD² over random subsets (Bińkowski et al. 2018).

    Parameters
    ----------
    real, generated:
        Features ``(N, D)`` and ``(M, D)``.
    generator:
        Draws the subsets; needed unless ``subsets`` are given.
    subset_size:
        Items per subset; less where a set is smaller.
    subsets:
        Row indices ``(S, size)`` into ``real`` and ``generated``, to repeat published draws.
    """
    real, generated = _two_sets(real, generated, least=2)
    if subsets is None:
        if generator is None:
            raise InputError("a generator or the subsets must be given", where="kernel_distance")
        size = min(subset_size, len(real), len(generated))
        draws = [
            (
                generator.choice(len(real), size, replace=False),
                generator.choice(len(generated), size, replace=False),
            )
            for _ in range(n_subsets)
        ]
    else:
        draws = list(zip(*subsets, strict=True))
    values = np.array([_mmd2(real[i], generated[j]) for i, j in draws])
    return KernelDistance(float(values.mean()), float(values.std()), values)


@dataclass(frozen=True)
class Manifold:
    """Precision, recall (Kynkäänniemi et al. 2019), density, coverage (Naeem et al. 2020), each about [0, 1].

    Density may exceed 1 where generated images crowd in the dense parts of the real ones.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold(real: Any, generated: Any, k: int = 5, chunk: int = 2048) -> Manifold:
    """Fidelity and diversity from balls that reach to the ``k``-th nearest neighbour within each set.

    Memory is ``chunk × N`` distances. Both sets need more than ``k`` items.
    """
    real, generated = _two_sets(real, generated, least=k + 1)
    radius_real, radius_fake = _radii(real, k, chunk), _radii(generated, k, chunk)
    in_real = np.zeros(len(generated), dtype=np.int64)  # number of real balls around each generated item
    in_fake = np.zeros(len(real), dtype=bool)
    covered = np.zeros(len(real), dtype=bool)
    for start in range(0, len(real), chunk):
        rows = slice(start, start + chunk)
        distance = _distances(real[rows], generated)
        inside = distance <= radius_real[rows, None]
        in_real += inside.sum(axis=0)
        covered[rows] = inside.any(axis=1)
        in_fake[rows] = (distance <= radius_fake[None, :]).any(axis=1)
    return Manifold(
        precision=float((in_real > 0).mean()),
        recall=float(in_fake.mean()),
        density=float(in_real.mean() / k),
        coverage=float(covered.mean()),
    )


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    from scipy.spatial.distance import cdist

    return cdist(a, b)


def _radii(features: np.ndarray, k: int, chunk: int) -> np.ndarray:
    """Distance of every item to its ``k``-th nearest other item."""
    blocks = []
    for start in range(0, len(features), chunk):
        distance = _distances(features[start : start + chunk], features)
        blocks.append(np.partition(distance, k, axis=1)[:, k])  # index 0 is the item itself
    return np.concatenate(blocks)
