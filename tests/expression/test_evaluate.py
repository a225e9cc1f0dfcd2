"""Evaluation: right answers, and guards that refuse what would make the figures void."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from morphogen.core.errors import InputError
from morphogen.core.files import Manifest
from morphogen.expression import EvaluateConfig, ExpressionConfig, PredictConfig, evaluate_models, train_model
from morphogen.expression.scoring.scores import score
from morphogen.expression.sections.panels import Panel
from morphogen.expression.sections.tables import tabulate

PANEL = {"size": 10, "highly_variable": 11}
FAST = EvaluateConfig(predict=PredictConfig(samples=19, steps=4), maps=2)
CPU = {"device": "cpu"}


@pytest.fixture(scope="module")
def model(world, tmp_path_factory):
    config = ExpressionConfig(panel=PANEL, spatial={"factors": 0})
    return train_model(world[:3], config, tmp_path_factory.mktemp("m"), device="cpu")


@pytest.fixture(scope="module")
def result(world, model):
    return evaluate_models({"spatial": model}, world, ["D1"], FAST, **CPU)


def test_a_held_out_patient(result):
    frame = result.frame().set_index("method")
    assert result.split.label == "held-out patient"
    assert list(frame.index) == [
        "training mean", "coordinates only", "library size (oracle)", "kNN", "tuned ridge", "spatial",
    ]  # fmt: skip
    assert frame.loc["spatial", "pcc"] > 0.5 and frame.loc["training mean", "pcc"] == 0
    assert frame.loc["spatial", "crps"] < frame.loc["training mean", "crps"]
    assert (frame["pcc_low"] <= frame["pcc"]).all() and (frame["pcc"] <= frame["pcc_high"]).all()
    assert frame.loc["spatial", "pcc_single"] < frame.loc["spatial", "pcc"]  # a mean is not one sample
    assert {d["method"] for d in result.differences} == set(frame.index) - {"tuned ridge"}
    about = result.about
    assert about["oracles"] == ["library size (oracle)"] and about["transform"] == "log(counts + 1)"
    for key in ("protocol", "panel_hash", "encoder", "models", "samples", "seed", "images", "versions"):
        assert key in about
    one = next(i for i in result.intervals if i["method"] == "spatial" and i["column"] == "pcc")
    assert (
        one["unit"] == "patient" and one["units"] == 1 and one["low"] is None
    )  # no interval from one patient


def test_files(result, tmp_path):
    result.save(tmp_path / "e")
    assert Manifest.read(tmp_path / "e")["kind"] == "expression-evaluation"
    saved = json.loads((tmp_path / "e/evaluation.json").read_text())
    assert saved["split"]["label"] == "held-out patient"
    assert len(pd.read_csv(tmp_path / "e/scores.csv")) == 6
    genes = pd.read_csv(tmp_path / "e/genes.csv")
    assert set(genes["gene"]) == set(result.about["genes"]) and "pcc" in genes
    page = (tmp_path / "e/report.html").read_text()
    assert "held-out patient" in page and "another patient" in page and "oracle" in page.lower()
    figures = {p.stem.removeprefix("D1_") for p in (tmp_path / "e").glob("*.png")}
    assert figures == {"pcc", "difference", "variation", "calibration", "coexpression", "moran", "maps"}


def test_two_patients_have_an_interval(world, tmp_path):
    model = train_model(
        world[:2], ExpressionConfig(panel=PANEL, spatial={"factors": 0}), tmp_path, device="cpu"
    )
    found = evaluate_models({"spatial": model}, world, ["B1", "D1"], FAST, **CPU)
    one = next(i for i in found.intervals if i["method"] == "spatial" and i["column"] == "pcc")
    own = found.frame().query("method == 'spatial'")["pcc"]
    assert one["units"] == 2 and one["value"] == pytest.approx(own.mean())
    assert one["low"] == pytest.approx(own.min()) and one["high"] == pytest.approx(own.max())
    found.save(tmp_path / "e")
    assert "2 patients agree by chance in 50 % of cases" in (tmp_path / "e/report.html").read_text()


def test_what_is_not_measured_is_counted(world, model):
    gene = model.panel.genes[3]
    test = world[3][:, [g for g in world[3].var_names if g != gene]].copy()
    found = evaluate_models({"spatial": model}, [*world[:3], test], ["D1"], FAST, **CPU)
    frame = found.frame()
    assert (frame["genes"] == 9).all() and (frame["genes_not_measured"] == 1).all()
    assert found.about["not_measured"] == {"D1": [gene]}


# --- guards ---


def test_trained_sections_are_refused(world, model):
    with pytest.raises(InputError, match="section B1 is in the training of this model"):
        evaluate_models({"spatial": model}, world, ["B1"], FAST, by="section", **CPU)


def test_siblings_are_refused_by_patient_and_named_by_section(world, tmp_path):
    model = train_model(
        [world[0], world[2]], ExpressionConfig(panel=PANEL, spatial={"factors": 0}), tmp_path, device="cpu"
    )
    with pytest.raises(InputError, match="patient A is on both sides"):
        evaluate_models({"spatial": model}, world, ["A2"], FAST, **CPU)
    found = evaluate_models({"spatial": model}, world, ["A2"], FAST, by="section", **CPU)
    assert found.split.siblings == ("A1",) and "SIBLING" in found.split.label
    found.save(tmp_path / "e")
    assert "say nothing about new patients" in (tmp_path / "e/report.html").read_text().replace("\n", " ")


def test_a_panel_that_saw_the_test_is_refused(world, model, monkeypatch):
    monkeypatch.setattr(model, "panel", Panel(model.panel.genes, "hmhvg", ("A1", "D1")))
    with pytest.raises(InputError, match="panel was chosen with section D1"):
        evaluate_models({"spatial": model}, world, ["D1"], FAST, **CPU)


def test_models_must_share_panel_and_training(world, model, tmp_path):
    other = train_model(
        world[:3],
        ExpressionConfig(panel={**PANEL, "size": 8}, spatial={"factors": 0}),
        tmp_path / "p",
        device="cpu",
    )
    with pytest.raises(InputError, match="gene panel differs"):
        evaluate_models({"one": model, "two": other}, world, ["D1"], FAST, **CPU)
    (tmp_path / "genes.txt").write_text("\n".join(model.panel.genes))
    fewer = train_model(
        world[:2],
        ExpressionConfig(panel={"genes": str(tmp_path / "genes.txt")}, spatial={"factors": 0}),
        tmp_path / "t",
        device="cpu",
    )
    with pytest.raises(InputError, match="trained on A1, A2, the first model on A1, A2, B1"):
        evaluate_models({"one": model, "two": fewer}, world, ["D1"], FAST, **CPU)


def test_predictions_of_others_are_joined_by_barcode(world, model):
    own = model(world[3], samples=19, keep_samples="obsm", device="cpu")
    shuffled = own[np.random.default_rng(0).permutation(own.n_obs)][:, list(own.var_names[::-1])].copy()
    # AnnData does not reorder the gene axis inside obsm: do it here, as a writer of such a file must.
    shuffled.obsm["pred_samples"] = shuffled.obsm["pred_samples"][:, :, ::-1]
    found = evaluate_models(
        {"spatial": model}, world, ["D1"], FAST, predictions={"theirs": [shuffled]}, **CPU
    )
    frame = found.frame().set_index("method")
    assert frame.loc["theirs", "pcc"] == pytest.approx(frame.loc["spatial", "pcc"], abs=1e-6)
    lacking = own[:50].copy()
    with pytest.raises(InputError, match="no prediction covers the spots of section D1"):
        evaluate_models({"spatial": model}, world, ["D1"], FAST, predictions={"theirs": [lacking]}, **CPU)


def test_scores_of_the_truth_are_perfect(world):
    table = tabulate(world[3], Panel(("G00", "G03", "G05"), "listed"))
    samples = np.repeat(table.y[:, None], 19, axis=1)
    found = score("truth", table, table.y, samples, np.ones(3, bool))
    v = found.values
    assert v["pcc"] == pytest.approx(1) and v["crps"] == pytest.approx(0, abs=1e-6) and v["mse"] == 0
    assert v["variance_ratio"] == pytest.approx(1) and v["rvd_samples"] == pytest.approx(0, abs=1e-9)
    assert v["coexpression_samples"] == pytest.approx(1) and v["moran_error_mean"] == pytest.approx(
        0, abs=1e-9
    )
    assert found.counts == {
        "spots": 144, "genes": 3, "genes_not_measured": 0, "genes_undefined": 0, "samples": 19,
    }  # fmt: skip
