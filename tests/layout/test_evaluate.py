"""Evaluation: all arms, on held-out patients, with intervals; style, layout and memory of synthetic images."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from morphogen.core.errors import InputError
from morphogen.layout.config import SynthesisConfig
from morphogen.layout.evaluate import compare, evaluate_segmenters, verdict
from morphogen.layout.predict import synthesize
from morphogen.layout.sampling.augment import blurred
from morphogen.layout.sampling.stains import recolour
from morphogen.layout.scoring import baselines
from morphogen.layout.scoring.scores import patient_items, score_segmenter
from morphogen.layout.scoring.synthetic import (
    MEASURES,
    _share_nearer,
    diversity,
    evaluate_synthetic,
    memorisation,
)
from morphogen.layout.sources.arrays import as_style, in_memory
from morphogen.layout.sources.folders import image_folder
from morphogen.layout.synthesis.plan import Plan
from morphogen.layout.synthesis.pseudo import pseudo_sheets
from morphogen.metrics.intervals import Interval
from morphogen.slides.recolouring import Stains
from morphogen.tasks.evaluation import Evaluation, SetScores

from .conftest import NAMES, painted, small_segmenter


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory, trained, found, data):
    out = tmp_path_factory.mktemp("made")
    config = SynthesisConfig(count=4, batch=4)
    folder = synthesize(trained.model, found.annotated, found.unannotated, config, out, data=data).folder
    return image_folder(folder)[0]


def test_every_arm_is_in_the_table(tmp_path, found, data, synthetic):
    config = small_segmenter(2, data)
    result = compare(found, synthetic, config, tmp_path, everything=found.unannotated, device="cpu")
    assert {e.method for e in result.evaluations} == set(baselines.ORDER)
    assert result.evaluations[0].method == baselines.BOTH
    facts = json.loads((tmp_path / "metrics.json").read_text())
    assert set(facts["differences"]["to"]) == set(baselines.ORDER) - {baselines.BOTH}
    assert (facts["test"], facts["annotated"], facts["styles"]) == (["P4"], ["P1", "P2"], ["P3"])
    assert {e.scores.intervals["iou"].units for e in result.evaluations} == {1}
    page = (tmp_path / "report.html").read_text()
    assert "Synthetic images" in page and "stain augmentation" in page
    steps = {json.loads(p.read_text())["facts"]["steps"] for p in tmp_path.rglob("model/morphogen.json")}
    assert steps == {2}


def test_a_study_may_train_some_arms(tmp_path, found, data, synthetic):
    """Real + synthetic is always one; pseudo-labels need the segmenter that gives them."""
    result = compare(
        found, synthetic, small_segmenter(1, data), tmp_path, arms=[baselines.PSEUDO], device="cpu"
    )
    assert [e.method for e in result.evaluations] == [baselines.BOTH, baselines.AUGMENTED, baselines.PSEUDO]


def test_scores_are_of_patients(segmenter, found):
    scores = score_segmenter(segmenter, [*found.test, *found.unannotated], instances=True)
    items = patient_items(scores, NAMES)
    assert [item.name for item in items] == ["P3", "P4"]
    assert {"iou", "dice", "boundary", "pq", "iou tumour", "dice stroma"} <= set(items[0].values)
    assert scores["P4"].matrix.sum() == 2 * 64 * 64


def test_no_test_patient_and_no_synthetic_images(tmp_path, found, data, segmenter, synthetic):
    from dataclasses import replace

    empty = replace(found, test=())
    for call in (
        lambda: evaluate_segmenters({"a": segmenter}, empty, tmp_path),
        lambda: compare(empty, synthetic, small_segmenter(1, data), tmp_path),
        lambda: compare(found, [], small_segmenter(1, data), tmp_path),
    ):
        with pytest.raises(InputError):
            call()


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        (
            Interval(0.03, 0.01, 0.05, 20, "patient"),
            "Synthetic images help: real . synthetic is .3.0 IoU points",
        ),
        (Interval(0.01, -0.01, 0.03, 20, "patient"), "may help, and it is not certain"),
        (
            Interval(0.004, 0.003, 0.006, 3, "patient"),
            "not certain: .*recolouring. 3 patients agree by chance in 25 %",
        ),
        (Interval(-0.02, -0.04, 0.0, 20, "patient"), "Synthetic images do not help here: .* -2.0"),
    ],
)
def test_the_first_line_says_whether_it_is_so(gain, said):
    import re

    def arm(name, value):
        return Evaluation(name, SetScores({}, {"iou": Interval(value, value, value, 20, "patient")}), [])

    arms = [arm(baselines.BOTH, 0.5), arm(baselines.REAL, 0.4), arm(baselines.RECOLOURED, 0.45)]
    arms.append(arm(baselines.ALL, 0.9))  # the ceiling is no rival
    differences = {each.method: {"iou": gain} for each in arms[1:]}
    line = verdict(arms, differences)
    assert re.search(said, line) and "recolouring" in line


def test_recolouring_takes_the_stains_of_the_target():
    source, target = (np.stack([painted(k, n)[0] for n in range(2)]) for k in (1, 4))
    a, b = Stains.of(source), Stains.of(target)
    same = recolour(source[0], a, a).astype(int)
    assert np.abs(same - source[0]).mean() < 4
    moved = recolour(source[0], a, b)
    distances = [np.abs(Stains.of(moved[None]).matrix - each.matrix).sum() for each in (a, b)]
    assert distances[1] < distances[0]


def test_a_little_blood_does_not_set_the_stains():
    """Three per cent of the tissue in another colour: the robust estimate stays, that of the extremes does not."""
    images = np.stack([painted(2, n)[0] for n in range(4)])
    bloody = images.copy()
    bloody[:, :8, :10] = (190, 40, 20)
    turned, changed = {}, {}
    for robust in (True, False):
        clean, other = (Stains.of(each, robust=robust) for each in (images, bloody))
        angles = np.degrees(np.arccos(np.clip((clean.matrix[:2] * other.matrix[:2]).sum(1), -1, 1)))
        turned[robust] = float(angles.max())
        changed[robust] = float(np.abs(np.log(other.amounts / clean.amounts)).max())
    assert turned[True] < 9 and turned[False] > 20
    assert changed[True] < 0.3 and changed[False] > 1


def test_baseline_sheets(found, segmenter, data):
    soft = [
        in_memory(sheet.name, sheet.patient, blurred(sheet.pixels, 1.5), sheet.classes)
        for sheet in found.unannotated
    ]
    plan = Plan(found.annotated, soft, data, SynthesisConfig(count=4), 3, images=2)
    for focus in (True, False):
        made = baselines.recoloured_sheets(found.annotated, soft, 4, data, 3, focus=focus)
        assert [sheet.patient for sheet in made] == ["P3"] * 4
        for number, sheet in enumerate(made):  # with the focus: what a synthetic image begins at
            assert np.array_equal(sheet.pixels, plan[number].begin) == focus
            assert np.array_equal(sheet.classes, plan[number].layout.labels) and sheet.balanced
    pseudo = pseudo_sheets(segmenter, as_style(found.unannotated), 32)
    assert len(pseudo) == 2 and all(sheet.labelled for sheet in pseudo)
    assert set(np.unique(pseudo[0].classes)) <= {0, 1, 2}


def test_style_measures_tell_patients_apart():
    """Given the patients' own images as outputs, every measure finds their source; given swapped ones, never."""
    shown = {f"P{k}": np.stack([painted(k, n)[0] for n in range(3)]) for k in (1, 4)}
    own = [[painted(1, 7)[0]], [painted(4, 8)[0]]]
    for name, measure in MEASURES.items():
        assert _share_nearer(measure, shown, own, [["P1", "P4"]]) == 1, name
        assert _share_nearer(measure, shown, own[::-1], [["P1", "P4"]]) == 0, name


def test_copies_are_found():
    training = np.stack([painted(1, n)[0] for n in range(8)])
    unseen = np.stack([painted(1, n)[0] for n in range(20, 28)])
    copied = memorisation(training[:4], training, unseen)
    assert copied["nearness"] < 0.1 and copied["copies"] == 1
    assert memorisation(unseen[:4], training, unseen)["nearness"] > 0.5


def test_diversity_of_one_colour_is_small():
    real = {f"P{k}": np.stack([painted(k, n)[0] for n in range(2)]) for k in (1, 2, 3, 4)}
    flat = {name: np.stack([painted(1, 10 * k + n)[0] for n in range(2)]) for k, name in enumerate(real)}
    assert diversity(real, real) == pytest.approx(1) and diversity(flat, real) < 0.5


def test_evaluation_of_synthetic_images(tmp_path, trained, found, synthetic, segmenter):
    styles = [*found.unannotated, *found.annotated]
    held = [*found.test, *found.annotated]
    scores = evaluate_synthetic(
        trained.model, synthetic, found.annotated, styles, held, tmp_path, segmenter=segmenter, pairs=3
    )
    names = {f"style match, {name}" for name in MEASURES}
    assert names | {"layout agreement", "agreement ratio", "nearness", "copies"} <= set(scores.figures)
    assert all(0 <= scores.figures[name] <= 1 for name in names)
    # The ceiling beside it: further images of painted patients, whose colours differ, are nearer to their own.
    assert all(scores.figures[f"style match of real images, {name}"] >= 0.8 for name in MEASURES)
    assert (tmp_path / "report.html").is_file()


def test_worlds_are_pooled_by_paired_differences(tmp_path, capsys):
    """Two worlds: +4 and +2 points over stain augmentation; Student's interval of two values."""
    from bench.layout_pool import pool

    values = {baselines.BOTH: (0.40, 0.20), baselines.AUGMENTED: (0.36, 0.18), baselines.ALL: (0.42, 0.22)}
    values |= {baselines.RECOLOURED: (0.39, 0.17), baselines.PSEUDO: (0.35, 0.19)}
    values |= {baselines.REAL: (0.30, None)}  # trained in one of the worlds
    for world in (0, 1):
        arms = {
            name: {"iou": iou[world], "sd": 0.1 + 0.05 * world} for name, iou in values.items() if iou[world]
        }
        arms[baselines.BOTH]["sd"] = 0.08 + 0.04 * world
        (tmp_path / str(world)).mkdir()
        facts = {"arms": arms, "seconds": {"train": 10 + 4 * world}}
        (tmp_path / str(world) / "study.json").write_text(json.dumps(facts))
    found = pool([tmp_path / "0", tmp_path / "1"], tmp_path / "out")
    gain = found["gains"][baselines.AUGMENTED]
    assert gain.value == pytest.approx(0.03)
    assert gain.high - gain.value == pytest.approx(
        12.7062 * 0.01, rel=1e-4
    )  # t · SD / √2 with one degree of freedom
    assert found["minus the best of recolouring and pseudo-labels"].value == pytest.approx(0.01)
    assert found["share of the gap closed"] == pytest.approx(0.03 / 0.05)
    assert found["sd ratio"].value == pytest.approx(0.8) and found["seconds"] == {"train": 12}
    assert found["gains"][baselines.REAL].value == pytest.approx(0.1)
    assert "+3.0 [-9.7, +15.7]" in capsys.readouterr().out


def test_the_splits_of_the_study_name_patients_that_are_there(shared):
    """Every patient has images in the sample, and none is on two sides."""
    from bench.layout_study import GLAS

    folder = shared / "data" / "seg" / "glas"
    if not folder.is_dir():
        pytest.skip("the sample data have no glands")
    with open(folder / "Grade.csv") as file:
        rows = [(row["name"].strip(), int(row["patient ID"])) for row in csv.DictReader(file)]
    there = {f"G{patient:02d}" for name, patient in rows if (folder / "images" / f"{name}.jpg").is_file()}
    for annotated, test in GLAS:
        assert set(annotated) | set(test) <= there and not set(annotated) & set(test)
