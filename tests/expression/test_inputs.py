"""Several inputs, one of them bad; the grammar of the verbs; the earlier spellings."""

from __future__ import annotations

import json

import anndata as ad
import numpy as np
import pytest

from morphogen.cli.main import main
from morphogen.core.errors import InputError
from morphogen.expression import ExpressionConfig, train_model
from morphogen.expression.inputs import section_inputs
from morphogen.expression.sections.prepare import save_section

TINY = {
    "steps": 2,
    "batch_size": 16,
    "warmup_steps": 0,
    "validate_every": 0,
    "best_metric": None,
    "patience": None,
}
NETWORK = {"width": 16, "depth": 1, "heads": 2, "genes_per_token": 2}


@pytest.fixture(scope="module")
def store(world, tmp_path_factory):
    """A folder of four prepared sections and a model trained on two of them."""
    place = tmp_path_factory.mktemp("store")
    for section in world:
        save_section(section, place / "sections" / f"{section.uns['morphogen']['section']['section']}.h5ad")
    config = ExpressionConfig(
        recipe="stem", panel={"size": 10, "highly_variable": 11}, network=NETWORK, training=TINY
    )
    train_model(world[:2], config, place / "run", device="cpu")
    return place


def status(*tokens) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(token) for token in tokens])
    return stop.value.code or 0


FEW = ("--samples", "2", "--steps", "2", "--device", "cpu")


def test_several_inputs_into_a_folder(store, tmp_path, capsys):
    a, b = store / "sections/B1.h5ad", store / "sections/D1.h5ad"
    model = ("--model", store / "run/model")
    assert status("expression", "predict", a, b, *model, "--out", tmp_path / "o", "--json", *FEW) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["spots"] for row in told] == [144, 144] and not any(row["error"] for row in told)
    alone = tmp_path / "one.h5ad"
    assert status("expression", "apply", b, *model, "--out", alone, *FEW) == 0
    np.testing.assert_array_equal(
        ad.read_h5ad(tmp_path / "o/D1.h5ad").layers["pred_mean"], ad.read_h5ad(alone).layers["pred_mean"]
    )


def test_one_bad_input_is_told_and_the_others_go_on(store, world, tmp_path, capsys):
    bad = world[3].copy()
    bad.obsm["embedding"] = bad.obsm["embedding"][:, :5]
    folder = tmp_path / "sections"
    save_section(bad, folder / "A0.h5ad")
    save_section(world[2], folder / "B1.h5ad")
    (folder / ".B1.12.tmp.h5ad").write_text("left over")
    model = ("--model", store / "run/model")
    assert status("expression", "predict", folder, *model, "--out", tmp_path / "o", *FEW) == 3
    assert "width 5" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "o").glob("*.h5ad")] == ["B1.h5ad"]
    assert (
        status("expression", "predict", folder / "A0.h5ad", *model, "--out", tmp_path / "x.h5ad", *FEW) == 2
    )


def test_inputs_that_do_not_fit(store, tmp_path):
    (tmp_path / "B1.h5ad").write_bytes((store / "sections/B1.h5ad").read_bytes())
    assert [each.path.name for each in section_inputs([store / "sections"])] == [
        "A1.h5ad", "A2.h5ad", "B1.h5ad", "D1.h5ad",
    ]  # fmt: skip
    with pytest.raises(InputError, match="no such file"):
        section_inputs([tmp_path / "none.h5ad"])
    out = ("--out", tmp_path / "o", "--model", store / "run/model")
    assert status("expression", "predict", tmp_path / "B1.h5ad", store / "sections/B1.h5ad", *out) == 2
    assert status("expression", "predict", store / "sections", *out[2:], "--out", tmp_path / "o.h5ad") == 2


def test_a_model_that_is_not_named_and_the_earlier_order(store, tmp_path, capsys):
    b = store / "sections/B1.h5ad"
    assert status("expression", "predict", b, "--out", tmp_path / "o.h5ad", *FEW) == 2
    assert "Write `morphogen expression predict INPUT --model MODEL --out OUT`" in capsys.readouterr().err
    assert status("expression", "predict", store / "run/model", b, "--out", tmp_path / "o.h5ad", *FEW) == 0


def test_several_values_after_one_flag(store, tmp_path, capsys):
    line = (
        "expression",
        "train",
        store / "sections",
        "--out",
        tmp_path / "m",
        "--recipe",
        "stem",
        "--genes",
        "10",
    )
    small = [f"--network.{key}={value}" for key, value in NETWORK.items()]
    small += [f"--training.{key}={'null' if value is None else value}" for key, value in TINY.items()]
    chosen = ("--test", "B1", "D1", "--device", "cpu", "--panel.highly_variable", "11", "--json")
    assert status(*line, *chosen, *small) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["training"]["sections"] == ["A1", "A2"] and told["training"]["split"]["test"] == ["B1", "D1"]
    scores = ("--model", tmp_path / "m/model", "--test", "B1,D1", "--out", tmp_path / "s", "--samples", "2")
    assert status("expression", "evaluate", store / "sections", *scores, "--steps", "2", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert {row["section"] for row in told["scores"]} == {"B1", "D1"}
    assert (tmp_path / "s/report.html").is_file()
