"""Speed and means of the steps since the last line, on the progress bar and in the log."""

from __future__ import annotations

import contextlib
import time
from typing import Self

import torch

from morphogen.core.progress import Bar
from morphogen.core.progress import progress as progress_bar
from morphogen.training.run import Run


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
