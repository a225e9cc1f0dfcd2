"""The order of the data is a pure function of seed, epoch and position."""

from __future__ import annotations

import pytest
import torch

from morphogen.core.errors import ConfigError, InputError
from morphogen.training.order import DataOrder, RankBatches, loader, loading_processes, share


class Numbers(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 11

    def __getitem__(self, index: int) -> dict:
        return {"x": torch.tensor(float(index))}


class Crops(Numbers):
    def draw(self, index: int, generator: torch.Generator) -> dict:
        return {"x": index + torch.rand((), generator=generator)}


class Whole(Numbers):
    """Batches made as a whole, of places drawn for each item."""

    resident, ready = False, None

    def place(self, index: int, generator: torch.Generator) -> tuple:
        return index, float(torch.rand((), generator=generator))

    def cut(self, places: list) -> dict:
        return {"x": torch.tensor([index + part for index, part in places])}

    def prepare(self, device: torch.device) -> None:
        self.ready = device


class Broken(Numbers):
    def __getitem__(self, index: int) -> dict:
        if index == 4:
            raise InputError("cannot be read", where="row 4")
        return super().__getitem__(index)


def batches(world=1, rank=0, accumulation=1, first=0, last=6, seed=0, batch_size=7) -> RankBatches:
    return RankBatches(
        DataOrder(11, seed),
        batch_size,
        rank=rank,
        world=world,
        accumulation=accumulation,
        first=first,
        last=last,
    )


def test_every_epoch_is_a_permutation_of_its_own():
    order = DataOrder(11, seed=3)
    epochs = [[order[e * 11 + i] for i in range(11)] for e in range(4)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert order[5] == epochs[0][5]  # asked for again, out of turn
    assert epochs[0] != [DataOrder(11, seed=4)[i] for i in range(11)]


@pytest.mark.parametrize(("world", "accumulation"), [(2, 1), (1, 3), (3, 2), (7, 1)])
def test_shares_of_all_processes_make_up_the_batch(world, accumulation):
    whole = list(batches())
    shares = [list(batches(world, rank, accumulation)) for rank in range(world)]
    for step in range(6):
        parts = [shares[r][step * accumulation + a] for r in range(world) for a in range(accumulation)]
        assert sum(parts, []) == whole[step]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_later_start_sees_what_an_earlier_one_would():
    assert list(batches(first=4)) == list(batches())[4:]


def test_more_parts_than_items_is_refused():
    with pytest.raises(ConfigError, match="batch of 7 cannot be cut into 4 processes × 2 parts"):
        batches(world=4, accumulation=2)
    assert [len(share(7, part, 3)) for part in range(3)] == [2, 2, 3]


@pytest.mark.parametrize("dataset", [Numbers(), Crops(), Whole()])
def test_workers_do_not_change_the_batches(dataset):
    alone = list(loader(dataset, batches(), workers=0))
    helped = list(loader(dataset, batches(), workers=2))
    assert len(alone) == len(helped) == 6
    for (a, i, p), (b, j, q) in zip(alone, helped):
        assert torch.equal(a["x"], b["x"]) and torch.equal(i, j) and torch.equal(p, q)
        assert torch.equal(a["x"].long(), i)


def test_random_crops_are_those_of_the_position_whatever_came_before():
    early = {int(p): x for b, _, ps in loader(Crops(), batches(), workers=0) for p, x in zip(ps, b["x"])}
    late = {
        int(p): x for b, _, ps in loader(Crops(), batches(first=3), workers=0) for p, x in zip(ps, b["x"])
    }
    assert all(early[p] == x for p, x in late.items())
    assert len({float(x) % 1 for x in early.values()}) == len(early)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_data_arrives_as_it_was_raised(workers):
    with pytest.raises(InputError) as caught:
        list(loader(Broken(), batches(), workers=workers))
    assert str(caught.value) == "row 4: cannot be read."


def test_an_empty_data_set_is_refused():
    with pytest.raises(InputError, match="the training set is empty"):
        DataOrder(0, 0)


def test_a_task_may_make_its_own_batches():
    only = next(iter(loader(Numbers(), batches(), workers=0, collate=lambda items: {"n": len(items)})))
    assert only[0] == {"n": 7}


def test_batches_made_as_a_whole_are_those_of_their_items():
    each, whole = (list(loader(dataset, batches())) for dataset in (Crops(), Whole()))
    for (a, i, p), (b, j, q) in zip(each, whole, strict=True):
        assert torch.equal(a["x"], b["x"]) and torch.equal(i, j) and torch.equal(p, q)


def test_processes_load_data_only_where_it_pays(monkeypatch):
    monkeypatch.setattr("morphogen.training.order.cpu_cores", lambda: 16)
    cpu, gpu, dataset = torch.device("cpu"), torch.device("cuda"), Whole()
    assert loading_processes(None, dataset, cpu) == 0
    assert loading_processes(None, dataset, gpu) == 8
    assert loading_processes(None, dataset, gpu, ranks=4) == 3
    assert loading_processes(None, dataset, gpu, ranks=16) == 0
    assert loading_processes(3, dataset, cpu) == 3
    dataset.resident = True
    assert loading_processes(None, dataset, gpu) == 0
    assert loading_processes(2, dataset, gpu) == 2


def test_a_data_set_is_made_ready_only_for_others():
    dataset = Whole()
    next(iter(loader(dataset, batches(), workers=0)))
    assert dataset.ready is None
    ahead = list(loader(dataset, batches(), workers=0, device="meta"))  # stands for a GPU: made ahead
    assert dataset.ready == torch.device("meta")
    for (a, _, p), (b, _, q) in zip(ahead, loader(dataset, batches()), strict=True):
        assert torch.equal(a["x"], b["x"]) and torch.equal(p, q)
