"""Figures and the HTML page of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from morphogen.core.files import atomic_path
from morphogen.expression.scoring.scores import COLUMNS, Scores
from morphogen.metrics.intervals import Interval
from morphogen.report import Report
from morphogen.report.figures import COLOURS, calibration, gene_maps, intervals, matrix, scatter, subplots
from morphogen.report.style import plain_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from morphogen.expression.sections.splits import Split

MAIN = (
    *("pcc", "pcc_low", "pcc_high", "pcc10", "pcc50", "rvd_mean", "rvd_samples", "crps", "energy"),
    *("coverage50", "coverage90", "coverage90_split", "coexpression_error_samples", "moran_samples"),
)
REST = (
    *("pcc_single", "spearman", "mse", "mae", "variance_ratio", "width90", "pit_deviation"),
    *("coexpression_mean", "coexpression_samples", "coexpression_error_mean"),
    *("moran_mean", "moran_error_mean", "moran_error_samples"),
)
BEST = {
    **dict.fromkeys(("pcc", "pcc10", "pcc50", "moran_samples"), "max"),
    **dict.fromkeys(("rvd_mean", "rvd_samples", "crps", "energy", "coexpression_error_samples"), "min"),
}


class Results(Protocol):
    """What a page shows of an evaluation."""

    rows: list[Scores]
    split: Split
    about: dict[str, Any]
    intervals: list[dict[str, Any]]
    differences: list[dict[str, Any]]
    maps: dict[str, dict[str, Any]]


def write_page(evaluation: Results, folder: Path) -> Path:
    """PNG figures beside ``report.html``, which holds them all."""
    about, split = evaluation.about, evaluation.split
    page = Report("Spatial gene expression: evaluation", f"{split.label} · {', '.join(split.test)}")
    page.chapter(
        "What was done",
        f"Trained on {', '.join(split.train)}; tested on {', '.join(split.test)}: **{split.label}**. "
        f"{len(about['genes'])} genes (panel {about['panel_hash']}, chosen on "
        f"{', '.join(about['panel_sections']) or 'a list'}), "
        f"{about['transform']}, encoder {about['encoder']['name']}, {about['samples']} samples a spot.",
    )
    if split.siblings:
        page.note(
            f"Sections {', '.join(split.siblings)} of a test patient were in training: these figures say nothing about "
            "new patients.",
            kind="warning",
        )
    page.note(
        "Intervals beside a section's PCC resample tissue blocks of that section: they tell what another part of the "
        "same section would give, not another patient. PCC-k picks genes on the test scores and is optimistic. "
        + (f"Oracle, uses the test counts: {', '.join(about['oracles'])}." if about["oracles"] else "")
    )
    for section in split.test:
        _section(page, evaluation, section, folder)
    _patients(page, evaluation)
    page.provenance({k: v for k, v in about.items() if k != "genes"})
    return page.save(folder / "report.html")


def _section(page: Report, evaluation: Results, section: str, folder: Path) -> None:
    rows = [r for r in evaluation.rows if r.section == section]
    counts = rows[0].counts
    page.chapter(
        f"Section {section}",
        f"{counts['spots']} spots, {counts['genes']} genes scored, {counts['genes_not_measured']} of the panel not "
        f"measured here, {counts['genes_undefined']} constant and so undefined.",
    )
    for columns, caption in ((MAIN, "Main scores"), (REST, "More scores")):
        table = [{"method": r.method, **{COLUMNS[c]: r.values[c] for c in columns}} for r in rows]
        best = {COLUMNS[c]: d for c, d in BEST.items() if c in columns}
        page.table(table, caption, best=best)  # type: ignore[arg-type]
    differences = [d for d in evaluation.differences if d["section"] == section]
    model = evaluation.maps[section]["model"]
    figures: dict[str, tuple[Any, str]] = {}
    drawn = {r.method: (r.values["pcc"], r.values["pcc_low"], r.values["pcc_high"]) for r in rows}
    figures["pcc"] = (
        intervals({k: tuple(np.nan if x is None else x for x in v) for k, v in drawn.items()},
                  xlabel="macro PCC", title=section, highlight=model).figure,
        "Macro PCC with the interval over tissue blocks of this section.",
    )  # fmt: skip
    if differences:
        figures["difference"] = (
            intervals({d["method"]: (d["value"], d["low"] or np.nan, d["high"] or np.nan) for d in differences},
                      xlabel="macro PCC − tuned ridge", title="Paired difference", highlight=model).figure,
            "Macro PCC minus that of the tuned ridge, paired over the same tissue blocks.",
        )  # fmt: skip
    own = next(r for r in rows if r.method == model)
    sampled = [r for r in rows if r.pit is not None]
    figures["variation"] = (
        _variation(rows),
        "Gene variation: mean and variance per gene, genes by measured mean.",
    )
    if sampled:
        figures["calibration"] = (_calibration(sampled), "Coverage of central intervals, and PIT histograms.")
    figures["coexpression"] = (_coexpression(own), "Correlations of gene pairs, measured against predicted.")
    figures["moran"] = (_moran(own), "Spatial autocorrelation per gene, measured against predicted.")
    maps = evaluation.maps[section]
    if maps["genes"]:
        figures["maps"] = (
            gene_maps(
                maps["coords"], maps["genes"], image=maps["image"], label=evaluation.about["transform"]
            ),
            f"Maps of {model}: measured, predicted mean, one sample, standard deviation of the samples.",
        )
    for name, (figure, caption) in figures.items():
        _save(figure, folder / f"{section}_{name}.png")
        page.figure(folder / f"{section}_{name}.png", caption)


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        plain_labels(figure).savefig(temporary, dpi=130)


def _variation(rows: list[Scores]) -> Figure:
    figure, axes = subplots(1, 2, width=4.6, height=3.2)
    first = next(r for r in rows if r.variation is not None).variation
    assert first is not None
    x = np.arange(len(first.order))
    for ax, kind in ((axes[0, 0], "mean"), (axes[0, 1], "variance")):
        for r in rows:
            if r.variation is not None and r.method not in ("training mean", "coordinates only"):
                ax.plot(x, getattr(r.variation, kind), linewidth=0.9, label=r.method)
        ax.plot(x, getattr(first, f"truth_{kind}"), color="#3A3A3A", linewidth=2, label="measured")
        ax.set(xlabel="genes by measured mean", ylabel=f"{kind} over spots")
    axes[0, 0].legend(frameon=False, fontsize=7)
    axes[0, 1].set_title("one sample per spot", loc="left")
    return figure


def _calibration(rows: list[Scores]) -> Figure:
    figure, axes = subplots(1, 1 + len(rows), width=2.9, height=2.9)
    curves = {}
    for r in rows:
        levels = [(0.5, r.values["coverage50"]), (0.9, r.values["coverage90"])]
        known = [(a, b) for a, b in levels if b is not None]
        if known:
            curves[r.method] = ([a for a, _ in known], [b for _, b in known])
    calibration(curves, ax=axes[0, 0])
    for ax, r in zip(axes[0, 1:], rows, strict=True):
        assert r.pit is not None
        ax.bar(r.pit.edges[:-1], r.pit.density, width=np.diff(r.pit.edges), align="edge", color=COLOURS[5])
        ax.axhline(1.0, color="#3A3A3A", linewidth=1, linestyle="--")
        ax.set_title(r.method, loc="left", fontsize=8)
        ax.set(xlabel="PIT", xlim=(0, 1), ylim=(0, max(2.5, float(r.pit.density.max()) * 1.05)))
    return figure


def _coexpression(row: Scores) -> Figure:
    kinds = [k for k in ("mean", "samples") if k in row.coexpression]
    figure, axes = subplots(1, 2 + len(kinds), width=3.6, height=3.4)
    pairs = row.coexpression["truth"]
    genes = int((1 + np.sqrt(1 + 8 * len(pairs))) / 2)
    matrix(_square(pairs, genes), ax=axes[0, 0], title="measured")
    matrix(_square(row.coexpression[kinds[-1]], genes), ax=axes[0, 1], title=f"predicted ({kinds[-1]})")
    for ax, kind in zip(axes[0, 2:], kinds, strict=True):
        scatter(pairs, row.coexpression[kind], ax=ax, title=f"gene pairs, {kind}")
    return figure


def _square(pairs: np.ndarray, genes: int) -> np.ndarray:
    out = np.eye(genes)
    out[np.triu_indices(genes, 1)] = pairs
    return np.maximum(out, out.T) + np.minimum(out, out.T) - np.diag(np.diag(out))


def _moran(row: Scores) -> Figure:
    kinds = [k for k in ("moran_mean", "moran_samples") if k in row.genes]
    figure, axes = subplots(1, len(kinds), width=3.6, height=3.4)
    for ax, kind in zip(axes[0], kinds, strict=True):
        scatter(
            row.genes["moran_truth"],
            row.genes[kind],
            ax=ax,
            title=f"Moran's I, {kind.removeprefix('moran_')}",
        )
    return figure


def _patients(page: Report, evaluation: Results) -> None:
    found = [i for i in evaluation.intervals if i["column"] in MAIN]
    units = max((i["units"] for i in found), default=0)
    unit = found[0]["unit"] if found else "patient"
    page.chapter(f"Over {unit}s")
    if units < 2:
        page.text(
            f"One test {unit}: there is no interval over {unit}s. The figures are those of the section above."
        )
        return
    methods = list(dict.fromkeys(i["method"] for i in found))
    table = []
    for method in methods:
        line: dict[str, Any] = {"method": method}
        for i in found:
            if i["method"] == method:
                line[COLUMNS[i["column"]]] = f"{i['value']:.3f} [{i['low']:.3f}, {i['high']:.3f}]"
        table.append(line)
    few = Interval(0.0, 0.0, 0.0, units, unit).caution
    said = f"Means over {units} {unit}s with 95 % bootstrap intervals over {unit}s."
    page.table(table, f"{said} {few}." if few else said)
