"""The mean read-out: reduced-rank ridge plus reduced-rank kernel ridge, in closed form.

A linear map finds what stain and texture say in proportion, a Gaussian kernel what they say in combination; both
predict along a few shared directions of gene space only (reduced-rank regression, Izenman 1975), because counts of a
single spot are mostly noise. Everything is chosen by inner folds over training sections.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from morphogen.core.running.threads import over_threads
from morphogen.metrics.expression import macro, pearson

ALPHAS = (100.0, 300.0, 1000.0, 3000.0, 10000.0, 30000.0)
LAMBDAS = (0.3, 1.0, 3.0)
GAMMAS = (0.25, 0.5, 1.0)
RANKS = (2, 4, 8, 16)
# A kernel alone falls back to the mean away from its landmarks, which folds inside one section cannot show.
WEIGHTS = (0.0, 0.3, 0.5)
KERNEL_DIMENSIONS = 64
LANDMARKS = 1024


@dataclass(frozen=True)
class ReadoutChoice:
    """What the inner folds choose."""

    alpha: float = 1000.0  # ridge penalty of the linear part
    linear_rank: int = 4
    gamma: float = 0.5  # kernel width: exp(−γ·d²/median d²)
    penalty: float = 1.0  # ridge penalty of the kernel part
    kernel_rank: int = 4
    weight: float = 0.5  # of the kernel part

    def to_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


class Readout(nn.Module):
    """Scores (B, P) → expected standardised targets (B, G)."""

    linear: Tensor
    landmarks: Tensor
    kernel: Tensor
    width: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, scores: int, genes: int, landmarks: int) -> None:
        super().__init__()
        dimensions = min(KERNEL_DIMENSIONS, scores)
        self.register_buffer("linear", torch.zeros(scores, genes))
        self.register_buffer("landmarks", torch.zeros(landmarks, dimensions))
        self.register_buffer("kernel", torch.zeros(landmarks, genes))
        self.register_buffer("width", torch.ones(()))
        self.register_buffer("mean", torch.zeros(genes))
        self.register_buffer("std", torch.ones(genes))

    def forward(self, scores: Tensor) -> Tensor:
        """(B, P) → (B, G) in the units of the targets it was fitted to."""
        part = scores @ self.linear
        if len(self.landmarks):
            near = scores[:, : self.landmarks.shape[1]]
            distance = torch.cdist(near, self.landmarks, compute_mode="donot_use_mm_for_euclid_dist") ** 2
            part = part + torch.exp(-distance * self.width) @ self.kernel
        return part * self.std + self.mean


class _Fitter:
    """All members of the grid from one decomposition of the training scores."""

    def __init__(self, scores: np.ndarray, values: np.ndarray, seed: int = 0) -> None:
        self.x = np.asarray(scores, dtype=np.float64)
        self.mean = values.mean(axis=0, dtype=np.float64)
        std = values.std(axis=0, dtype=np.float64)
        self.std = np.where(std > 1e-6, std, 1.0)
        self.z = (values - self.mean) / self.std
        self.gram = self.x.T @ self.x
        self.xz = self.x.T @ self.z
        self.eigen, self.axes = np.linalg.eigh(self.gram)
        self.rotated = self.axes.T @ self.xz
        q = min(KERNEL_DIMENSIONS, self.x.shape[1])
        pick = np.arange(len(self.x))
        if len(pick) > LANDMARKS:
            pick = np.sort(np.random.default_rng(seed).choice(len(pick), LANDMARKS, replace=False))
        self.landmarks = self.x[pick, :q]
        self.distance = squared_distances(self.x[:, :q], self.landmarks)
        between = squared_distances(self.landmarks, self.landmarks)
        self.between = between
        self.median = float(np.median(between[np.triu_indices(len(between), 1)])) if len(between) > 1 else 1.0
        self.median = max(self.median, 1e-9)

    def linear(self, alpha: float) -> np.ndarray:
        """(P, G) ridge weights."""
        return self.axes @ (self.rotated / (np.maximum(self.eigen, 0) + alpha)[:, None])

    def kernels(self, gamma: float) -> Iterator[tuple[float, np.ndarray]]:
        """(penalty, (M, G) weights on the landmarks) for every penalty: ridge on Nyström features, which is exact
        kernel ridge when every training spot is a landmark (Williams & Seeger 2001)."""
        values, vectors = np.linalg.eigh(np.exp(-gamma * self.between / self.median))
        values = np.maximum(values, 1e-8 * values.max())
        root = vectors / np.sqrt(values) @ vectors.T
        features = np.exp(-gamma * self.distance / self.median) @ root
        eigen, axes = np.linalg.eigh(features.T @ features)
        rotated = axes.T @ (features.T @ self.z)
        for penalty in LAMBDAS:
            yield penalty, root @ (axes @ (rotated / (np.maximum(eigen, 0) + penalty)[:, None]))

    def directions(self, fitted: np.ndarray) -> np.ndarray:
        """(G, G) right singular vectors of the fitted values: the order in which a rank is cut."""
        return np.linalg.svd(fitted - fitted.mean(axis=0), full_matrices=False)[2]


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T, 0.0)


Part = tuple[str, float, float, int]  # ("linear", alpha, 0, rank) or ("kernel", gamma, penalty, rank)


def _parts(fitter: _Fitter, scores: np.ndarray) -> dict[Part, np.ndarray]:
    """Standardised predictions at ``scores`` of every single part of the grid."""
    distance = squared_distances(scores[:, : fitter.landmarks.shape[1]], fitter.landmarks)

    def linear(alpha: float) -> dict[Part, np.ndarray]:
        weights = fitter.linear(alpha)
        v = fitter.directions(fitter.x @ weights)
        low = scores @ weights @ v[: max(RANKS)].T
        return {("linear", alpha, 0.0, rank): low[:, :rank] @ v[:rank] for rank in RANKS}

    def kernel(gamma: float) -> dict[Part, np.ndarray]:
        out: dict[Part, np.ndarray] = {}
        near = np.exp(-gamma * distance / fitter.median)
        train = np.exp(-gamma * fitter.distance / fitter.median)
        for penalty, weights in fitter.kernels(gamma):
            v = fitter.directions(train @ weights)
            low = near @ weights @ v[: max(RANKS)].T
            out |= {("kernel", gamma, penalty, rank): low[:, :rank] @ v[:rank] for rank in RANKS}
        return out

    work = [partial(kernel, gamma) for gamma in GAMMAS] + [partial(linear, alpha) for alpha in ALPHAS]
    found = over_threads(lambda part: part(), work)  # the longest first
    ordered = found[len(GAMMAS) :] + found[: len(GAMMAS)]
    return {key: value for part in ordered for key, value in part.items()}


@dataclass
class Fold:
    """One inner fold: scores and targets to fit on, and to score on."""

    scores: np.ndarray
    values: np.ndarray
    held_scores: np.ndarray
    held_values: np.ndarray
    group: np.ndarray  # section of each held-out row: correlations are within a section


def choose(folds: Sequence[Fold]) -> tuple[ReadoutChoice, float, list[dict[str, Any]]]:
    """The member of the grid with the best macro PCC over held-out spots, per section, mean over sections.

    Parts are ranked first, then the best few of both kinds in every mixture. Returns the choice, its inner score and
    the table of what was tried.
    """
    predictions: list[dict[Part, np.ndarray]] = []
    for fold in folds:
        predictions.append(_parts(_Fitter(fold.scores, fold.values), fold.held_scores))
    spread = [np.maximum(fold.values.std(axis=0), 1e-6) for fold in folds]

    def score(make: Any) -> float:
        rows: dict[Any, list[tuple[np.ndarray, np.ndarray]]] = {}
        for fold, parts, std in zip(folds, predictions, spread, strict=True):
            p = make(parts) * std
            for group in np.unique(fold.group):
                keep = fold.group == group
                rows.setdefault(group, []).append((fold.held_values[keep], p[keep]))
        found = []
        for pairs in rows.values():
            y, p = (np.concatenate([pair[i] for pair in pairs]) for i in (0, 1))
            if len(y) > 2:
                found.append(macro(pearson(y, p)).value)
        return float(np.mean(found))

    keys = list(predictions[0])
    singles = dict(zip(keys, over_threads(lambda key: score(lambda parts: parts[key]), keys)))
    best = {
        kind: sorted((p for p in singles if p[0] == kind), key=lambda p: -singles[p])[:3]
        for kind in ("linear", "kernel")
    }
    table, top, chosen = [], -np.inf, ReadoutChoice()
    for line in best["linear"]:
        for kern in best["kernel"]:
            for weight in WEIGHTS:
                value = score(lambda parts: (1 - weight) * parts[line] + weight * parts[kern])  # noqa: B023
                choice = ReadoutChoice(line[1], line[3], kern[1], kern[2], kern[3], weight)
                table.append({**choice.to_dict(), "inner_pcc": value})
                if value > top:
                    top, chosen = value, choice
    return chosen, float(top), table


def fit_readout(scores: np.ndarray, values: np.ndarray, choice: ReadoutChoice) -> Readout:
    """The chosen member as a module; (N, P) scores and (N, G) targets."""
    fitter = _Fitter(scores, values)
    linear = fitter.linear(choice.alpha)
    v = fitter.directions(fitter.x @ linear)[: choice.linear_rank]
    linear = (1 - choice.weight) * linear @ v.T @ v
    used = len(fitter.landmarks) if choice.weight > 0 else 0
    out = Readout(scores.shape[1], values.shape[1], used)
    out.linear.copy_(torch.from_numpy(linear))
    if used:
        weights = next(w for penalty, w in fitter.kernels(choice.gamma) if penalty == choice.penalty)
        train = np.exp(-choice.gamma * fitter.distance / fitter.median)
        v = fitter.directions(train @ weights)[: choice.kernel_rank]
        out.landmarks.copy_(torch.from_numpy(fitter.landmarks))
        out.kernel.copy_(torch.from_numpy(choice.weight * weights @ v.T @ v))
        out.width.fill_(choice.gamma / fitter.median)
    out.mean.copy_(torch.from_numpy(fitter.mean))
    out.std.copy_(torch.from_numpy(fitter.std))
    return out
