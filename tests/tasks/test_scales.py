"""Noise at several scales: its variance, its reach, and that it belongs to a place."""

import pytest
import torch

from morphogen.core.errors import ConfigError
from morphogen.diffusion import CanvasNoise, ItemNoise
from morphogen.tasks.streams.scales import NoiseScales, ScaledCanvas, weights


def canvas(seed, shape):
    return CanvasNoise(seed, shape, block=16)


def test_the_variance_is_one_at_every_cell_and_large_scales_reach_far():
    scales = NoiseScales((0.2, 0.0, 0.5), together=4)
    noise = scales.items(0, list(range(3000)), (4, 8, 8), "cpu")(-1)
    assert noise.var(dim=0).numpy() == pytest.approx(1, abs=0.16)
    near = (noise[:, :, 2, 2] * noise[:, :, 2, 3]).mean()
    far = (noise[:, :, 0, 0] * noise[:, :, 7, 7]).mean()
    assert near > 0.4 and abs(far) < 0.08
    # The channels of a cell share what is coarse and nothing else.
    assert (noise[:, 0] * noise[:, 1]).mean() == pytest.approx(0.7, abs=0.03)
    for scale in (1, 2, 8):
        assert weights((3, 40), scale).square().sum(dim=1) == pytest.approx(1)


def test_windows_see_the_same_noise_where_they_overlap():
    noise = ScaledCanvas(NoiseScales((0.3, 0.1, 0.2, 0.2)), 5, (3, 40, 56), canvas)
    whole = noise.over([(slice(None), slice(None))])(-1)[0]
    regions = [(slice(0, 24), slice(8, 32)), (slice(13, 37), slice(30, 54))]
    parts = noise.over(regions)(-1)
    for part, (rows, columns) in zip(parts, regions, strict=True):
        assert torch.allclose(part, whole[:, rows, columns], atol=1e-6)
    assert not torch.allclose(noise.over(regions)(0), parts)


def test_without_scales_it_is_the_white_noise():
    assert torch.equal(
        NoiseScales(()).items(3, ["a"], (2, 4, 4), "cpu")(2), ItemNoise(3, ["a"], (2, 4, 4))(2)
    )


def test_shares_above_all_of_the_variance_are_refused():
    with pytest.raises(ConfigError, match="not above 1 together"):
        NoiseScales((0.8, 0.4))
