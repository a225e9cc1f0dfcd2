"""What is known of a checkpoint once it has been looked at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor


@dataclass
class CheckpointInfo:
    """What was found. ``kind`` is one of: stem, hisdiff, ldm, first_stage, stedm, histdist, diffusers,
    component, morphogen, unknown."""

    path: Path
    kind: str
    title: str
    sizes: dict[str, Any] = field(default_factory=dict)
    parameters: int = 0  # elements of the network's distinct tensors
    keys: int = 0  # tensors in the file, under all their names
    contents: dict[str, int] = field(default_factory=dict)  # section of the file → tensors in it
    ignored: list[str] = field(default_factory=list)  # what is in it and is not used
    missing: list[str] = field(default_factory=list)  # what is needed beside it
    foreign: tuple[str, ...] = ()  # classes named in the file, left inert
    heads_known: bool = True  # whether the number of attention heads is the published one
    encoder: str = ""  # image encoder of the published weights, where these have their widths
    advice: str = ""

    @property
    def importable(self) -> bool:
        """Whether ``morphogen checkpoint import`` turns it into a model folder."""
        return self.kind in ("stem", "hisdiff", "ldm", "first_stage", "histdist")


def count(tensors: Iterable[Tensor]) -> int:
    """Elements of distinct tensors: one that is in the file under several names counts once."""
    seen = {(tensor.data_ptr() or id(tensor), tensor.shape): tensor.numel() for tensor in tensors}
    return sum(seen.values())
