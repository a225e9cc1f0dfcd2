"""The one training loop.

``fit(task, config, folder)`` trains on one CPU, one GPU, or on whatever ``torchrun`` or ``accelerate launch`` started.
A run is a pure function of the task, its configuration and the seed: the order of the data, the draws of every item
and the dropout of every step are derived, not kept, so that a run killed anywhere ends with the weights of one that
was not, and k processes train what one process trains.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import torch

from morphogen.core.devices import chosen_precision, compiling_pays, resolve_device, tolerate_failures
from morphogen.core.errors import TrainingError
from morphogen.core.files import writable_folder
from morphogen.core.progress import Bar
from morphogen.core.progress import progress as progress_bar
from morphogen.core.seeds import seed_for
from morphogen.core.writing.locks import locks_folder
from morphogen.training.config import TrainingConfig
from morphogen.training.draws import Draws
from morphogen.training.guard import Part
from morphogen.training.lanes import WholeLoss, backward_in_lanes
from morphogen.training.optim import learning_rate
from morphogen.training.order import Batch, RankBatches, loader
from morphogen.training.run import Run
from morphogen.training.start import compiled, start_accelerator
from morphogen.training.task import Task, TrainResult
from morphogen.training.validation import preview, validate


@locks_folder()
def fit(
    task: Task,
    config: TrainingConfig,
    out: Path | str,
    *,
    device: str | torch.device = "auto",
    precision: str = "fp32",
    compile: bool | None = False,
    resume: bool = True,
) -> TrainResult:
    """Train ``task.model`` and leave everything about the run in the folder ``out``.

    Parameters
    ----------
    task:
        Model, data and loss; see :class:`Task`.
    config:
        See :class:`TrainingConfig`.
    out:
        Folder of the run: ``run.json`` (what it is), ``metrics.jsonl``, ``checkpoints/``, ``best/``, ``previews/``.
        When it holds a run already, that run goes on from its newest whole checkpoint.
    device:
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.
    precision:
        ``"fp32"``, or autocast to ``"bf16"`` or ``"fp16"`` (CUDA only, with loss scaling), or ``"auto"``
        (:func:`~morphogen.core.devices.chosen_precision`). Weights stay float32.
    compile:
        Run the model's forward and backward through torch.compile; ``None``: when the steps pay for it
        (:func:`~morphogen.core.devices.compiling_pays`).
    resume:
        Whether a run found in ``out`` may go on; if not, finding one is an error.

    Returns
    -------
    TrainResult
        ``ema_state`` holds the averaged weights; ``task.model`` is left with the last weights, in eval mode.

    Raises
    ------
    ConfigError
        Settings that contradict each other, the device, or the run in ``out`` (the key is named).
    TrainingError
        The loss is NaN or infinite; the items of the batch are named and the last checkpoint is whole.
    CheckpointError, DependencyError, OutputError
        Weights that do not fit; a missing optional package; a folder that cannot be written.
    """
    out = writable_folder(out)
    precision = chosen_precision(precision, resolve_device(device))
    accelerator = start_accelerator(config, out, device=device, precision=precision)
    pays = compile is None and compiling_pays(accelerator.device, config.steps, training=True)
    if pays:
        tolerate_failures()
    with own_randomness(accelerator.device), compiled(task.model, bool(compile or pays), accelerator.device):
        run = Run(task, config, out, accelerator, precision=precision, resume=resume)
        try:
            train(run)
        except torch.OutOfMemoryError:
            raise TrainingError(
                f"{accelerator.device} is out of memory",
                where=out,
                fix="Raise accumulation, set gradient_checkpointing, use bf16, or lower batch_size",
            ) from None
        except RuntimeError as error:
            if explained := _explained(error):
                raise explained from None
            raise
        finally:
            run.log.close()
            task.model.eval()
        return run.result()


def _explained(error: RuntimeError) -> TrainingError | None:
    """What two errors of torch mean here."""
    text = str(error)
    if "Expected to have finished reduction" in text:
        return TrainingError(
            "the loss did not reach all parameters of the model in some step",
            fix="Set find_unused_parameters, or let every parameter take part in the loss",
        )
    if "DataLoader worker" in text and "exited unexpectedly" in text:
        return TrainingError(
            "a process that loads data died, most often for want of memory", fix="Lower workers or batch_size"
        )
    return None


def train(run: Run) -> None:
    """Steps from where the run is to its end."""
    config, progress = run.config, run.progress
    first, last = progress.step, progress.step if progress.stopped_early else config.steps
    batches = _batches(run, first, last)
    run.model.train()
    with Meter(run) as meter:
        for step in range(first, last):
            with run.threads():
                lr, norm = update(run, step, batches)
            progress.step = step + 1
            meter.advance()
            if run.due(config.log_every):
                meter.log(lr=lr, grad_norm=float(norm))
            if run.due(config.validate_every):
                validate(run)
            if run.due(config.preview_every):
                preview(run)
            if run.due(config.save_every) or progress.stopped_early:
                run.save()
            if progress.stopped_early:
                break


def update(run: Run, step: int, batches: Iterator[Batch]) -> tuple[float, torch.Tensor]:
    """One update of the weights and of their average; returns the learning rate and the norm of the gradient."""
    lr = learning_rate(step, run.config)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    parts = [backward(run, step, part, next(batches)) for part in range(run.config.accumulation)]
    norm = clip(run)
    run.guard.watch(step + 1, parts, norm if run.accelerator.scaler is None else None)
    run.optimizer.step()
    run.optimizer.zero_grad()
    if not run.optimizer.step_was_skipped:  # a gradient that overflowed in fp16
        run.ema.update()
    return lr, norm


def backward(run: Run, step: int, part: int, batch: Batch) -> Part:
    """Forward and backward of one micro-batch, so that the gradients add up to that of the whole batch's mean."""
    from accelerate.utils import send_to_device

    config, accelerator = run.config, run.accelerator
    items, indices, positions = batch
    items = send_to_device(items, accelerator.device, non_blocking=True)
    if finish := getattr(run.task.dataset, "finish", None):
        items = finish(items)
    # Dropout has no other source than torch's own generator; seeding it here makes it a function of the step.
    torch.manual_seed(seed_for(config.seed, "layers", step, accelerator.process_index, part))
    whole = getattr(run.task, "whole_batches", False)
    if run.lanes > 1 and not whole:
        figures = backward_in_lanes(
            lambda own, places: run.model(lambda model: _figures(run, model, own, places)),
            list(run.model.parameters()),
            items,
            positions,
            run.lanes,
            len(positions) / config.batch_size,
        )
        run.means.add(figures, len(positions))
        return Part(indices, figures["loss"])
    last = part == config.accumulation - 1
    with contextlib.nullcontext() if last else accelerator.no_sync(run.model):
        figures = run.figures(
            lambda: run.model(
                lambda model: _figures(
                    run, WholeLoss(model, run.lanes) if run.lanes > 1 else model, items, positions
                )
            )
        )
        loss = figures["loss"]
        # DDP and FSDP take the mean over processes, whose shares may differ by one item.
        share = len(positions) * accelerator.num_processes / config.batch_size
        accelerator.backward(loss.mean() * share)
    run.means.add(figures, len(positions))
    return Part(indices, loss.detach())


def clip(run: Run) -> torch.Tensor:
    """Scale the gradient to ``clip_norm`` if it is longer; returns its norm before that, over all processes."""
    norm = run.accelerator.clip_grad_norm_(run.model.parameters(), run.config.clip_norm or float("inf"))
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # sharded under FSDP 2


def _figures(run: Run, model: Any, items: Any, positions: torch.Tensor) -> dict[str, torch.Tensor]:
    """The task's figures of some items, checked."""
    draws = Draws(run.config.seed, positions, run.accelerator.device)
    figures = run.task.loss(model, items, draws)
    if not isinstance(figures, dict) or "loss" not in figures:
        raise TrainingError("the task's loss must return a dict with the key 'loss'")
    loss = figures["loss"]
    if loss.shape not in ((), (len(positions),)):
        raise TrainingError(
            f"'loss' has shape {tuple(loss.shape)}, but must be one number, or one for each of {len(positions)}"
        )
    return figures


def _batches(run: Run, first: int, last: int) -> Iterator[Batch]:
    config, accelerator = run.config, run.accelerator
    share = RankBatches(
        run.order,
        config.batch_size,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        accumulation=config.accumulation,
        first=first,
        last=last,
    )
    return loader(
        run.task.dataset,
        share,
        workers=config.workers,
        collate=getattr(run.task, "collate", None),
        device=accelerator.device,
        ranks=int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes)),
    )


@contextlib.contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Keep the seeding of a run from the caller's global generators."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


class Meter:
    """The bar of a run (rate and time left) and its lines in the log; a bar only on the first process."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._bar: Bar | None = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        total, done = self.run.config.steps, self.run.progress.step
        if self.run.accelerator.is_main_process and done < total and not self.run.progress.stopped_early:
            self._bar = self._open.enter_context(progress_bar.bar(total, "training steps", done=done))
        self._time, self._step = time.perf_counter(), done
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def advance(self) -> None:
        """One step more."""
        if self._bar is not None:
            self._bar.advance()

    def log(self, **figures: float) -> None:
        """Write the means of the loss's figures since the last line, with speed, epoch and ``figures``."""
        run = self.run
        run.guard.check()
        means = run.means.take(run.accelerator)
        run.progress.metrics |= means

        now, step = time.perf_counter(), run.progress.step
        elapsed, items = now - self._time, (step - self._step) * run.config.batch_size
        self._time, self._step = now, step
        run.progress.seconds += elapsed
        speed = {"items_per_second": items / elapsed, "seconds": run.progress.seconds}
        if run.accelerator.device.type == "cuda":
            speed["gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
        run.log.write(
            step, {**means, **figures, "epoch": step * run.config.batch_size / run.order.count, **speed}
        )
        if self._bar is not None:
            self._bar.note(loss=f"{means['loss']:.4g}", items_per_s=f"{speed['items_per_second']:.3g}")
