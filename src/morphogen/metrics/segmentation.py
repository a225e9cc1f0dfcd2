"""Scores of label maps: confusion, IoU, Dice, boundary F1, panoptic quality of instances.

Arguments are always (real, generated). A figure that is not defined (a class that neither map shows) is NaN and is left
out of means, never counted as 0 or 1.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from morphogen.core.errors import InputError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def confusion(real: ArrayLike, generated: ArrayLike, classes: int) -> Integers:
    """(classes, classes) int64: pixels of true class (row) that were called a class (column).

    >>> confusion([0, 1, 1], [0, 1, 0], 2).tolist()
    [[1, 0], [1, 1]]
    """
    truth, found = np.asarray(real).ravel().astype(np.int64), np.asarray(generated).ravel().astype(np.int64)
    if truth.shape != found.shape:
        raise InputError(f"label maps of {truth.size} and {found.size} pixels cannot be compared")
    for values in (truth, found):
        if values.size and (values.min() < 0 or values.max() >= classes):
            raise InputError(f"label {int(values.max())} lies outside 0 … {classes - 1}")
    return np.bincount(truth * classes + found, minlength=classes * classes).reshape(classes, classes)


def binary(matrix: ArrayLike) -> Integers:
    """A confusion matrix with the classes from 1 on as one foreground."""
    matrix = np.asarray(matrix)
    return np.array(
        [[matrix[0, 0], matrix[0, 1:].sum()], [matrix[1:, 0].sum(), matrix[1:, 1:].sum()]], np.int64
    )


def iou(matrix: ArrayLike) -> Floats:
    """(classes,) intersection over union of each class; NaN where neither map shows it.

    >>> iou([[1, 0], [1, 1]]).tolist()
    [0.5, 0.5]
    """
    matrix = np.asarray(matrix, np.float64)
    hit = np.diag(matrix)
    return _ratio(hit, matrix.sum(0) + matrix.sum(1) - hit)


def dice(matrix: ArrayLike) -> Floats:
    """(classes,) 2·|A∩B| / (|A| + |B|) of each class; NaN where neither map shows it."""
    matrix = np.asarray(matrix, np.float64)
    return _ratio(2 * np.diag(matrix), matrix.sum(0) + matrix.sum(1))


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)


def mean_iou(matrix: ArrayLike, background: bool = False) -> float:
    """Mean IoU over the classes that are defined; without class 0 unless ``background``."""
    values = iou(matrix)[0 if background else 1 :]
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def boundary_f1(real: ArrayLike, generated: ArrayLike, label: int, tolerance: float = 2.0) -> float:
    """F1 of the borders of a class within ``tolerance`` px (Csurka et al., BMVC 2013); NaN where neither map shows a
    border, 0 where one does alone."""
    edges = [_edge(np.asarray(labels) == label) for labels in (real, generated)]
    if edges[0].shape != edges[1].shape:
        raise InputError(f"label maps of shapes {edges[0].shape} and {edges[1].shape} cannot be compared")
    if not edges[0].any() or not edges[1].any():
        return 0.0 if edges[0].any() or edges[1].any() else float("nan")
    away = [cv2.distanceTransform((~edge).astype(np.uint8), cv2.DIST_L2, 5) for edge in edges]
    recall = float((away[1][edges[0]] <= tolerance).mean())
    precision = float((away[0][edges[1]] <= tolerance).mean())
    return 0.0 if not recall + precision else 2 * recall * precision / (recall + precision)


def _edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a mask beside one that is not of it; the frame of the image is no border."""
    inner = cv2.erode(
        mask.astype(np.uint8), np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=1
    )
    return mask & (inner == 0)


class Panoptic(NamedTuple):
    """Panoptic quality (Kirillov et al., CVPR 2019) and its parts; NaN where there is no instance at all."""

    pq: float
    detection: float  # F1 of the instances matched at IoU > 0.5
    segmentation: float  # mean IoU of the matched


def panoptic_quality(real: ArrayLike, generated: ArrayLike) -> Panoptic:
    """Panoptic quality of instance maps (H, W); 0 is background."""
    truth, found = np.asarray(real).astype(np.int64), np.asarray(generated).astype(np.int64)
    if truth.shape != found.shape:
        raise InputError(f"instance maps of shapes {truth.shape} and {found.shape} cannot be compared")
    a_names, a = np.unique(truth, return_inverse=True)
    b_names, b = np.unique(found, return_inverse=True)
    table = np.bincount(a.ravel() * len(b_names) + b.ravel(), minlength=len(a_names) * len(b_names))
    table = table.reshape(len(a_names), len(b_names)).astype(np.float64)
    union = table.sum(1, keepdims=True) + table.sum(0, keepdims=True) - table
    overlap = (table / union)[a_names != 0][:, b_names != 0]
    rows, columns = overlap.shape
    if not rows and not columns:
        return Panoptic(float("nan"), float("nan"), float("nan"))
    matched = overlap[overlap > 0.5]  # above one half a match is unique
    detection = 2 * len(matched) / (rows + columns)
    quality = float(matched.mean()) if len(matched) else float("nan")
    return Panoptic(detection * quality if len(matched) else 0.0, detection, quality)


def instances_of(foreground: ArrayLike, least: int = 10, apart: float = 3.0) -> Integers:
    """(H, W) int64: touching objects of a mask, parted by a watershed of the distance to its border.

    least: pixels of the smallest object kept. apart: px between the middles of two objects.
    """
    from scipy.ndimage import gaussian_filter, label
    from skimage.feature import peak_local_max
    from skimage.measure import label as connected
    from skimage.segmentation import watershed

    mask = np.asarray(foreground) > 0
    if not mask.any():
        return np.zeros(mask.shape, np.int64)
    distance = gaussian_filter(cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5), 1.0)
    peaks = peak_local_max(distance, min_distance=max(1, round(apart)), labels=label(mask)[0])
    seeds = np.zeros(mask.shape, np.int64)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    found = watershed(-distance, seeds, mask=mask)
    found = np.where(found == 0, np.where(mask, connected(mask) + found.max(), 0), found)
    large = np.bincount(found.ravel()) >= least
    kept = np.where(large[found], found, 0)
    named = np.unique(np.append(kept, 0))  # background is 0 also where there is none
    return np.searchsorted(named, kept).astype(np.int64)
