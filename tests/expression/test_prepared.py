"""Prepared sections and predictions of others: every slot is checked before it is used."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from morphogen.core.errors import InputError
from morphogen.expression.data import facts
from morphogen.expression.sections.checked import check_prepared, predicted
from morphogen.expression.sections.prepare import load_section, load_sections, save_section
from morphogen.expression.sections.readers import find_sections


def test_leftovers_of_a_killed_run_are_no_sections(tmp_path, make_section):
    save_section(make_section("A1", side=4), tmp_path / "A1.h5ad")
    for name in (".A1.4711.tmp.h5ad", "._A1.h5ad"):
        (tmp_path / name).write_bytes(b"half")
    assert [facts(s).section for s in load_sections(tmp_path)] == ["A1"]
    assert [source.section for source in find_sections(tmp_path)] == ["A1"]


def wrong_neighbours(value):
    def change(a):
        a.obsm["neighbours"][3, 1] = value

    return change


def slot(key, make):
    def change(a):
        a.obsm[key] = make(a.obsm[key])

    return change


def note(key, value, kind="section"):
    def change(a):
        a.uns["morphogen"][kind][key] = value

    return change


DAMAGED = {
    "a neighbour that is not there": (
        wrong_neighbours(999),
        "a neighbour is spot 999, but there are 16 spots",
    ),
    "a neighbour below −1": (wrong_neighbours(-2), "a neighbour is spot -2"),
    "fractional neighbours": (slot("neighbours", lambda v: v + 0.5), "is float64 of shape"),
    "few neighbours": (slot("neighbours", lambda v: v[:, :2]), "there are 2 neighbours of each spot, not 9"),
    "others first": (slot("neighbours", lambda v: v[:, ::-1]), "the first neighbour of a spot is not itself"),
    "NaN in an embedding": (slot("embedding", lambda v: np.where(v > 0, np.nan, v)), "hold NaN"),
    "whole embedding": (slot("embedding", lambda v: v.astype(int)), "is int64 of shape"),
    "flat views": (lambda a: a.obsm.__setitem__("embedding_views", a.obsm["embedding"]), "with 3 axes"),
    "NaN coordinates": (slot("spatial", lambda v: v * np.nan), "does not hold x and y of every spot"),
    "NaN pitch": (note("pitch_px", np.nan), "its pitch_px is 'nan', not a size"),
    "negative µm/px": (note("mpp", -1.0), "its mpp is '-1.0', not a size"),
    "words for a size": (note("pitch_um", "wide"), "its pitch_um is 'wide', not a size"),
    "a number for a patient": (note("patient", 7), "its patient is '7', not text"),
    "no encoder": (note("encoder", "uni", "prepare"), "damaged .encoder"),
    "no field": (note("field_px", -3, "prepare"), "damaged .field_px"),
    "negative counts": (lambda a: a.X.data.__setitem__(0, -1.0), "X holds values that are no counts"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_every_slot_of_a_prepared_section_is_checked(tmp_path, make_section, kind):
    section = make_section("A1", side=4)
    assert check_prepared(section, "A1") is section
    change, sentence = DAMAGED[kind]
    change(section)
    path = tmp_path / "A1.h5ad"
    section.write_h5ad(path)
    with pytest.raises(InputError, match=sentence) as caught:
        load_section(path)
    assert len(str(caught.value).replace(str(path), "A1.h5ad")) <= 300


def test_a_list_where_facts_are_expected(tmp_path, make_section):
    section = make_section("A1", side=4)
    section.uns["morphogen"] = np.arange(3)
    section.write_h5ad(tmp_path / "A1.h5ad")
    with pytest.raises(InputError, match="this is not a prepared section"):
        load_section(tmp_path / "A1.h5ad")


def test_predictions_of_others_are_checked():
    a = ad.AnnData(shape=(3, 2))
    a.obs_names, a.var_names = list("abc"), ["G0", "G1"]
    with pytest.raises(InputError, match="there is no layer 'pred_mean'"):
        predicted(a, "theirs")
    a.layers["pred_mean"] = sparse.csr_matrix(np.eye(3, 2))
    mean, samples = predicted(a, "theirs")
    np.testing.assert_array_equal(mean, np.eye(3, 2))
    assert samples is None
    a.obsm["pred_samples"] = np.zeros((3, 4, 5))
    with pytest.raises(
        InputError, match=r"is float64 of shape \(3, 4, 5\), not numbers for 3 spots and 2 genes"
    ):
        predicted(a, "theirs")
    a.obsm["pred_samples"] = np.full((3, 4, 2), np.nan)
    with pytest.raises(InputError, match="holds NaN"):
        predicted(a, "theirs")
    a.obs_names = list("aab")
    with pytest.raises(InputError, match="barcodes occur more than once"):
        predicted(a, "theirs")
