"""Glass stays white, and the picture fades into it along the tissue, not along windows."""

import numpy as np
import pytest
from shapely import MultiPolygon, box

from morphogen.metrics.seams import seam_score
from morphogen.tasks.bands import Band
from morphogen.tasks.glass import FADE_UM, MARGIN_UM, Glass

REACH = 2 * (MARGIN_UM + FADE_UM)  # pixels at 0.5 µm/px


def test_weights_follow_the_distance_to_the_tissue():
    glass = Glass([box(400, 400, 800, 800)], 1600, 1200, 0.5)
    weights = np.concatenate([glass.weights(0, 500), glass.weights(500, 1200)])
    assert weights.shape == (1200, 1600) and weights.min() == 0 and weights.max() == 1
    assert (weights[410:790, 410:790] == 1).all()
    assert (weights[:, int(800 + REACH + 16) :] == 0).all()
    along = weights[600, 800:]
    assert (np.diff(along) <= 0).all() and np.abs(np.diff(along)).max() < 0.05  # a fade, not a step
    halfway = np.argmin(np.abs(along - 0.5))
    assert halfway == pytest.approx(2 * (MARGIN_UM + FADE_UM / 2), abs=glass.step)


def test_every_window_that_shows_the_picture_is_wanted():
    hole = box(0, 0, 1150, 1150) - box(150, 150, 1000, 1000)
    glass = Glass([MultiPolygon([hole]), box(1500, 900, 1600, 1000)], 2000, 1500, 0.25)
    weights = glass.weights(0, 1500)
    side = 64
    for y in range(0, 1500 - side, 48):
        for x in range(0, 2000 - side, 48):
            shown = weights[y : y + side, x : x + side] > 0
            assert glass.wants(x, y, side) or not shown.any()
    assert not glass.wants(1400, 500, side) and not glass.wants(560, 560, 16)
    assert glass.wants(-32, -32, side)  # a window that overhangs the slide


def test_no_tissue_wants_nothing():
    glass = Glass([], 100, 80, 0.5)
    assert not glass.wants(0, 0, 100) and (glass.weights(0, 80) == 0).all()


def test_band_is_white_and_certain_on_glass():
    glass = Glass([box(0, 0, 100, 400)], 400, 400, 0.5)
    planes = np.full((4, 200, 400), 100, np.float32)
    band = glass.over(Band(100, planes, np.ones((200, 400), bool)))
    picture, values = band.picture(), band.values(3)
    assert (picture[:, :90] == 100).all() and (values[:, :90] == 100).all()
    assert (picture[:, 320:] == 255).all() and (values[:, 320:] == 0).all()
    fading = slice(140, 260)
    assert (np.diff(picture[0, fading, 0].astype(int)) >= 0).all() and (np.diff(values[0, fading]) <= 0).all()
    assert band.top == 100


def test_blocks_of_a_jpeg_are_not_blamed_on_windows():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(480, 480))
    image += 2 * rng.normal(size=(60, 60)).repeat(8, 0).repeat(8, 1)  # flat blocks of 8 px
    borders = list(range(96, 480, 96))
    assert seam_score(image, borders, borders).worst > 1.5
    assert seam_score(image, borders, borders, period=8).worst == pytest.approx(1, abs=0.15)
    image[:, 192:] += 9  # a step at one border is found all the same
    assert seam_score(image, borders, borders, period=8).vertical > 1.5
