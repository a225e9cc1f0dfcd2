"""Label maps: confusion, IoU, Dice, borders, instances; against closed forms and the published numbers."""

from __future__ import annotations

import numpy as np
import pytest

from morphogen.core.errors import InputError
from morphogen.metrics.segmentation import (
    binary,
    boundary_f1,
    confusion,
    dice,
    instances_of,
    iou,
    mean_iou,
    panoptic_quality,
)


def test_published_confusion_iou_and_dice(tensors):
    numbers = tensors("stedm_unet")
    matrix = numbers["confmat4"].numpy()
    both = binary(matrix)
    assert np.array_equal(both, numbers["confmat_combined"].numpy())
    np.testing.assert_allclose(iou(both), numbers["iou"].numpy(), atol=1e-6)
    np.testing.assert_allclose(dice(both), numbers["dice_score"].numpy(), atol=1e-6)


def test_against_scikit_learn():
    from sklearn.metrics import confusion_matrix, f1_score, jaccard_score

    random = np.random.default_rng(0)
    truth, found = random.integers(0, 4, (2, 30, 20))
    matrix = confusion(truth, found, 4)
    assert np.array_equal(matrix, confusion_matrix(truth.ravel(), found.ravel()))
    np.testing.assert_allclose(iou(matrix), jaccard_score(truth.ravel(), found.ravel(), average=None))
    np.testing.assert_allclose(dice(matrix), f1_score(truth.ravel(), found.ravel(), average=None))


def test_rows_are_the_truth():
    assert confusion([1, 1, 0], [0, 1, 0], 2).tolist() == [[1, 0], [1, 1]]
    with pytest.raises(InputError, match="label 2 lies outside"):
        confusion([0, 2], [0, 0], 2)
    with pytest.raises(InputError, match="3 and 2 pixels"):
        confusion([0, 1, 1], [0, 1], 2)


def test_a_class_that_nobody_shows_is_left_out():
    matrix = confusion([0, 1], [0, 1], 3)
    assert np.isnan(iou(matrix)[2]) and mean_iou(matrix) == 1
    assert np.isnan(mean_iou(confusion([0, 0], [0, 0], 3)))
    assert iou(confusion([0, 0], [0, 2], 3))[2] == 0  # shown by one of them alone


def test_borders_within_the_tolerance():
    truth = np.zeros((64, 64), int)
    truth[16:48, 16:48] = 1
    assert boundary_f1(truth, truth, 1) == 1
    assert boundary_f1(truth, np.roll(truth, 2, 1), 1, tolerance=2) == 1
    moved = boundary_f1(truth, np.roll(truth, 6, 1), 1, tolerance=2)
    assert 0.3 < moved < 0.7  # the sides along the shift still lie on each other
    assert boundary_f1(truth, np.zeros_like(truth), 1) == 0
    assert np.isnan(boundary_f1(truth, truth, 5))
    half = np.zeros((64, 64), int)
    half[:, :32] = 1
    other = np.zeros((64, 64), int)
    other[:, :50] = 1
    assert boundary_f1(half, other, 1) == 0  # the frame of the image is no border


def test_panoptic_quality():
    truth = np.zeros((40, 40), int)
    truth[2:12, 2:12], truth[20:30, 20:30] = 3, 7
    assert panoptic_quality(truth, truth) == (1, 1, 1)
    found = truth.copy()
    found[20:30, 20:30] = 0
    found[2:12, 10:12] = 0  # 80 of 100 px of one, nothing of the other
    quality = panoptic_quality(truth, found)
    assert quality.detection == pytest.approx(2 / 3) and quality.segmentation == pytest.approx(0.8)
    assert quality.pq == pytest.approx(2 / 3 * 0.8)
    assert panoptic_quality(truth, np.zeros_like(truth)).pq == 0
    assert np.isnan(panoptic_quality(np.zeros((4, 4)), np.zeros((4, 4))).pq)


def test_touching_objects_are_parted():
    rows, columns = np.mgrid[:60, :60]
    mask = np.zeros((60, 60), bool)
    centres = ((20, 20), (20, 35), (45, 30))
    reach = np.stack([np.hypot(rows - row, columns - column) for row, column in centres])
    mask = (reach < 9).any(0)
    mask[55, 50:55] = mask[56, 50:55] = True  # ten pixels are kept
    mask[5, 50:59] = True  # nine are a speck
    found = instances_of(mask)
    assert (
        found.max() == 4
        and found[20, 20] != found[20, 35]
        and found[56, 54] > 0
        and not found[5, 50:59].any()
    )
    # Parted where the discs meet: a pixel is of the disc whose middle is nearer, but for those half-way.
    nearest, near = reach.argmin(0), (reach < 9).any(0) & (np.abs(reach[0] - reach[1]) > 2)
    named = np.array([found[centre] for centre in centres])
    assert np.array_equal(found[near], named[nearest][near])
    # Of unequal ones, at the neck between them.
    large, small = np.hypot(rows - 25, columns - 20), np.hypot(rows - 25, columns - 37)
    mask = (large < 12) | (small < 7)
    found = instances_of(mask)
    wrong = (found == found[25, 20]) != (large**2 - 12**2 < small**2 - 7**2)
    assert found.max() == 2 and wrong[mask].mean() < 0.02
    assert not instances_of(np.zeros((8, 8))).any()
