"""What a run refuses, and how it says so."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from morphogen.core.errors import (
    CheckpointError,
    ConfigError,
    DependencyError,
    InputError,
    OutputError,
    TrainingError,
)
from morphogen.training import TrainingConfig, fit
from morphogen.training.order import DataOrder

CONFIG = TrainingConfig(steps=12, batch_size=7, lr=0.01, log_every=3, save_every=5, clip_norm=0)


@pytest.fixture(scope="module")
def reference(toy, tmp_path_factory):
    """A finished run that others come upon."""
    return fit(toy.Toy(), CONFIG, tmp_path_factory.mktemp("reference"), device="cpu")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"lr": 0.02},
            "this run was started with lr = 0.01, now it is 0.02. Set lr back to continue the run",
        ),
        ({"batch_size": 8}, "batch_size = 7, now it is 8"),
        ({"betas": (0.5, 0.9)}, "betas"),
        ({"seed": 2}, "seed = 0, now it is 2"),
    ],
)
def test_another_configuration_is_refused_by_its_key(toy, reference, changes, said):
    with pytest.raises(ConfigError, match="run.json") as caught:
        fit(toy.Toy(), CONFIG.replace(**changes), reference.folder, device="cpu")
    assert said in str(caught.value)


def test_another_task_data_set_precision_or_model_is_refused(toy, reference):
    for task, options, said in (
        (toy.Toy(dropout=0.5), {}, "task.dropout = 0.0, now it is 0.5"),
        (toy.Toy(count=38), {}, "dataset items = 37, now it is 38"),
        (toy.Toy(), {"precision": "bf16"}, "precision = fp32, now it is bf16"),
    ):
        with pytest.raises(ConfigError) as caught:
            fit(task, CONFIG, reference.folder, device="cpu", **options)
        assert said in str(caught.value)
    task = toy.Toy()
    task.model[3] = nn.Linear(16, 5)
    with pytest.raises(
        CheckpointError, match=r"'3.weight' is \(6, 16\) in the checkpoint, \(5, 16\) in the model"
    ):
        fit(task, CONFIG, reference.folder, device="cpu")


def test_what_cannot_move_the_weights_may_change(toy, reference):
    free = CONFIG.replace(workers=1, log_every=1, save_every=2, keep_last=5, preview_every=0)
    assert fit(toy.Toy(), free, reference.folder, device="cpu").step == 12


def test_a_run_in_the_way_is_not_overwritten(toy, reference):
    with pytest.raises(OutputError, match="a run is already here, at step-00000012"):
        fit(toy.Toy(), CONFIG, reference.folder, device="cpu", resume=False)


def test_nan_names_the_item_and_leaves_the_last_checkpoint(toy, tmp_path):
    with pytest.raises(TrainingError) as caught:
        fit(toy.Toy(bad=5), CONFIG.replace(save_every=1), tmp_path, device="cpu")
    order = DataOrder(37, 0)
    step = next(s for s in range(12) if 5 in [order[s * 7 + i] for i in range(7)])
    assert f"the loss is NaN at step {step + 1}, dataset item 5; the weights before it are whole in" in str(
        caught.value
    )
    assert f"step-{step:08d}" in str(caught.value)
    state = load_file(tmp_path / f"checkpoints/step-{step:08d}/model.safetensors")
    assert all(torch.isfinite(value).all() for value in state.values())
    assert not (tmp_path / f"checkpoints/step-{step + 1:08d}").exists()


def test_infinite_loss_and_gradient_name_the_batch(toy, tmp_path):
    class Mean(toy.Toy):
        def loss(self, model, batch, draws):
            return {"loss": super().loss(model, batch, draws)["loss"].mean() / 0.0}

    class Steep(toy.Toy):
        def loss(self, model, batch, draws):
            zero = model(batch["x"]).sum(1) * 0.0
            return {"loss": zero.abs().sqrt()}  # finite, with a slope that is not

    order = DataOrder(37, 0)
    batch = ", ".join(str(i) for i in sorted(order[i] for i in range(7)))
    for task, said in ((Mean(), "the loss is infinite"), (Steep(), "the gradient is not finite")):
        with pytest.raises(TrainingError) as caught:
            fit(task, CONFIG, tmp_path / type(task).__name__, device="cpu")
        assert f"{said} at step 1, dataset items {batch}. Look at the data" in str(caught.value)


def test_errors_of_the_data_come_through(toy, tmp_path):
    with pytest.raises(InputError, match="item 3: this item cannot be read."):
        fit(toy.Toy(broken=3), CONFIG, tmp_path, device="cpu")


@pytest.mark.parametrize("workers", [0, 1])
def test_out_of_memory_says_what_to_do(toy, tmp_path, workers):
    """Of the device: torch raises. Of a data worker: the system kills it."""
    task = toy.Toy()
    if workers:
        task.dataset.__class__ = type(
            "Killed", (toy.Points,), {"__getitem__": lambda self, index: os._exit(9)}
        )
        said = "a process that loads data died, most often for want of memory. Lower workers"
    else:

        def loss(model, batch, draws):
            raise torch.OutOfMemoryError

        task.loss = loss
        said = "cpu is out of memory. Raise accumulation"
    with pytest.raises(TrainingError, match=said):
        fit(task, CONFIG.replace(workers=workers), tmp_path, device="cpu")


def test_a_run_that_never_came_to_a_checkpoint_binds_nobody(toy, tmp_path):
    with pytest.raises(InputError):
        fit(toy.Toy(broken=3), CONFIG, tmp_path, device="cpu")
    assert fit(toy.Toy(), CONFIG.replace(lr=0.02), tmp_path, device="cpu").step == 12
    assert json.loads((tmp_path / "run.json").read_text())["training"]["lr"] == 0.02


def test_figures_of_a_wrong_shape_are_refused(toy, tmp_path):
    for answer, said in (
        ({"mse": torch.ones(())}, "key 'loss'"),
        ({"loss": torch.ones(7, 6)}, r"shape \(7, 6\)"),
    ):
        task = toy.Toy()
        task.loss = lambda model, batch, draws, answer=answer: answer
        with pytest.raises(TrainingError, match=said):
            fit(task, CONFIG, tmp_path, device="cpu")


def test_options_that_do_not_go_together(toy, tmp_path):
    for values, said in (
        ({"patience": 3}, "patience needs best_metric"),
        ({"best_metric": "score"}, "best_metric needs validations: set validate_every"),
        ({"accumulation": 40}, "batch of 32 has not so many parts"),
        ({"warmup_steps": 20, "steps": 10}, "warmup_steps is 20, more than the 10 steps"),
        ({"betas": (0.9, 1.0)}, "each must lie in"),
        ({"optimizer": "adam"}, "adam"),
        ({"trackers": ("neptune",)}, "neptune"),
        ({"ema_decai": 0.9}, "Did you mean 'ema_decay'"),
    ):
        with pytest.raises(ConfigError) as caught:
            TrainingConfig(**values)
        assert said in str(caught.value)
    with pytest.raises(ConfigError, match="fp16 needs a CUDA device, this run is on cpu. Use bf16 or fp32"):
        fit(toy.Toy(), CONFIG, tmp_path, device="cpu", precision="fp16")
    with pytest.raises(ConfigError, match="unknown precision 'half'"):
        fit(toy.Toy(), CONFIG, tmp_path, device="cpu", precision="half")
    with pytest.raises(ConfigError, match="gives no 'skore', it gives score. Did you mean 'score'"):
        fit(toy.Toy(), CONFIG.replace(validate_every=1, best_metric="skore"), tmp_path, device="cpu")
    half = toy.Toy()
    half.model.half()
    with pytest.raises(ConfigError, match="parameter '0.weight' is float16. Keep the weights in float32"):
        fit(half, CONFIG, tmp_path, device="cpu")


def test_missing_parts_of_a_task_are_said(toy, tmp_path):
    class Bare:
        def __init__(self):
            whole = toy.Toy()
            self.model, self.dataset, self.loss = whole.model, whole.dataset, whole.loss

    assert fit(Bare(), CONFIG, tmp_path / "a", device="cpu").step == 12
    with pytest.raises(ConfigError, match="validate_every: the task has no validation"):
        fit(Bare(), CONFIG.replace(validate_every=3), tmp_path / "b", device="cpu")
    with pytest.raises(ConfigError, match="preview_every: the task has no preview"):
        fit(Bare(), CONFIG.replace(preview_every=3), tmp_path / "c", device="cpu")


def test_a_missing_tracker_or_compiler_is_said(toy, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        DependencyError, match=r"'wandb' is not installed. Install it with pip install 'morphogen\[wandb\]'"
    ):
        fit(toy.Toy(), CONFIG.replace(trackers=("wandb",)), tmp_path, device="cpu")
    monkeypatch.undo()
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(DependencyError, match="needs a C\\+\\+ compiler"):
        fit(toy.Toy(), CONFIG, tmp_path, device="cpu", compile=True)


def test_a_folder_that_cannot_be_is_said(toy, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="a file of this name is in the way"):
        fit(toy.Toy(), CONFIG, tmp_path / "file", device="cpu")
