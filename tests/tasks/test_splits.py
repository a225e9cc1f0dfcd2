"""Splits fail closed, whatever the items are."""

import pytest

from morphogen.core.errors import InputError
from morphogen.tasks import folds, held_together, hold_out, split_items

PATIENTS = {"s1": "A", "s2": "A", "s3": "B", "s4": ""}


def test_a_split_by_patient_has_no_patient_on_both_sides():
    split = split_items(PATIENTS, ["s3"], ["s1", "s2"], what="slide")
    assert split.label == "held-out patient" and split.to_dict()["label"] == split.label
    with pytest.raises(
        InputError, match="patient A is on both sides: slide s1 .* s2 in the test.*--by slide"
    ):
        split_items(PATIENTS, ["s2"], ["s1"], what="slide")
    with pytest.raises(InputError, match="the patient of slide s4 is not known"):
        split_items(PATIENTS, ["s3"], what="slide")


def test_a_split_by_item_names_its_siblings():
    split = split_items(PATIENTS, ["s2"], ["s1", "s3"], by="slide", what="slide")
    assert split.siblings == ("s1",)
    assert split.label == "held-out slide, SIBLING slides in training (s1)"
    assert split_items(PATIENTS, ["s4"], ["s1"], "image", what="image").label.endswith("patients not known")
    assert split_items(PATIENTS, ["s3"], ["s1"], "image", what="image").label == "held-out image"


def test_what_is_not_there_or_on_both_sides_is_refused():
    with pytest.raises(InputError, match="there is no image 's9'"):
        split_items(PATIENTS, ["s9"], what="image")
    with pytest.raises(InputError, match="s1 is in the training and in the test"):
        split_items(PATIENTS, ["s1"], ["s1"])
    with pytest.raises(InputError, match="0 training and 4 test slides"):
        split_items(PATIENTS, list(PATIENTS), what="slide")


def test_folds_leave_one_unit_out():
    assert folds(["A", "A", "B"]) == [([2], [0, 1]), ([0, 1], [2])]
    assert folds(["A", "A"]) == []


def test_what_shares_a_label_of_any_kind_is_held_out_together():
    patients = ["A", "B", "B", "C", "", ""]
    assert held_together(["1", "1", "2", "3", "", ""], patients) == [
        0,
        0,
        0,
        1,
        2,
        3,
    ]  # B lies on both 1 and 2
    assert held_together(["", "", "", "", "C", ""], patients) == [
        0,
        1,
        1,
        2,
        3,
        4,
    ]  # array C is not patient C
    assert held_together(["x", "y", "x", "y"], ["p", "q", "q", ""]) == [0, 0, 0, 0]


def test_whole_units_are_held_out():
    units = [f"p{k // 5}" for k in range(50)]
    train, test = hold_out(units, 0.3, seed=1)
    assert sorted(train + test) == list(range(50)) and len(test) == 15
    assert {units[i] for i in train}.isdisjoint(units[i] for i in test)
    assert hold_out(units, 0.3, seed=1) == (train, test) != hold_out(units, 0.3, seed=2)
    train, test = hold_out(["a", "b"], 0.99)
    assert len(train) == len(test) == 1
    with pytest.raises(InputError, match="all 3 items are of one patient"):
        hold_out(["a"] * 3, 0.5)
