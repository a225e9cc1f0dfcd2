"""Glass stays white, and the stain fades into it along the tissue, not along windows."""

import numpy as np
import pytest
from shapely import MultiPolygon, box

from morphogen.metrics.seams import seam_score
from morphogen.slides.pyramid.writer import PyramidWriter
from morphogen.stain.config import ApplyConfig, SamplerConfig, WindowConfig
from morphogen.stain.glass import FADE_UM, MARGIN_UM, Glass
from morphogen.stain.wholeslide import stain_slide
from morphogen.stain.windows import Band

from .conftest import he_like

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


def test_every_window_that_shows_stain_is_wanted():
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
    grey = np.full((200, 400, 3), 100, np.uint8)
    band = glass.over(Band(100, grey, grey + 1, np.ones((200, 400), np.float32), grey[None]))
    assert (band.sample[:, :90] == 100).all() and (band.mean[:, :90] == 101).all()
    assert (band.sample[:, 320:] == 255).all() and (band.uncertainty[:, 320:] == 0).all()
    assert (band.samples[0] == band.sample).all() and band.top == 100


def test_tinted_glass_has_no_seam(copying, tmp_path):
    """A model that paints glass as it finds it, on a slide with grey glass: no step where windows end."""
    image = np.full((1200, 1100, 3), 225, np.uint8)
    image[300:700, 200:600] = he_like(np.random.default_rng(0), 400)
    path = tmp_path / "tinted.ome.tif"
    with PyramidWriter(path, 1100, 1200, mpp=0.5, tile=256, codec="deflate") as writer:
        writer.write(image, 0)
    copying.mpp = 0.5
    config = ApplyConfig(
        sampler=SamplerConfig(solver="mean", steps=1), windows=WindowConfig(window=128, overlap=32, batch=4)
    )
    out = stain_slide(copying, path, tmp_path / "out", config, tissue=[box(200, 300, 600, 700)])
    assert 0 < out.windows < 80  # of 156
    assert out.seams.worst <= 1.03


def test_blocks_of_a_jpeg_are_not_blamed_on_windows():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(480, 480))
    image += 2 * rng.normal(size=(60, 60)).repeat(8, 0).repeat(8, 1)  # flat blocks of 8 px
    borders = list(range(96, 480, 96))
    assert seam_score(image, borders, borders).worst > 1.5
    assert seam_score(image, borders, borders, period=8).worst == pytest.approx(1, abs=0.15)
    image[:, 192:] += 9  # a step at one border is found all the same
    assert seam_score(image, borders, borders, period=8).vertical > 1.5
