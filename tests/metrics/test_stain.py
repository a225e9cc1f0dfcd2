"""DAB agreement, tiles, sharpness: definitions on arrays small enough to count by hand."""

import numpy as np
import pytest

from morphogen.core.errors import InputError
from morphogen.metrics.stain import (
    correlation,
    dab_agreement,
    dab_summary,
    detail_ratio,
    sharpness_ratio,
    tile_correlation,
    tile_means,
)


def test_summary_counts_pixels_by_strength():
    density = np.array([[0.0, 0.2, 0.4, 0.7], [0.1, 0.2, 0.5, 0.9]])
    found = dab_summary(density)
    assert found.mean == pytest.approx(density.mean())
    assert found.positive == 6 / 8
    assert found.fractions == (2 / 8, 2 / 8, 2 / 8, 2 / 8)
    assert found.h_score == pytest.approx(100 * (2 * 1 + 2 * 2 + 2 * 3) / 8)
    masked = dab_summary(density, mask=density > 0.45)
    assert masked.fractions == (0, 0, 1 / 3, 2 / 3)
    with pytest.raises(InputError, match="leaves no pixel"):
        dab_summary(density, mask=np.zeros_like(density, bool))


def test_agreement_over_a_set():
    real = [dab_summary(np.full((4, 4), v)) for v in (0.05, 0.2, 0.4, 0.7)]
    same = dab_agreement(real, real)
    assert (same.mean_pearson, same.mean_mae, same.h_score_mae) == (pytest.approx(1), 0, 0)
    shifted = dab_agreement(real, [dab_summary(np.full((4, 4), v)) for v in (0.15, 0.3, 0.5, 0.8)])
    assert shifted.mean_pearson == pytest.approx(1) and shifted.mean_mae == pytest.approx(0.1)
    with pytest.raises(InputError, match="do not pair up"):
        dab_agreement(real, real[:2])


def test_tile_means_equal_plain_means_also_at_cut_edges():
    values = np.random.default_rng(0).normal(size=(70, 100))
    means = tile_means(values, 32, least=0.1)
    assert means.shape == (3, 4)
    assert means[1, 2] == pytest.approx(values[32:64, 64:96].mean())
    assert means[2, 3] == pytest.approx(values[64:, 96:].mean())
    assert tile_means(values, 32).shape == (2, 3)  # cut tiles left out by default


def test_tile_correlation_ignores_what_happens_within_a_tile():
    rng = np.random.default_rng(1)
    coarse = rng.random((4, 4))
    a = np.kron(coarse, np.ones((8, 8)))
    noise = rng.normal(size=(32, 32))
    noise -= np.kron(tile_means(noise, 8), np.ones((8, 8)))
    assert tile_correlation(a, a + noise, tile=8) == pytest.approx(1)
    assert tile_correlation(a, -a, tile=8) == pytest.approx(-1)


def test_correlation_of_something_constant_is_undefined_not_zero():
    assert np.isnan(correlation(np.ones(9), np.arange(9)))
    assert np.isnan(correlation([1.0], [1.0]))


def test_sharpness_falls_with_blur_and_rises_with_noise():
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(2)
    image = rng.integers(0, 256, (40, 40, 3)).astype(np.uint8)
    blurred = gaussian_filter(image.astype(float), (1, 1, 0))
    for ratio in (sharpness_ratio, detail_ratio):
        assert ratio(image, image) == pytest.approx(1)
        assert ratio(image, blurred) < 0.5
        assert ratio(image, image.astype(float) + rng.normal(0, 60, image.shape)) > 1.05


def test_sharpness_within_a_mask_is_that_of_the_part():
    rng = np.random.default_rng(3)
    real, made = rng.random((2, 24, 40, 3))
    mask = np.zeros((24, 40), bool)
    mask[:, :30] = True
    for ratio in (sharpness_ratio, detail_ratio):
        part = ratio(real[:, :30], made[:, :30])
        assert ratio(real, made, mask) == pytest.approx(part, rel=1e-6) != ratio(real, made)
        assert np.isnan(ratio(real, made, np.zeros_like(mask)))
