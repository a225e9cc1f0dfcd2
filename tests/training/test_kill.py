"""A run killed at a random step ends with the weights of one that was not."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from morphogen.training import TrainingConfig, fit, read_metrics

CONFIG = {
    "steps": 40,
    "batch_size": 5,
    "lr": 0.01,
    "warmup_steps": 5,
    "lr_schedule": "cosine",
    "accumulation": 2,
    "log_every": 3,
    "save_every": 4,
    "validate_every": 7,
    "best_metric": "score",
    "workers": 1,
}


def figures(out: Path) -> list[dict]:
    timings = ("items_per_second", "seconds")
    return [{k: v for k, v in line.items() if k not in timings} for line in read_metrics(out)]


def kill_at(start, job: dict, step: int, processes: int = 1) -> None:
    process = start([job], processes)
    deadline = time.monotonic() + 120
    while not any(line["step"] >= step for line in read_metrics(job["out"])):
        assert process.poll() is None, process.communicate()[1][-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def assert_same_ends(one: Path, other: Path) -> None:
    last = "checkpoints/step-00000040"
    for name in ("model.safetensors", "ema.safetensors"):
        a, b = load_file(one / last / name), load_file(other / last / name)
        assert all(torch.equal(a[k], b[k]) for k in a), name
    a, b = (torch.load(out / last / "optimizer.pt", weights_only=True) for out in (one, other))
    assert all(torch.equal(a[name][k], b[name][k]) for name in a for k in a[name])
    assert figures(one) == figures(other)  # with the mean index of the items: the order of the data
    best = [sorted(p.name for p in (out / "best").iterdir()) for out in (one, other)]
    assert best[0] == best[1]


def test_kill_9_and_resume_is_identical(toy, start, answers, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    task = {"dropout": 0.2}
    fit(toy.Toy(**task), TrainingConfig(**CONFIG), whole, device="cpu")
    step = random.randint(3, 33)
    print("killed at step", step)
    kill_at(start, {"out": killed, "config": CONFIG, "task": {**task, "sleep": 0.01}}, step)
    assert not (killed / "checkpoints/step-00000040").exists()
    answers([{"out": killed, "config": CONFIG, "task": task}])
    assert_same_ends(whole, killed)


@pytest.mark.slow
def test_killed_again_and_again(toy, start, answers, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    fit(toy.Toy(dropout=0.2), TrainingConfig(**CONFIG), whole, device="cpu")
    for step in sorted(random.sample(range(3, 34), 4)):
        print("killed at step", step)
        kill_at(start, {"out": killed, "config": CONFIG, "task": {"dropout": 0.2, "sleep": 0.02}}, step)
    answers([{"out": killed, "config": CONFIG, "task": {"dropout": 0.2}}])
    assert_same_ends(whole, killed)


def test_a_kill_while_a_checkpoint_is_written_leaves_nothing_half(toy, tmp_path, monkeypatch):
    """The process dies between two files of a checkpoint: the folder is not there under its name."""
    config = TrainingConfig(**{**CONFIG, "workers": 0})
    whole = fit(toy.Toy(), config, tmp_path / "whole", device="cpu")

    class Killed(BaseException):
        pass

    real = torch.save

    def die(value, path, count=[0]):  # noqa: B006
        count[0] += 1
        if count[0] == 3:
            raise Killed
        real(value, path)

    monkeypatch.setattr(torch, "save", die)
    monkeypatch.setattr("morphogen.core.files.remove", lambda path: None)  # a killed process tidies nothing
    with pytest.raises(Killed):
        fit(toy.Toy(), config, tmp_path / "killed", device="cpu")
    monkeypatch.undo()
    folders = sorted(p.name for p in (tmp_path / "killed/checkpoints").iterdir())
    assert folders[0].startswith(".step-00000012.") and folders[1:] == ["step-00000004", "step-00000008"]
    result = fit(toy.Toy(), config, tmp_path / "killed", device="cpu")
    assert all(torch.equal(result.ema_state[k], whole.ema_state[k]) for k in whole.ema_state)
    assert not [p for p in (tmp_path / "killed/checkpoints").iterdir() if p.name.startswith(".")]
