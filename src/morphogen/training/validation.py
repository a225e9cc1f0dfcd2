"""Validation, the choice of the best weights, early stop, and previews."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

from torch import nn

from morphogen.core.errors import ConfigError, nearest
from morphogen.core.files import atomic_path
from morphogen.training.checkpoint import save_best
from morphogen.training.logging import everywhere
from morphogen.training.run import Run


def validate(run: Run) -> None:
    """Run the task's validation with the averaged weights; keep them if they are the best; see if patience is over.

    Every process validates (under FSDP each holds a part of the model); the figures of the first one count.
    """
    run.guard.check()
    config, progress = run.config, run.progress
    if not hasattr(run.task, "validate"):
        raise ConfigError("the task has no validation", where="validate_every", fix="Set it to 0")
    figures = {name: float(value) for name, value in run.with_average(run.task.validate).items()}
    figures = everywhere(run.accelerator, figures)[0]
    named = {f"validate/{name}": value for name, value in figures.items()}
    progress.metrics |= named
    run.log.write(progress.step, named)
    if config.best_metric is None:
        return
    if config.best_metric not in figures:
        raise ConfigError(
            f"the validation gives no '{config.best_metric}', it gives {', '.join(figures) or 'nothing'}."
            f"{nearest(config.best_metric, figures)}",
            where="best_metric",
        )
    value = figures[config.best_metric]
    if math.isfinite(value) and _better(value, progress.best_value, config.best_mode):
        progress.best_step, progress.best_value, progress.worse = progress.step, value, 0
        weights = run.average_state()
        if run.accelerator.is_main_process:
            save_best(run.out, progress.step, weights, metric=config.best_metric, value=value)
    else:
        progress.worse += 1
        spent = config.patience is not None and progress.worse >= config.patience
        progress.stopped_early = spent and progress.step < config.steps


def _better(value: float, best: float | None, mode: str) -> bool:
    return best is None or (value < best if mode == "min" else value > best)


def preview(run: Run) -> None:
    """Let the task write samples into ``previews/step-…``, whole or not at all."""
    run.guard.check()
    if not hasattr(run.task, "preview"):
        raise ConfigError("the task has no preview", where="preview_every", fix="Set it to 0")
    step = run.progress.step
    folder = run.out / "previews" / f"step-{step:08d}"
    # Every process draws, since under FSDP each holds a part of the model; only the first one's files are kept.
    with atomic_path(folder) if run.accelerator.is_main_process else tempfile.TemporaryDirectory() as place:
        Path(place).mkdir(exist_ok=True)

        def draw(model: nn.Module) -> None:
            run.task.preview(model, Path(place), step)

        run.with_average(draw)
