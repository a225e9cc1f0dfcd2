"""Figures of a run: means since the last line, ``metrics.jsonl``, trackers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from morphogen.core.files import plain, write_text

METRICS = "metrics.jsonl"


class Means:
    """Running means of the figures of a loss, kept on the device so that no step waits for them."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._items = 0

    @torch.no_grad()
    def add(self, figures: dict[str, torch.Tensor], items: int) -> None:
        """Add per-item (B,) or scalar-mean figures of ``items`` items."""
        for name, value in figures.items():
            total = value.detach().float().mean() * items
            self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._items += items

    def state(self, accelerator: Any) -> dict[str, float]:
        """Sums over all processes, with the number of items under ``""``."""
        names = sorted(self._sums)
        device = accelerator.device
        zero = torch.zeros((), device=device)
        sums = (
            torch.stack([self._sums[name].to(device) for name in names] + [zero + self._items]).double()
            if device.type != "mps"
            else torch.stack([self._sums[n] for n in names] + [zero + self._items])
        )
        sums = accelerator.reduce(sums, "sum").tolist()
        return dict(zip([*names, ""], sums))

    def load(self, state: dict[str, float], device: torch.device) -> None:
        """Continue from :meth:`state`; to be called on one process only."""
        state = dict(state)
        self._items = int(state.pop("", 0))
        self._sums = {name: torch.tensor(value, device=device) for name, value in state.items()}

    def take(self, accelerator: Any) -> dict[str, float]:
        """The means over all processes; starts anew."""
        sums = self.state(accelerator)
        items = sums.pop("")
        self.__init__()  # type: ignore[misc]
        return {name: total / items for name, total in sums.items()} if items else {}


class MetricsLog:
    """One JSON object per line, appended and flushed; on a resume, lines after the checkpoint are dropped."""

    def __init__(self, out: Path, accelerator: Any, step: int) -> None:
        self.path = out / METRICS
        self.accelerator = accelerator
        if accelerator.is_main_process:
            lines = [json.dumps(line) for line in read_metrics(out) if line["step"] <= step]
            write_text(self.path, "".join(line + "\n" for line in lines))

    def write(self, step: int, figures: dict[str, Any]) -> None:
        """Write one line and pass its numbers to the trackers."""
        if self.accelerator.is_main_process:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(plain({"step": step, **figures}), allow_nan=False) + "\n")
        self.accelerator.log({k: v for k, v in figures.items() if isinstance(v, (int, float))}, step=step)


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """Lines of ``metrics.jsonl``; a last line that a kill cut short is left out."""
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
