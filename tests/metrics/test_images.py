"""Distances between feature clouds: published numbers and closed forms."""

import numpy as np
import pytest

from morphogen.core.errors import InputError
from morphogen.metrics.images import (
    frechet_distance,
    frechet_from_moments,
    kernel_distance,
    kernel_distance_exact,
    manifold,
)


@pytest.fixture
def numbers(tensors):
    return {key: value.numpy() for key, value in tensors("histdist_metrics").items()}


def test_frechet_distance_equals_the_published_numbers(numbers):
    full = frechet_distance(numbers["fid_feat_a"], numbers["fid_feat_b"])
    assert full == pytest.approx(float(numbers["fid"]), rel=1e-6)
    deficient = frechet_distance(numbers["fid_feat_a_deficient"], numbers["fid_feat_b_deficient"])
    assert deficient == pytest.approx(float(numbers["fid_deficient"]), rel=1e-3)


def test_frechet_distance_of_gaussians_has_its_closed_form():
    # Commuting covariances: |Δμ|² + Σ (√a − √b)².
    a, b = np.array([4.0, 1.0, 0.0]), np.array([1.0, 9.0, 2.0])
    mean = np.array([1.0, -2.0, 0.5])
    expected = (mean**2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    found = frechet_from_moments(
        np.zeros(3), rotation @ np.diag(a) @ rotation.T, mean, rotation @ np.diag(b) @ rotation.T
    )
    assert found == pytest.approx(expected, rel=1e-6)  # a zero eigenvalue costs half the digits


def test_frechet_distance_of_a_set_with_itself_is_zero_even_with_fewer_items_than_dimensions():
    features = np.random.default_rng(1).normal(size=(6, 40))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)


def test_kernel_distance_equals_the_published_subsets(numbers):
    large = kernel_distance(
        numbers["kid_c"],
        numbers["kid_d"],
        subsets=(numbers["kid_large_subset_idx_c"], numbers["kid_large_subset_idx_d"]),
    )
    np.testing.assert_allclose(large.values, numbers["kid_large_mmds"], rtol=1e-9)
    assert large.mean == pytest.approx(float(numbers["kid_large_mean"]), rel=1e-9)
    assert large.sd == pytest.approx(float(numbers["kid_large_std"]), rel=1e-9)
    small = kernel_distance(
        numbers["kid_a"], numbers["kid_b"], np.random.default_rng(5), n_subsets=7, subset_size=100
    )
    assert small.mean == pytest.approx(float(numbers["kid_small_mean"]), rel=1e-9)
    assert kernel_distance_exact(numbers["kid_a"], numbers["kid_b"]) == pytest.approx(
        float(numbers["kid_full_60"]), rel=1e-9
    )


def test_kernel_distance_is_unbiased():
    rng = np.random.default_rng(2)
    values = [kernel_distance_exact(rng.normal(size=(40, 4)), rng.normal(size=(30, 4))) for _ in range(200)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(200)


def test_kernel_distance_repeats_with_the_same_generator_and_needs_one():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(50, 4)), rng.normal(size=(50, 4))
    first, second = (
        kernel_distance(a, b, np.random.default_rng(9), subset_size=10, n_subsets=5) for _ in range(2)
    )
    np.testing.assert_array_equal(first.values, second.values)
    with pytest.raises(InputError, match="generator or the subsets"):
        kernel_distance(a, b)


def _manifold_by_loops(real, fake, k):
    def radius(points):
        return [sorted(np.linalg.norm(p - q) for q in points)[k] for p in points]

    r, f = radius(real), radius(fake)
    balls = [[np.linalg.norm(y - x) <= r[i] for i, x in enumerate(real)] for y in fake]
    recall = [any(np.linalg.norm(x - y) <= f[j] for j, y in enumerate(fake)) for x in real]
    balls = np.array(balls)
    return balls.any(1).mean(), np.mean(recall), balls.sum() / (k * len(fake)), balls.any(0).mean()


def test_manifold_scores_equal_their_definition_for_any_chunk():
    rng = np.random.default_rng(4)
    real, fake = rng.normal(size=(31, 3)), rng.normal(0.7, 1.3, size=(23, 3))
    expected = _manifold_by_loops(real, fake, 5)
    for chunk in (4, 1000):
        found = manifold(real, fake, k=5, chunk=chunk)
        assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(expected)


def test_bad_features_are_named():
    good = np.ones((4, 3))
    bad = good.copy()
    bad[2, 1] = np.nan
    with pytest.raises(InputError, match="generated: 1 of 4 feature rows hold NaN.*row 2"):
        frechet_distance(good, bad)
    with pytest.raises(InputError, match="3 columns and generated ones 5"):
        kernel_distance_exact(good, np.ones((4, 5)))
    with pytest.raises(InputError, match="6 or more images"):
        manifold(good, good)
    with pytest.raises(InputError, match="non-empty"):
        frechet_distance(np.ones((0, 3)), good)
