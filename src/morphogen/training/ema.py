"""The moving average of the weights that samples are drawn with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def ema_decay(updates: int, decay: float, warmup: bool = True) -> float:
    """Decay of update number ``updates`` (0 for the first): min(decay, (1 + n) / (10 + n)) with warm-up."""
    return min(decay, (1 + updates) / (10 + updates)) if warmup else decay


class Ema:
    """A float32 shadow s of every trained parameter p: s ← d·s + (1 − d)·p after each update.

    Works on local shards, so it costs no communication under FSDP. Buffers are not averaged: the model's own are used
    with the shadow.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool = True) -> None:
        self.decay, self.warmup = decay, warmup
        self.updates = 0
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._shadow = [p.detach().to(torch.float32, copy=True) for p in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present weights; one fused pass over all parameters."""
        weight = 1 - ema_decay(self.updates, self.decay, self.warmup)
        self.updates += 1
        present = [p.detach().float() for p in self._parameters]
        torch._foreach_lerp_(self._shadow, present, weight)

    @contextmanager
    @torch.no_grad()
    def swapped(self) -> Iterator[None]:
        """Within the block the model holds the averaged weights."""
        kept = [p.detach().clone() for p in self._parameters]
        torch._foreach_copy_(self._parameters, self._shadow)
        try:
            yield
        finally:
            torch._foreach_copy_(self._parameters, kept)

    @torch.no_grad()
    def read(self) -> None:
        """Take the model's present weights as the shadow, as after loading a checkpoint's average into it."""
        torch._foreach_copy_(self._shadow, self._parameters)
