"""Whether a segmenter trained on real images finds the layout again in a synthetic one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from morphogen.core.errors import InputError
from morphogen.layout.segmenter.model import Segmenter
from morphogen.layout.sources.sheets import Sheet
from morphogen.metrics.segmentation import confusion, iou


def agreement(segmenter: Segmenter, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(B,) mean IoU over the classes that each layout shows; images (B,H,W,3) uint8, labels (B,H,W)."""
    found = segmenter(torch.from_numpy(np.ascontiguousarray(images))).numpy()
    return np.array([shown_iou(truth, other, segmenter.planes) for truth, other in zip(labels, found)])


def shown_iou(labels: np.ndarray, found: np.ndarray, classes: int) -> float:
    """Mean IoU over the classes that ``labels`` shows."""
    values = iou(confusion(labels, found, classes))
    return float(np.mean(values[np.unique(labels)]))


def agreement_on(segmenter: Segmenter, sheets: Sequence[Sheet], crop: int) -> np.ndarray:
    """The agreement of every tissue crop of real sheets: what a faithful image can be expected to reach."""
    scores: list[float] = []
    for sheet in sheets:
        for top, left in sheet.tissue(crop):
            image, labels = sheet.image(int(top), int(left), crop), sheet.labels(int(top), int(left), crop)
            scores += agreement(segmenter, image[None], labels[None]).tolist()
    if not scores:
        raise InputError("there is no real image to compare synthetic ones with", where="agreement")
    return np.array(scores)


def foreground(segmenter: Segmenter, image: np.ndarray) -> float:
    """Share of an image (H,W,3) that a segmenter calls foreground."""
    return float((segmenter(torch.from_numpy(np.ascontiguousarray(image[None]))) > 0).float().mean())


def kept_shares(rows: Iterable[dict[str, str]]) -> dict[str, float]:
    """Patient → share of its synthetic images that were kept."""
    found: dict[str, list[bool]] = {}
    for row in rows:
        found.setdefault(row["style_patient"], []).append(row["kept"] == "1")
    return {patient: float(np.mean(kept)) for patient, kept in sorted(found.items())}
