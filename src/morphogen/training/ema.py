"""The moving average of the weights that samples are drawn with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


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
