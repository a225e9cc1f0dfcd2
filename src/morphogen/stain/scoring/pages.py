"""The HTML page of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from morphogen.core.files import read_json
from morphogen.metrics.intervals import Interval
from morphogen.report import Report
from morphogen.stain.evaluate import Evaluation

COMPARED_AS = {
    "dab_tile_correlation": "r per tile, within images",
    "dab_tile_correlation_pooled": "r, all tiles",
    "dab_tile_mae": "error per tile",
}


def write_page(folder: Path | str, evaluations: Sequence[Evaluation]) -> Path:
    """``report.html`` of the results that :func:`~morphogen.stain.evaluate.write_results` left in ``folder``."""
    folder = Path(folder)
    results = read_json(folder / "metrics.json")
    images, unit = results["images"], results["unit"]
    report = Report("Virtual staining", f"{images} image pairs; intervals over {unit}s")
    report.chapter("Scores", "DAB first: structural similarity hardly follows staining.")
    for title, rows, best in report_rows(evaluations):
        report.section(title).table(rows, best=best)
    compared = results["differences"]
    if compared["to"]:
        report.section(f"{compared['of']} against the others").table(
            [
                {
                    "minus": name,
                    **{head: _interval(found[key]) for key, head in COMPARED_AS.items() if key in found},
                }
                for name, found in compared["to"].items()
            ]
        )
        report.note(
            f"Paired differences with their 95 % intervals over {unit}s: where an interval holds 0, no difference is "
            "shown. More is better for r, less for the error."
        )
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
    report.provenance({key: value for key, value in results.items() if key not in ("methods", "differences")})
    return report.save(folder / "report.html")


def _interval(values: dict[str, Any]) -> Interval:
    """As it was before JSON, which has no NaN."""
    value, low, high = (
        float("nan") if values[key] is None else values[key] for key in ("value", "low", "high")
    )
    return Interval(value, low, high, values["units"], values["unit"])


def report_rows(evaluations: Sequence[Evaluation]) -> list[tuple[str, list[dict[str, Any]], dict[str, Any]]]:
    """Tables for reading: ``(title, rows, best)``; cells are numbers or intervals; DAB comes first."""
    tables: list[tuple[str, dict[str, tuple[str, str | None]]]] = [
        (
            "DAB optical density",
            {
                "dab_tile_correlation": ("r per tile, within images", "max"),
                "dab_tile_correlation_pooled": ("r per tile, all tiles", "max"),
                "dab_tile_mae": ("error per tile", "min"),
                "dab_mean_pearson": ("r of image means", "max"),
                "dab_positive_mae": ("error of positive fraction", "min"),
                "dab_h_score_mae": ("error of H-score", "min"),
            },
        ),
        (
            "Retrieval, perception, features",
            {
                "mra_top1": ("MRA top-1", "max"),
                "mra_top3": ("MRA top-3", "max"),
                "phv": ("PHV", "min"),
                "frechet": ("Fréchet distance", "min"),
                "kid": ("KID", "min"),
                "precision": ("precision", "max"),
                "recall": ("recall", "max"),
                "density": ("density", None),
                "coverage": ("coverage", "max"),
                "lpips": ("LPIPS", "min"),
            },
        ),
        (
            "Pixels and sharpness (1 is as sharp as the real stain)",
            {
                "ssim": ("SSIM", "max"),
                "psnr": ("PSNR", "max"),
                "sharpness": ("gradient ratio", None),
                "detail": ("Laplacian energy ratio", None),
                "uncertainty_error_correlation": ("r of uncertainty and error", None),
                "uncertainty_error_tile_correlation": ("the same per tile", None),
            },
        ),
    ]
    made = []
    for title, columns in tables:
        rows = []
        for evaluation in evaluations:
            values = {**evaluation.scores.figures, **evaluation.scores.intervals}
            cells = {head: values[key] for key, (head, _) in columns.items() if key in values}
            if cells:
                rows.append({"method": evaluation.method, **cells})
        if rows:
            present = {key for row in rows for key in row}
            best = {head: way for head, way in columns.values() if way is not None and head in present}
            made.append((title, rows, best))
    return made
