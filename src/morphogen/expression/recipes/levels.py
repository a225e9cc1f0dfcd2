"""How high a section's counts are as a whole: what an image hardly tells, and how unsure one has to be about it.

Sections differ in sequencing depth and patients in gene levels by factors, and no spot-wise residual shows that. So
the level of a section is predicted apart from its pattern, and every sample of a section carries one draw of a
log-scale offset shared by all of its spots: one for the depth, one per gene. The scale of these offsets is learned
from how far held-out training sections and patients were off, starting from a stated prior, since two or three
training patients can hardly teach it (a scaled inverse-χ² prior, so that the draw is Student-t with few degrees of
freedom when there is little to go by).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from morphogen.expression.config import SpatialConfig
from morphogen.expression.recipes.features import Projection
from morphogen.expression.scoring.baselines import Ridge, tuned_ridge
from morphogen.expression.sections.tables import SectionTable

FLOOR = 0.05  # counts added before a ratio of levels is taken


@dataclass(frozen=True)
class OffsetScale:
    """Student-t scale of the log-count offset of a whole section."""

    depth: float  # shared by all genes
    gene: float  # one per gene
    freedom: float
    held_out: int  # held-out training sections or patients it was learned from

    @classmethod
    def learn(
        cls, log_ratios: Sequence[np.ndarray], depth: float, gene: float, freedom: float
    ) -> OffsetScale:
        """log_ratios: per held-out section or patient, (G,) log of true over predicted level."""
        deltas = [float(np.median(r)) for r in log_ratios]
        genes = [float(np.mean((r - np.median(r)) ** 2)) for r in log_ratios]
        total = freedom + len(deltas)
        return cls(
            float(np.sqrt((freedom * depth**2 + np.sum(np.square(deltas))) / total)),
            float(np.sqrt((freedom * gene**2 + np.sum(genes)) / total)),
            total,
            len(deltas),
        )

    def draw(self, k: int, genes: int, rng: np.random.Generator) -> np.ndarray:
        """(K, G) log-count offsets of K samples of one section.

        Systematic quantiles in random order rather than independent draws: K = 20 stand for the whole distribution,
        and an interval over a section does not hang on 20 random numbers.
        """
        t = stats.t.ppf((np.arange(k) + 0.5) / k, self.freedom) if k > 1 else np.zeros(1)
        depth = self.depth * rng.permutation(t)
        each = np.stack([rng.permutation(t) for _ in range(genes)], axis=1) * self.gene
        return (depth[:, None] + each).astype(np.float32)

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def log_ratio(true: np.ndarray, predicted: np.ndarray, unit: float) -> np.ndarray:
    """(G,) log of true over predicted counts, from levels in log(count + 1) times ``unit``."""
    a, b = (np.maximum(np.expm1(np.asarray(v, np.float64) / unit), 0.0) + FLOOR for v in (true, predicted))
    return np.log(a) - np.log(b)


class Levels(nn.Module):
    """Level of a section: that of its patient where the patient was seen in training, else by ridge on raw
    embeddings; and the scale of what remains open."""

    table: Tensor
    weights: Tensor
    intercept: Tensor

    def __init__(self, embedding: int, components: int, genes: int, patients: Sequence[str]) -> None:
        super().__init__()
        self.patients = list(patients)
        self.projection = Projection(embedding, components)
        self.register_buffer("table", torch.zeros(len(self.patients), genes))
        self.register_buffer("weights", torch.zeros(components, genes))
        self.register_buffer("intercept", torch.zeros(genes))
        self.seen = self.new = OffsetScale(0.0, 0.0, 3.0, 0)

    @classmethod
    def fit(cls, tables: Sequence[SectionTable], config: SpatialConfig, unit: float) -> Levels:
        """From training tables; ``unit`` of their transform."""
        level = [t.y.mean(axis=0) for t in tables]
        owner = [t.patient or f"section:{t.section}" for t in tables]
        projection = Projection.fit(np.concatenate([t.embedding for t in tables]), 256)
        y = np.concatenate([t.y for t in tables]).astype(np.float64)
        x = np.concatenate([projection.apply_to(t.embedding) for t in tables]).astype(np.float64)
        out = cls(
            tables[0].embedding.shape[1],
            x.shape[1],
            y.shape[1],
            sorted({t.patient for t in tables if t.patient}),
        )
        out.projection = projection
        for i, patient in enumerate(out.patients):
            own = [v for v, o in zip(level, owner) if o == patient]
            out.table[i] = torch.from_numpy(np.mean(own, axis=0))
        alpha = tuned_ridge(tables).alpha
        cross = x.T @ (y - y.mean(axis=0))
        out.weights.copy_(torch.from_numpy(np.linalg.solve(x.T @ x + alpha * np.eye(x.shape[1]), cross)))
        out.intercept.copy_(torch.from_numpy(y.mean(axis=0) - x.mean(axis=0) @ out.weights.numpy()))

        between_sections, between_patients = [], []
        for i, table in enumerate(tables):
            siblings = [v for j, v in enumerate(level) if j != i and owner[j] == owner[i] and table.patient]
            if siblings:
                between_sections.append(log_ratio(level[i], np.mean(siblings, axis=0), unit))
        groups = sorted(set(owner))
        for group in groups if len(groups) > 1 else []:
            ridge = tuned_ridge([t for t, o in zip(tables, owner) if o != group])
            held = [t for t, o in zip(tables, owner) if o == group]
            ratios = [log_ratio(t.y.mean(axis=0), _level(ridge, t), unit) for t in held]
            between_patients.append(np.mean(ratios, axis=0))
        freedom = config.offset_freedom
        out.seen = OffsetScale.learn(between_sections, config.seen_depth, config.seen_gene, freedom)
        out.new = OffsetScale.learn(between_patients, config.new_depth, config.new_gene, freedom)
        return out

    def is_seen(self, patient: str) -> bool:
        """An unknown patient counts as new."""
        return bool(patient) and patient in self.patients

    def scale(self, patient: str) -> OffsetScale:
        return self.seen if self.is_seen(patient) else self.new

    def predict(self, embedding: np.ndarray, patient: str) -> np.ndarray:
        """(G,) mean level over the spots of a section, (N, D) embeddings."""
        if self.is_seen(patient):
            return self.table[self.patients.index(patient)].numpy()
        scores = self.projection.apply_to(embedding).mean(axis=0)
        return np.maximum(scores @ self.weights.numpy() + self.intercept.numpy(), 0.0)

    def facts(self) -> dict[str, Any]:
        return {"patients": self.patients, "seen": self.seen.to_dict(), "new": self.new.to_dict()}

    def set_facts(self, facts: dict[str, Any]) -> None:
        self.patients = list(facts["patients"])
        self.seen, self.new = OffsetScale(**facts["seen"]), OffsetScale(**facts["new"])


def _level(ridge: Ridge, table: SectionTable) -> np.ndarray:
    return ridge.mean(table).mean(axis=0)
