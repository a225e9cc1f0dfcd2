"""The page and the panels of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from morphogen.core.files import atomic_path, writable_folder
from morphogen.layout.segmenter.apply import labelled
from morphogen.layout.segmenter.model import Segmenter
from morphogen.layout.sources.sheets import Sheet
from morphogen.tasks.evaluation import Columns, Evaluation, write_page

COLOURS = np.array(
    [[240, 240, 240], [200, 60, 70], [60, 110, 200], [70, 160, 90], [220, 160, 50], [140, 90, 170]]
    + [[110, 190, 200], [160, 120, 80], [90, 90, 90]],
    np.uint8,
)
LONGEST = 384
NOTES = (
    "IoU and Dice are means over the foreground classes of a patient, then over patients, with 95 % bootstrap "
    "intervals over patients. SD: standard deviation of the IoU between patients. Pooled: of all pixels together.",
    "Every arm trains for the same number of steps. Recolouring, pseudo-labels and synthetic images are a share of its "
    "crops.",
)


def segmentation_page(
    out: Path, evaluations: Sequence[Evaluation], classes: Sequence[str], verdict: str
) -> Path:
    """``report.html`` of an evaluation of segmenters; the verdict is its first line."""
    overall: Columns = {
        "iou": ("IoU", "max"),
        "sd": ("SD between patients", "min"),
        "pooled": ("IoU, pooled", "max"),
        "dice": ("Dice", "max"),
        "boundary": ("boundary F1", "max"),
        "pq": ("PQ of instances", "max"),
    }
    tables: list[tuple[str, Columns]] = [("Over all classes", overall)]
    if len(classes) > 2:
        tables.append(("IoU per class", {f"iou {name}": (name, "max") for name in classes[1:]}))
    return write_page(
        out,
        evaluations,
        "Segmentation",
        f"{len(evaluations[0].items)} test patients, {len(classes) - 1} classes",
        tables,
        lead=verdict,
        compared={"iou": "IoU", "dice": "Dice", "boundary": "boundary F1"},
        compared_note="Paired by patient; an interval that holds 0 says that the difference is not certain.",
        notes=NOTES,
        pictures="Image, labels, and what each network found.",
    )


def coloured(labels: np.ndarray) -> np.ndarray:
    """(H, W) classes → (H, W, 3) uint8."""
    return COLOURS[labels % len(COLOURS)]


def write_panels(
    segmenters: Mapping[str, Segmenter], sheets: Sequence[Sheet], folder: Path, count: int = 4
) -> None:
    """Image | labels | found by each, for the first image of a few patients."""
    writable_folder(folder)
    chosen: dict[str, Sheet] = {}
    for sheet in sheets:
        chosen.setdefault(sheet.patient, sheet)
    for patient, sheet in list(chosen.items())[:count]:
        side = min(*sheet.size, LONGEST)
        top, left = ((size - side) // 2 for size in sheet.size)
        image, labels = np.ascontiguousarray(sheet.image(top, left, side)), sheet.labels(top, left, side)
        rows = [image, coloured(labels), *(coloured(labelled(each, image)) for each in segmenters.values())]
        gap = np.full((side, 4, 3), 255, np.uint8)
        strip = np.concatenate([part for row in rows for part in (row, gap)][:-1], axis=1)
        with atomic_path(folder / f"{_plain(patient)}.png") as temporary:
            Image.fromarray(strip).save(temporary, format="PNG")


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)[:80]
