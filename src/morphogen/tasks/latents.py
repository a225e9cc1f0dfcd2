"""What a frozen network makes of crops, computed once and kept on disk: training then costs the trained network alone.

A room hands in a dataset that draws crops, a function that encodes a list of them, and the facts that decide what comes
out; :class:`Cached` is then the dataset to train on::

    folder = cache_items(dataset, encode, out / "cache", {"model": ..., "crop": 256}, draws=4, seed=0)
    dataset = Cached(folder)
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from morphogen.core.errors import InputError, OutputError
from morphogen.core.files import Manifest, atomic_path, writable_folder
from morphogen.core.jobs import RECORD, Job, kept_facts
from morphogen.core.progress import progress
from morphogen.core.seeds import generator

SHARD = 64  # items per file
_FIX = "Remove it, or choose another --out"


class Draws(Protocol):
    """A dataset of which any number of items can be drawn."""

    def __len__(self) -> int: ...

    def draw(self, index: int, generator: torch.Generator) -> dict[str, Tensor]: ...


@torch.no_grad()
def cache_items(
    dataset: Draws,
    encode: Callable[[list[dict[str, Tensor]]], dict[str, Tensor]],
    folder: Path | str,
    facts: Mapping[str, Any],
    *,
    draws: int,
    seed: int,
    batch: int = 8,
    former: str = "",
    what: str = "cached crops",
) -> Path:
    """Encode ``draws`` random items of every place of ``dataset`` and keep them in ``folder``.

    Parameters
    ----------
    encode:
        Of up to ``batch`` items, tensors (n, …) by name; they are kept as they are, so give float16 for half the space.
    facts:
        All that decides what ``encode`` gives and what is drawn, beside ``draws`` and ``seed``.
    former:
        Mark of the same job as an earlier version wrote it.

    A folder of the same job is used as it is; one that a kill left incomplete goes on with its next shard; one of
    another job is refused (:class:`OutputError`). The processes of a torchrun job share the work.
    """
    folder = writable_folder(folder)
    job = Job({**facts, "crops": draws, "seed": seed})
    manifest = Manifest.read(folder)
    if manifest is not None and manifest.get("mark") in (job.mark, former):
        return folder
    if manifest is not None and kept_facts(folder / RECORD) is None:
        raise OutputError(f"holds {what} of another run", where=folder, fix=_FIX)
    rank, world = (int(os.environ.get(key, default)) for key, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if rank == 0 and not job.begin(folder / RECORD, what, fix=_FIX):
        for stray in folder.glob("crops-*.safetensors"):  # of a job that nothing tells of
            stray.unlink()
        (folder / "mark.txt").unlink(missing_ok=True)
    while not job.same(kept_facts(folder / RECORD) or {}):
        time.sleep(1)  # for the first process
    total = draws * len(dataset)
    shards = range(0, total, SHARD)[rank::world]
    for first in progress(shards, total=len(shards), what="encoding shards"):
        path = folder / f"crops-{first:08d}.safetensors"
        if path.is_file():
            continue
        numbers = range(first, min(first + SHARD, total))
        parts = [
            encode([_drawn(dataset, number, seed) for number in numbers[at : at + batch]])
            for at in range(0, len(numbers), batch)
        ]
        _save({key: torch.cat([part[key] for part in parts]) for key in parts[0]}, path)
    while len(list(folder.glob("crops-*.safetensors"))) < -(-total // SHARD):
        time.sleep(1)  # for the shards of other processes
    if rank == 0:
        Manifest.write(folder, kind=what, mark=job.mark, crops=total, shard=SHARD)
    while Manifest.read(folder) is None:
        time.sleep(1)
    return folder


def _drawn(dataset: Draws, number: int, seed: int) -> dict[str, Tensor]:
    return dataset.draw(number % len(dataset), generator(seed, "cached crop", number))


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        save_file({key: value.contiguous() for key, value in tensors.items()}, temporary)


class Cached(Dataset):
    """Items kept by :func:`cache_items`, by the names that ``encode`` gave; numbers with a point as float32."""

    def __init__(self, folder: Path | str) -> None:
        manifest = Manifest.read(folder)
        if manifest is None:
            raise InputError("the cached crops are incomplete", where=folder, fix="Run the training again")
        self.folder, self.total, self.shard = Path(folder), int(manifest["crops"]), int(manifest["shard"])

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        from safetensors import safe_open

        first = index // self.shard * self.shard
        with safe_open(self.folder / f"crops-{first:08d}.safetensors", framework="pt") as file:
            item = {key: file.get_slice(key)[index - first] for key in file.keys()}  # noqa: SIM118 (no iterator)
        return {key: value.float() if value.is_floating_point() else value for key, value in item.items()}
