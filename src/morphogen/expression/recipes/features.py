"""Context features of a spot: itself, its neighbours and its region, raw and relative to its section.

Raw embeddings carry the level of staining and of tissue density; embeddings standardised within their own section
carry the pattern and forget the stain of the day. Means over neighbours remove noise of single fields. Everything is
a linear map of the embedding except the standardisation, so means over neighbours are taken of few scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from morphogen.expression.sections.neighbours import neighbourhood_mean
from morphogen.expression.sections.tables import SectionTable

CLIP = 5.0  # standard deviations beyond which a value is an artefact, not a direction to extrapolate along


def within_section(values: np.ndarray) -> np.ndarray:
    """Standardised over the spots of one section, (N, D)."""
    return (values - values.mean(axis=0)) / (values.std(axis=0) + 1e-6)


class Projection(nn.Module):
    """Standardise, clip, project on principal components: (N, D) → (N, k)."""

    mean: Tensor
    std: Tensor
    components: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("std", torch.ones(inputs))
        self.register_buffer("components", torch.zeros(inputs, outputs))

    @classmethod
    def fit(cls, values: np.ndarray, k: int, *, scale: bool = True) -> Projection:
        """scale=False keeps the relative scale of the inputs and divides all by one number."""
        v = np.asarray(values, dtype=np.float64)
        k = int(min(k, v.shape[1], max(1, len(v) - 1)))
        mean = v.mean(axis=0)
        std = v.std(axis=0)
        std = np.where(std > 1e-6, std, 1.0) if scale else np.full_like(std, np.sqrt((std**2).mean()) + 1e-12)
        z = np.clip((v - mean) / std, -CLIP, CLIP) if scale else (v - mean) / std
        out = cls(v.shape[1], k)
        out.mean.copy_(torch.from_numpy(mean))
        out.std.copy_(torch.from_numpy(std))
        out.components.copy_(torch.from_numpy(principal_axes(z, k)))
        out.clip = scale
        return out

    clip: bool = True

    def apply_to(self, values: np.ndarray) -> np.ndarray:
        z = (values - self.mean.numpy()) / self.std.numpy()
        if self.clip:
            z = np.clip(z, -CLIP, CLIP)
        return np.asarray(z @ self.components.numpy(), dtype=np.float32)


def principal_axes(centred: np.ndarray, k: int) -> np.ndarray:
    """The k leading right singular vectors (D, k) of (N, D), signs fixed by their largest entry."""
    n, d = centred.shape
    if d <= n:
        values, vectors = np.linalg.eigh(centred.T @ centred)
        axes = vectors[:, np.argsort(values)[::-1][:k]]
    else:
        axes = np.linalg.svd(centred, full_matrices=False)[2][:k].T
    largest = np.abs(axes).argmax(axis=0)
    return axes * np.sign(axes[largest, np.arange(axes.shape[1])])


class ContextFeatures(nn.Module):
    """Section → (N, P) scores for the read-out: two projections × (spot, near, region), then one more projection."""

    def __init__(self, raw: Projection, relative: Projection, final: Projection) -> None:
        super().__init__()
        self.raw, self.relative, self.final = raw, relative, final
        self.final.clip = False

    @property
    def width(self) -> int:
        return self.final.components.shape[1]

    @classmethod
    def shaped(cls, embedding: int, first: int, second: int) -> ContextFeatures:
        """Empty, of known sizes, to load weights into."""
        return cls(Projection(embedding, first), Projection(embedding, first), Projection(6 * first, second))

    @classmethod
    def fit(cls, tables: Sequence[SectionTable], first: int = 128, second: int = 256) -> ContextFeatures:
        """Principal components over the training spots."""
        raw = Projection.fit(np.concatenate([t.embedding for t in tables]), first)
        relative = Projection.fit(np.concatenate([within_section(t.embedding) for t in tables]), first)
        scores = np.concatenate([_context(t, raw, relative) for t in tables])
        return cls(raw, relative, Projection.fit(scores, second, scale=False))

    def section(self, table: SectionTable) -> np.ndarray:
        """(N, P) float32 of a whole section: neighbours and section statistics need all of its spots."""
        return self.final.apply_to(_context(table, self.raw, self.relative))


def _context(table: SectionTable, raw: Projection, relative: Projection) -> np.ndarray:
    parts = []
    for projection, values in ((raw, table.embedding), (relative, within_section(table.embedding))):
        scores = projection.apply_to(values)
        parts += [scores]
        parts += [neighbourhood_mean(scores, table.neighbours[:, :k]) for k in (table.near, table.region)]
    return np.concatenate(parts, axis=1)
