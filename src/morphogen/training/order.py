"""The order of the data: a pure function of seed, epoch and position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from morphogen.core.errors import ConfigError, InputError, MorphogenError
from morphogen.core.seeds import generator, seed_for

Batch = tuple[Any, torch.Tensor, torch.Tensor]
"""(collated items, dataset indices (B,), positions in the order (B,))."""


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


class _Positioned(Dataset):
    """Items with their index and position; errors travel as values, so that workers do not garble them."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.draw = getattr(dataset, "draw", None)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        index, position = key
        try:
            if self.draw is not None:
                item = self.draw(index, generator(self.seed, "item", position))
            else:
                item = self.dataset[index]
        except MorphogenError as error:
            return error
        return item, index, position


class _Collate:
    def __init__(self, collate: Any) -> None:
        self.collate = collate

    def __call__(self, items: Sequence[Any]) -> Batch | MorphogenError:
        for item in items:
            if isinstance(item, MorphogenError):
                return item
        values, indices, positions = zip(*items)
        return self.collate(list(values)), torch.tensor(indices), torch.tensor(positions)


def loader(
    dataset: Any, batches: RankBatches, *, workers: int, collate: Any = None, pin: bool = False
) -> Iterator[Batch]:
    """Load the batches of this process in order; the result does not depend on ``workers``."""
    seed = batches.order.seed
    for batch in DataLoader(
        _Positioned(dataset, seed),
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_Collate(collate or default_collate),
        pin_memory=pin,
        generator=torch.Generator().manual_seed(seed_for(seed, "workers")),
    ):
        if isinstance(batch, MorphogenError):
            raise batch
        yield batch
