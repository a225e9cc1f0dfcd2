"""The order of the data: a pure function of seed, epoch and position."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from morphogen.core.errors import ConfigError, InputError, MorphogenError
from morphogen.core.running.pipeline import ahead
from morphogen.core.running.threads import cpu_cores
from morphogen.core.seeds import generator, seed_for

Batch = tuple[Any, torch.Tensor, torch.Tensor]
"""(collated items, dataset indices (B,), positions in the order (B,))."""

_MOST = 8  # processes that load data, where nobody says how many


class DataOrder:
    """An endless order of ``count`` items: a fresh permutation for each epoch, one after another.

    Batches run on over the end of an epoch, so no item is dropped and every batch is full, also when the data set is
    smaller than the batch.
    """

    def __init__(self, count: int, seed: int) -> None:
        if count < 1:
            raise InputError("the training set is empty", fix="Check the data and its filters")
        self.count = count
        self.seed = seed
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.int64)

    def __getitem__(self, position: int) -> int:
        """The dataset index at a position."""
        epoch, place = divmod(position, self.count)
        if epoch != self._epoch:
            shuffle = generator(self.seed, "order", epoch)
            self._epoch, self._permutation = epoch, torch.randperm(self.count, generator=shuffle)
        return int(self._permutation[place])


def share(batch_size: int, part: int, parts: int) -> range:
    """Places in the batch that belong to one of ``parts`` contiguous parts; sizes differ by one at most."""
    return range(part * batch_size // parts, (part + 1) * batch_size // parts)


class RankBatches:
    """The micro-batches of one process, as lists of (index, position), from step ``first`` to ``last`` − 1."""

    def __init__(
        self,
        order: DataOrder,
        batch_size: int,
        *,
        rank: int,
        world: int,
        accumulation: int,
        first: int,
        last: int,
    ) -> None:
        if batch_size < world * accumulation:
            raise ConfigError(
                f"a batch of {batch_size} cannot be cut into {world} processes × {accumulation} parts",
                where="batch_size",
                fix="Raise batch_size or lower accumulation",
            )
        self.order = order
        self.batch_size = batch_size
        self.parts = [(rank * accumulation + part, world * accumulation) for part in range(accumulation)]
        self.steps = range(first, last)

    def __len__(self) -> int:
        return len(self.steps) * len(self.parts)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            for part, parts in self.parts:
                positions = (step * self.batch_size + i for i in share(self.batch_size, part, parts))
                yield [(self.order[position], position) for position in positions]


class _Batches(Dataset):
    """Makes a batch of its (index, position) pairs; errors travel as values, so that workers do not garble them."""

    def __init__(self, dataset: Any, seed: int, collate: Any) -> None:
        self.dataset, self.seed = dataset, seed
        self._random = getattr(dataset, "place", None) or getattr(dataset, "draw", None)
        self._joined = getattr(dataset, "cut", None) or collate or default_collate

    def __getitem__(self, keys: Sequence[tuple[int, int]]) -> Batch | MorphogenError:
        try:
            values = self._joined([self._item(index, position) for index, position in keys])
        except MorphogenError as error:
            return error
        indices, positions = zip(*keys)
        return values, torch.tensor(indices), torch.tensor(positions)

    def _item(self, index: int, position: int) -> Any:
        if self._random is not None:
            return self._random(index, generator(self.seed, "item", position))
        return index if hasattr(self.dataset, "cut") else self.dataset[index]


def loading_processes(wanted: int | None, dataset: Any, device: torch.device, ranks: int = 1) -> int:
    """Processes that load data: as many as are wanted. Else none on a CPU, whose cores are all at the network, nor
    where batches are cut on the device; and on a GPU the cores of this rank but one, 8 at most.

    ranks: training processes that share the cores of this machine.
    """
    if wanted is not None:
        return wanted
    if device.type == "cpu" or getattr(dataset, "resident", False):
        return 0
    return max(0, min(_MOST, cpu_cores() // ranks - 1))


def loader(
    dataset: Any,
    batches: RankBatches,
    *,
    workers: int | None = None,
    collate: Any = None,
    device: torch.device | str = "cpu",
    ranks: int = 1,
) -> Iterator[Batch]:
    """Load the batches of this process in order; the result does not depend on ``workers`` (``None``: by
    :func:`loading_processes`). For a GPU they are made ahead, in pinned memory."""
    device = torch.device(device)
    away = device.type != "cpu"
    if (away or workers) and hasattr(dataset, "prepare"):
        dataset.prepare(device)
    workers = loading_processes(workers, dataset, device, ranks)
    seed = batches.order.seed
    made = _Batches(dataset, seed, collate)
    source: Iterable[Any]
    if workers:
        source = DataLoader(
            made,
            sampler=batches,  # type: ignore[arg-type]
            batch_size=None,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=device.type == "cuda",
            generator=torch.Generator().manual_seed(seed_for(seed, "workers")),
        )
    elif away:
        source = ahead(lambda keys: _pinned(made[keys], device), batches, depth=2)
    else:
        source = map(made.__getitem__, batches)
    for batch in source:
        if isinstance(batch, MorphogenError):
            raise batch
        yield batch


def _as_it_is(batch: Any) -> Any:
    return batch


def _pinned(batch: Any, device: torch.device) -> Any:
    if device.type != "cuda" or isinstance(batch, MorphogenError):
        return batch
    from torch.utils.data._utils.pin_memory import pin_memory

    return pin_memory(batch)
