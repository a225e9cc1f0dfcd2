"""Stops a run whose loss or gradient is no longer finite, and names the items behind it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from morphogen.core.errors import TrainingError
from morphogen.core.running.transfers import fetched
from morphogen.training.checkpoint import CHECKPOINTS, list_steps
from morphogen.training.logging import everywhere


class Part(NamedTuple):
    """What is remembered of a micro-batch until its loss has been looked at."""

    indices: torch.Tensor
    """(B,) dataset indices."""
    loss: torch.Tensor
    """() or (B,)."""


class _Watched(NamedTuple):
    step: int
    parts: list[Part]
    finite: Callable[[], Any]


class FiniteGuard:
    """Looks at each step's loss one step later, so that a GPU never waits; all processes stop together.

    :meth:`check` comes before anything is saved, so no checkpoint ever holds weights made from a NaN.
    """

    def __init__(self, accelerator: Any, out: Path) -> None:
        self.accelerator = accelerator
        self.out = out
        self._watched: _Watched | None = None

    @torch.no_grad()
    def watch(self, step: int, parts: list[Part], gradient_norm: torch.Tensor | None) -> None:
        """Remember this step, and look at the one before. ``gradient_norm`` is None where a scaler handles it."""
        finite = torch.stack([torch.isfinite(part.loss).all() for part in parts]).all()
        if gradient_norm is not None:
            finite = finite & torch.isfinite(gradient_norm)
        flag = finite.float()
        self.check()
        if self.accelerator.num_processes > 1:
            handle = torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN, async_op=True)
            if flag.device.type == "cpu":  # waits for the others, so one step later
                self._watched = _Watched(step, parts, lambda: handle.wait() and flag.numpy())
                return
            handle.wait()  # on a GPU: the stream, not the host
        self._watched = _Watched(step, parts, fetched(flag))

    def check(self) -> None:
        """Raise :class:`TrainingError` if the last step watched was not finite."""
        watched, self._watched = self._watched, None
        if watched is None:
            return
        if not watched.finite():
            raise self._error(watched)

    def _error(self, watched: _Watched) -> TrainingError:
        bad: list[int] = []
        seen: list[int] = []
        kinds: set[str] = set()
        for indices, loss in watched.parts:
            loss = loss.float().cpu()
            wrong = ~torch.isfinite(loss)
            kinds |= {"NaN" if value != value else "infinite" for value in loss[wrong].flatten().tolist()}
            bad += indices[wrong.expand(len(indices))].tolist()
            seen += indices.tolist()
        ranks = everywhere(self.accelerator, (bad, seen, kinds))
        bad, seen = (sorted(i for rank in ranks for i in rank[k]) for k in (0, 1))
        kinds = set().union(*(rank[2] for rank in ranks))
        what = f"the loss is {' and '.join(sorted(kinds))}" if bad else "the gradient is not finite"
        saved = list_steps(self.out / CHECKPOINTS)
        kept = f"; the weights before it are whole in {saved[-1]}" if saved else ""
        return TrainingError(
            f"{what} at step {watched.step}, dataset {_items(bad or seen)}{kept}",
            where=self.out,
            fix="Look at the data of these items; if they are sound, train in a new folder with a lower lr or in fp32",
        )


def _items(indices: list[int], most: int = 16) -> str:
    shown = ", ".join(map(str, indices[:most]))
    more = f" and {len(indices) - most} more" if len(indices) > most else ""
    return f"item{'s' if len(indices) > 1 else ''} {shown}{more}"
