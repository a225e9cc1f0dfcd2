"""Average, learning rate, optimiser, checkpoints as files: each against what it must be by definition."""

from __future__ import annotations

import logging
import re
import sys
import types

import pytest
import torch
from torch import nn

from morphogen.core.errors import CheckpointError, ConfigError, DependencyError
from morphogen.training import TrainingConfig, best_weights
from morphogen.training.checkpoint import (
    Checkpoint,
    damage,
    list_steps,
    load_checkpoint,
    newest_checkpoint,
    save_best,
    save_checkpoint,
)
from morphogen.training.optim import Ema, build_optimizer, ema_decay, learning_rate

# ------------------------------------------------------------------------------------------------- average


def test_average_equals_its_closed_form():
    model = nn.Linear(3, 2, dtype=torch.float32)
    start = model.weight.detach().clone()
    seen = [torch.randn(2, 3, generator=torch.Generator().manual_seed(i)) for i in range(20)]
    ema = Ema(model, 0.9, warmup=False)
    for weight in seen:
        model.weight.data = weight.clone()
        ema.update()
    expected = 0.9**20 * start + sum(0.1 * 0.9 ** (19 - i) * w for i, w in enumerate(seen))
    with ema.swapped():
        assert torch.allclose(model.weight, expected, atol=1e-6)
    assert torch.equal(model.weight, seen[-1])


def test_warm_up_of_the_average():
    assert [ema_decay(n, 0.9) for n in (0, 1, 8, 90, 10_000)] == [0.1, 2 / 11, 0.5, 0.9, 0.9]
    model = nn.Linear(1, 1, bias=False)
    ema, shadow = Ema(model, 0.999), model.weight.item()
    for n in range(30):
        model.weight.data.fill_(float(n))
        ema.update()
        shadow = ema_decay(n, 0.999) * shadow + (1 - ema_decay(n, 0.999)) * n
    with ema.swapped():
        assert model.weight.item() == pytest.approx(shadow, rel=1e-6)
    assert ema.updates == 30


def test_average_with_decay_zero_is_the_weights():
    model = nn.Linear(2, 2)
    ema = Ema(model, 0.0)
    model.weight.data.add_(1)
    ema.update()
    now = model.weight.detach().clone()
    with ema.swapped():
        assert torch.equal(model.weight, now)


def test_average_is_taken_back_when_the_work_with_it_fails():
    model = nn.Linear(2, 2)
    ema = Ema(model, 0.5)
    model.weight.data.add_(1)
    now = model.weight.detach().clone()
    with pytest.raises(RuntimeError), ema.swapped():
        raise RuntimeError
    assert torch.equal(model.weight, now)


# ---------------------------------------------------------------------------------- learning rate, optimiser


def test_learning_rate_values():
    config = TrainingConfig(steps=110, warmup_steps=10, lr=1.0, lr_schedule="cosine")
    rates = {step: learning_rate(step, config) for step in range(110)}
    assert rates[0] == pytest.approx(1 / 11) and rates[9] == pytest.approx(10 / 11) and rates[10] == 1.0
    assert rates[60] == pytest.approx(0.5) and rates[35] == pytest.approx(0.5 + 0.5**1.5)
    assert 0 < rates[109] < 3e-4
    constant = config.replace(lr_schedule="constant")
    assert [learning_rate(s, constant) for s in (0, 10, 109)] == [pytest.approx(1 / 11), 1.0, 1.0]


def test_only_matrices_decay():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
    model[2].weight.requires_grad_(False)
    optimizer = build_optimizer(model, TrainingConfig(weight_decay=0.1, betas=(0.8, 0.95)), fused=False)
    decay = {p: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decay == {
        model[0].weight: 0.1,
        model[0].bias: 0.0,
        model[1].weight: 0.0,
        model[1].bias: 0.0,
        model[2].bias: 0.0,
    }
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.95)


def test_nothing_to_train_is_said():
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ConfigError, match="Linear: the model has no trainable parameter"):
        build_optimizer(model, TrainingConfig(), fused=False)


def test_8bit_optimiser_comes_from_bitsandbytes(monkeypatch):
    config = TrainingConfig(optimizer="adamw8bit", lr=0.3)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(DependencyError, match=r"pip install 'morphogen\[bitsandbytes\]'"):
        build_optimizer(nn.Linear(2, 2), config, fused=False)
    made = types.SimpleNamespace(AdamW8bit=lambda groups, **options: (groups, options))
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.SimpleNamespace(optim=made))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", made)
    groups, options = build_optimizer(nn.Linear(2, 2), config, fused=False)
    assert len(groups) == 2 and options == {"lr": 0.3, "betas": (0.9, 0.999)}


# ---------------------------------------------------------------------------------------------- checkpoints


def checkpoint(value: float) -> Checkpoint:
    tied = torch.full((4, 3), value)
    return Checkpoint(
        model={"a": tied, "b": tied, "part": tied.T},
        ema={"a": tied + 1},
        optimizer={"a": {"step": torch.tensor(value), "exp_avg": tied}},
        state={"step": int(value)},
    )


def test_checkpoint_round_trip_with_tied_and_transposed_tensors(tmp_path):
    folder = save_checkpoint(tmp_path, 5, checkpoint(5.0), keep_last=2)
    loaded = load_checkpoint(folder)
    for part in ("model", "ema"):
        for name, tensor in getattr(checkpoint(5.0), part).items():
            assert torch.equal(getattr(loaded, part)[name], tensor)
    assert torch.equal(loaded.optimizer["a"]["exp_avg"], torch.full((4, 3), 5.0))
    assert loaded.state == {"step": 5}


def test_rotation_keeps_the_newest(tmp_path):
    for step in (5, 10, 15, 1000):
        save_checkpoint(tmp_path, step, checkpoint(step), keep_last=2)
    assert [p.name for p in list_steps(tmp_path / "checkpoints")] == ["step-00000015", "step-00001000"]


def cut(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-10])


def flip(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)


def lose(folder, name):
    (folder / name).unlink()


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "optimizer.pt", "state.json"])
@pytest.mark.parametrize(
    ("harm", "said"),
    [(cut, r"\(NAME has \d+ of \d+ bytes\)"), (flip, "NAME is damaged"), (lose, "NAME is missing")],
)
def test_a_harmed_checkpoint_is_refused_in_one_line_and_the_one_before_used(
    tmp_path, caplog, name, harm, said
):
    good = save_checkpoint(tmp_path, 5, checkpoint(5.0), keep_last=3)
    bad = save_checkpoint(tmp_path, 10, checkpoint(10.0), keep_last=3)
    harm(bad, name)
    with caplog.at_level(logging.WARNING):
        assert newest_checkpoint(tmp_path) == good
    (line,) = caplog.messages
    assert line.startswith(f"{bad} is refused: ") and line.endswith("continuing from step-00000005.")
    assert re.search(said.replace("NAME", name), line) and "\n" not in line


def test_a_checkpoint_without_manifest_is_refused(tmp_path, caplog):
    bad = save_checkpoint(tmp_path, 5, checkpoint(5.0), keep_last=3)
    lose(bad, "manifest.json")
    assert newest_checkpoint(tmp_path) is None
    assert "no manifest" in caplog.text and "no other is left, starting anew" in caplog.text
    cut(save_checkpoint(tmp_path, 6, checkpoint(6.0), keep_last=3), "manifest.json")
    assert newest_checkpoint(tmp_path) is None


def test_rotation_does_not_count_a_refused_later_checkpoint(tmp_path):
    save_checkpoint(tmp_path, 5, checkpoint(5.0), keep_last=1)
    cut(save_checkpoint(tmp_path, 20, checkpoint(20.0), keep_last=2), "optimizer.pt")
    latest = save_checkpoint(tmp_path, 10, checkpoint(10.0), keep_last=1)
    assert newest_checkpoint(tmp_path) == latest
    again = save_checkpoint(tmp_path, 20, checkpoint(20.0), keep_last=1)
    assert list_steps(tmp_path / "checkpoints") == [again] and damage(again) is None


def test_foreign_objects_in_an_optimizer_file_are_refused(tmp_path):
    foreign = checkpoint(5.0)
    foreign.optimizer["a"]["step"] = types.SimpleNamespace()
    folder = save_checkpoint(tmp_path, 5, foreign, keep_last=1)
    with pytest.raises(CheckpointError, match="optimizer.pt holds other objects than tensors"):
        load_checkpoint(folder)


def test_best_weights_replace_the_former_best(tmp_path):
    assert best_weights(tmp_path) is None
    save_best(tmp_path, 5, {"a": torch.zeros(2)}, metric="m", value=1.0)
    folder = save_best(tmp_path, 7, {"a": torch.ones(2)}, metric="m", value=0.5)
    assert list_steps(tmp_path / "best") == [folder]
    assert torch.equal(best_weights(tmp_path)["a"], torch.ones(2))
    cut(folder, "model.safetensors")
    with pytest.raises(CheckpointError, match="it is cut short"):
        best_weights(tmp_path)
