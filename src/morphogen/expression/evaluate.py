"""Evaluation on held-out sections: models beside every baseline, with the guards that make the figures mean something.

Refused: a test section that was trained on, a panel chosen with it, models of different panels or training sections.
Said wherever figures are shown: what the split is, whether sibling sections were in training, how many genes were
undefined, whether a figure is of the mean or of single samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np

from morphogen.core.devices import chosen_precision, resolve_device
from morphogen.core.errors import InputError
from morphogen.core.provenance import versions
from morphogen.core.seeds import numpy_generator
from morphogen.core.writing.h5ad import open_h5ad
from morphogen.expression.config import EvaluateConfig
from morphogen.expression.data import facts, gene_matrix, total_counts
from morphogen.expression.model import ExpressionModel
from morphogen.expression.scoring.baselines import all_baselines
from morphogen.expression.scoring.outside import OUTSIDE_UNITS, Outside, OutsideBaseline
from morphogen.expression.scoring.results import PROTOCOL, Evaluation
from morphogen.expression.scoring.scores import COLUMNS, Scores, difference, score
from morphogen.expression.sections.checked import predicted
from morphogen.expression.sections.panels import Panel
from morphogen.expression.sections.prepare import check_same_encoder, encoder_of
from morphogen.expression.sections.splits import By, Split, split_sections
from morphogen.expression.sections.tables import SectionTable, tabulate
from morphogen.expression.sections.transforms import Transform
from morphogen.metrics.intervals import Interval, bootstrap

REFERENCE = "tuned ridge"  # what differences are taken from


def evaluate_models(
    models: Mapping[str, ExpressionModel],
    sections: Sequence[ad.AnnData],
    test: Sequence[str],
    config: EvaluateConfig | None = None,
    *,
    by: By = "patient",
    predictions: Mapping[str, Sequence[ad.AnnData]] | None = None,
    outside: Sequence[Outside] = (),
    device: str = "auto",
    precision: str = "fp32",
) -> Evaluation:
    """Score models on held-out sections.

    sections: prepared, the training sections of the models (baselines are fitted on them) and the test sections.
    predictions: of other methods by name, one AnnData per test section with ``layers["pred_mean"]`` (and
    ``obsm["pred_samples"]`` (N, K, G)) in log1p counts of the same panel; joined by barcode.
    outside: models of others, scored as baselines (:mod:`morphogen.expression.scoring.outside`).
    by="patient" fails when a patient is on both sides; by="section" names the siblings.
    """
    config = config or EvaluateConfig()
    if not models:
        raise InputError("there is no model to evaluate")
    first = next(iter(models.values()))
    by_name = {facts(s).section: s for s in sections}
    train = check_models(models, by_name, test)
    split = split_sections(sections, test, train, by)
    panel, scoring = first.panel, Transform("log1p", first.transform.library, first.transform.target)
    check_same_encoder([by_name[n] for n in (*train, *test)])
    tables = [tabulate(by_name[name], panel, scoring, training=True) for name in train]
    fitted = all_baselines(tables) if config.baselines else []
    foreign = [OutsideBaseline(model, panel, tables, by_name) for model in outside]
    fitted += foreign

    rows: list[Scores] = []
    differences: list[dict[str, Any]] = []
    maps: dict[str, dict[str, Any]] = {}
    not_measured: dict[str, list[str]] = {}
    evaluations: dict[str, int] = {}
    k = config.predict.draws
    where = resolve_device(device)
    how = chosen_precision(precision, where) if where.type == "cpu" else precision  # tables are made in fp32
    for name in test:
        table, measured = test_table(by_name[name], panel, scoring)
        not_measured[name] = [g for g, m in zip(panel.genes, measured, strict=True) if not m]
        means: dict[str, np.ndarray] = {}
        samples: dict[str, np.ndarray | None] = {}
        for baseline in fitted:
            means[baseline.name] = baseline.mean(table)
            samples[baseline.name] = baseline.samples(table, k, config.seed) if k else None
        for label, model in models.items():
            keep = config.predict.replace(keep_samples="obsm" if k else "no")
            result = model(by_name[name], keep, device=device, precision=how)
            factor = model.transform.to(scoring)
            means[label] = np.asarray(result.layers["pred_mean"]) * factor
            samples[label] = np.asarray(result.obsm["pred_samples"], np.float32) * factor if k else None
            evaluations[label] = int(result.uns["morphogen"]["prediction"]["evaluations"])
        for label, given in (predictions or {}).items():
            means[label], samples[label] = _given(label, given, table, panel)
        for label, mean in means.items():
            rows.append(score(label, table, mean, samples[label], measured, config.seed))
            if label != REFERENCE and REFERENCE in means:
                d = difference(table, mean, means[REFERENCE], measured, config.seed)
                differences.append({"section": name, "method": label, "against": REFERENCE, **_interval(d)})
        maps[name] = _maps(by_name[name], table, means, samples, list(models), rows, config, panel, measured)

    about = {
        "protocol": PROTOCOL,
        "transform": scoring.name,
        "panel_hash": panel.hash,
        "panel_method": panel.method,
        "panel_sections": list(panel.sections),
        "genes": list(panel.genes),
        "not_measured": not_measured,
        "encoder": encoder_of(by_name[test[0]]),
        "images": {
            n: {"mpp": facts(by_name[n]).mpp, "mpp_source": facts(by_name[n]).mpp_source,
                "codec": Path(facts(by_name[n]).image).suffix.lstrip(".") or "not known"}
            for n in (*train, *test) if n in by_name
        },
        "models": {
            label: {
                "identity": m.identity, "recipe": m.config.recipe, "size": m.config.size,
                "solver": config.predict.sampler.name, "evaluations": evaluations.get(label, 0), "training": m.training,
            }
            for label, m in models.items()
        },
        "oracles": [b.name for b in fitted if b.oracle],
        "outside": {b.name: {"genes_not_predicted": b.missing, "units": OUTSIDE_UNITS} for b in foreign},
        "samples": k,
        "seed": config.seed,
        "config": config.to_dict(),
        "versions": versions(),
    }  # fmt: skip
    return Evaluation(rows, split, about, over_patients(rows, split, config.seed), differences, maps)


def load_models(folders: Sequence[Path | str], *, compile: bool | None = False) -> dict[str, ExpressionModel]:
    """Models by the name of their recipe; a prime for each further one of a recipe."""
    models: dict[str, ExpressionModel] = {}
    for folder in folders:
        model = ExpressionModel.from_pretrained(folder).compile(compile)
        name: str = model.config.recipe
        while name in models:
            name += "′"
        models[name] = model
    return models


def read_predictions(files: Sequence[Path | str]) -> dict[str, list[ad.AnnData]]:
    """Results of other methods by the name of their file; several files of one name are of one method."""
    out: dict[str, list[ad.AnnData]] = {}
    for path in map(Path, files):
        out.setdefault(path.stem, []).append(open_h5ad(path))
    return out


def check_models(
    models: Mapping[str, ExpressionModel], sections: Mapping[str, ad.AnnData], test: Sequence[str]
) -> list[str]:
    """The training sections common to all models; refuses whatever would make the comparison void."""
    first = next(iter(models.values()))
    train = list(first.training.get("sections") or [])
    for label, model in models.items():
        trained = list(model.training.get("sections") or [])
        if model.panel.hash != first.panel.hash:
            raise InputError(
                "its gene panel differs from that of the first model, so the scores would be of different genes",
                where=label,
                fix="Train both with --panel.genes and one list",
            )
        if set(trained) != set(train):
            raise InputError(
                f"it was trained on {', '.join(trained)}, the first model on {', '.join(train)}", where=label
            )
        for name in test:
            if name in trained:
                raise InputError(f"section {name} is in the training of this model", where=label)
            if name in model.panel.sections:
                raise InputError(
                    f"the gene panel was chosen with section {name}, which is in the test",
                    where=label,
                    fix="Choose the panel on training sections (the default)",
                )
    if not train:
        raise InputError(
            "the model does not say which sections it was trained on, so nothing can be called held out",
            fix="Predict with it and hand the results in as predictions beside a model trained here",
        )
    lost = [name for name in (*train, *test) if name not in sections]
    if lost:
        raise InputError(
            f"section {lost[0]} is not among the prepared sections; the baselines are fitted on the training sections"
        )
    return train


def test_table(section: ad.AnnData, panel: Panel, transform: Transform) -> tuple[SectionTable, np.ndarray]:
    """The table of a test section and which panel genes it measures, (G,) bool; the others are zero in ``values``."""
    measured = np.array([gene in section.var_names for gene in panel.genes])
    if not measured.any():
        raise InputError("it measures none of the panel genes", where=facts(section).section)
    counts = np.zeros((section.n_obs, len(panel)), dtype=np.float32)
    counts[:, measured] = gene_matrix(section, [g for g, m in zip(panel.genes, measured, strict=True) if m])
    totals = total_counts(section)
    return replace(tabulate(section), values=transform.forward(counts, totals), totals=totals), measured


def _given(
    label: str, given: Sequence[ad.AnnData], table: SectionTable, panel: Panel
) -> tuple[np.ndarray, np.ndarray | None]:
    """Mean and samples of another method for one section, joined by barcode and gene."""
    for result in given:
        if set(table.barcodes) <= set(result.obs_names):
            mean, samples = predicted(result, label)
            rows = result.obs_names.get_indexer(list(table.barcodes))
            columns = result.var_names.get_indexer(list(panel.genes))
            if (columns < 0).any():
                gene = panel.genes[int(np.flatnonzero(columns < 0)[0])]
                raise InputError(f"gene '{gene}' of the panel is not predicted", where=label)
            mean = mean[np.ix_(rows, columns)]
            return mean, None if samples is None else samples[rows][:, :, columns]
    raise InputError(f"no prediction covers the spots of section {table.section}", where=label)


def over_patients(rows: Sequence[Scores], split: Split, seed: int) -> list[dict[str, Any]]:
    """Mean of every column over sections, then patients, with the bootstrap interval over patients (over sections
    where patients are not known). One patient has no interval, and says so."""
    known = all(split.patients.get(r.section) for r in rows)
    unit = "patient" if known else "section"
    out = []
    for method in dict.fromkeys(r.method for r in rows):
        own = [r for r in rows if r.method == method]
        for column in COLUMNS:
            pairs = [(r.values[column], r.patient if known else r.section) for r in own]
            values = [(v, u) for v, u in pairs if v is not None]
            if not values or column.endswith(("_low", "_high")):
                continue
            found = bootstrap(
                [v for v, _ in values],
                [u for _, u in values],
                unit=unit,
                generator=numpy_generator(seed, "patients", method, column),
            )
            out.append(
                {
                    "method": method,
                    "column": column,
                    "undefined": len(pairs) - len(values),
                    **_interval(found),
                }
            )
    return out


def _interval(value: Interval) -> dict[str, Any]:
    bounds = {
        k: None if not np.isfinite(v) else float(v) for k, v in (("low", value.low), ("high", value.high))
    }
    return {"value": value.value, **bounds, "units": value.units, "unit": value.unit}


def _maps(
    section: ad.AnnData,
    table: SectionTable,
    means: Mapping[str, np.ndarray],
    samples: Mapping[str, np.ndarray | None],
    models: Sequence[str],
    rows: Sequence[Scores],
    config: EvaluateConfig,
    panel: Panel,
    measured: np.ndarray,
) -> dict[str, Any]:
    """What the map figures of a section need: the genes of the last model, chosen over its range of scores."""
    label = models[-1]
    own = next(r for r in rows if r.method == label and r.section == table.section)
    genes = np.flatnonzero(measured)
    order = genes[np.argsort(-np.nan_to_num(own.genes["pcc"], nan=-2.0), kind="stable")]
    half = (config.maps + 1) // 2
    rest = (
        order[np.linspace(half, len(order) - 1, config.maps - half).astype(int)] if config.maps > half else []
    )
    chosen = list(dict.fromkeys([*order[:half].tolist(), *np.asarray(rest, dtype=int).tolist()]))
    if config.genes:
        unknown = [g for g in config.genes if g not in panel.genes]
        if unknown:
            raise InputError(f"gene '{unknown[0]}' is not in the panel", where="--genes")
        chosen = [panel.genes.index(g) for g in config.genes]
    maps: dict[str, dict[str, np.ndarray]] = {}
    for g in chosen:
        drawn = samples[label]
        entry = {"measured": table.y[:, g], "predicted": means[label][:, g]}
        if drawn is not None:
            entry |= {"one sample": drawn[:, 0, g], "sd": drawn[:, :, g].std(axis=1)}
        maps[panel.genes[g]] = entry
    image, factor = None, 1.0
    for library in dict(section.uns.get("spatial", {})).values():
        image = np.asarray(library["images"]["lowres"])
        factor = float(library["scalefactors"]["tissue_lowres_scalef"])
    return {"genes": maps, "coords": table.coords * factor, "image": image, "model": label}
