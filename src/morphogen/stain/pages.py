"""The HTML page of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from morphogen.core.files import read_json
from morphogen.report import Report
from morphogen.stain.evaluate import Evaluation, report_rows


def write_page(folder: Path | str, evaluations: Sequence[Evaluation]) -> Path:
    """``report.html`` of the results that :func:`~morphogen.stain.evaluate.write_results` left in ``folder``."""
    folder = Path(folder)
    results = read_json(folder / "metrics.json")
    images, unit = results["images"], results["unit"]
    report = Report("Virtual staining", f"{images} image pairs; intervals over {unit}s")
    report.chapter("Scores", "DAB first: structural similarity hardly follows staining.")
    for title, rows, best in report_rows(evaluations):
        report.section(title).table(rows, best=best)
    chance = results.get("mra_chance")
    if chance:
        report.note(
            f"MRA: top-1 and top-3 retrieval of the true partner among {images} real images with the encoder "
            f"`{results['config']['encoder']}`; chance is {chance:.3f}."
        )
    panels = sorted((folder / "panels").glob("*.png"))
    if panels:
        report.chapter(
            "Pictures",
            "From left to right: H&E, predicted stain, real stain, DAB of the predicted, DAB of the real, and, with "
            "several samples, where the samples disagree (bright).",
        )
        for panel in panels:
            report.figure(panel, panel.stem)
    report.provenance({key: value for key, value in results.items() if key != "methods"})
    return report.save(folder / "report.html")
