"""Noise: a pure function of seed, step and place, and standard normal."""

import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from morphogen.core.errors import ConfigError
from morphogen.core.philox import _begun, philox, standard_normals
from morphogen.diffusion import CanvasNoise, ItemNoise
from morphogen.diffusion import noise as noise_file
from morphogen.diffusion.noise import Blocks, on_device

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


# -- drawn on a device ------------------------------------------------------------------------------------------


def counters(n, step=0):
    rows = torch.arange(n)
    return torch.stack(
        [torch.zeros_like(rows), torch.full_like(rows, step), rows, rows * 7919 * 2**40], dim=1
    )


def test_philox_gives_the_bits_of_numpy_for_every_counter_and_key():
    for key in (0, 1, 2**31, 2**63 - 1):
        for counter in ([0, 0, 0, 0], [5, 2**40, 3, 2**63 - 1]):
            drawn = np.random.Philox(key=key, counter=counter).random_raw(40)
            number = torch.tensor([counter]).repeat(10, 1)
            number[:, 0] += torch.arange(1, 11)  # it counts on before it draws
            assert (philox(number, (key, 0)).flatten().numpy().view(np.uint64) == drawn).all()


@pytest.mark.parametrize("count", [1, 7, 300, 12288])
def test_normals_of_a_device_are_those_of_numpy(count):
    """Some 400,000 numbers: rejections, several in a row, and the tail are among them."""
    rows = min(2000, max(20, 120_000 // count))
    ours = standard_normals((987654321987654321, 0), counters(rows), count).numpy()
    for row, counter in zip(ours, counters(rows).numpy(), strict=True):
        generator = np.random.Generator(np.random.Philox(key=987654321987654321, counter=counter))
        np.testing.assert_allclose(row, generator.standard_normal(count, dtype=np.float32), atol=1e-6, rtol=0)
    assert count < 300 or np.abs(ours).max() > 3.6541528853610088  # the tail was reached


def test_a_stream_of_rejections_alone_is_followed_word_by_word():
    """Where a draw begins depends on all before it: every second word of a run, or each third, counts."""
    assert _begun(torch.full((1, 9), 2)).int().tolist() == [[1, 0, 1, 0, 1, 0, 1, 0, 1]]
    assert _begun(torch.tensor([[3, 1, 1, 1, 2, 9, 1, 1]])).int().tolist() == [[1, 0, 0, 1, 1, 0, 1, 1]]


def test_items_and_canvases_on_a_device_have_the_numbers_of_the_cpu(monkeypatch):
    here = torch.device("cpu")
    items, canvas = ItemNoise(3, KEYS, (7, 5)), CanvasNoise(3, (4, 50, 60), block=16)
    region = slice(5, 41), slice(3, 60)
    expected = items(2), canvas(2, region)
    monkeypatch.setattr(noise_file, "_drawn", lambda *a: on_device(*a))
    drawn = ItemNoise(3, KEYS, (7, 5))(2), CanvasNoise(3, (4, 50, 60), block=16, kept=Blocks())(2, region)
    assert all(part.device == here for part in drawn)
    for ours, theirs in zip(drawn, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_blocks_that_windows_share_are_drawn_once(monkeypatch):
    drawn = []
    original = noise_file._drawn
    monkeypatch.setattr(noise_file, "_drawn", lambda *a: (drawn.extend(a[2]), original(*a))[1])
    kept = Blocks()
    noise = CanvasNoise(1, (4, 96, 96), block=16, kept=kept)
    rows = [[(slice(y, y + 32), slice(x, x + 32)) for x in range(0, 65, 24)] for y in range(0, 65, 24)]
    windows = [noise.over(row)(-1) for row in rows]
    assert len(drawn) == len(set(drawn)) == 25  # of (72 + 8)² cells
    alone = CanvasNoise(1, (4, 96, 96), block=16)
    for row, made in zip(rows, windows, strict=True):
        for region, window in zip(row, made, strict=True):
            assert torch.equal(alone(-1, region), window)


def test_no_more_blocks_are_kept_than_there_is_room_for():
    kept = Blocks(most=10 * 16 * 16 * 4)
    noise = CanvasNoise(1, (1, 160, 160), block=16, kept=kept)
    assert torch.equal(noise(0), CanvasNoise(1, (1, 160, 160), block=16)(0))
    assert kept._bytes == kept.most and len(kept._blocks) == 10
