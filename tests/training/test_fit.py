"""A whole run in this process: what it leaves, what it logs, how it ends, and what it refuses."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from morphogen.core.errors import (
    ConfigError,
)
from morphogen.training import TrainingConfig, best_weights, fit, read_metrics
from morphogen.training.optim import learning_rate
from morphogen.training.order import DataOrder

CONFIG = TrainingConfig(steps=12, batch_size=7, lr=0.01, log_every=3, save_every=5, clip_norm=0)


def largest_difference(a: dict, b: dict) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def figures(out) -> list[dict]:
    timings = ("items_per_second", "seconds")
    return [{k: v for k, v in line.items() if k not in timings} for line in read_metrics(out)]


@pytest.fixture(scope="module")
def reference(toy, tmp_path_factory):
    """The run the others are compared with."""
    return fit(toy.Toy(), CONFIG, tmp_path_factory.mktemp("reference"), device="cpu")


# ------------------------------------------------------------------------------------------- what it does


def test_the_loop_is_the_textbook_one(toy, tmp_path):
    """Written out by hand with torch alone: order, draws, AdamW, clipping, schedule and average."""
    config = CONFIG.replace(lr_schedule="cosine", warmup_steps=3, clip_norm=0.3, weight_decay=0.1, seed=4)
    result = fit(toy.Toy(), config, tmp_path, device="cpu")

    task = toy.Toy()
    order, model = DataOrder(37, 4), task.model
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=config.betas)
    shadow = {k: v.clone() for k, v in model.state_dict().items()}
    for step in range(12):
        positions = torch.arange(step * 7, step * 7 + 7)
        items = [task.dataset[order[int(p)]] for p in positions]
        batch = {key: torch.stack([item[key] for item in items]) for key in items[0]}
        loss = task.loss(model, batch, toy.Draws(4, positions))["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        optimizer.step()
        decay = (1 + step) / (10 + step)
        for name, value in model.state_dict().items():
            shadow[name] = decay * shadow[name] + (1 - decay) * value
    assert largest_difference(result.ema_state, shadow) < 1e-6
    assert result.step == 12 and result.folder == tmp_path


def test_what_a_run_leaves(toy, tmp_path):
    config = CONFIG.replace(validate_every=4, preview_every=6, best_metric="score", best_mode="max")
    task = toy.Toy(scores=[0.1, 0.9, 0.5])
    result = fit(task, config, tmp_path, device="cpu")
    steps = [
        sorted(p.name for p in (tmp_path / place).iterdir()) for place in ("checkpoints", "best", "previews")
    ]
    assert steps == [
        ["step-00000010", "step-00000012"],
        ["step-00000008"],
        ["step-00000006", "step-00000012"],
    ]
    assert (result.best_step, result.best_value, result.stopped_early) == (8, 0.9, False)
    assert result.metrics["validate/score"] == 0.5 and result.metrics["loss"] == figures(tmp_path)[-2]["loss"]
    assert same(result.best_state(), best_weights(tmp_path))
    assert largest_difference(result.best_state(), result.ema_state) > 0
    assert same(result.ema_state, load_file(tmp_path / "checkpoints/step-00000012/ema.safetensors"))
    assert same(
        dict(task.model.state_dict()), load_file(tmp_path / "checkpoints/step-00000012/model.safetensors")
    )
    assert not task.model.training
    average = toy.Toy().model
    average.load_state_dict(result.ema_state)
    seen = (tmp_path / "previews/step-00000012/sample.txt").read_text().split()
    assert seen[0] == "12" and float(seen[1]) == pytest.approx(
        average(torch.ones(1, 6)).mean().item(), abs=1e-6
    )
    assert json.loads((tmp_path / "run.json").read_text())["training"]["best_metric"] == "score"


def test_lines_of_the_log(toy, reference):
    lines = figures(reference.folder)
    assert [line["step"] for line in lines] == [3, 6, 9, 12]
    order = DataOrder(37, 0)
    for k, line in enumerate(lines):
        indices = [order[i] for i in range(k * 21, k * 21 + 21)]
        assert line["index"] == pytest.approx(
            sum(indices) / 21
        )  # a mean over items, and the order of the data
        assert line["lr"] == 0.01 and line["epoch"] == pytest.approx((k + 1) * 21 / 37)
        assert set(line) == {"step", "loss", "index", "level", "lr", "grad_norm", "epoch"}
    assert all(line["items_per_second"] > 0 for line in read_metrics(reference.folder))


def test_accumulation_equals_the_large_batch(toy, tmp_path, reference):
    result = fit(toy.Toy(), CONFIG.replace(accumulation=3), tmp_path, device="cpu")
    assert largest_difference(result.ema_state, reference.ema_state) < 1e-6
    for a, b in zip(figures(tmp_path), figures(reference.folder)):
        assert a == pytest.approx(b, rel=1e-5)


def test_workers_validation_and_previews_do_not_move_the_weights(toy, tmp_path):
    plain = fit(toy.Toy(dropout=0.3), CONFIG, tmp_path / "a", device="cpu")
    busy = CONFIG.replace(workers=2, validate_every=2, preview_every=5, log_every=2, save_every=1)
    other = fit(toy.Toy(dropout=0.3), busy, tmp_path / "b", device="cpu")
    assert same(plain.ema_state, other.ema_state)


def test_the_callers_generator_is_left_alone(toy, tmp_path):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    fit(toy.Toy(dropout=0.3), CONFIG, tmp_path, device="cpu")
    assert torch.equal(torch.rand(3), expected)


def test_seeds_differ(toy, tmp_path, reference):
    assert (
        largest_difference(fit(toy.Toy(), CONFIG.replace(seed=1), tmp_path).ema_state, reference.ema_state)
        > 1e-4
    )


def test_a_figure_that_does_not_apply_is_left_out_of_its_mean(toy, tmp_path):
    class Sometimes(toy.Toy):
        def loss(self, model, batch, draws):
            found = super().loss(model, batch, draws)
            odd = batch["index"] % 2 == 1
            return {**found, "odd": torch.where(odd, batch["index"].float(), torch.nan)}

    fit(Sometimes(), CONFIG.replace(steps=3), tmp_path, device="cpu")
    order = DataOrder(37, 0)
    odd = [order[i] for i in range(21) if order[i] % 2]
    assert figures(tmp_path)[0]["odd"] == pytest.approx(sum(odd) / len(odd))


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"compile": True}])
def test_bf16_and_compile_train_nearly_the_same(toy, tmp_path, reference, options, monkeypatch):
    # Code that was compiled for other vector instructions is not to be found: the cache's key does not tell them.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    task = toy.Toy()
    kinds = []
    task.model[0].register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    result = fit(task, CONFIG, tmp_path, device="cpu", **options)
    assert 0 < largest_difference(result.ema_state, reference.ema_state) < 5e-3 or "compile" in options
    assert largest_difference(result.ema_state, reference.ema_state) < 5e-3
    assert all(value.dtype == torch.float32 for value in result.ema_state.values())
    if "precision" in options:
        assert set(kinds) == {torch.bfloat16}


def test_gradient_checkpointing_calls_the_models_own_switch(toy, tmp_path, reference):
    class Block(nn.Sequential):
        recomputing = 0

        def enable_gradient_checkpointing(self):
            self.recomputing += 1

    task = toy.Toy()
    task.model = Block(*task.model)
    result = fit(task, CONFIG.replace(gradient_checkpointing=True), tmp_path / "a", device="cpu")
    assert task.model.recomputing == 1 and same(result.ema_state, reference.ema_state)
    with pytest.raises(ConfigError, match="Sequential cannot recompute its activations. Set it to false"):
        fit(toy.Toy(), CONFIG.replace(gradient_checkpointing=True), tmp_path / "b", device="cpu")


def test_tensorboard_files_hold_the_figures(toy, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(toy.Toy(), CONFIG.replace(trackers=("tensorboard",)), tmp_path, device="cpu")
    events = EventAccumulator(str(tmp_path / "morphogen")).Reload()
    logged = {event.step: event.value for event in events.Scalars("loss")}
    assert logged == {line["step"]: pytest.approx(line["loss"]) for line in figures(tmp_path)}


# ------------------------------------------------------------------------------------------- how it goes on


def test_a_finished_run_is_not_run_again(toy, tmp_path, reference):
    task = toy.Toy()
    first = fit(toy.Toy(), CONFIG, tmp_path, device="cpu")
    lines = (tmp_path / "metrics.jsonl").read_text()
    task.loss = None
    again = fit(task, CONFIG, tmp_path, device="cpu")
    assert same(again.ema_state, first.ema_state) and again.metrics == first.metrics and again.step == 12
    assert (tmp_path / "metrics.jsonl").read_text() == lines


def test_a_run_goes_on_from_the_one_before_a_checkpoint_cut_short(toy, tmp_path, reference, caplog):
    fit(toy.Toy(), CONFIG, tmp_path, device="cpu")
    newest = tmp_path / "checkpoints/step-00000012/optimizer.pt"
    newest.write_bytes(newest.read_bytes()[:100])
    result = fit(toy.Toy(), CONFIG, tmp_path, device="cpu")
    assert len(caplog.messages) == 1 and "continuing from step-00000010" in caplog.text
    assert same(result.ema_state, reference.ema_state) and figures(tmp_path) == figures(reference.folder)


def test_steps_may_be_added_where_the_rate_is_constant(toy, tmp_path, reference):
    fit(toy.Toy(), CONFIG.replace(steps=7), tmp_path / "a", device="cpu")
    longer = fit(toy.Toy(), CONFIG, tmp_path / "a", device="cpu")
    assert same(longer.ema_state, reference.ema_state)
    cosine = CONFIG.replace(lr_schedule="cosine")
    fit(toy.Toy(), cosine.replace(steps=7), tmp_path / "b", device="cpu")
    with pytest.raises(ConfigError, match="started with steps = 7, now it is 12"):
        fit(toy.Toy(), cosine, tmp_path / "b", device="cpu")


def test_early_stop(toy, tmp_path):
    config = CONFIG.replace(steps=20, validate_every=2, best_metric="score", patience=2, save_every=100)
    task = toy.Toy(scores=[5.0, 6.0, 3.0, math.nan, 3.0, 1.0, 1.0])
    result = fit(task, config, tmp_path, device="cpu")
    assert (result.step, result.stopped_early, result.best_step, result.best_value) == (10, True, 6, 3.0)
    again = fit(toy.Toy(), config, tmp_path, device="cpu")
    assert (again.step, again.stopped_early) == (10, True)
    assert again.ema_state.keys() == result.ema_state.keys() and same(again.ema_state, result.ema_state)


def test_no_step_waits_for_the_device(tmp_path, looks, monkeypatch):
    """What the loop keeps of a step: one number is sent back, and looked at a step later."""
    from types import SimpleNamespace

    from morphogen.training import guard
    from morphogen.training.logging import Means

    asked = []

    def fetched(flag):
        assert flag.device.type == "meta" and flag.shape == ()
        return lambda: asked.append(len(asked)) or True

    monkeypatch.setattr(guard, "fetched", fetched)
    watching = guard.FiniteGuard(SimpleNamespace(num_processes=1), tmp_path)
    means, loss = Means(), torch.zeros(4, device="meta")
    with looks() as looked:
        for step in range(3):
            assert len(asked) == max(0, step - 1)
            means.add({"loss": loss, "mse": loss.mean()}, 4)
            watching.watch(step, [guard.Part(torch.arange(4), loss)], torch.ones((), device="meta"))
    assert looked.found == [] and len(asked) == 2
