"""Scores of samples: closed forms, unbiasedness, calibration."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from morphogen.core.errors import InputError
from morphogen.metrics import probabilistic as p

RNG = np.random.default_rng


def test_crps_is_the_gaussian_closed_form_on_average():
    rng = RNG(0)
    y = rng.normal(size=(4000, 1))
    z = y / 1.5
    exact = 1.5 * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
    for k in (2, 5, 20):  # unbiased whatever the number of samples
        got = p.crps(y, 1.5 * rng.normal(size=(4000, k, 1)))
        assert got.mean() == pytest.approx(exact.mean(), abs=0.02)


def test_crps_equals_the_double_sum():
    rng = RNG(1)
    y, s = rng.normal(size=(3, 2)), rng.normal(size=(3, 7, 2))
    naive = np.abs(s - y[:, None]).mean(1) - np.abs(s[:, :, None] - s[:, None]).sum((1, 2)) / (2 * 7 * 6)
    np.testing.assert_allclose(p.crps(y, s), naive, atol=1e-12)
    np.testing.assert_allclose(p.crps(y, s[:, :1]), np.abs(s[:, 0] - y))


def test_energy_score_equals_the_double_sum_and_sees_dependence():
    rng = RNG(2)
    y, s = rng.normal(size=(3, 4)), rng.normal(size=(3, 6, 4))
    first = np.linalg.norm(s - y[:, None], axis=2).mean(1)
    second = np.linalg.norm(s[:, :, None] - s[:, None], axis=3).sum((1, 2)) / (2 * 6 * 5)
    np.testing.assert_allclose(p.energy_score(y, s), first - second, atol=1e-12)
    np.testing.assert_allclose(p.energy_score(2 * y, 2 * s, scale=np.full(4, 2.0)), first - second)
    shared = rng.normal(size=(600, 1)) * np.ones(20)  # genes that move together
    right = rng.normal(size=(600, 20, 1)) * np.ones(20)
    wrong = rng.normal(size=(600, 20, 20))  # same margins, no dependence
    assert p.crps(shared, right).mean() == pytest.approx(p.crps(shared, wrong).mean(), abs=0.02)
    assert p.energy_score(shared, right).mean() < 0.95 * p.energy_score(shared, wrong).mean()


@pytest.mark.parametrize("k", [19, 20, 50])
def test_coverage_is_exact_for_exchangeable_samples(k):
    rng = RNG(3)
    y, s = rng.normal(size=(4000, 5)), rng.normal(size=(4000, k, 5))
    assert p.coverage(y, s, 0.9).observed == pytest.approx(0.9, abs=0.01)
    assert p.coverage(y, s, 0.5).observed == pytest.approx(0.5, abs=0.015)
    assert p.coverage(y, s, 0.9).split == pytest.approx(0.9, abs=0.01)
    linear = np.quantile(s, [0.05, 0.95], axis=1)  # what a naive quantile would have claimed
    naive = ((y >= linear[0]) & (y <= linear[1])).mean()
    assert naive < (0.83 if k <= 20 else 0.88)


def test_coverage_of_counts_splits_ties():
    rng = RNG(7)
    y, s = rng.poisson(0.4, size=(3000, 4)).astype(float), rng.poisson(0.4, size=(3000, 39, 4)).astype(float)
    found = p.coverage(y, s, 0.9)
    assert (
        found.observed > 0.96
    )  # a closed interval on a lattice covers too much, though the samples are right
    assert found.split == pytest.approx(0.9, abs=0.015)
    assert p.coverage(y, s * 0 + 5, 0.9).split < 0.1


def test_too_few_samples_for_an_interval_are_refused():
    y, s = np.zeros((2, 1)), np.zeros((2, 10, 1))
    assert p.coverage(y, s, 0.9) is None and p.coverage(y, s, 0.5) is not None


def test_variance_ratio():
    rng = RNG(4)
    y = np.column_stack([rng.normal(size=3000), np.ones(3000)])
    ratio = p.variance_ratio(y, 2 * rng.normal(size=(3000, 4, 2)))
    assert ratio[0] == pytest.approx(4, rel=0.1) and np.isnan(ratio[1])


def test_pit_is_flat_when_calibrated_also_for_counts():
    rng = RNG(5)
    flat = p.pit_histogram(rng.poisson(0.7, size=(3000, 3)), rng.poisson(0.7, size=(3000, 20, 3)))
    assert flat.deviation < 0.04
    assert flat.density.mean() == pytest.approx(1)
    narrow = p.pit_histogram(rng.normal(size=(2000, 3)), 0.4 * rng.normal(size=(2000, 20, 3)))
    assert narrow.density[0] > 1.8 and narrow.density[-1] > 1.8 and narrow.deviation > 0.4


def test_quantiles_and_half_precision():
    s = np.arange(1.0, 20.0)[None, :, None]
    assert p.sample_quantile(s, 0.05)[0, 0] == 1 and p.sample_quantile(s, 0.5)[0, 0] == 10
    y = np.log1p(np.arange(5.0))[:, None]
    stored = np.repeat(y[:, None], 19, axis=1).astype(np.float16)  # rounding must not push the truth out
    assert p.coverage(y, stored, 0.9).observed == 1.0


def test_blocks_do_not_change_the_result(monkeypatch):
    rng = RNG(6)
    y, s = rng.normal(size=(50, 3)), rng.normal(size=(50, 20, 3))
    whole = p.crps(y, s), p.energy_score(y, s), p.coverage(y, s), p.pit_histogram(y, s)
    monkeypatch.setattr(p, "_BLOCK", 600)
    parts = p.crps(y, s), p.energy_score(y, s), p.coverage(y, s), p.pit_histogram(y, s)
    np.testing.assert_array_equal(whole[0], parts[0])
    np.testing.assert_array_equal(whole[1], parts[1])
    assert whole[2].observed == parts[2].observed and np.allclose(whole[3].density, parts[3].density)


def test_bad_shapes_are_one_sentence():
    with pytest.raises(InputError, match="samples"):
        p.crps(np.zeros((3, 2)), np.zeros((3, 2)))
