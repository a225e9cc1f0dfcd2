"""Optimiser, learning rate, and the moving average of the weights that samples are drawn with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from morphogen.core.errors import ConfigError, DependencyError
from morphogen.training.config import TrainingConfig


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Learning rate of update ``step`` (0 for the first).

    Rises linearly to ``lr``, which the update ``warmup_steps`` is the first to use in full; then constant, or
    lr·½(1 + cos πx) with x the progress through the rest of the run (Loshchilov and Hutter 2017).
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / (config.warmup_steps + 1)
    if config.lr_schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def build_optimizer(model: nn.Module, config: TrainingConfig, *, fused: bool) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters; biases, norms and other vectors are not decayed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ConfigError("the model has no trainable parameter", where=type(model).__name__)
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            raise DependencyError(
                "the 8-bit optimiser needs the package bitsandbytes",
                where="optimizer",
                fix="Install it with pip install 'morphogen[bitsandbytes]', or use optimizer adamw",
            ) from None
        return AdamW8bit(groups, lr=config.lr, betas=config.betas)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)


def ema_decay(updates: int, decay: float, warmup: bool = True) -> float:
    """Decay of update number ``updates`` (0 for the first): min(decay, (1 + n) / (10 + n)) with warm-up."""
    return min(decay, (1 + updates) / (10 + updates)) if warmup else decay


class Ema:
    """A float32 shadow s of every trained parameter p: s ← d·s + (1 − d)·p after each update.

    Under FSDP it works on the shards of each process and communicates nothing. Buffers are not averaged: the model's
    own go with the shadow.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool = True) -> None:
        self.decay, self.warmup = decay, warmup
        self.updates = 0
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._shadow = [p.clone() for p in self._present()]

    def _present(self) -> list[Tensor]:
        """The present weights, without a copy."""
        return [p.to_local() if hasattr(p, "to_local") else p.detach() for p in self._trained]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present weights; one pass over all parameters."""
        weight = 1 - ema_decay(self.updates, self.decay, self.warmup)
        self.updates += 1
        torch._foreach_lerp_(self._shadow, self._present(), weight)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within the block the model holds the averaged weights."""
        kept = [p.clone() for p in self._present()]
        self._write(self._shadow)
        try:
            yield
        finally:
            self._write(kept)

    @torch.no_grad()
    def _write(self, weights: list[Tensor]) -> None:
        torch._foreach_copy_(self._present(), weights)

    @torch.no_grad()
    def read(self) -> None:
        """Take the present weights as the average, as after loading a checkpoint's average into the model."""
        torch._foreach_copy_(self._shadow, self._present())
