"""Draws belong to items: they depend on seed and position, on nothing else, and have the right distribution."""

from __future__ import annotations

import math

import pytest
import torch

from morphogen.core.errors import ConfigError
from morphogen.core.seeds import seed_for
from morphogen.training import Draws

POSITIONS = torch.arange(1000, 1064)


def everything(draws: Draws) -> list[torch.Tensor]:
    return [
        draws.normal(3, 37),
        draws.uniform(),
        draws.integers(1000),
        draws.bernoulli(0.3, 5),
        draws.normal(1),
        draws.integers(1 << 31, 2),
        draws.uniform(2, 2),
    ]


@pytest.mark.parametrize("parts", [2, 7, 64])
def test_the_same_whatever_the_split_of_the_batch(parts):
    whole = everything(Draws(0, POSITIONS))
    split = [everything(Draws(0, part)) for part in POSITIONS.tensor_split(parts)]
    for i, value in enumerate(whole):
        assert torch.equal(value, torch.cat([part[i] for part in split]))


def test_order_of_items_does_not_matter():
    shuffled = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    for a, b in zip(everything(Draws(0, POSITIONS)), everything(Draws(0, POSITIONS[shuffled]))):
        assert torch.equal(a[shuffled], b)


def test_the_hash_is_the_documented_one():
    """Written again with Python's integers; runs of years ago must be repeatable."""
    golden, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1

    def mix(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        return z ^ (z >> 31)

    def word(seed: int, position: int, counter: int) -> int:
        key = mix(mix(position * golden & mask) ^ (seed_for(seed, "draws") * 2 + 1))
        return mix(mix(counter * golden & mask) ^ key)

    draws = Draws(7, torch.tensor([0, 5, 10**12]))
    integers, normals = draws.integers(1_000_000, 3), draws.normal(2)
    for item, position in enumerate((0, 5, 10**12)):
        assert integers[item].tolist() == [(word(7, position, i) >> 32) * 1_000_000 >> 32 for i in range(3)]
        drawn = word(7, position, 3)
        radius = math.sqrt(-2 * math.log(((drawn >> 32) + 0.5) / 2**32))
        angle = 2 * math.pi * ((drawn & 0xFFFFFFFF) + 0.5) / 2**32
        pair = [radius * math.cos(angle), radius * math.sin(angle)]
        assert normals[item].tolist() == pytest.approx(pair, abs=1e-5)


def test_seed_position_and_call_each_change_the_numbers():
    base = Draws(0, POSITIONS)
    first, second = base.normal(8), base.normal(8)
    assert not torch.isclose(first, second).any()
    assert not torch.isclose(first, Draws(1, POSITIONS).normal(8)).any()
    assert not torch.isclose(first, Draws(0, POSITIONS + 64).normal(8)).any()


@pytest.mark.parametrize(("items", "count"), [(4096, 64), (2, 131072)])
def test_normal_is_standard_and_uncorrelated(items, count):
    x = Draws(3, torch.arange(items)).normal(count).double()
    n = x.numel()
    assert abs(x.mean()) < 4 / math.sqrt(n)
    assert abs(x.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((x**4).mean() - 3) < 4 * math.sqrt(96 / n)
    # Between items, along an item, and between the two halves that Box and Muller's pairs fill.
    for a, b in ((x[1:], x[:-1]), (x[:, 1:], x[:, :-1]), (x[:, : count // 2], x[:, count // 2 :])):
        assert abs((a * b).mean()) < 4 / math.sqrt(a.numel())
        assert abs((a**2 * b**2).mean() - 1) < 4 * math.sqrt(8 / a.numel())


def test_normal_has_the_right_quantiles():
    x = Draws(5, torch.arange(2000)).normal(100).flatten().sort().values.double()
    expected = torch.special.ndtri((torch.arange(len(x)) + 0.5) / len(x)).double()
    distance = (torch.special.ndtr(x) - torch.special.ndtr(expected)).abs().max()
    assert distance < 1.95 / math.sqrt(len(x))  # Kolmogorov–Smirnov, 0.1 %


def test_uniform_and_integers_fill_their_range_evenly():
    draws = Draws(5, torch.arange(2000))
    x = draws.uniform(100)
    assert x.min() >= 0 and x.max() < 1
    for counts in (torch.histc(x, 50, 0, 1), torch.bincount(draws.integers(50, 100).flatten(), minlength=50)):
        chi2 = ((counts - 4000) ** 2 / 4000).sum()
        assert 20 < chi2 < 90  # 49 degrees of freedom, 0.1 % on each side
    assert abs(draws.bernoulli(0.3, 100).float().mean() - 0.3) < 4 * math.sqrt(0.21 / 200_000)


def test_bernoulli_takes_a_probability_per_item():
    p = torch.tensor([0.0, 1.0, 0.5])
    drawn = Draws(0, torch.arange(3)).bernoulli(p[:, None], 4000).float().mean(1)
    assert drawn[0] == 0 and drawn[1] == 1 and abs(drawn[2] - 0.5) < 0.04


def test_shapes_and_types():
    draws = Draws(0, torch.arange(3))
    assert draws.normal().shape == (3,) and draws.normal(5, 2).shape == (3, 5, 2)
    assert draws.normal(0).shape == (3, 0)
    assert draws.normal_like(torch.zeros(3, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert draws.integers(9).dtype == torch.int64 and draws.bernoulli(0.5).dtype == torch.bool
    assert len(draws) == 3


def test_misuse_is_said():
    draws = Draws(0, torch.arange(3))
    with pytest.raises(ConfigError, match="3 items were asked for 4"):
        draws.normal_like(torch.zeros(4, 2))
    with pytest.raises(ConfigError, match="integers below 0"):
        draws.integers(0)
