"""Baselines are what they say, and are tuned on training sections only."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from morphogen.expression.scoring import baselines as b
from morphogen.expression.sections.panels import Panel
from morphogen.expression.sections.tables import inner_folds, tabulate
from morphogen.metrics.expression import macro, pearson
from morphogen.metrics.probabilistic import coverage

PANEL = Panel(tuple(f"G{i:02d}" for i in range(12)), "listed")


@pytest.fixture(scope="module")
def tables(world):
    return [tabulate(s, PANEL) for s in world]


def test_tuned_ridge_is_the_stated_pipeline(tables):
    train, test = tables[:3], tables[3]
    ridge = b.tuned_ridge(train)
    assert ridge.alpha in b.RIDGE_ALPHAS
    same = make_pipeline(StandardScaler(), PCA(), SklearnRidge(alpha=ridge.alpha))
    same.fit(np.concatenate([t.embedding for t in train]), np.concatenate([t.y for t in train]))
    np.testing.assert_allclose(ridge.mean(test), same.predict(test.embedding), atol=1e-3)
    assert macro(pearson(test.y, ridge.mean(test))).value > 0.4


def test_alpha_maximises_the_inner_score_on_training_sections(tables):
    train = tables[:3]
    scores = {}
    for alpha in b.RIDGE_ALPHAS:
        found = []
        for i, held in enumerate(train):
            rest = [t for j, t in enumerate(train) if j != i]
            path = b._RidgePath(
                np.concatenate([t.embedding.astype(float) for t in rest]), np.concatenate([t.y for t in rest])
            )
            found.append(macro(pearson(held.y, path.predict(held.embedding, alpha))).value)
        scores[alpha] = np.mean(found)
    assert b.tuned_ridge(train).alpha == max(scores, key=scores.get)


def test_samples_of_the_ridge_cover(tables):
    ridge = b.tuned_ridge(tables[:3])
    samples = ridge.samples(tables[3], 39, seed=0)
    assert samples.shape == (144, 39, 12)
    assert 0.75 < coverage(tables[3].y, samples, 0.9).observed < 0.99
    np.testing.assert_array_equal(samples, ridge.samples(tables[3], 39, seed=0))


def test_others(tables):
    train, test = tables[:3], tables[3]
    mean = b.TrainingMean(train)
    assert macro(pearson(test.y, mean.mean(test))).value == 0.0
    assert set(np.unique(mean.samples(test, 3, 0)[:, :, 0])) <= set(
        np.unique(np.concatenate([t.y for t in train])[:, 0])
    )
    knn = b.NearestNeighbours(train)
    assert macro(pearson(test.y, knn.mean(test))).value > 0.3 and knn.samples(test, 2, 0).shape == (
        144,
        2,
        12,
    )
    oracle = b.library_size(train)
    assert oracle.oracle and macro(pearson(test.y, oracle.mean(test))).value > 0.3
    assert not b.coordinates_only(train).oracle
    assert [x.name for x in b.all_baselines(train)] == [
        "training mean", "coordinates only", "library size (oracle)", "kNN", "tuned ridge",
    ]  # fmt: skip


def test_folds_hold_out_sections_else_blocks(tables):
    by_section = inner_folds(tables)
    assert [set(f) for f in by_section] == [{0}, {1}, {2}, {3}]
    (blocks,) = inner_folds(tables[:1], parts=3)
    assert set(blocks) == {0, 1, 2}
    grid = blocks.reshape(12, 12)
    for r in range(0, 12, 4):  # blocks of four pitches stay whole
        for c in range(0, 12, 4):
            assert len(np.unique(grid[r : r + 4, c : c + 4])) == 1
