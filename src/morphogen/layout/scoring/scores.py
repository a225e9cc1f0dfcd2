"""Scores of a segmentation network on labelled sheets: per patient, per class, pooled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from morphogen.layout.segmenter.apply import labelled
from morphogen.layout.segmenter.model import Segmenter
from morphogen.layout.sources.sheets import Sheet
from morphogen.metrics.segmentation import (
    boundary_f1,
    confusion,
    dice,
    instances_of,
    iou,
    mean_iou,
    panoptic_quality,
)
from morphogen.tasks.evaluation import ItemScores, SetScores, mean_intervals

TILE = 512  # pixels of a side of the parts in which slides are scored


@dataclass
class PatientScores:
    """What was counted on one patient."""

    matrix: np.ndarray
    borders: list[np.ndarray] = field(default_factory=list)
    quality: list[float] = field(default_factory=list)


def score_segmenter(
    segmenter: Segmenter,
    sheets: Sequence[Sheet],
    *,
    tolerance: float = 2.0,
    instances: bool = False,
) -> dict[str, PatientScores]:
    """Patient → its confusion, boundary F1 per class and, for ``instances``, panoptic quality after a watershed."""
    found: dict[str, PatientScores] = {}
    count = segmenter.planes
    for sheet in sheets:
        patient = found.setdefault(sheet.patient, PatientScores(np.zeros((count, count), np.int64)))
        for image, labels in parts(sheet):
            made = labelled(segmenter, image)
            patient.matrix += confusion(labels, made, count)
            patient.borders.append(
                np.array([boundary_f1(labels, made, label, tolerance) for label in range(1, count)])
            )
            if instances:
                pairs = (instances_of(labels > 0), instances_of(made > 0))
                patient.quality.append(panoptic_quality(*pairs).pq)
    return found


def parts(sheet: Sheet) -> list[tuple[np.ndarray, np.ndarray]]:
    """A sheet as (image, labels): whole where it is small, else the tiles of its tissue."""
    height, width = sheet.size
    if hasattr(sheet, "pixels"):
        return [(sheet.pixels, sheet.classes)]  # type: ignore[attr-defined]
    side = min(TILE, height, width)
    return [
        (sheet.image(int(top), int(left), side), sheet.labels(int(top), int(left), side))
        for top, left in sheet.tissue(side)
    ]


def patient_items(scores: dict[str, PatientScores], classes: Sequence[str]) -> list[ItemScores]:
    """One item per patient: mean and per-class IoU and Dice of the foreground, boundary F1, panoptic quality."""
    items = []
    for patient, each in sorted(scores.items()):
        values = {"iou": mean_iou(each.matrix), "dice": _mean(dice(each.matrix)[1:])}
        values["boundary"] = _mean(np.array(each.borders))
        if each.quality:
            values["pq"] = _mean(np.array(each.quality))
        for label, name in list(enumerate(classes))[1:]:
            values[f"iou {name}"] = float(iou(each.matrix)[label])
            values[f"dice {name}"] = float(dice(each.matrix)[label])
        items.append(ItemScores(patient, patient, values))
    return items


def set_scores(
    scores: dict[str, PatientScores], items: Sequence[ItemScores], classes: Sequence[str], seed: int = 0
) -> SetScores:
    """Means over patients with 95 % intervals; SD between patients; pooled IoU and Dice."""
    keys = list(dict.fromkeys(key for item in items for key in item.values))
    intervals, undefined = mean_intervals(items, keys, unit="patient", seed=seed, purpose="segmentation")
    pooled = sum((each.matrix for each in scores.values()), np.zeros((len(classes),) * 2, np.int64))
    spread = [item.values["iou"] for item in items if np.isfinite(item.values["iou"])]
    figures: dict[str, float] = {"pooled": mean_iou(pooled), "pooled dice": _mean(dice(pooled)[1:])}
    figures["sd"] = float(np.std(spread, ddof=1)) if len(spread) > 1 else float("nan")
    return SetScores(figures, intervals, undefined)


def _mean(values: Any) -> float:
    values = np.asarray(values, float)
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
