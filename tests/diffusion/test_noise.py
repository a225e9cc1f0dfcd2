"""Noise: a pure function of seed, step and place, and standard normal."""

import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from morphogen.core.errors import ConfigError
from morphogen.diffusion import CanvasNoise, ItemNoise

KEYS = [("slide", f"spot-{i}", k) for i in range(20) for k in range(3)]


def test_items_do_not_depend_on_batch_or_order():
    whole = ItemNoise(3, KEYS, (7,))(5)
    for size in (1, 4, 60):
        parts = [ItemNoise(3, KEYS[i : i + size], (7,))(5) for i in range(0, 60, size)]
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(ItemNoise(3, KEYS[::-1], (7,))(5), whole.flip(0))


def test_noise_has_no_memory():
    noise = ItemNoise(3, KEYS, (7,))
    first = noise(2)
    noise(0), noise(9)
    assert torch.equal(noise(2), first)


def test_seed_step_and_key_all_matter():
    base = ItemNoise(3, KEYS, (7,))(0)
    assert len({tuple(row) for row in base.tolist()}) == len(KEYS)
    for other in (ItemNoise(4, KEYS, (7,))(0), ItemNoise(3, KEYS, (7,))(1), ItemNoise(3, KEYS, (7,))(-1)):
        assert not torch.isclose(other, base).any(dim=1).all()
        assert float((other * base).mean().abs()) < 0.2


def test_seeds_beyond_32_bits_differ():
    assert not torch.equal(ItemNoise(1, KEYS, (7,))(0), ItemNoise(1 + 2**32, KEYS, (7,))(0))


@pytest.mark.parametrize("noise", [ItemNoise(0, range(500), (400,)), CanvasNoise(0, (3, 300, 220))])
def test_it_is_standard_normal_and_white(noise):
    x = noise(0).double().flatten(0, -2)
    assert abs(float(x.mean())) < 0.01 and abs(float(x.var()) - 1) < 0.02
    assert abs(float((x**4).mean()) - 3) < 0.1
    for shifted in (x[1:] * x[:-1], x[:, 1:] * x[:, :-1]):
        assert abs(float(shifted.mean())) < 0.01


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 130),
    st.integers(0, 130),
    st.integers(1, 130),
    st.integers(1, 130),
    st.sampled_from([16, 64]),
)
def test_any_region_of_a_canvas_is_part_of_the_whole(top, left, height, width, block):
    noise = CanvasNoise(1, (2, 131, 97), block)
    rows, columns = slice(top, top + height), slice(left, left + width)
    assert torch.equal(noise(4, (rows, columns)), noise(4)[:, rows, columns])


def test_no_two_places_steps_or_channels_repeat():
    fields = torch.stack([CanvasNoise(1, (2, 96, 80), block=16)(step) for step in (-1, 0, 1)])
    blocks = fields.unfold(2, 16, 16).unfold(3, 16, 16).reshape(-1, 256)
    assert len(blocks) == 3 * 2 * 6 * 5
    correlation = blocks @ blocks.T / 256 - torch.eye(len(blocks))
    assert float(correlation.abs().max()) < 0.5


def test_a_larger_canvas_continues_a_smaller_one():
    small, large = CanvasNoise(1, (2, 50, 70))(0), CanvasNoise(1, (2, 200, 130))(0)
    assert torch.equal(large[:, :50, :70], small)


def test_windows_of_a_canvas_share_their_noise():
    noise = CanvasNoise(1, (2, 90, 90))
    windows = noise.at([(0, 0), (10, 20), (60, 80)], (32, 32))(3)
    assert windows.shape == (3, 2, 32, 32)
    assert torch.equal(windows[0, :, 10:, 20:], windows[1, :, :22, :12])
    assert torch.equal(windows[1], noise(3)[:, 10:42, 20:52])
    assert torch.equal(windows[2][:, :30, :10], noise(3)[:, 60:, 80:])  # it reaches beyond the canvas


def _draw(noise):
    return noise(2)


@pytest.mark.parametrize("pool", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_the_number_of_workers_does_not_matter(pool):
    parts = [ItemNoise(3, KEYS[i : i + 6], (7,)) for i in range(0, 60, 6)]
    with pool(3) as workers:
        noise = torch.cat(list(workers.map(_draw, parts)))
    assert torch.equal(noise, ItemNoise(3, KEYS, (7,))(2))


def test_one_source_in_many_threads():
    noise = CanvasNoise(1, (2, 90, 90))
    with ThreadPoolExecutor(4) as workers:
        fields = list(workers.map(noise, [i % 3 for i in range(12)]))
    for i, field in enumerate(fields):
        assert torch.equal(field, noise(i % 3))


def test_the_bits_are_fixed():
    """Written down once: results must not change with a new version without anyone noticing."""
    assert ItemNoise(0, ["a"], (3,))(0).flatten().tolist() == pytest.approx(FIXED_ITEM, abs=0)
    assert CanvasNoise(0, (1, 2, 2))(-1).flatten().tolist() == pytest.approx(FIXED_CANVAS, abs=0)
    assert torch.equal(
        pickle.loads(pickle.dumps(CanvasNoise(0, (1, 2, 2))))(-1), CanvasNoise(0, (1, 2, 2))(-1)
    )


FIXED_ITEM = [0.1935550421476364, 1.2768062353134155, -0.3576348125934601]
FIXED_CANVAS = [0.6417737007141113, 1.437003254890442, -0.8140255808830261, -0.6514438986778259]


def test_a_canvas_has_two_axes():
    with pytest.raises(ConfigError, match="two axes"):
        CanvasNoise(0, (5,))
    with pytest.raises(ConfigError, match="start at 0"):
        CanvasNoise(0, (1, 9, 9)).at([(-1, 0)], (3, 3))
