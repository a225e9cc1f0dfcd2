"""The command: train, apply, evaluate on small pairs; bad input is one line and exit 2."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from morphogen.cli.main import main
from morphogen.slides.pyramid.writer import PyramidWriter
from morphogen.stain.config import TrainConfig


def run(*tokens):
    with pytest.raises(SystemExit) as stop:
        main([str(token) for token in tokens])
    return stop.value.code


TINY = [
    "--model.widths", "[8, 16]", "--model.groups", "4", "--model.heads", "2", "--model.attention", "[1]",
    "--data.crop", "32", "--training.batch_size", "2", "--device", "cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model trained by the command for three steps, and its data."""
    from .conftest import he_like

    root = tmp_path_factory.mktemp("cli")
    for split, n in (("train", 2), ("val", 6)):
        for side, pink in (("A", True), ("B", False)):
            folder = root / "data" / "TrainValAB" / f"{split}{side}"
            folder.mkdir(parents=True)
            for k in range(n):
                Image.fromarray(he_like(np.random.default_rng(k), 64, pink)).save(folder / f"p{k}.png")
    code = run("stain", "train", root / "data", "--out", root / "run", "--steps", "3", "--mpp", "0.5", *TINY)
    assert code == 0
    return root


def test_train_apply_evaluate(trained, tmp_path, capsys):
    model, data = trained / "run" / "model", trained / "data"
    he = data / "TrainValAB" / "valA"
    options = ["--steps", "2", "--samples", "2", "--device", "cpu"]
    assert run("stain", "predict", he, "--model", model, "--out", tmp_path / "out", "--json", *options) == 0
    told = json.loads(capsys.readouterr().out)
    assert [Path(path) for row in told for path in row["written"]] == [tmp_path / "out"]
    pictures = sorted((tmp_path / "out").glob("*.png"))
    assert len(pictures) == 6
    # The earlier order of words goes on working, to the same bytes.
    assert run("stain", "apply", model, he, "--out", tmp_path / "again", *options) == 0
    assert [p.read_bytes() for p in sorted((tmp_path / "again").glob("*.png"))] == [
        p.read_bytes() for p in pictures
    ]
    code = run(
        "stain", "evaluate", tmp_path / "out", data, "--out", tmp_path / "eval", "--set", "tile=16",
        "--other", f"copy={he}", f"twice={he}",
    )  # fmt: skip
    assert code == 0
    printed = capsys.readouterr().out
    assert "DAB tile r" in printed and "colour deconvolution" in printed
    results = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert results["run"]["stain"] == "IHC" and {"copy", "twice"} <= set(results["methods"])
    page = (tmp_path / "eval" / "report.html").read_text()
    assert (
        "DAB optical density" in page and page.count("<img") >= 6 and "http://" not in page.split("<body")[0]
    )


def test_a_regression_and_what_it_leaves_over_in_one_command(trained, tmp_path, capsys):
    options = ["--steps", "4", "--mpp", "0.5", *TINY]
    assert run("stain", "train", trained / "data", "--out", tmp_path / "run", "--residual", *options) == 0
    assert f"Trained 2 steps around the regression of {tmp_path / 'run/mean'}" in capsys.readouterr().out
    kept = TrainConfig.load(tmp_path / "run/config.yaml")
    assert kept.model.residual and kept.objective.last_step_share == 0.1
    he = trained / "data" / "TrainValAB" / "valA"
    apply = ["--sampler.steps", "2", "--device", "cpu", "--out"]
    assert run("stain", "apply", tmp_path / "run/model", he, *apply, tmp_path / "out") == 0
    assert json.loads((tmp_path / "out/run.json").read_text())["evaluations"] == 3
    regression = tmp_path / "run/mean/model"  # applied as it is, in one evaluation
    assert run("stain", "apply", regression, he, *apply, tmp_path / "mean") == 0
    assert json.loads((tmp_path / "mean/run.json").read_text())["evaluations"] == 1
    code = run("stain", "train", trained / "data", "--out", tmp_path / "on", "--mean", regression, *options)
    assert code == 0
    assert f"Trained 4 steps around the regression of {regression}" in capsys.readouterr().out
    code = run(
        "stain", "train", trained / "data", "--out", tmp_path / "no", "--mean", trained / "run/model", *TINY
    )
    assert code == 2 and "this is no regression" in capsys.readouterr().err


def test_the_packaged_model_is_trained_further(trained, tmp_path, caplog):
    from morphogen.stain import StainTransfer

    code = run(
        "stain", "train", trained / "data", "--out", tmp_path, "--start", "demo", "--steps", "1",
        "--data.crop", "64", "--training.batch_size", "1", "--device", "cpu",
    )  # fmt: skip
    assert code == 0
    model = StainTransfer.from_pretrained(tmp_path / "model")
    assert model.config.widths == (64, 96, 128) and model.facts["before"]["steps"] == 3000
    assert model.mpp == 0.5 and "the model keeps the 0.5 of the one it starts from" in caplog.text


def test_apply_to_a_slide(trained, tmp_path, capsys):
    slide = tmp_path / "s.ome.tif"
    with PyramidWriter(slide, 200, 150, mpp=0.5, tile=64) as writer:
        writer.write(np.random.default_rng(0).integers(60, 220, (150, 200, 3), dtype=np.uint8), 0)
    code = run(
        "stain", "apply", trained / "run" / "model", slide, "--out", tmp_path / "out", "--solver", "mean",
        "--device", "cpu", "--windows.tissue_only", "false",
    )  # fmt: skip
    assert code == 0 and (tmp_path / "out" / "s_IHC.ome.tif").is_file()
    assert "seam score" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["train", "nowhere", "--out", "o"], "nowhere: there is no such folder"),
        (
            ["train", "DATA", "--out", "o", "--model.width", "3"],
            "unknown setting 'model.width'. Did you mean 'widths'?",
        ),
        (["train", "DATA", "--out", "o", "--start", "dem"], "no such folder. Did you mean 'demo'?"),
        (["train", "DATA", "--out", "o", "--split", "test"], "there is no testA with testB"),
        (
            ["train", "DATA", "--out", "o", "--data.crop", "512", "--device", "cpu"],
            "smaller than the crop of 512 px",
        ),
        (
            ["train", "DATA", "--out", "o", "--size", "paper", "--crop", "32", "--device", "cpu"],
            "Give --start with a Stable Diffusion",
        ),
        (
            ["train", "DATA", "--out", "o", "--encoder", "phikom", "--crop", "32", "--device", "cpu"],
            "Did you mean 'phikon",
        ),
        (["apply", "MODEL", "nowhere.png", "--out", "o"], "nowhere.png: there is no such file or folder"),
        (["apply", "MODEL", "HE", "--out", "o", "--solver", "slow"], "unknown solver 'slow'"),
        (
            ["apply", "MODEL", "HE", "--out", "o", "--stain", "HER2"],
            "this model has no stain 'HER2', only IHC",
        ),
        (["predict", "HE", "--model", "DATA", "--out", "o"], "this is no stain model"),
        (["predict", "HE", "--out", "o"], "Write `morphogen stain predict INPUT --model MODEL --out OUT`"),
        (["apply", "MODEL", "HE", "--out", "/proc/x", "--device", "cpu"], "/proc/x: "),
        (["evaluate", "HE", "DATA", "--out", "o", "--split", "train"], "have no image here"),
        (["evaluate", "HE", "DATA", "--out", "o", "--other", "x"], "'x' is not of the form NAME=FOLDER"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(trained, tmp_path, monkeypatch, capsys, tokens, message):
    monkeypatch.chdir(tmp_path)
    data = trained / "data"
    if tokens[0] == "evaluate" and "train" in tokens:
        (data / "TrainValAB" / "trainA" / "extra.png").write_bytes(
            (data / "TrainValAB/trainA/p0.png").read_bytes()
        )
        (data / "TrainValAB" / "trainB" / "extra.png").write_bytes(
            (data / "TrainValAB/trainB/p0.png").read_bytes()
        )
    places = {"DATA": data, "MODEL": trained / "run" / "model", "HE": data / "TrainValAB" / "valA"}
    assert run("stain", *(places.get(token, token) for token in tokens)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("morphogen: ")]
    assert len(lines) == 1 and message in lines[0]


def test_one_slide_on_two_devices_is_that_of_one(trained, tmp_path, monkeypatch):
    """Simulated: ``--gpus`` names devices by ``MORPHOGEN_DEVICES``, here twice the CPU."""
    from morphogen.core.devices import TOGETHER
    from morphogen.stain.model import StainTransfer

    from .conftest import he_like

    slide = tmp_path / "slide.ome.tif"
    with PyramidWriter(slide, 300, 200, mpp=0.5, tile=256, codec="deflate") as writer:
        writer.write(he_like(np.random.default_rng(1), 300)[:200], 0)
    told = []
    real = StainTransfer.__call__
    monkeypatch.setattr(
        StainTransfer, "__call__", lambda self, *a, **o: told.append(id(self)) or real(self, *a, **o)
    )
    for name, devices in (("one", "cpu"), ("two", "cpu,cpu")):
        monkeypatch.setenv(TOGETHER, devices)
        options = ["--steps", "2", "--out", tmp_path / name, "--windows.batch", "2", "--model"]
        assert run("stain", "predict", slide, *options, trained / "run" / "model") == 0
        assert len(set(told)) == len(devices.split(","))
        told.clear()
    (one,), (two,) = ((tmp_path / name).glob("*.ome.tif") for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
