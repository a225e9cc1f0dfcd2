"""What an evaluation found, and the files it is kept in."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from morphogen.core.files import Manifest, writable_folder, write_json, write_text
from morphogen.core.writing.locks import locks_folder
from morphogen.expression.scoring.pages import write_page
from morphogen.expression.scoring.scores import COLUMNS, Scores
from morphogen.expression.sections.splits import Split

PROTOCOL = {"id": "morphogen-expression", "version": 1}


@dataclass
class Evaluation:
    """All results of one protocol run; :meth:`save` writes JSON, CSV, PNG and HTML."""

    rows: list[Scores]
    split: Split
    about: dict[str, Any]
    intervals: list[dict[str, Any]]
    differences: list[dict[str, Any]] = field(default_factory=list)
    maps: dict[str, dict[str, Any]] = field(default_factory=dict)  # section → what map figures need

    def frame(self) -> pd.DataFrame:
        """One line per section and method, columns as in :data:`COLUMNS`."""
        return pd.DataFrame(
            [
                {"section": r.section, "patient": r.patient, "method": r.method, **r.values, **r.counts}
                for r in self.rows
            ]
        )

    def gene_frame(self) -> pd.DataFrame:
        """One line per section, method and gene."""
        genes = self.about["genes"]
        parts = []
        for r in self.rows:
            measured = [g for g in genes if g not in set(self.about["not_measured"].get(r.section, []))]
            keep = {k: v for k, v in r.genes.items() if len(v) == len(measured)}
            parts.append(pd.DataFrame({"section": r.section, "method": r.method, "gene": measured, **keep}))
        return pd.concat(parts, ignore_index=True)

    def summary(self) -> dict[str, Any]:
        """What the evaluation found, as plain values: split, scores by section and method, intervals, differences."""
        return {
            **self.about,
            "split": self.split.to_dict(),
            "columns": COLUMNS,
            "scores": self.frame().to_dict(orient="records"),
            "intervals": self.intervals,
            "differences": self.differences,
        }

    @locks_folder("folder")
    def save(self, folder: Path | str) -> Path:
        """``evaluation.json``, ``scores.csv``, ``genes.csv``, figures and ``report.html``; manifest last."""
        folder = writable_folder(folder)
        write_json(folder / "evaluation.json", self.summary())
        write_text(folder / "scores.csv", self.frame().to_csv(index=False))
        write_text(folder / "genes.csv", self.gene_frame().to_csv(index=False))
        write_page(self, folder)
        Manifest.write(folder, kind="expression-evaluation", protocol=PROTOCOL, split=self.split.to_dict())
        return folder
