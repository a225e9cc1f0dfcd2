"""A small denoising task, in this process or as a script: ``python toy_run.py JOBS.json``.

A job is ``{"out": folder, "config": {TrainingConfig}, "task": {Toy arguments}, "shard": bool}``; from
the first with ``shard`` on parameters are sharded. The script prints one line of JSON for each job.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from torch import nn

from morphogen.core.errors import InputError, MorphogenError
from morphogen.training import Draws, TrainingConfig, fit, leave


class Points(torch.utils.data.Dataset):
    """``count`` points of 6 numbers; item ``bad`` is NaN, item ``broken`` cannot be read."""

    def __init__(self, count: int = 37, bad: int | None = None, broken: int | None = None) -> None:
        self.count, self.bad, self.broken = count, bad, broken

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict:
        if index == self.broken:
            raise InputError("this item cannot be read", where=f"item {index}")
        x = torch.randn(6, generator=torch.Generator().manual_seed(index))
        return {"x": x * float("nan") if index == self.bad else x, "index": torch.tensor(index)}


class Toy:
    """Predicts the noise that was added to a point."""

    def __init__(
        self,
        dropout: float = 0.0,
        bad: int | None = None,
        broken: int | None = None,
        sleep: float = 0.0,
        count: int = 37,
        scores: list[float] | None = None,
        unused: bool = False,
    ) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = nn.Sequential(nn.Linear(6, 16), nn.PReLU(16), nn.Dropout(dropout), nn.Linear(16, 6))
        if unused:
            self.model.register_parameter("unused", nn.Parameter(torch.zeros(3)))
        self.dataset = Points(count, bad, broken)
        self.identity = {"dropout": dropout}
        self.sleep, self.scores, self.validated = sleep, scores, 0

    def loss(self, model: nn.Module, batch: dict, draws: Draws) -> dict:
        time.sleep(self.sleep)
        x = batch["x"]
        noise, level = draws.normal_like(x), draws.uniform(1)
        error = (model(x * (1 - level) + noise * level) - noise).square().mean(1)
        return {"loss": error, "index": batch["index"], "level": level[:, 0]}

    def validate(self, model: nn.Module) -> dict:
        self.validated += 1
        score = self.scores[self.validated - 1] if self.scores else model(torch.ones(1, 6)).mean().item()
        return {"score": score}

    def preview(self, model: nn.Module, folder: Path, step: int) -> None:
        (folder / "sample.txt").write_text(f"{step} {model(torch.ones(1, 6)).mean().item()}")


def shard_on_cpu() -> None:
    """What ``accelerate launch --use_fsdp --fsdp_version 2`` does on GPUs: accelerate offers it on no CPU by itself."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    from morphogen.training import loop

    start = loop.start_accelerator

    def start_sharded(*args: object, **options: object) -> object:
        accelerator = start(*args, **options)
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["Linear"],  # units of their own; the rest stays with the root
            cpu_ram_efficient_loading=False,
        )
        AcceleratorState._shared_state.update(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin)
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        return accelerator

    loop.start_accelerator = start_sharded


def main(jobs: list[dict]) -> None:
    sharded = False
    for job in jobs:
        if job.get("shard") and not sharded:
            shard_on_cpu()
            sharded = True
        task = Toy(**job.get("task", {}))
        try:
            result = fit(task, TrainingConfig(**job["config"]), job["out"], device="cpu")
            shards = sum(hasattr(p, "to_local") for p in task.model.parameters())
            answer = {"step": result.step, "metrics": result.metrics, "shards": shards}
        except MorphogenError as error:
            answer = {"error": str(error), "kind": type(error).__name__}
        print(json.dumps(answer) + "\n", end="", flush=True)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
    leave()
