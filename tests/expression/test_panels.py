"""Gene panels, transforms, neighbours, splits."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from morphogen.core.errors import InputError
from morphogen.expression.config import PanelConfig
from morphogen.expression.data import SectionFacts, set_facts
from morphogen.expression.sections import panels
from morphogen.expression.sections.neighbours import nearest_spots, neighbourhood_mean
from morphogen.expression.sections.readers import read_sections
from morphogen.expression.sections.splits import folds, split_sections
from morphogen.expression.sections.transforms import Standardiser, Transform, keep_for_training

RNG = np.random.default_rng


def section(name, patient="", genes=30, spots=40, seed=0):
    rng = RNG(seed)
    a = ad.AnnData(
        sparse.csr_matrix(rng.poisson(rng.gamma(1, 2, size=genes), size=(spots, genes)).astype(np.float32))
    )
    a.var_names = [f"G{i:02d}" for i in range(genes)]
    a.obs_names = [f"{name}-{i}" for i in range(spots)]
    set_facts(a, SectionFacts(section=name, patient=patient))
    return a


# --- panels ---


@pytest.fixture(scope="module")
def tiny(shared):
    return read_sections(shared / "fixtures/stem_eval")


def test_published_panels(tiny, published):
    lists = published("stem_eval")[0]["gene_lists"]
    assert panels.common_genes(tiny) == lists["common_genes"]
    for n in (40, 57):
        panel = panels.hmhvg(tiny, n, top=70)
        assert list(panel.genes) == lists[f"selected_genes_n{n}"]
        assert panel.sections == ("TINY0", "TINY1", "TINY2") and panel.cut == n


def test_hisdiff_ranking_is_the_same_with_its_first_slide_counted_twice(tiny, published):
    lists = published("stem_eval")[0]["gene_lists"]
    genes = panels.candidates(tiny, 70, prefixes=("\0",))
    assert [g for g in genes if not g.startswith(panels.REFERENCE_PREFIXES)] == sorted(lists["union_hvg"])
    by_mean, by_std = panels.orders([tiny[0], *tiny], genes)
    assert sorted(set(by_mean[:40]) & set(by_std[:40])) == lists["hisdiff_selected_genes_n40"]


def test_training_panel_has_the_size_asked_for(tiny):
    for size in (5, 37, 60):
        panel = panels.training_panel(tiny[:2], size, top=70)
        assert len(panel) == size == len(set(panel.genes)) and list(panel.genes) == sorted(panel.genes)
        assert panel.sections == ("TINY0", "TINY1")
        n = panel.cut  # it is the reference rule at the smallest n that reaches the size
        by_mean, by_std = panels.orders(tiny[:2], panels.candidates(tiny[:2], 70, panels.OUR_PREFIXES))
        assert set(panel.genes) <= set(by_mean[:n]) & set(by_std[:n])
        assert len(set(by_mean[: n - 1]) & set(by_std[: n - 1])) < size
    with pytest.raises(InputError, match="only .* candidate genes"):
        panels.training_panel(tiny, 5000, top=70)


def test_panel_does_not_see_the_test_section(tiny):
    before = panels.choose_panel(tiny[:2], PanelConfig(size=30, highly_variable=70))
    tiny[2].X = tiny[2].X * 100
    assert panels.choose_panel(tiny[:2], PanelConfig(size=30, highly_variable=70)) == before


def test_panel_identity_and_lists(tmp_path):
    a, b = panels.Panel(("X", "Y"), "listed"), panels.Panel(("Y", "X"), "listed")
    assert a.hash != b.hash and panels.Panel.from_dict(a.to_dict()) == a
    with pytest.raises(InputError, match="hash"):
        panels.Panel.from_dict({**a.to_dict(), "genes": ["Y", "X"]})
    s = section("s")
    (tmp_path / "genes.txt").write_text("G05\nG01\n\n")
    assert panels.choose_panel([s], PanelConfig(genes=str(tmp_path / "genes.txt"))).genes == ("G05", "G01")
    (tmp_path / "genes.txt").write_text("G05\nNOPE\n")
    with pytest.raises(InputError, match="1 listed genes are not measured in section s: NOPE"):
        panels.choose_panel([s], PanelConfig(genes=str(tmp_path / "genes.txt")))
    (tmp_path / "genes.txt").write_text("G05\nG05\n")
    with pytest.raises(InputError, match="more than once"):
        panels.choose_panel([s], PanelConfig(genes=str(tmp_path / "genes.txt")))


# --- transforms ---


def test_transforms_and_back():
    counts = RNG(0).poisson(3, size=(6, 4)).astype(np.float32)
    reference, ours = Transform("log2p1"), Transform("log1p")
    np.testing.assert_allclose(reference.forward(counts), np.log2(counts + 1), rtol=1e-6)
    np.testing.assert_allclose(ours.inverse(ours.forward(counts)), counts, atol=1e-5)
    np.testing.assert_allclose(
        reference.forward(counts) * reference.to(ours), ours.forward(counts), rtol=1e-6
    )
    library = Transform("log1p", library=True, target=50.0)
    totals = counts.sum(axis=1)
    np.testing.assert_allclose(library.inverse(library.forward(counts, totals)).sum(axis=1), 50.0, rtol=1e-4)
    with pytest.raises(InputError, match="cannot be scored"):
        library.to(ours)
    with pytest.raises(InputError, match="library size"):
        library.forward(counts)
    assert Transform.from_dict(library.to_dict()) == library
    assert (ours.inverse(np.full((1, 1), -2.0)) == 0).all()


def test_standardiser_and_dropped_spots():
    values = np.column_stack([RNG(1).normal(3, 2, 50), np.full(50, 7.0)])
    z = Standardiser.fit(values)
    assert z.std[1] == 1
    np.testing.assert_allclose(z.inverse(z.forward(values)), values, rtol=1e-6)
    np.testing.assert_allclose(z.forward(values)[:, 0].std(), 1, rtol=1e-5)
    counts = np.array([[0, 0], [1, 0], [np.nan, 2]])
    assert list(keep_for_training(counts)) == [False, True, False]


# --- neighbours ---


def test_published_neighbours(tensors):
    t = tensors("stem_eval")
    xy = t["kd_coords"].numpy()
    np.testing.assert_array_equal(nearest_spots(xy, 9), t["kd_neighbor9"])
    np.testing.assert_array_equal(nearest_spots(xy, 49), t["kd_global49"])
    grid = t["kd_grid"].numpy()
    for k, want in ((9, "kd_grid_neighbor9_dist"), (49, "kd_grid_global49_dist")):
        index = nearest_spots(grid, k)
        found = np.linalg.norm(grid[index] - grid[:, None], axis=2)
        np.testing.assert_allclose(found, t[want], atol=1e-9)
        assert (index[:, 0] == np.arange(len(grid))).all()
        same = np.isclose(np.diff(found, axis=1), 0) & (found[:, :-1] > 0)  # ties in order of row
        assert (np.diff(index, axis=1)[same] > 0).all()


def test_fewer_spots_than_neighbours():
    index = nearest_spots(RNG(0).random((5, 2)), 9)
    assert (index[:, 5:] == -1).all() and (np.sort(index[:, :5], axis=1) == np.arange(5)).all()
    values = RNG(1).normal(size=(5, 3))
    np.testing.assert_allclose(neighbourhood_mean(values, index), np.tile(values.mean(axis=0), (5, 1)))
    assert (nearest_spots(np.zeros((30, 2)), 4)[:, 0] == np.arange(30)).all()


# --- splits ---


def sections_of(**patients):
    return [section(name, patient) for name, patient in patients.items()]


def test_a_split_by_patient_fails_closed():
    known = sections_of(B4="B", C3="C", C4="C", C6="C")
    good = split_sections(known, ["B4"])
    assert good.label == "held-out patient" and good.train == ("C3", "C4", "C6")
    with pytest.raises(InputError, match="patient C is on both sides: section C3 is in training and C6"):
        split_sections(known, ["C6"])
    unknown = sections_of(B4="B", C3="")
    with pytest.raises(InputError, match="patient of section C3 is not known"):
        split_sections(unknown, ["B4"])
    assert split_sections(unknown, ["B4"], by="section").label == "held-out section, patients not known"
    siblings = split_sections(known, ["C6"], by="section")
    assert "SIBLING sections in training (C3, C4)" in siblings.label
    with pytest.raises(InputError, match="in the training and in the test"):
        split_sections(known, ["C6"], train=["C6", "C3"])
    with pytest.raises(InputError, match="Did you mean 'C6'"):
        split_sections(known, ["C66"])


def test_inner_folds_keep_patients_together():
    found = folds(sections_of(B4="B", C3="C", C4="C"))
    assert found == [([1, 2], [0]), ([0], [1, 2])]
    assert len(folds(sections_of(B4="B", C3="C", C4="C"), by="section")) == 3
    assert folds(sections_of(C3="C", C4="C")) == []
