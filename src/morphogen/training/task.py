"""What a task gives to the loop, and what it gets back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from morphogen.training.draws import Draws


class Task(Protocol):
    """A model, its data and its loss. A plain class with these attributes is enough; there is nothing to inherit.

    Optional attributes, used when they are there:

    ``collate(items) -> dict``
        Makes a batch of a list of items. Default: torch's ``default_collate``.
    ``identity: dict``
        Whatever, beyond :class:`TrainingConfig`, makes this run what it is (the task's own settings, a hash of the
        data). Kept in ``run.json``; a resume with another identity is refused with the key that differs.
    ``dataset.draw(index, generator) -> dict``
        In place of ``dataset[index]``, for datasets that cut random crops. The ``torch.Generator`` is seeded from
        the seed and the item's position, so it is the same with any number of workers and after a resume.

    ``whole_batches = True``
        The loss is one of the whole batch, not a mean over items (a Dice loss with sums over the batch): lanes of a CPU
        meet for it. ``loss`` calls the model with tensors (B, …) for one tensor (B, …) then.

    For data sets whose batches are made as a whole, in three steps:

    ``dataset.place(index, generator)``
        In place of ``draw``: where an item lies, a few numbers. Without it the place is the index.
    ``dataset.cut(places) -> dict``
        In place of ``collate``: the batch of these places, on the host. May run in a worker process.
    ``dataset.finish(batch) -> dict``
        The batch as ``loss`` takes it, on the device of the training.
    ``dataset.prepare(device)``
        Called before a training on a GPU, or with worker processes, begins: decode, copy to the device. When
        ``dataset.resident`` is true after that, ``cut`` is cheap and no processes are started for it.
    """

    model: nn.Module
    """Everything that is trained, and nothing more: frozen encoders stay outside."""

    dataset: Dataset
    """Map-style; ``dataset[i]`` is a dict of tensors, the same at every call."""

    def loss(self, model: nn.Module, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        """Figures of a batch, ``"loss"`` the one to be optimised, each per item (B,) or a scalar mean.

        Per-item losses let the loop name the item behind a NaN. All randomness comes from ``draws``; dropout is
        seeded by the loop. Runs under autocast with bf16 or fp16.
        """
        ...

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Figures on held-out data, with the averaged weights in ``model``, in eval mode, without gradients."""
        ...

    def preview(self, model: nn.Module, folder: Path, step: int) -> None:
        """Write samples worth looking at into ``folder``, with the averaged weights in ``model``."""
        ...


@dataclass(frozen=True)
class TrainResult:
    """What a finished run leaves."""

    step: int
    """Updates made."""
    folder: Path
    """The run's folder: metrics.jsonl, checkpoints/, best/, previews/."""
    ema_state: dict[str, Tensor]
    """Averaged weights at the end, on the CPU, keyed like ``task.model.state_dict()``."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Last training figures (``loss`` …) and last validation (``validate/…``)."""
    best_step: int | None = None
    """Step of the best validation, when ``best_metric`` is set."""
    best_value: float | None = None
    """Its figure."""
    stopped_early: bool = False
    """Whether ``patience`` ended the run."""

    def best_state(self) -> dict[str, torch.Tensor]:
        """Averaged weights of the best validation; those of the end when no best was chosen."""
        from morphogen.training.checkpoint import best_weights

        best = best_weights(self.folder)
        return self.ema_state if best is None else best
