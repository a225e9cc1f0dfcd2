"""Several processes train what one does: gloo on the CPU, started by torchrun."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from morphogen.training import TrainingConfig, fit, read_metrics

CONFIG = {
    "steps": 12,
    "batch_size": 7,
    "lr": 0.01,
    "clip_norm": 0,
    "log_every": 3,
    "save_every": 1,
    "keep_last": 12,
}
SHARDED = {
    **CONFIG,
    "ema_warmup": False,
    "validate_every": 3,
    "preview_every": 5,
    "save_every": 4,
    "clip_norm": 0.3,
}
FIRST, LAST = "checkpoints/step-00000001", "checkpoints/step-00000012"


@pytest.fixture(scope="module")
def runs(toy, answers, tmp_path_factory):
    """The same run by one process and by two: plain, accumulated, half-way, sharded, and one that meets a NaN."""
    out = tmp_path_factory.mktemp("runs")
    fit(toy.Toy(), TrainingConfig(**CONFIG), out / "one", device="cpu")
    jobs = [
        {"out": out / "two", "config": CONFIG},
        {"out": out / "parts", "config": {**CONFIG, "accumulation": 2}},
        {"out": out / "moved", "config": {**CONFIG, "steps": 6}},
        {
            "out": out / "unused",
            "config": {**CONFIG, "find_unused_parameters": True},
            "task": {"unused": True},
        },
        {"out": out / "unreached", "config": CONFIG, "task": {"unused": True}},
        {"out": out / "nan", "config": CONFIG, "task": {"bad": 5}},
        {"out": out / "sharded", "config": {**SHARDED, "steps": 6}, "shard": True},
        {"out": out / "sharded", "config": SHARDED, "shard": True},
    ]
    said, err = answers(jobs, processes=2)
    return out, said, err


def biggest(a: dict, b: dict) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def assert_same_figures(one, other):
    timings = ("items_per_second", "seconds")
    lines = [
        [{k: v for k, v in line.items() if k not in timings} for line in read_metrics(r)]
        for r in (one, other)
    ]
    assert len(lines[0]) == len(lines[1]) > 0
    for a, b in zip(*lines):
        assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.parametrize("name", ["two", "parts"])
def test_gradients_and_weights_are_those_of_one_process(runs, name):
    out, _, _ = runs
    one, other = (torch.load(out / run / FIRST / "optimizer.pt", weights_only=True) for run in ("one", name))
    # After the first update AdamW's first moment is a tenth of the gradient.
    gradients = [{k: v["exp_avg"] * 10 for k, v in moments.items()} for moments in (one, other)]
    assert biggest(*gradients) < 1e-6 and max(g.abs().max() for g in gradients[0].values()) > 0.01
    for file in ("model.safetensors", "ema.safetensors"):
        assert biggest(load_file(out / "one" / LAST / file), load_file(out / name / LAST / file)) < 1e-5
    assert_same_figures(out / "one", out / name)


def test_all_processes_stop_together_and_name_the_item(runs):
    _, said, _ = runs
    errors = [answer["error"] for answer in said if "NaN" in answer.get("error", "")]
    assert len(errors) == 2 and errors[0] == errors[1]
    assert "the loss is NaN at step 4, dataset item 5; the weights before it are whole in" in errors[0]


def test_a_parameter_that_the_loss_does_not_reach(runs):
    out, said, _ = runs
    a, b = (load_file(out / run / LAST / "model.safetensors") for run in ("unused", "one"))
    assert a.pop("unused").tolist() == [0, 0, 0] and biggest(a, b) < 1e-5
    errors = [answer["error"] for answer in said if "error" in answer]
    assert sum("did not reach all parameters" in e and "Set find_unused_parameters" in e for e in errors) == 2


def test_libraries_print_no_warnings(runs):
    _, _, err = runs
    assert "arning" not in err.replace("OMP_NUM_THREADS", ""), err


def test_a_run_may_go_on_with_another_number_of_processes(toy, runs):
    out, _, _ = runs
    fit(toy.Toy(), TrainingConfig(**CONFIG), out / "moved", device="cpu")
    a, b = (load_file(out / run / LAST / "model.safetensors") for run in ("moved", "one"))
    assert biggest(a, b) < 1e-5


def test_sharded_parameters_train_save_and_resume_like_whole_ones(toy, runs):
    """FSDP 2 through accelerate's own ``prepare``; its checkpoints are whole tensors that one process reads."""
    out, said, _ = runs
    assert [(a["step"], a["shards"]) for a in said[-4:]] == [(6, 5), (6, 5), (12, 5), (12, 5)]
    fit(toy.Toy(), TrainingConfig(**SHARDED), out / "whole", device="cpu")
    assert_same_figures(out / "sharded", out / "whole")
    for file in ("model.safetensors", "ema.safetensors"):
        a, b = (load_file(out / run / LAST / file) for run in ("sharded", "whole"))
        assert biggest(a, b) < 1e-5
    a, b = (torch.load(out / run / LAST / "optimizer.pt", weights_only=True) for run in ("sharded", "whole"))
    for key in ("exp_avg", "exp_avg_sq"):
        assert biggest({k: v[key] for k, v in a.items()}, {k: v[key] for k, v in b.items()}) < 1e-5
    assert (out / "sharded/previews/step-00000010/sample.txt").is_file()
