"""Spatial expression: samples of few evaluations beside the published 1000, on a small network trained here."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench.bench_expression import FAST, section
from bench.harness import Row

FEWER = (8, 10, 12, 16)
REFERENCE = 1000


def quality(quick: bool) -> list[Row]:
    """Fast at 20 evaluations against the reference at 1000 on a small network trained here."""
    from morphogen.expression import ExpressionConfig, train_model
    from morphogen.expression.sections.tables import tabulate
    from morphogen.metrics.expression import macro, pearson
    from morphogen.metrics.probabilistic import energy_score, variance_ratio

    genes, steps, side, every, k = (24, 60, 12, 9, 4) if quick else (48, 1500, 24, 4, 20)
    train = [section(f"T{i}", f"P{i}", side, genes + 6) for i in range(2)]
    test = section("T9", "P9", side, genes + 6)
    config = ExpressionConfig(
        recipe="stem",
        panel={"size": genes, "highly_variable": genes + 5},
        network={"genes_per_token": 4, "width": 64, "depth": 2},
        training={"steps": steps, "warmup_steps": 10},
        validation=0.0,
    )
    with tempfile.TemporaryDirectory() as folder:
        model = train_model(train, config, Path(folder), device="cpu")
    part = test[::every].copy()  # from all over the section
    truth = tabulate(part, model.panel, model.transform).y
    # The mean of K samples is itself drawn: several seeds say how much of a difference is that.
    seeds = {"fast": 2 if quick else 8, "reference": 1 if quick else 2}
    found: dict[str, dict[str, np.ndarray]] = {}
    how = {"fast": ("fast", FAST), "reference": ("reference", REFERENCE)}
    few = {f"{preset} {number}": (preset, number) for number in FEWER for preset in ("fast", "faster")}
    seeds |= dict.fromkeys(few, 1 if quick else 4)
    for solver, n in seeds.items():
        runs: dict[str, list[Any]] = {"variance": [], "energy": [], "pcc": [], "ratio": []}
        preset, evaluations = (how | few)[solver]
        for seed in range(n):
            result = model(
                part,
                samples=k,
                solver=preset,
                steps=evaluations,
                keep_samples="obsm",
                device="cpu",
                seed=seed,
            )
            s = np.asarray(result.obsm["pred_samples"], np.float64)
            # Spread of all samples over spots and draws: what shrinks when a solver takes too few steps.
            runs["variance"].append(s.reshape(-1, s.shape[2]).var(axis=0))
            runs["energy"].append(float(energy_score(truth, s).mean()))
            runs["pcc"].append(macro(pearson(truth, s.mean(axis=1))).value)
            runs["ratio"].append(float(np.nanmean(variance_ratio(truth, s))))
        found[solver] = {key: np.array(values) for key, values in runs.items()}
    a, b = found["fast"], found["reference"]
    on = (
        f"network 2×64 trained here {steps} steps, {part.n_obs} spots × {k} samples, {genes} genes, held-out patient, "
        f"{seeds['fast']} seeds against {seeds['reference']}"
    )
    variance = a["variance"] / b["variance"].mean(axis=0)
    energy = a["energy"] / b["energy"].mean()
    pcc = a["pcc"] - b["pcc"].mean()

    def row(name: str, each: np.ndarray, goal: str, unit: str, more: str = "") -> Row:
        return Row(name, float(each.mean()), unit, float(each.min()), float(each.max()), goal, on + more)

    return [
        row("Fast at 20 / reference at 1000: variance of samples", variance.mean(axis=1), "0.9 to 1.1", "x",
            f"; sample/truth variance {a['ratio'].mean():.3f} and {b['ratio'].mean():.3f}"),
        row("Fast at 20 / reference at 1000: energy score", energy, "0.98 to 1.02", "x"),
        row("Fast at 20 − reference at 1000: macro PCC", pcc, ">= -0.005", "",
            f"; {a['pcc'].mean():.4f} and {b['pcc'].mean():.4f}, whose seeds differ by {np.ptp(b['pcc']):.4f}"),
        *(_fewer(found, name) for name in few),
    ]  # fmt: skip


def _fewer(found: dict[str, dict[str, np.ndarray]], name: str) -> Row:
    """Fewer evaluations: variance of the samples over the reference's, and beside it energy and PCC; PCC against fast
    at 20 from the same noise, since seeds alone move it by more."""
    each, reference, fast = found[name], found["reference"], found["fast"]
    variance = (each["variance"] / reference["variance"].mean(axis=0)).mean(axis=1)
    energy = each["energy"] / reference["energy"].mean()
    pcc = each["pcc"] - fast["pcc"][: len(each["pcc"])]
    preset, evaluations = name.split()
    order = {"fast": "second order, log-SNR within ±8", "faster": "third order, log-SNR −6…5"}[preset]
    return Row(
        f"{preset.capitalize()} at {evaluations} / reference at 1000: variance of samples",
        float(variance.mean()), "x", float(variance.min()), float(variance.max()), "0.95 to 1.05",
        f"{order}; energy {energy.mean():.4f} (0.99 to 1.01), macro PCC {pcc.mean():+.4f} against fast at 20 from the "
        f"same noise; {len(pcc)} seeds",
    )  # fmt: skip


def run(quick: bool = False) -> list[Row]:
    """All rows."""
    return quality(quick)
