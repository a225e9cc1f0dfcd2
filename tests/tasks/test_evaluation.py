"""Evaluations: means over units with intervals, paired differences, files and the page."""

import csv
import json

import numpy as np
import pytest

from morphogen.core.files import Manifest
from morphogen.tasks import (
    Evaluation,
    ItemScores,
    SetScores,
    against_first,
    mean_intervals,
    paired_differences,
    write_page,
    write_results,
)

OPTIONS = {"unit": "patient", "seed": 3, "purpose": "test", "resamples": 500}


def scored(shift):
    rng = np.random.default_rng(0)
    items = [
        ItemScores(f"i{k}", f"p{k // 2}", {"dice": float(0.5 + 0.1 * rng.normal() + shift)})
        for k in range(12)
    ]
    items[3].values["dice"] = float("nan")
    items[4].values["extra"] = 1.0
    return items


def evaluation(method, shift):
    items = scored(shift)
    intervals, undefined = mean_intervals(items, ["dice", "extra", "absent"], **OPTIONS)
    return Evaluation(method, SetScores({"fd": 4.0}, intervals, undefined), items)


def test_means_are_over_units_and_undefined_items_are_counted():
    items = scored(0)
    intervals, undefined = mean_intervals(items, ["dice", "extra", "absent"], **OPTIONS)
    means = [np.nanmean([items[2 * p].values["dice"], items[2 * p + 1].values["dice"]]) for p in range(6)]
    assert intervals["dice"].value == pytest.approx(np.mean(means))
    assert intervals["dice"].low < intervals["dice"].value < intervals["dice"].high
    assert (intervals["dice"].units, intervals["dice"].unit) == (6, "patient")
    assert intervals["extra"].units == 1 and np.isnan(intervals["extra"].low)
    assert undefined == {"dice": 1} and "absent" not in intervals
    again, _ = mean_intervals(items, ["dice"], **OPTIONS)
    other, _ = mean_intervals(items, ["dice"], **{**OPTIONS, "seed": 4})
    assert again["dice"] == intervals["dice"] != other["dice"]


def test_differences_are_paired_by_item():
    found = paired_differences(scored(0.1), scored(0), ["dice", "absent"], **OPTIONS)
    assert list(found) == ["dice"]
    np.testing.assert_allclose(found["dice"][:3], 0.1)


def test_files_and_page_hold_what_was_found(tmp_path):
    evaluations = [evaluation("ours", 0.1), evaluation("theirs", 0)]
    differences = against_first(evaluations, lambda a, b: paired_differences(a, b, ["dice"], **OPTIONS))
    assert list(differences) == ["theirs"]
    assert against_first(evaluations, lambda a, b: {}, of="theirs") == {"ours": {}}
    out = write_results(
        tmp_path, evaluations, kind="test evaluation", protocol="test-1", facts={"config": {"seed": 3}},
        differences=differences, order=["dice"], items="images",
    )  # fmt: skip
    with open(out / "summary.csv") as file:
        first, _ = csv.DictReader(file)
    assert list(first) == [
        "method",
        "dice",
        "dice low",
        "dice high",
        "fd",
        "extra",
        "extra low",
        "extra high",
    ]
    assert float(first["dice"]) == evaluations[0].scores.intervals["dice"].value and first["extra low"] == ""
    with open(out / "images.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24 and rows[3]["dice"] == "" and rows[4]["unit"] == "p2"
    results = json.loads((out / "metrics.json").read_text())
    assert results["protocol"] == "test-1" and results["methods"]["theirs"]["undefined"] == {"dice": 1}
    assert results["differences"]["to"]["theirs"]["dice"]["value"] == pytest.approx(0.1)
    assert Manifest.read(out)["methods"] == ["ours", "theirs"]
    tables = [("Overlap", {"dice": ("Dice", "max")}), ("None", {"no": ("no", None)})]
    page = write_page(
        out, evaluations, "A test", "12 images", tables,
        compared={"dice": "Dice gained"}, compared_note="Paired.", notes=["Mind the gap."],
    ).read_text(encoding="utf-8")  # fmt: skip
    for text in ("Overlap", "Dice gained", "ours against the others", "Mind the gap.", "Paired."):
        assert text in page
    assert "None</h" not in page and "agree by chance" not in page


def test_a_page_says_that_few_patients_show_no_difference(tmp_path):
    evaluations = [
        Evaluation(e.method, e.scores, e.items[:6]) for e in (evaluation("a", 0.1), evaluation("b", 0))
    ]
    differences = against_first(evaluations, lambda a, b: paired_differences(a, b, ["dice"], **OPTIONS))
    assert differences["b"]["dice"].low > 0
    write_results(
        tmp_path, evaluations, kind="test", protocol="test-1", facts={}, differences=differences,
        order=[], items="images",
    )  # fmt: skip
    page = write_page(tmp_path, evaluations, "A test", "", []).read_text(encoding="utf-8")
    assert "3 patients agree by chance in 25 % of cases" in page
