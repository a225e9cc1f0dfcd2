"""Crops of training sets: the eight turns, cuts on host and device, decoded pictures that are kept."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from morphogen.tasks.streams.held import HeldImages
from morphogen.tasks.streams.turns import TURNS, squares, turn_of, turned, turned_batch

SIZES = [(20, 31), (33, 17), (24, 24)]


def pictures() -> list[list[np.ndarray]]:
    random = np.random.default_rng(0)
    return [
        [
            random.integers(0, 256, (*size, 3), dtype=np.uint8),
            random.random((*size, 5), dtype=np.float32),
            random.random(size) < 0.5,
        ]
        for size in SIZES
    ]


@pytest.mark.parametrize("shape", [(9, 9, 3), (9, 9), (9, 9, 5)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, bool])
def test_turns_are_mirrors_and_quarter_turns(shape, dtype):
    image = np.random.default_rng(1).integers(0, 256, shape).astype(dtype)
    before = image.copy()
    for turn in range(TURNS):
        expected = np.rot90(image[:, ::-1] if turn & 4 else image, turn & 3)
        found = turned(image, turn)
        assert np.array_equal(found, expected) and found.flags.c_contiguous and found.base is not image
        out = np.empty_like(image)
        assert turned(image, turn, out) is out and np.array_equal(out, expected)
    assert np.array_equal(image, before)


def test_a_turn_is_known_by_its_mirrors():
    image = np.arange(9, dtype=np.uint8).reshape(3, 3)
    for rows in (False, True):
        for columns in (False, True):
            for swapped in (False, True):
                expected = image[:: -1 if rows else 1, :: -1 if columns else 1]
                expected = expected.T if swapped else expected
                assert np.array_equal(turned(image, turn_of(rows, columns, swapped)), expected)


def test_a_batch_turns_as_its_pictures_do_on_host_and_by_gather():
    images = torch.randint(0, 256, (TURNS, 7, 7, 3), dtype=torch.uint8)
    turns = torch.arange(TURNS).roll(3)
    found = turned_batch(images, turns)
    for image, turn, each in zip(images.numpy(), turns.tolist(), found.numpy()):
        assert np.array_equal(each, turned(image, turn))
    starts = torch.arange(TURNS) * 49
    corners = torch.zeros(TURNS, 2, dtype=torch.int64)
    gathered = squares(images.reshape(-1, 3), starts, torch.full_like(starts, 7), corners, turns, 7)
    assert torch.equal(gathered, found)


@pytest.mark.parametrize("gib", [1.0, 0.0])
def test_cuts_on_the_host_and_on_the_device_are_the_same(gib):
    made = pictures()
    held = HeldImages(lambda index: made[index], len(made), gib)
    random = np.random.default_rng(2)
    rows = []
    for k in range(24):
        index = k % 3
        top, left = (int(random.integers(0, size - 12 + 1)) for size in SIZES[index])
        rows.append((index, top, left, k % TURNS))
    places = np.array(rows)
    raw = held.cut(places, 12)
    assert len(held) == (3 if gib else 0)
    held.move(torch.device("cpu"))
    there = held.cut_there(torch.from_numpy(places), 12)
    for layer, (a, b) in enumerate(zip(raw, there)):
        assert a.dtype == b.dtype and torch.equal(turned_batch(a, torch.from_numpy(places[:, 3])), b)
        for k, (index, top, left, _) in enumerate(rows):
            assert np.array_equal(a[k].numpy(), made[index][layer][top : top + 12, left : left + 12])


def test_pictures_are_decoded_once_up_to_the_limit_and_not_sent_with_the_device(caplog):
    calls: list[int] = []
    size = sum(layer.nbytes for layer in pictures()[0]) + sum(layer.nbytes for layer in pictures()[1])

    def read(index: int) -> list[np.ndarray]:
        calls.append(index)
        return pictures()[index]

    held = HeldImages(read, 3, size / 2**30)
    with caplog.at_level("INFO", logger="morphogen"):
        held.prepare(torch.device("cpu"))
    assert len(held) == 2 and held.bytes == size and "2 of 3 images fit into memory_gib" in caplog.text
    calls.clear()
    for _ in range(3):
        held[0], held[1], held[2]
    assert calls == [2, 2, 2] and held.size(0) == SIZES[0] and held.size(2) is None

    kept = Kept()
    kept.held.move(torch.device("cpu"))
    assert kept.held.resident and not pickle.loads(pickle.dumps(kept)).held.resident


class Kept:
    """As a dataset holds its pictures."""

    def __init__(self) -> None:
        self.held = HeldImages(self.read, 3, 1.0)

    def read(self, index: int) -> list[np.ndarray]:
        return pictures()[index]
