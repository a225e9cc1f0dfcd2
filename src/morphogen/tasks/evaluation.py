"""Evaluations: scores of items and of sets, paired differences with intervals, tables and the page.

A room scores every item of every method (:class:`ItemScores`), makes a :class:`SetScores` of them with
:func:`mean_intervals` and its own set figures, and writes what it found::

    evaluations = [Evaluation(method, SetScores(figures, *mean_intervals(items, KEYS, ...)), items), ...]
    write_results(out, evaluations, kind="segmentation evaluation", protocol="layout-1", facts=facts)
    write_page(out, evaluations, "Segmentation", "12 images; intervals over patients", TABLES)
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from morphogen.core.files import Manifest, read_json, writable_folder, write_json, write_text
from morphogen.core.provenance import versions
from morphogen.core.seeds import numpy_generator
from morphogen.core.writing.locks import locks_folder
from morphogen.metrics.intervals import Interval, bootstrap
from morphogen.report import Report

Columns = Mapping[str, tuple[str, Literal["max", "min"] | None]]
"""Score → its heading on the page and which of its values is best (``None``: neither)."""


@dataclass
class ItemScores:
    """Scores of one item by one method. ``unit`` is what is independent: the patient, else the item itself."""

    name: str
    unit: str
    values: dict[str, float]

    def row(self) -> dict[str, Any]:
        """Cells of its line in ``items.csv``."""
        return {"name": self.name, "unit": self.unit, **self.values}


@dataclass
class SetScores:
    """Scores over all items.

    figures: single numbers. intervals: means over units (patients, else items) with 95 % bootstrap intervals.
    undefined: how many items had no value of a score. notes: what is needed to read the figures.
    """

    figures: dict[str, float]
    intervals: dict[str, Interval]
    undefined: dict[str, int] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, float | Interval]:
        """Figures and intervals by name."""
        return {**self.figures, **self.intervals}


@dataclass(frozen=True)
class Evaluation:
    """Scores of one method: over the set and per item."""

    method: str
    scores: SetScores
    items: Sequence[ItemScores]


def mean_intervals(
    items: Sequence[ItemScores],
    keys: Iterable[str],
    *,
    unit: str,
    seed: int,
    purpose: str,
    resamples: int = 10_000,
) -> tuple[dict[str, Interval], dict[str, int]]:
    """Mean of every score over units with its bootstrap interval, and how many items had no value of it.

    ``unit`` is the word for what is independent ("patient", "image"); the draws of a score are keyed by seed, purpose
    and its name. A score that no item has is left out.
    """
    intervals: dict[str, Interval] = {}
    undefined: dict[str, int] = {}
    for key in keys:
        known = [(i.values[key], i.unit) for i in items if np.isfinite(i.values.get(key, np.nan))]
        have = sum(key in i.values for i in items)
        if have > len(known):
            undefined[key] = have - len(known)
        if known:
            intervals[key] = _bootstrap(known, unit, seed, purpose, key, resamples)
    return intervals, undefined


def paired_differences(
    items: Sequence[ItemScores],
    others: Sequence[ItemScores],
    keys: Iterable[str],
    *,
    unit: str,
    seed: int,
    purpose: str,
    resamples: int = 10_000,
) -> dict[str, Interval]:
    """Scores of ``items`` minus those of ``others``, two methods on the same items in the same order, with intervals.
    Items where either score is undefined are left out."""
    found = {}
    for key in keys:
        pairs = [
            (a.values.get(key, np.nan) - b.values.get(key, np.nan), a.unit)
            for a, b in zip(items, others, strict=True)
        ]
        known = [(value, name) for value, name in pairs if np.isfinite(value)]
        if known:
            found[key] = _bootstrap(known, unit, seed, purpose, key, resamples)
    return found


def _bootstrap(
    known: Sequence[tuple[float, str]], unit: str, seed: int, purpose: str, key: str, resamples: int
) -> Interval:
    rng = numpy_generator(seed, purpose, key)
    values, units = [value for value, _ in known], [name for _, name in known]
    return bootstrap(values, units, unit=unit, generator=rng, resamples=resamples)


def against_first(
    evaluations: Sequence[Evaluation],
    differences: Callable[[Sequence[Any], Sequence[Any]], dict[str, Interval]],
    of: str | None = None,
) -> dict[str, dict[str, Interval]]:
    """By every other method, the scores of one (``of``, else the first) minus its own."""
    first = next((e for e in evaluations if e.method == of), evaluations[0])
    return {
        other.method: differences(first.items, other.items)
        for other in evaluations
        if other.method != first.method
    }


# -- files
# ---------------------------------------------------------------------------------------------------------


def summary_rows(evaluations: Iterable[Evaluation], order: Sequence[str] = ()) -> list[dict[str, Any]]:
    """One row per method: what ``order`` names first, then the other figures and intervals; bounds as ``name low`` and
    ``name high``."""
    rows = []
    for evaluation in evaluations:
        scores = evaluation.scores
        row: dict[str, Any] = {"method": evaluation.method}
        for key in (*order, *scores.figures, *scores.intervals):
            if key in row or key not in scores.values:
                continue
            value = scores.intervals.get(key)
            if value is None:
                row[key] = scores.figures[key]
            else:
                row |= {key: value.value, f"{key} low": value.low, f"{key} high": value.high}
        rows.append(row)
    return rows


@locks_folder()
def write_results(
    out: Path | str,
    evaluations: Sequence[Evaluation],
    *,
    kind: str,
    protocol: str,
    facts: Mapping[str, Any],
    differences: Mapping[str, Mapping[str, Interval]] | None = None,
    order: Sequence[str] = (),
    items: str = "items",
) -> Path:
    """``metrics.json``, ``summary.csv`` and ``<items>.csv``; the manifest last.

    protocol: changes whenever a figure would change on the same data. facts: what made the results. differences: from
    :func:`against_first`. order: which columns of the summary come first.
    """
    out = writable_folder(out)
    write_text(out / "summary.csv", to_csv(summary_rows(evaluations, order)))
    rows = [{"method": e.method, **item.row()} for e in evaluations for item in e.items]
    write_text(out / f"{items}.csv", to_csv(rows))
    write_json(
        out / "metrics.json",
        {
            "protocol": protocol,
            **facts,
            "versions": versions(),
            "methods": {
                e.method: {
                    "figures": e.scores.figures,
                    "intervals": {key: interval._asdict() for key, interval in e.scores.intervals.items()},
                    "undefined": e.scores.undefined,
                }
                for e in evaluations
            },
            "differences": {
                "of": evaluations[0].method,
                "to": {
                    other: {key: interval._asdict() for key, interval in found.items()}
                    for other, found in (differences or {}).items()
                },
            },
        },
    )
    Manifest.write(out, kind=kind, protocol=protocol, methods=[e.method for e in evaluations])
    return out


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """CSV text with every key of any row as a column; NaN and missing are empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "" if isinstance(v, float) and not np.isfinite(v) else v for k, v in row.items()})
    return text.getvalue()


# -- the page
# ------------------------------------------------------------------------------------------------------


def method_rows(
    evaluations: Sequence[Evaluation], tables: Sequence[tuple[str, Columns]]
) -> list[tuple[str, list[dict[str, Any]], dict[str, Any]]]:
    """Tables for reading: ``(title, rows, best)``; cells are numbers or intervals; what nobody has is left out."""
    made = []
    for title, columns in tables:
        rows = []
        for evaluation in evaluations:
            values = evaluation.scores.values
            cells = {head: values[key] for key, (head, _) in columns.items() if key in values}
            if cells:
                rows.append({"method": evaluation.method, **cells})
        if rows:
            present = {key for row in rows for key in row}
            best = {head: way for head, way in columns.values() if way is not None and head in present}
            made.append((title, rows, best))
    return made


def write_page(
    folder: Path | str,
    evaluations: Sequence[Evaluation],
    title: str,
    subtitle: str,
    tables: Sequence[tuple[str, Columns]],
    *,
    lead: str = "",
    compared: Mapping[str, str] | None = None,
    compared_note: str = "",
    notes: Sequence[str] = (),
    pictures: str = "",
) -> Path:
    """``report.html`` of the results that :func:`write_results` left in ``folder``, with the pictures of ``panels/``.

    compared: score → heading in the table of differences. pictures: what the pictures show.
    """
    folder = Path(folder)
    results = read_json(folder / "metrics.json")
    report = Report(title, subtitle)
    report.chapter("Scores", lead)
    for heading, rows, best in method_rows(evaluations, tables):
        report.section(heading).table(rows, best=best)
    differences = results["differences"]
    if differences["to"]:
        heads = compared or {key: key for found in differences["to"].values() for key in found}
        report.section(f"{differences['of']} against the others").table(
            [
                {
                    "minus": name,
                    **{head: _interval(found[key]) for key, head in heads.items() if key in found},
                }
                for name, found in differences["to"].items()
            ]
        )
        if compared_note:
            report.note(compared_note)
        shown = [_interval(values) for found in differences["to"].values() for values in found.values()]
        if caution := next((each.caution for each in shown if each.caution), ""):
            report.note(f"{caution}.")
    for note in notes:
        report.note(note)
    panels = sorted((folder / "panels").glob("*.png"))
    if panels:
        report.chapter("Pictures", pictures)
        for panel in panels:
            report.figure(panel, panel.stem)
    report.provenance({key: value for key, value in results.items() if key not in ("methods", "differences")})
    return report.save(folder / "report.html")


def _interval(values: Mapping[str, Any]) -> Interval:
    """As it was before JSON, which has no NaN."""
    value, low, high = (
        float("nan") if values[key] is None else values[key] for key in ("value", "low", "high")
    )
    return Interval(value, low, high, values["units"], values["unit"])
