"""What was tried for the recipe ``spatial``, scored on inner folds of the TRAINING sections of each split alone.

    python -m bench.expression_tried --store build/her2st/store [--models build/her2st] --write

Prints the table of docs/expression.md and with ``--write`` puts it between its markers. No test section is read.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.expression_her2st import PAGE, SPLITS
from morphogen.expression.config import SpatialConfig
from morphogen.expression.recipes.features import ContextFeatures, Projection, within_section
from morphogen.expression.recipes.readout import ALPHAS, Fold, _Fitter, _parts, choose
from morphogen.expression.recipes.spatial import SpatialModel
from morphogen.expression.scoring.baselines import Ridge, tuned_ridge
from morphogen.expression.sections.neighbours import neighbourhood_mean
from morphogen.expression.sections.panels import training_panel
from morphogen.expression.sections.prepare import load_sections
from morphogen.expression.sections.tables import SectionTable, fold_numbers, inner_folds, tabulate
from morphogen.expression.sections.transforms import Transform
from morphogen.metrics.expression import macro, pearson
from morphogen.metrics.probabilistic import crps

Describe = Callable[[SectionTable], np.ndarray]


def context(values: np.ndarray, table: SectionTable) -> np.ndarray:
    near, region = (neighbourhood_mean(values, table.neighbours[:, :k]) for k in (table.near, table.region))
    return np.concatenate([values, near, region], axis=1)


RIDGES: dict[str, Describe] = {
    "tuned ridge on the spot's embedding (the baseline)": lambda t: t.embedding,
    "… embedding standardised within its section": lambda t: within_section(t.embedding),
    "… with means over 9 and 49 neighbours": lambda t: context(t.embedding, t),
    "… standardised, with neighbours": lambda t: context(within_section(t.embedding), t),
}


def score(fold: Fold, prediction: np.ndarray) -> list[float]:
    return [
        macro(pearson(fold.held_values[fold.group == g], prediction[fold.group == g])).value
        for g in np.unique(fold.group)
    ]


def folds_of(tables: list[SectionTable], describe: Describe | None) -> list[Fold]:
    """Inner folds with section-centred targets. describe=None: the recipe's own context features."""
    out, numbers = [], inner_folds(tables)
    for k in fold_numbers(numbers):
        fitted = [t.rows(f != k) for t, f in zip(tables, numbers) if (f != k).any()]
        if describe is None:
            features = ContextFeatures.fit(fitted)
            every = [features.section(t) for t in tables]
        else:
            projection = Projection.fit(np.concatenate([describe(t) for t in fitted]), 256)
            every = [projection.apply_to(describe(t)) for t in tables]
        parts: list[list[np.ndarray]] = [[], [], [], [], []]
        for i, (t, f, x) in enumerate(zip(tables, numbers, every)):
            if (f != k).any():
                parts[0].append(x[f != k])
                parts[1].append(t.y[f != k] - t.y[f != k].mean(axis=0))
            if (f == k).any():
                parts[2].append(x[f == k])
                parts[3].append(t.y[f == k])
                parts[4].append(np.full(int((f == k).sum()), i))
        out.append(Fold(*(np.concatenate(p) for p in parts)))
    return out


def pooled(folds: list[Fold], predictions: list[np.ndarray]) -> float:
    """Macro PCC per held-out section, blocks of one section pooled."""
    groups: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    for fold, p in zip(folds, predictions):
        for g in np.unique(fold.group):
            keep = fold.group == g
            groups.setdefault(int(g), []).append((fold.held_values[keep], p[keep]))
    values = []
    for pairs in groups.values():
        y, p = (np.concatenate([pair[i] for pair in pairs]) for i in (0, 1))
        values.append(macro(pearson(y, p)).value)
    return float(np.mean(values))


def best_part(folds: list[Fold], wanted: Callable[[Any], bool]) -> float:
    """The best single part of the read-out's grid among those wanted."""
    every = [_parts(_Fitter(f.scores, f.values), f.held_scores) for f in folds]
    spread = [f.values.std(axis=0) for f in folds]
    keys = [key for key in every[0] if wanted(key)]
    return max(pooled(folds, [parts[key] * s for parts, s in zip(every, spread)]) for key in keys)


def full_rank(folds: list[Fold]) -> float:
    fitters = [_Fitter(f.scores, f.values) for f in folds]
    return max(
        pooled(folds, [f.held_scores @ x.linear(a) * x.std for f, x in zip(folds, fitters)]) for a in ALPHAS
    )


def residuals(tables: list[SectionTable]) -> dict[str, float]:
    """CRPS of held-out training spots around the read-out, level of the section known, by kind of residual."""
    model, held, _ = SpatialModel.fit(tables, SpatialConfig(), Transform())
    model.diffused = False
    mean = np.concatenate([t.y.mean(axis=0) + p for t, p in zip(tables, held.pattern)]).astype(np.float32)
    truth, scores = np.concatenate([t.y for t in tables]), np.concatenate(held.scores)
    g = torch.Generator().manual_seed(0)
    m, x = torch.from_numpy(mean), torch.from_numpy(scores)
    sd = torch.from_numpy((truth - mean).std(axis=0))
    noise = torch.randn((20, *mean.shape), generator=g)
    plain = m + sd * noise
    scaled = torch.stack([m + model.residual(n, x, m, 0) for n in noise])
    counts = model.observed(scaled, 0.0, torch.rand(scaled.shape, generator=g))
    return {
        "Gaussian residual, one standard deviation per gene": crps(
            truth, plain.numpy().swapaxes(0, 1)
        ).mean(),
        "… scale by gene and predicted mean, gene covariance": crps(
            truth, scaled.numpy().swapaxes(0, 1)
        ).mean(),
        "… rounded at random to whole counts": crps(truth, counts.numpy().swapaxes(0, 1)).mean(),
    }


def run(store: Path) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """``(inner macro PCC by read-out, inner CRPS by residual)``, one figure per split."""
    mean: dict[str, list[float]] = {}
    spread: dict[str, list[float]] = {}
    for train, _, _ in SPLITS.values():
        sections = load_sections(store, train)
        panel = training_panel(sections, 200)
        tables = [tabulate(s, panel, Transform(), training=True) for s in sections]
        found: dict[str, float] = {}
        for name, describe in RIDGES.items():
            found[name] = (
                Ridge(tables, describe).inner_pcc if "baseline" not in name else tuned_ridge(tables).inner_pcc
            )
        own = folds_of(tables, None)
        found["ridge on the recipe's context features, targets centred by section"] = full_rank(own)
        found["… reduced rank"] = best_part(own, lambda key: key[0] == "linear")
        found["… Gaussian kernel, reduced rank"] = best_part(own, lambda key: key[0] == "kernel")
        found["… both, mixed: the recipe"] = choose(own)[1]
        for name, value in found.items():
            mean.setdefault(name, []).append(value)
        for name, value in residuals(tables).items():
            spread.setdefault(name, []).append(float(value))
    return mean, spread


def table(mean: dict[str, list[float]], spread: dict[str, list[float]]) -> str:
    heads = [f"({key}) {', '.join(train)}" for key, (train, _, _) in SPLITS.items()]
    lines = []
    for title, rows in (("read-out, inner macro PCC", mean), ("residual, inner CRPS", spread)):
        lines += [f"| {title} | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
        lines += [
            f"| {name} | " + " | ".join(f"{v:.3f}" for v in values) + " |" for name, values in rows.items()
        ]
        lines.append("")
    return "\n".join(lines).rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--store", type=Path, required=True, help="prepared sections, of bench.expression_her2st"
    )
    parser.add_argument("--write", action="store_true", help="write the table into docs/expression.md")
    args = parser.parse_args()
    text = table(*run(args.store))
    print(text)
    if args.write:
        page = PAGE.read_text()
        begin, end = "<!-- tried:begin -->", "<!-- tried:end -->"
        head, _, rest = page.partition(begin)
        PAGE.write_text(f"{head}{begin}\n{text}\n{end}{rest.partition(end)[2]}")


if __name__ == "__main__":
    main()
