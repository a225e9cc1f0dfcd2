"""Scores of gene expression against published numbers and hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest

from morphogen.core.errors import InputError
from morphogen.metrics import expression as m


@pytest.fixture(scope="module")
def stem(request):
    from_fixture = request.getfixturevalue("tensors")("stem_eval")
    return {k: v.numpy() for k, v in from_fixture.items()}


def test_published_scores(stem):
    y, p = stem["log2_counts"], stem["pred_avg"]
    r = m.pearson(y, p)
    np.testing.assert_allclose(r, stem["all_corr"], atol=1e-6)
    assert m.pcc_at(r, 10) == pytest.approx(float(stem["metric_PCC10"]), abs=1e-6)
    assert m.pcc_at(r, 50) == pytest.approx(float(stem["metric_PCC50"]), abs=1e-6)
    assert m.pcc_at(r, 200) == pytest.approx(float(stem["metric_PCC200"]), abs=1e-6)
    assert m.macro(m.mse(y, p)).value == pytest.approx(float(stem["metric_MSE"]), rel=1e-5)
    assert m.macro(m.mae(y, p)).value == pytest.approx(float(stem["metric_MAE"]), rel=1e-5)
    assert m.macro(m.rvd(y, p)).value == pytest.approx(float(stem["metric_RVD"]), rel=1e-5)


def test_mean_over_samples_is_interleaved(stem):
    samples = stem["pred_samples"].reshape(70, 20, 60)
    np.testing.assert_allclose(samples.mean(axis=1), stem["pred_avg"], atol=1e-6)
    chosen = samples[:, stem["subset5_index"]].mean(axis=1)
    np.testing.assert_allclose(chosen, stem["pred_avg_subset5"], atol=1e-6)


def test_undefined_genes_are_counted_not_dropped():
    rng = np.random.default_rng(0)
    y, p = rng.normal(size=(30, 4)), rng.normal(size=(30, 4))
    y[:, 1] = 3.0  # nothing to score
    p[:, 2] = 1.0  # a model that gives up
    r = m.pearson(y, p)
    assert np.isnan(r[1]) and r[2] == 0.0
    found = m.macro(r)
    assert found.defined == 3 and found.undefined == 1
    assert found.value == pytest.approx((r[0] + r[2] + r[3]) / 3)
    assert np.isnan(m.rvd(y, p)[1]) and m.rvd(y, p)[2] == pytest.approx(1.0)
    assert m.macro([np.nan, np.nan]).undefined == 2
    assert m.co_expression(y, p).undefined == 5  # pairs with gene 1 or gene 2


def test_spearman_equals_scipy():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(1)
    y, p = rng.poisson(2, size=(40, 5)).astype(float), rng.normal(size=(40, 5))
    want = [spearmanr(y[:, g], p[:, g])[0] for g in range(5)]
    np.testing.assert_allclose(m.spearman(y, p), want, atol=1e-12)


def test_rvd_of_means_is_not_that_of_samples():
    rng = np.random.default_rng(2)
    signal = rng.normal(size=(500, 1, 6))
    truth = (signal + rng.normal(size=(500, 1, 6)))[:, 0]
    samples = signal + rng.normal(size=(500, 20, 6))
    assert m.macro(m.rvd(truth, samples[:, 0])).value < 0.05
    assert m.macro(m.rvd(truth, samples.mean(axis=1))).value == pytest.approx((1 - 1.05 / 2) ** 2, abs=0.06)


def test_co_expression_of_itself_and_of_noise():
    rng = np.random.default_rng(3)
    y = rng.normal(size=(200, 3)) @ rng.normal(size=(3, 20)) + rng.normal(size=(200, 20))
    same, noise = m.co_expression(y, y), m.co_expression(y, rng.normal(size=y.shape))
    assert same.correlation == pytest.approx(1.0) and same.error == pytest.approx(0.0, abs=1e-12)
    assert abs(noise.correlation) < 0.3 and noise.error > 0.2 and noise.pairs == 190


def test_morans_i():
    x, y = np.meshgrid(np.arange(10.0), np.arange(10.0))
    coords = np.stack([x.ravel(), y.ravel()], axis=1)
    w = m.spatial_weights(coords, k=4)
    np.testing.assert_allclose(np.asarray(w.sum(axis=1)).ravel(), 1.0)
    assert w.diagonal().sum() == 0
    gradient, board = x.ravel(), ((x + y) % 2).ravel()
    noise = np.random.default_rng(4).normal(size=100)
    values = np.stack([gradient, board, noise, np.ones(100)], axis=1)
    i = m.morans_i(values, w)
    z = values[:, :3] - values[:, :3].mean(axis=0)
    naive = [100 / w.sum() * (np.outer(c, c) * w.toarray()).sum() / (c**2).sum() for c in z.T]
    np.testing.assert_allclose(i[:3], naive)
    assert i[0] > 0.8 and i[1] < -0.7 and abs(i[2]) < 0.2 and np.isnan(i[3])
    agreement = m.moran_agreement(i, i)
    assert agreement.correlation == pytest.approx(1) and agreement.undefined == 1 and agreement.bias == 0


def test_gene_variation_is_ordered_by_the_truth():
    rng = np.random.default_rng(5)
    y = rng.poisson([5, 1, 3], size=(50, 3)).astype(float)
    curve = m.gene_variation(y, y * 2)
    assert list(curve.order) == [1, 2, 0]
    np.testing.assert_allclose(curve.variance, 4 * curve.truth_variance)


def test_bad_shapes_are_one_sentence():
    with pytest.raises(InputError, match=r"\(3, 2\).*\(2, 2\)"):
        m.pearson(np.zeros((3, 2)), np.zeros((2, 2)))
    with pytest.raises(InputError, match="1 NaN"):
        m.pearson(np.array([[np.nan], [1.0]]), np.ones((2, 1)))
