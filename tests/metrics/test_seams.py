"""Seam score: 1 without seams, more with a step, and only where asked."""

import numpy as np
import pytest

from morphogen.core.errors import InputError
from morphogen.metrics.seams import SeamMeter, seam_score


def test_noise_has_no_seam_and_a_step_has():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(400, 400, 3))
    found = seam_score(image, columns=range(50, 400, 50), rows=range(40, 400, 40))
    assert found.vertical == pytest.approx(1, abs=0.03) and found.horizontal == pytest.approx(1, abs=0.03)
    image[:, 200:] += 5
    stepped = seam_score(image, columns=[200], rows=[200])
    assert stepped.vertical > 3 and stepped.horizontal == pytest.approx(1, abs=0.1)
    assert stepped.worst == stepped.vertical


def test_score_is_the_ratio_of_mean_differences():
    row = np.array([0, 1, 3, 4, 9, 10], float)
    image = np.tile(row, (3, 1))
    found = seam_score(image, columns=[4])
    assert found.vertical == pytest.approx(5 / np.mean([1, 2, 1, 1]))
    assert np.isnan(found.horizontal)


def test_mask_leaves_background_out():
    rng = np.random.default_rng(1)
    image = rng.normal(size=(50, 60))
    image[:, 30:] = 100.0  # flat background beyond a hard edge
    mask = np.zeros((50, 60), bool)
    mask[:, :30] = True
    assert seam_score(image, columns=[30, 10]).vertical > 10
    assert seam_score(image, columns=[10, 20], mask=mask).vertical < 1.3


def test_constant_image_has_no_seam_and_bad_positions_are_refused():
    assert seam_score(np.ones((8, 8)), columns=[4]).vertical == 1.0
    for columns in ([0], [8], [-1]):
        with pytest.raises(InputError, match="border positions must lie in 1…7"):
            seam_score(np.ones((8, 8)), columns=columns)
    with pytest.raises(InputError, match="no border"):
        seam_score(np.ones((8, 8)))


@pytest.mark.parametrize("cut", [1, 7, 20])
def test_bands_give_the_score_of_the_whole_image_also_after_a_restart(cut):
    rng = np.random.default_rng(2)
    image, mask = rng.random((40, 30, 3)), rng.random((40, 30)) > 0.3
    columns, rows = [10, 20], [7, 20, 33]
    whole = seam_score(image, columns, rows, mask)
    meter = SeamMeter(30, 40, columns, rows)
    for top in range(0, 40, cut):
        meter.add(image[top : top + cut], mask[top : top + cut])
        state = meter.state()
        meter = SeamMeter(30, 40, columns, rows)
        meter.restore(state)
    assert meter.score().vertical == pytest.approx(whole.vertical, rel=1e-9)
    assert meter.score().horizontal == pytest.approx(whole.horizontal, rel=1e-9)
