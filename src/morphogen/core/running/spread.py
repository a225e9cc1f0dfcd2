"""How the items of a command are spread: over processes, GPUs, a cluster, or the shards of a job array."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import TypeVar

from morphogen.core.devices import TOGETHER
from morphogen.core.errors import ConfigError
from morphogen.core.running.threads import cpu_cores

T = TypeVar("T")
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_SHARD = re.compile(r"(?P<number>\d+)/(?P<count>\d+)")
_DRIVERS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, and Windows' for Linux
_WORKER_BYTES = 3 << 30


@dataclass(frozen=True)
class Shard:
    """Part ``number`` (from 1) of ``count`` equal ones.

    >>> Shard.of("2/3").own(["a", "b", "c", "d", "e"])
    (['b', 'e'], ['a', 'c', 'd'])
    """

    number: int
    count: int

    @classmethod
    def of(cls, text: str) -> Shard:
        """``"2/8"``; :class:`ConfigError` for another form or a number out of range."""
        found = _SHARD.fullmatch(text.strip())
        if found is None:
            raise ConfigError(
                f"'{text[:40]}' is no shard", where="--shard", fix="Write I/N, for example --shard 1/8"
            )
        number, count = int(found["number"]), int(found["count"])
        if not 1 <= number <= count:
            raise ConfigError(
                f"there is no shard {number} of {count}",
                where="--shard",
                fix=f"Number them 1/{max(count, 1)} to {max(count, 1)}/{max(count, 1)}",
            )
        return cls(number, count)

    def own(self, items: Sequence[T]) -> tuple[list[T], list[T]]:
        """Every ``count``-th item, and the others."""
        mine = list(items[self.number - 1 :: self.count])
        return mine, [item for k, item in enumerate(items) if k % self.count != self.number - 1]


@dataclass(frozen=True)
class Spread:
    """Where the items of a command are worked on.

    Attributes
    ----------
    workers:
        Processes of this machine, each at one item; by GPUs, else cores and memory, when ``None``.
    gpus:
        Numbers of the GPUs that workers are bound to, in turn; all when empty.
    scheduler:
        Address of a dask cluster that sees the same files.
    shard:
        The part of the items that this process begins with.
    retries:
        How often an item is tried again after its process ended or a file could not be read for the moment.
    stage:
        Folder on a local disk, to which an input is copied while it is worked on.
    """

    workers: int | None = None
    gpus: tuple[int, ...] = ()
    scheduler: str | None = None
    shard: Shard | None = None
    retries: int = 1
    stage: Path | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"there must be at least one worker, not {self.workers}", where="--workers")
        if self.retries < 0:
            raise ConfigError(
                f"{self.retries} retries are not possible", where="--retries", fix="Use 0 or more"
            )
        if any(number < 0 for number in self.gpus) or len(set(self.gpus)) < len(self.gpus):
            raise ConfigError(
                "GPUs are named once each, by numbers from 0", where="--gpus", fix="For example --gpus 0 1 2"
            )
        if self.scheduler is not None and self.shard is not None:
            raise ConfigError(
                "a cluster needs no shards", where="--shard", fix="Leave out --shard or --scheduler"
            )

    @property
    def plain(self) -> bool:
        """Whether nothing was said: a loop in this process."""
        return self == Spread()

    @staticmethod
    def whole() -> Shard:
        """The one shard of a run without shards."""
        return Shard(1, 1)

    def processes(self, items: int, *, on_gpu: bool = False, item_bytes: int = _WORKER_BYTES) -> int:
        """How many workers: as many as were asked for, else one per GPU, else by cores and memory; never more than
        items."""
        wanted = self.workers or len(self.gpus) or (gpu_count() if on_gpu else 0)
        if not wanted:
            import psutil

            wanted = min(cpu_cores(), int(psutil.virtual_memory().available // item_bytes))
        return max(1, min(items, wanted))

    def environment(
        self, worker: int, visible: Mapping[str, str] = os.environ, *, workers: int | None = None
    ) -> dict[str, str]:
        """What a worker process finds in its environment: its GPU. Where ``--gpus`` names more than there are
        ``workers`` it has several, over which it shares out the windows of a slide."""
        numbers = self.gpus or tuple(range(gpu_count(visible)))
        if not numbers:
            return {}
        own: tuple[int, ...] = (numbers[worker % len(numbers)],)
        if self.gpus and workers is not None and workers < len(numbers):
            own = numbers[worker % workers :: workers]
        names = [name for name in visible.get(_VISIBLE, "").split(",") if name.strip()]
        if names and max(own) >= len(names):
            raise ConfigError(
                f"there is no GPU {max(own)} among the {len(names)} of {_VISIBLE}", where="--gpus"
            )
        found = {_VISIBLE: ",".join(names[number] if names else str(number) for number in own)}
        together = ",".join(f"cuda:{k}" for k in range(len(own)))
        return found if len(own) == 1 else {**found, TOGETHER: together}


def gpu_count(visible: Mapping[str, str] = os.environ) -> int:
    """CUDA devices of this machine that the process may use, without starting CUDA here."""
    if _VISIBLE in visible:
        return len([name for name in visible[_VISIBLE].split(",") if name.strip() and name.strip() != "-1"])
    if not any(glob(pattern) for pattern in _DRIVERS):
        return 0  # without loading torch, which takes seconds
    import torch

    return torch.cuda.device_count()
