"""All scores of one method on one section: one dictionary of numbers, with what per-gene plots need."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from morphogen.core.seeds import numpy_generator
from morphogen.expression.sections.tables import SectionTable
from morphogen.metrics import expression as m
from morphogen.metrics import intervals, probabilistic

BLOCK_PITCHES = 5.0  # side of the tissue blocks of the interval within a section
COLUMNS = {
    "pcc": "macro PCC",
    "pcc_low": "within-section 95 % low",
    "pcc_high": "within-section 95 % high",
    "pcc10": "PCC-10 (optimistic)",
    "pcc50": "PCC-50 (optimistic)",
    "pcc_single": "macro PCC of one sample",
    "spearman": "Spearman",
    "mse": "MSE",
    "mae": "MAE",
    "rvd_mean": "RVD of means",
    "rvd_samples": "RVD of samples",
    "variance_ratio": "variance ratio sample/truth",
    "crps": "CRPS",
    "energy": "energy score",
    "coverage50": "50 % coverage",
    "coverage90": "90 % coverage",
    "coverage90_split": "90 % coverage, ties split",
    "width90": "90 % width",
    "pit_deviation": "PIT deviation",
    "coexpression_mean": "co-expression r (means)",
    "coexpression_samples": "co-expression r (samples)",
    "coexpression_error_mean": "co-expression RMSE (means)",
    "coexpression_error_samples": "co-expression RMSE (samples)",
    "moran_mean": "Moran r (means)",
    "moran_samples": "Moran r (samples)",
    "moran_error_mean": "Moran MAE (means)",
    "moran_error_samples": "Moran MAE (samples)",
}


@dataclass
class Scores:
    """Scores of one method on one section. ``values``: the columns above (None where undefined)."""

    method: str
    section: str
    patient: str
    values: dict[str, float | None]
    counts: dict[str, int]  # spots, genes, undefined genes, genes not measured
    genes: dict[str, np.ndarray] = field(default_factory=dict)  # per gene: pcc, spearman, moran …
    pit: probabilistic.Pit | None = None
    variation: m.GeneVariation | None = None
    coexpression: dict[str, np.ndarray] = field(default_factory=dict)  # pairs of truth, means, samples


def score(
    method: str,
    table: SectionTable,
    mean: np.ndarray,
    samples: np.ndarray | None,
    measured: np.ndarray,
    seed: int = 0,
) -> Scores:
    """Score a mean (N, G) and samples (N, K, G) against ``table.y``, in one transform.

    measured: (G,) bool, genes the section measures; the others are counted and left out. Intervals resample tissue
    blocks of the section: they say how much another part of the SAME section would differ, nothing about patients.
    """
    y = table.y[:, measured].astype(np.float64)
    p = mean[:, measured].astype(np.float64)
    s = None if samples is None else samples[:, :, measured]
    pcc, rho = m.pearson(y, p), m.spearman(y, p)
    macro = m.macro(pcc)
    flat = m.is_constant(y)
    weights = m.spatial_weights(table.coords, 4)
    moran_truth, moran_mean = m.morans_i(y, weights), m.morans_i(p, weights)
    blocks = intervals.spatial_blocks(table.coords, BLOCK_PITCHES * table.pitch_px)
    interval = intervals.block_bootstrap(
        macro.value,
        intervals.weighted_macro_pearson(y, p),
        blocks,
        generator=numpy_generator(seed, "interval", table.section),
    )
    upper = np.triu_indices(y.shape[1], 1)
    pairs = {"truth": m.correlation_matrix(y)[upper], "mean": m.correlation_matrix(p)[upper]}
    coexpression = m.pair_agreement(pairs["truth"], pairs["mean"])
    moran = m.moran_agreement(moran_truth, moran_mean)
    values: dict[str, float | None] = {
        "pcc": macro.value,
        "pcc_low": interval.low,
        "pcc_high": interval.high,
        "pcc10": m.pcc_at(pcc, 10),
        "pcc50": m.pcc_at(pcc, 50),
        "spearman": m.macro(rho).value,
        "mse": m.macro(m.mse(y, p)).value,
        "mae": m.macro(m.mae(y, p)).value,
        "rvd_mean": m.macro(m.rvd(y, p)).value,
        "coexpression_mean": coexpression.correlation,
        "coexpression_error_mean": coexpression.error,
        "moran_mean": moran.correlation,
        "moran_error_mean": moran.error,
    }
    genes = {"pcc": pcc, "spearman": rho, "moran_truth": moran_truth, "moran_mean": moran_mean}
    pit, variation = None, m.gene_variation(y, p)
    if s is not None:
        k = s.shape[1]
        single = [s[:, i].astype(np.float64) for i in range(k)]
        half, most = probabilistic.coverage(y, s, 0.5), probabilistic.coverage(y, s, 0.9)
        pit = probabilistic.pit_histogram(y, s)
        pairs["samples"] = np.mean([_defined(m.correlation_matrix(x)[upper]) for x in single], axis=0)
        moran_samples = np.mean([_defined(m.morans_i(x, weights)) for x in single], axis=0)
        coexpression = m.pair_agreement(pairs["truth"], pairs["samples"])
        moran = m.moran_agreement(moran_truth, moran_samples)
        crps = probabilistic.crps(y, s)
        values |= {
            "pcc_single": float(np.mean([m.macro(m.pearson(y, x)).value for x in single])),
            "rvd_samples": float(np.mean([m.macro(m.rvd(y, x)).value for x in single])),
            "variance_ratio": float(np.median(_finite(probabilistic.variance_ratio(y, s)))),
            "crps": float(crps.mean()),
            "energy": float(probabilistic.energy_score(y, s).mean()),
            "coverage50": None if half is None else half.observed,
            "coverage90": None if most is None else most.observed,
            "coverage90_split": None if most is None else most.split,
            "width90": None if most is None else most.width,
            "pit_deviation": pit.deviation,
            "coexpression_samples": coexpression.correlation,
            "coexpression_error_samples": coexpression.error,
            "moran_samples": moran.correlation,
            "moran_error_samples": moran.error,
        }
        genes |= {"crps": crps.mean(axis=0), "moran_samples": moran_samples}
        variation = m.gene_variation(y, single[0])
    values = {key: _number(values.get(key)) for key in COLUMNS}
    counts = {
        "spots": len(y),
        "genes": int(measured.sum()),
        "genes_not_measured": int((~measured).sum()),
        "genes_undefined": int(flat.sum()),
        "samples": 0 if s is None else s.shape[1],
    }
    return Scores(method, table.section, table.patient, values, counts, genes, pit, variation, pairs)


def difference(
    table: SectionTable, mean: np.ndarray, other: np.ndarray, measured: np.ndarray, seed: int = 0
) -> Any:
    """Macro PCC of ``mean`` minus that of ``other`` with the interval of the paired difference over tissue blocks."""
    y = table.y[:, measured].astype(np.float64)
    a, b = (intervals.weighted_macro_pearson(y, p[:, measured]) for p in (mean, other))
    equal = np.ones((1, len(y)))
    return intervals.block_bootstrap(
        float(a(equal)[0] - b(equal)[0]),
        lambda w: a(w) - b(w),
        intervals.spatial_blocks(table.coords, BLOCK_PITCHES * table.pitch_px),
        generator=numpy_generator(seed, "difference", table.section),
    )


def _defined(values: np.ndarray) -> np.ndarray:
    """A sample may be constant in a gene (all zero): no structure there, which is a correlation of 0."""
    return np.nan_to_num(values, nan=0.0)


def _finite(values: np.ndarray) -> np.ndarray:
    good = values[np.isfinite(values)]
    return good if len(good) else np.array([np.nan])


def _number(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)
