"""All that belongs to one run: its parts, its progress, and how both go to disk and come back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from morphogen.core.errors import CheckpointError, OutputError
from morphogen.core.running.threads import fewer_threads
from morphogen.core.writing.replacing import remove_leftovers
from morphogen.training import sharding
from morphogen.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from morphogen.training.config import TrainingConfig
from morphogen.training.guard import FiniteGuard
from morphogen.training.lanes import ENOUGH, counted, lanes_for
from morphogen.training.logging import Means, MetricsLog
from morphogen.training.optim import Ema, build_optimizer
from morphogen.training.order import DataOrder
from morphogen.training.start import (
    AnyCall,
    check_model,
    check_same_run,
    enable_gradient_checkpointing,
    start_trackers,
    write_run,
)
from morphogen.training.task import Task, TrainResult


@dataclass
class Progress:
    """Where a run is; the same on every process, and ``state.json`` of a checkpoint."""

    step: int = 0
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    best_step: int | None = None
    best_value: float | None = None
    worse: int = 0
    stopped_early: bool = False
    megaflops: float | None = None
    """Of a mean operation of the first step, where a CPU's threads depend on it; kept, so that a run that goes on is
    computed as it was."""


class Run:
    """A task made ready for the loop: model and optimiser as accelerate wants them, and what stands beside them."""

    def __init__(
        self, task: Task, config: TrainingConfig, out: Path, accelerator: Any, *, precision: str, resume: bool
    ) -> None:
        check_model(task.model)
        if config.gradient_checkpointing:
            enable_gradient_checkpointing(task.model)
        self.task, self.config, self.out, self.accelerator = task, config, out, accelerator
        self.order = DataOrder(len(task.dataset), config.seed)  # type: ignore[arg-type]
        record = {
            "training": config.to_dict(),
            "precision": precision,
            "dataset items": self.order.count,
            "task": dict(getattr(task, "identity", None) or {}),
        }
        run_id = check_same_run(out, record)

        # A scaler must see whether the optimiser stepped, which the fused form hides from it.
        fused = accelerator.scaler is None and accelerator.device.type in ("cpu", "cuda")
        optimizer = build_optimizer(task.model, config, fused=fused)
        self.model, self.optimizer = accelerator.prepare(AnyCall(task.model), optimizer)
        items = config.batch_size // config.accumulation
        self._lanes = 1 if config.gradient_checkpointing else lanes_for(task.model, accelerator, items)
        self._counts = (
            accelerator.device.type == "cpu"
            and accelerator.num_processes == 1
            and torch.get_num_threads() > 1
            and not any(module._compiled_call_impl for module in task.model.modules())
        )
        self.ema = Ema(self.model, config.ema_decay, config.ema_warmup)
        self.means = Means()
        self.guard = FiniteGuard(accelerator, out)
        self.progress = Progress()

        self._restore(resume)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_run(out, record, run_id)
        self.log = MetricsLog(out, accelerator, self.progress.step)
        start_trackers(accelerator, config, out, run_id=run_id, step=self.progress.step)

    def due(self, every: int) -> bool:
        """Whether something done every so many steps is due now; 0 is never, and the last step is always due."""
        return bool(every) and (self.progress.step % every == 0 or self.progress.step == self.config.steps)

    @property
    def lanes(self) -> int:
        """Lanes of a step: one until it is known what its operations do."""
        work = self.progress.megaflops
        return 1 if work is None or work < ENOUGH else self._lanes

    def figures(self, function: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """``function()``, whose work is counted the first time."""
        if not self._counts or self.progress.megaflops is not None:
            return function()
        value, self.progress.megaflops = counted(function)
        return value

    def threads(self) -> AbstractContextManager[Any]:
        """The block of a step: one thread where its operations are too short for more."""
        work = self.progress.megaflops
        if self._counts and (work is None or work < ENOUGH):
            return fewer_threads(torch.get_num_threads())
        return nullcontext()

    @torch.no_grad()
    def with_average(self, function: Callable[[nn.Module], Any]) -> Any:
        """``function(model)`` with the averaged weights, in eval mode."""
        self.model.eval()
        with self.ema.swapped():
            result = self.model(function)
            sharding.reshard(self.model)
        self.model.train()
        return result

    def average_state(self) -> dict[str, torch.Tensor]:
        """The averaged weights, full tensors on the CPU; under FSDP only on the first process."""
        with self.ema.swapped():
            return sharding.model_state(self.model)

    def save(self) -> None:
        """Write a checkpoint of now."""
        self.guard.check()
        state = {
            **asdict(self.progress),
            "ema_updates": self.ema.updates,
            "means": self.means.state(self.accelerator),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
        }
        checkpoint = Checkpoint(
            model=sharding.model_state(self.model),
            ema=self.average_state(),
            optimizer=sharding.optimizer_state(self.model, self.optimizer.optimizer),
            state=state,
        )
        if self.accelerator.is_main_process:
            save_checkpoint(self.out, self.progress.step, checkpoint, keep_last=self.config.keep_last)
        self.accelerator.wait_for_everyone()

    def _restore(self, resume: bool) -> None:
        """Continue from the newest checkpoint that is whole, if there is one."""
        found: list[Path | None] = [None]
        if self.accelerator.is_main_process:
            remove_leftovers(self.out)
            found = [newest_checkpoint(self.out)]
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            found = broadcast_object_list(found)
        folder = found[0]
        if folder is None:
            return
        if not resume:
            raise OutputError(
                f"a run is already here, at {folder.name}",
                where=self.out,
                fix="Allow it to be resumed, or choose another folder",
            )
        if not folder.is_dir():
            raise CheckpointError(
                f"process {self.accelerator.process_index} cannot see this folder",
                where=folder,
                fix="Put the run's folder on a file system that all nodes share",
            )
        saved = load_checkpoint(folder)
        state = dict(saved.state)
        self.ema.updates, means, scaler = (state.pop(key) for key in ("ema_updates", "means", "scaler"))
        state["metrics"] = {k: float("nan") if v is None else v for k, v in state["metrics"].items()}
        self.progress = Progress(**state)
        try:
            sharding.load_model_state(self.model, saved.ema)
            self.ema.read()
            sharding.load_model_state(self.model, saved.model)
        except CheckpointError as error:
            raise CheckpointError(error.what, where=folder, fix=error.fix) from None
        sharding.load_optimizer_state(self.model, self.optimizer.optimizer, saved.optimizer)
        if self.accelerator.is_main_process:
            self.means.load(means, self.accelerator.device)
        if scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(scaler)

    def result(self) -> TrainResult:
        """What the run leaves."""
        return TrainResult(
            step=self.progress.step,
            folder=self.out,
            ema_state=self.average_state(),
            metrics=dict(self.progress.metrics),
            best_step=self.progress.best_step,
            best_value=self.progress.best_value,
            stopped_early=self.progress.stopped_early,
        )
