"""Figures of a run: means since the last line, ``metrics.jsonl``, trackers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from morphogen.core.files import plain, write_text
from morphogen.core.writing.places import open_own

METRICS = "metrics.jsonl"


class Means:
    """Running means of the figures of a loss.

    Sums stay on the device, so that no step waits for them. NaN in a figure other than the loss means "does not apply
    to this item"; such items, and steps that do not give the figure, are left out of its mean.
    """

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}  # name → (2,): sum over items, number of items

    @torch.no_grad()
    def add(self, figures: dict[str, torch.Tensor], items: int) -> None:
        """Add per-item (B,) or scalar-mean figures of ``items`` items."""
        for name, value in figures.items():
            value = value.detach().float().reshape(-1)
            weight = items / len(value)
            present = value == value
            pair = torch.stack([torch.where(present, value, 0.0).sum(), present.sum()]).mul_(weight)
            if name in self._sums:
                self._sums[name] += pair
            else:
                self._sums[name] = pair

    def state(self, accelerator: Any) -> dict[str, list[float]]:
        """``{name: [sum, items]}`` over all processes, the same on each."""
        names = list(self._sums)
        own = dict(zip(names, torch.stack([self._sums[n] for n in names]).tolist())) if names else {}
        total: dict[str, list[float]] = {}
        for sums in everywhere(accelerator, own):
            for name, (value, items) in sums.items():
                before = total.get(name, [0.0, 0.0])
                total[name] = [before[0] + value, before[1] + items]
        return total

    def load(self, state: dict[str, list[float]], device: torch.device) -> None:
        """Continue from :meth:`state`; on one process only, since it holds the sums of all."""
        self._sums = {name: torch.tensor(pair, device=device) for name, pair in state.items()}

    def take(self, accelerator: Any) -> dict[str, float]:
        """The means over all processes; starts anew."""
        sums = self.state(accelerator)
        self._sums = {}
        return {name: total / items for name, (total, items) in sums.items() if items}


def everywhere(accelerator: Any, value: Any) -> list[Any]:
    """``value`` of every process, in the order of their ranks."""
    if accelerator.num_processes == 1:
        return [value]
    from accelerate.utils import gather_object

    return gather_object([value])


class MetricsLog:
    """One JSON object per line, flushed; on a resume, lines after the checkpoint are dropped."""

    def __init__(self, out: Path, accelerator: Any, step: int) -> None:
        self.path = out / METRICS
        self.accelerator = accelerator
        if accelerator.is_main_process:
            lines = [json.dumps(line) for line in read_metrics(out) if line["step"] <= step]
            write_text(self.path, "".join(line + "\n" for line in lines))

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Write one line and pass its numbers to the trackers."""
        if self.accelerator.is_main_process:
            with open_own(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(plain({"step": step, **figures}), allow_nan=False) + "\n")
        if self.accelerator.trackers:
            self.accelerator.log(figures, step=step)

    def close(self) -> None:
        """Let the trackers finish their files."""
        if self.accelerator.is_main_process:
            for tracker in self.accelerator.trackers:
                tracker.finish()


def read_metrics(out: Path | str) -> list[dict[str, Any]]:
    """Lines of a run's ``metrics.jsonl``; a last line that a kill cut short is left out."""
    path = Path(out) / METRICS
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines
