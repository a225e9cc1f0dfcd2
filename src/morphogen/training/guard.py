"""Stops a run whose loss or gradient is no longer finite, and names the items behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from morphogen.core.errors import TrainingError


@dataclass
class _Step:
    step: int
    parts: list[tuple[torch.Tensor, torch.Tensor]]
    finite: torch.Tensor
    handle: Any


class FiniteGuard:
    """Looks at each step's loss one step later, so that a GPU never waits; all processes stop together.

    Call :meth:`check` before anything is saved: then no checkpoint ever holds weights made from a NaN.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self._pending: _Step | None = None

    def watch(
        self, step: int, parts: list[tuple[torch.Tensor, torch.Tensor]], gradient_norm: torch.Tensor | None
    ) -> None:
        """``parts``: (dataset indices (B,), loss () or (B,)) of each micro-batch; checks the step before."""
        finite = torch.stack([torch.isfinite(loss.detach()).all() for _, loss in parts]).all()
        if gradient_norm is not None:
            finite = finite & torch.isfinite(gradient_norm)
        flag, handle = finite.float(), None
        if self.accelerator.num_processes > 1:
            handle = torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN, async_op=True)
        self.check()
        self._pending = _Step(step, [(i, loss.detach()) for i, loss in parts], flag, handle)

    def check(self) -> None:
        """Raise :class:`TrainingError` if the last step watched was not finite."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        if pending.handle is not None:
            pending.handle.wait()
        if pending.finite.item():
            return
        bad, seen = [], []
        kinds = set()
        for indices, loss in pending.parts:
            loss = loss.float().cpu()
            wrong = ~torch.isfinite(loss)
            kinds |= {"NaN" if v != v else "infinite" for v in loss[wrong].flatten().tolist()}
            bad += indices[wrong.expand(len(indices))].tolist()
            seen += indices.tolist()
        bad, seen, kinds = (_everywhere(self.accelerator, sorted(x)) for x in (bad, seen, kinds))
        what = f"the loss is {' and '.join(sorted(set(kinds)))}" if bad else "the gradient is not finite"
        raise TrainingError(
            f"{what} at step {pending.step}, dataset {_items(bad or seen)}",
            fix="Look at the data of these items; if they are sound, lower lr or use fp32. "
            "The last checkpoint is intact and a new call continues from it",
        )


def _everywhere(accelerator: Any, values: list) -> list:
    if accelerator.num_processes == 1:
        return values
    from accelerate.utils import gather_object

    return gather_object(values)


def _items(indices: list[int], most: int = 16) -> str:
    shown = ", ".join(map(str, sorted(indices)[:most]))
    more = f" and {len(indices) - most} more" if len(indices) > most else ""
    return f"item{'s' if len(indices) > 1 else ''} {shown}{more}"
