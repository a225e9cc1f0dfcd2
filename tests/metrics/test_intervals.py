"""The bootstrap resamples what is independent."""

from __future__ import annotations

import numpy as np
import pytest

from morphogen.core.errors import InputError
from morphogen.metrics import intervals as iv
from morphogen.metrics.expression import macro, pearson

RNG = np.random.default_rng


def test_interval_covers_the_mean_over_patients():
    hits = 0
    for trial in range(300):
        rng = RNG(trial)
        patient = rng.normal(size=12)  # patients differ; slides within a patient hardly
        values = np.repeat(patient, 5) + 0.01 * rng.normal(size=60)
        found = iv.bootstrap(
            values, np.repeat(np.arange(12), 5), unit="patient", generator=rng, resamples=500
        )
        hits += found.low <= 0.0 <= found.high
    assert hits / 300 > 0.87
    # The same data taken as 60 independent slides claims far too much.
    naive = iv.bootstrap(values, list(range(60)), unit="slide", generator=RNG(0), resamples=500)
    assert (naive.high - naive.low) < 0.6 * (found.high - found.low)


def test_units_weigh_the_same():
    found = iv.bootstrap([0.0] * 9 + [1.0], ["A"] * 9 + ["B"], unit="patient", generator=RNG(0))
    assert found.value == 0.5 and found.units == 2


def test_one_patient_has_no_interval():
    found = iv.bootstrap([0.4, 0.5], ["A", "A"], unit="patient", generator=RNG(0))
    assert found.value == pytest.approx(0.45) and np.isnan(found.low) and found.units == 1


def test_same_generator_same_interval():
    a = iv.bootstrap([1, 2, 4], "abc", unit="slide", generator=RNG(1))
    assert a == iv.bootstrap([1, 2, 4], "abc", unit="slide", generator=RNG(1))


def test_undefined_values_are_refused():
    with pytest.raises(InputError, match="1 of 2"):
        iv.bootstrap([1.0, np.nan], "ab", unit="slide", generator=RNG(0))


def test_blocks_and_weighted_statistic():
    rng = RNG(2)
    xy = np.stack(np.meshgrid(np.arange(12.0), np.arange(12.0)), axis=-1).reshape(-1, 2)
    blocks = iv.spatial_blocks(xy, 4.0)
    assert sorted(np.bincount(blocks)) == [16] * 9
    y = rng.normal(size=(144, 6)) + xy[:, :1] / 3
    p = y + rng.normal(size=y.shape)
    statistic = iv.weighted_macro_pearson(y, p)
    value = macro(pearson(y, p)).value
    assert statistic(np.ones((1, 144)))[0] == pytest.approx(value)
    weights = iv.block_weights(blocks, RNG(0), 20)
    assert (weights.sum(axis=1) == 144).all()
    doubled = np.repeat(np.arange(144), weights[3].astype(int))
    assert statistic(weights)[3] == pytest.approx(macro(pearson(y[doubled], p[doubled])).value)
    found = iv.block_bootstrap(value, statistic, blocks, generator=RNG(1))
    assert found.low < value < found.high and found.unit == "block of one section"


def test_pooled_correlation_resamples_whole_units():
    """The value is Pearson over all values; units that agree with each other leave no interval, mixed ones do."""
    rng = np.random.default_rng(0)
    x = rng.normal(3.0, 1.0, (6, 50))
    y = x + rng.normal(0, 0.5, (6, 50))
    y[4:] = rng.normal(3.0, 1.0, (2, 50))  # two patients where the method fails
    sums = np.stack([iv.moments(a, b) for a, b in zip(x, y, strict=True)])

    def interval(sums, units, **options):
        generator = np.random.default_rng(1)
        return iv.pooled_correlation(
            sums, units, unit="patient", generator=generator, resamples=2000, **options
        )

    found = interval(sums, list("abcdef"))
    assert found.value == pytest.approx(np.corrcoef(x.ravel(), y.ravel())[0, 1])
    assert found.low < found.value < found.high and found.units == 6
    by_hand = np.random.default_rng(1).integers(0, 6, size=(2000, 6))
    drawn = [np.corrcoef(x[rows].ravel(), y[rows].ravel())[0, 1] for rows in by_hand]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
    same = interval(np.repeat(sums[:1], 6, axis=0), list("abcdef"))
    assert same.low == pytest.approx(same.high)
    alone = interval(sums, ["a"] * 6)
    assert alone.units == 1 and np.isnan(alone.low) and alone.value == pytest.approx(found.value)
    nothing = interval(sums, list("abcdef"), against=sums)
    assert nothing.value == nothing.low == nothing.high == 0
    flat = np.stack([iv.moments(np.ones(5), b[:5]) for b in y])
    assert np.isnan(interval(flat, list("abcdef")).value)
