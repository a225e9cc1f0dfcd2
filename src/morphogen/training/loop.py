"""The one training loop."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from morphogen.core.errors import ConfigError, OutputError, TrainingError
from morphogen.core.files import atomic_path, writable_folder
from morphogen.core.progress import progress
from morphogen.core.seeds import seed_for
from morphogen.training import sharding
from morphogen.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    newest_checkpoint,
    remove_leftovers,
    save_best,
    save_checkpoint,
)
from morphogen.training.config import TrainingConfig
from morphogen.training.draws import Draws
from morphogen.training.ema import Ema
from morphogen.training.guard import FiniteGuard
from morphogen.training.logging import Means, MetricsLog
from morphogen.training.optim import build_optimizer, learning_rate
from morphogen.training.order import DataOrder, RankBatches, loader
from morphogen.training.setup import (
    AnyCall,
    check_same_run,
    check_trainable,
    enable_gradient_checkpointing,
    start_accelerator,
    write_run,
)
from morphogen.training.task import Task, TrainResult


def fit(
    task: Task,
    config: TrainingConfig,
    out: Path | str,
    *,
    device: str | torch.device = "auto",
    precision: str = "fp32",
    compile: bool = False,
    resume: bool = True,
) -> TrainResult:
    """Train ``task.model``."""
    out = writable_folder(out)
    accelerator = start_accelerator(config, out, device=device, precision=precision)
    with torch.random.fork_rng(devices=[accelerator.device] if accelerator.device.type == "cuda" else []):
        return _Run(task, config, out, accelerator, precision, compile, resume).train()


class _Run:
    def __init__(
        self,
        task: Task,
        config: TrainingConfig,
        out: Path,
        accelerator: Any,
        precision: str,
        compile: bool,
        resume: bool,
    ) -> None:
        self.task, self.config, self.out, self.accelerator = task, config, out, accelerator
        self.main = accelerator.is_main_process
        check_trainable(task.model)
        if config.gradient_checkpointing:
            enable_gradient_checkpointing(task.model)
        if compile:
            task.model.compile()
        optimizer = build_optimizer(
            task.model, config, fused=precision != "fp16" and accelerator.device.type in ("cpu", "cuda")
        )
        self.model, self.optimizer = accelerator.prepare(AnyCall(task.model), optimizer)
        self.ema = Ema(self.model, config.ema_decay, config.ema_warmup)
        self.order = DataOrder(len(task.dataset), config.seed)  # type: ignore[arg-type]
        self.means, self.guard = Means(), FiniteGuard(accelerator)
        self.state: dict[str, Any] = {
            "step": 0,
            "ema_updates": 0,
            "best_value": None,
            "best_step": None,
            "worse": 0,
            "stopped_early": False,
            "metrics": {},
            "means": {},
        }
        record = {
            "training": config.to_dict(),
            "precision": precision,
            "items": self.order.count,
            "task": dict(getattr(task, "identity", {}) or {}),
        }
        check_same_run(out, record)
        self._resume(resume)
        accelerator.wait_for_everyone()
        if self.main:
            write_run(out, record)
        self.log = MetricsLog(out, accelerator, self.state["step"])

    # ---------------------------------------------------------------------------------------------- the loop

    def train(self) -> TrainResult:
        config, accelerator, state = self.config, self.accelerator, self.state
        world, rank = accelerator.num_processes, accelerator.process_index
        first, last = state["step"], config.steps if not state["stopped_early"] else state["step"]
        batches = RankBatches(
            self.order,
            config.batch_size,
            rank=rank,
            world=world,
            accumulation=config.accumulation,
            first=first,
            last=last,
        )
        stream = loader(
            self.task.dataset,
            batches,
            workers=config.workers,
            collate=getattr(self.task, "collate", None),
            pin=accelerator.device.type == "cuda",
        )
        self.model.train()
        bar = (
            progress.bar(config.steps, "training steps", done=first)
            if self.main
            else contextlib.nullcontext()
        )
        started, logged, logged_step = time.perf_counter(), time.perf_counter(), first
        with bar as moving:
            for step in range(first, last):
                lr = learning_rate(step, config)
                for group in self.optimizer.param_groups:
                    group["lr"] = lr
                parts = [self._part(step, part, next(stream)) for part in range(config.accumulation)]
                norm = None
                if config.clip_norm:
                    norm = accelerator.clip_grad_norm_(self.model.parameters(), config.clip_norm)
                self.guard.watch(step + 1, parts, norm if accelerator.scaler is None else None)
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.ema.update()

                done = state["step"] = step + 1
                if moving:
                    moving.advance()
                if self._due(config.log_every):
                    self.guard.check()
                    now = time.perf_counter()
                    figures = self.means.take(accelerator)
                    if not self.main:
                        figures = dict(figures)
                    state["metrics"] |= figures
                    rate = (done - logged_step) * config.batch_size / (now - logged)
                    logged, logged_step = now, done
                    extra = {"lr": lr, "epoch": done * config.batch_size / self.order.count}
                    if norm is not None:
                        extra["grad_norm"] = float(norm)
                    self.log.write(
                        done, {**figures, **extra, "items_per_second": rate, "seconds": now - started}
                    )
                    if moving:
                        moving.note(loss=f"{figures['loss']:.4g}", items_per_s=f"{rate:.3g}")
                if config.validate_every and self._due(config.validate_every):
                    self._validate()
                if config.preview_every and self._due(config.preview_every):
                    self._preview()
                if self._due(config.save_every) or state["stopped_early"]:
                    self._save()
                if state["stopped_early"]:
                    break
        self.guard.check()
        for tracker in accelerator.trackers:
            tracker.finish()
        with self.ema.swapped():
            ema_state = {k: v.clone() for k, v in sharding.model_state(self.model).items()}
        return TrainResult(
            step=state["step"],
            folder=self.out,
            ema_state=ema_state,
            metrics=dict(state["metrics"]),
            best_step=state["best_step"],
            best_value=state["best_value"],
            stopped_early=state["stopped_early"],
        )

    def _part(self, step: int, part: int, loaded: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Forward and backward of one micro-batch; returns its dataset indices and loss."""
        from accelerate.utils import send_to_device

        accelerator, config = self.accelerator, self.config
        batch, indices, positions = loaded
        batch = send_to_device(batch, accelerator.device, non_blocking=True)
        draws = Draws(config.seed, positions, accelerator.device)
        torch.manual_seed(seed_for(config.seed, "layers", step, accelerator.process_index, part))
        last = part == config.accumulation - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
            figures = self.model(lambda model: self.task.loss(model, batch, draws))
            loss = _checked(figures, len(positions))
            weight = len(positions) * accelerator.num_processes / config.batch_size
            accelerator.backward(loss.mean() * weight)
        self.means.add(figures, len(positions))
        return indices, loss.detach()

    def _due(self, every: int) -> bool:
        return self.state["step"] % every == 0 or self.state["step"] == self.config.steps

    # ---------------------------------------------------------------------------- validation, previews, files

    def _validate(self) -> None:
        config, state = self.config, self.state
        self.guard.check()
        if not hasattr(self.task, "validate"):
            raise ConfigError("the task has no validation", where="validate_every", fix="Set it to 0")
        figures = {k: float(v) for k, v in self._with_average(self.task.validate).items()}
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            figures = broadcast_object_list([figures])[0]
        state["metrics"] |= {f"validate/{name}": value for name, value in figures.items()}
        self.log.write(state["step"], {f"validate/{name}": value for name, value in figures.items()})
        if config.best_metric is None:
            return
        if config.best_metric not in figures:
            raise ConfigError(
                f"the validation has no figure '{config.best_metric}', it has {', '.join(figures)}",
                where="best_metric",
            )
        value, best = figures[config.best_metric], state["best_value"]
        sign = 1 if config.best_mode == "min" else -1
        if math.isfinite(value) and (best is None or sign * value < sign * best):
            state.update(best_value=value, best_step=state["step"], worse=0)
            with self.ema.swapped():
                weights = sharding.model_state(self.model)
            if self.main:
                save_best(self.out, state["step"], weights, metric=config.best_metric, value=value)
        else:
            state["worse"] += 1
            state["stopped_early"] = config.patience is not None and state["worse"] >= config.patience

    def _preview(self) -> None:
        self.guard.check()
        step = self.state["step"]
        if not hasattr(self.task, "preview"):
            raise ConfigError("the task has no preview", where="preview_every", fix="Set it to 0")
        folder = self.out / "previews" / f"step-{step:08d}"
        # Every process draws, since under FSDP each holds a part of the model; only the first one's files are kept.
        with atomic_path(folder) if self.main else tempfile.TemporaryDirectory() as place:
            Path(place).mkdir(exist_ok=True)
            self._with_average(lambda model: self.task.preview(model, Path(place), step))

    @torch.no_grad()
    def _with_average(self, function: Any) -> Any:
        self.model.eval()
        with self.ema.swapped():
            result = self.model(function)
        self.model.train()
        return result

    def _save(self) -> None:
        self.guard.check()
        state = {**self.state, "ema_updates": self.ema.updates, "means": self.means.state(self.accelerator)}
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        with self.ema.swapped():
            ema = {k: v.clone() for k, v in sharding.model_state(self.model).items()}
        model = sharding.model_state(self.model)
        optimizer = sharding.optimizer_state(self.model, self.optimizer.optimizer)
        if self.main:
            save_checkpoint(
                self.out,
                state["step"],
                Checkpoint(model, ema, optimizer, state),
                keep_last=self.config.keep_last,
            )
        self.accelerator.wait_for_everyone()

    def _resume(self, resume: bool) -> None:
        if self.main:
            remove_leftovers(self.out)
        found = [newest_checkpoint(self.out)] if self.main else [None]
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            found = broadcast_object_list(found)
        if found[0] is None:
            return
        if not resume:
            raise OutputError(
                f"a run is already here, at {found[0].name}",
                where=self.out,
                fix="Continue it or choose another folder",
            )
        saved = load_checkpoint(found[0])
        self.state |= saved.state
        sharding.load_model_state(self.model, saved.ema)
        self.ema.read()
        self.ema.updates = saved.state["ema_updates"]
        sharding.load_model_state(self.model, saved.model)
        sharding.load_optimizer_state(self.model, self.optimizer.optimizer, saved.optimizer)
        if self.main:
            self.means.load(saved.state["means"], self.accelerator.device)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(saved.state["scaler"])


def _checked(figures: Any, items: int) -> torch.Tensor:
    if not isinstance(figures, dict) or "loss" not in figures:
        raise TrainingError("task.loss must return a dict with 'loss'")
    loss = figures["loss"]
    if loss.shape not in ((), (items,)):
        raise TrainingError(f"'loss' has shape {tuple(loss.shape)}, but must be a scalar or ({items},)")
    return loss
