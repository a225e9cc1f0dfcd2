"""The HTML page of an evaluation, and its short table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from morphogen.core.files import read_json
from morphogen.stain.scoring.channels import COMPARED, KEYS, ChannelScores, channel_tables
from morphogen.tasks import evaluation
from morphogen.tasks.evaluation import Columns, Evaluation

COMPARED_AS = {
    "dab_tile_correlation": "r per tile, within images",
    "dab_tile_correlation_pooled": "r, all tiles",
    "dab_tile_mae": "error per tile",
}

TABLES: list[tuple[str, Columns]] = [
    (
        "DAB optical density",
        {
            "dab_tile_correlation": ("r per tile, within images", "max"),
            "dab_tile_correlation_pooled": ("r per tile, all tiles", "max"),
            "dab_tile_mae": ("error per tile", "min"),
            "dab_dice": ("Dice of positive pixels", "max"),
            "dab_hausdorff95": ("Hausdorff 95 %, px", "min"),
            "dab_risk": ("error kept by certainty", "min"),
            "dab_cell_correlation": ("r per nucleus", "max"),
            "dab_cell_mae": ("error per nucleus", "min"),
            "dab_cell_dice": ("Dice of positive nuclei", "max"),
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


def write_page(folder: Path | str, evaluations: Sequence[Evaluation]) -> Path:
    """``report.html`` of the results that :func:`~morphogen.stain.evaluate.write_results` left in ``folder``."""
    results = read_json(Path(folder) / "metrics.json")
    images, unit = results["images"], results["unit"]
    first = evaluations[0].items[0]
    if isinstance(first, ChannelScores):
        return evaluation.write_page(
            folder,
            evaluations,
            f"Virtual staining: {', '.join(first.target.channels)}",
            f"{images} image pairs; intervals over {unit}s",
            channel_tables(first.target),
            lead="Means of tiles first: where the signal lies within images, and how much there is over all.",
            compared={key: KEYS[key][0] for key in COMPARED},
            compared_note=f"Paired differences with their 95 % intervals over {unit}s: where an interval holds 0, no "
            "difference is shown.",
            pictures="From left to right: H&E, one sample, real, mean of the samples, where they disagree (bright).",
        )
    chance, notes = results.get("mra_chance"), []
    if chance:
        notes.append(
            f"MRA: top-1 and top-3 retrieval of the true partner among {images} real images with the encoder "
            f"`{results['config']['encoder']}`; chance is {chance:.3f}."
        )
    return evaluation.write_page(
        folder,
        evaluations,
        "Virtual staining",
        f"{images} image pairs; intervals over {unit}s",
        TABLES,
        lead="DAB first: structural similarity hardly follows staining.",
        compared=COMPARED_AS,
        compared_note=f"Paired differences with their 95 % intervals over {unit}s: where an interval holds 0, no "
        "difference is shown. More is better for r, less for the error.",
        notes=notes,
        pictures="From left to right: H&E, predicted stain, real stain, DAB of the predicted, DAB of the real, and, "
        "with several samples, where the samples disagree (bright).",
    )


def report_rows(evaluations: Sequence[Evaluation]) -> list[tuple[str, list[dict[str, Any]], dict[str, Any]]]:
    """Tables for reading: ``(title, rows, best)``; cells are numbers or intervals; DAB comes first."""
    return evaluation.method_rows(evaluations, TABLES)


def short_table(evaluations: Sequence[Evaluation]) -> list[str]:
    """A short table for the terminal; the files hold everything."""
    columns = {
        "dab_tile_correlation": "DAB tile r",
        "dab_tile_correlation_pooled": "pooled r",
        "dab_tile_mae": "DAB MAE",
        "tile_correlation": "tile r",
        "tile_correlation_pooled": "pooled r",
        "tile_mae": "tile MAE",
        "crps": "CRPS",
        "coverage90": "90 % covers",
        "dice": "Dice",
        "mra_top1": "MRA-1",
        "ssim": "SSIM",
        "sharpness": "sharpness",
    }
    known = {key for evaluation in evaluations for key in evaluation.scores.values}
    columns = {key: title for key, title in columns.items() if key in known}
    lines = ["".join([f"{'method':24}", *(f"{title:>12}" for title in columns.values())])]
    for each in evaluations:
        scores = each.scores
        cells = [f"{each.method[:23]:24}"]
        for key in columns:
            interval = scores.intervals.get(key)
            value: Any = interval.value if interval is not None else scores.figures.get(key)
            cells.append(f"{'–' if value is None else format(value, '.3f'):>12}")
        lines.append("".join(cells))
    return lines
