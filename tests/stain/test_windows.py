"""Windows: every pixel is covered, nothing is lost at borders, seeds and places decide the noise."""

import numpy as np
import pytest
import torch

from morphogen.core.errors import ConfigError
from morphogen.stain.config import ApplyConfig, SamplerConfig, WindowConfig
from morphogen.stain.predict import stain_image
from morphogen.stain.windows import (
    RegionNoise,
    WindowPlan,
    array_reader,
    noise_fields,
    plan_windows,
    scale_between,
    stain_bands,
)

from .conftest import he_like


@pytest.mark.parametrize("size", [(64, 64), (64, 200), (131, 77), (30, 40), (65, 257)])
@pytest.mark.parametrize("overlap", [0, 16, 40])
def test_a_model_that_copies_leaves_any_image_as_it_is(copying, size, overlap):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    config = ApplyConfig(samples=2, windows=WindowConfig(overlap=overlap, batch=3))
    out = stain_image(copying, image, config)
    for found in (out.sample, out.mean, *out.samples):
        np.testing.assert_array_equal(found, image)
    np.testing.assert_allclose(out.uncertainty, image.astype(np.float32).mean(axis=2), rtol=1e-5)


@pytest.mark.parametrize("ratio", [2.0, 0.5, 1.37])
def test_a_source_of_another_scale_comes_back_at_its_own(copying, ratio):
    y, x = np.mgrid[:240, :300]
    image = np.stack([x / 300, y / 240, (x + y) / 540], axis=-1)
    image = (image * 255).astype(np.uint8)
    plan = plan_windows(copying, ApplyConfig(), 300, 240, ratio)
    bands = list(stain_bands(copying, plan, array_reader(image), ApplyConfig(), name="a"))
    out = np.concatenate([band.sample for band in bands])
    assert out.shape == image.shape
    inner = (slice(8, -8), slice(8, -8))
    assert int(np.abs(out[inner].astype(int) - image[inner]).max()) <= 4


def test_bands_are_the_same_from_wherever_they_begin(copying):
    image = np.random.default_rng(1).integers(0, 256, (300, 150, 3), dtype=np.uint8)
    plan = plan_windows(copying, ApplyConfig(), 150, 300)
    whole = list(stain_bands(copying, plan, array_reader(image), ApplyConfig(), name="a"))
    assert len(whole) == len(plan.rows) > 3
    for first in range(len(whole) + 1):
        later = list(stain_bands(copying, plan, array_reader(image), ApplyConfig(), name="a", first=first))
        assert [band.top for band in later] == [band.top for band in whole[first:]]
        for a, b in zip(later, whole[first:], strict=True):
            np.testing.assert_array_equal(a.sample, b.sample)


def test_windows_that_are_not_wanted_stay_white(copying):
    image = np.zeros((64, 192, 3), np.uint8)
    config = ApplyConfig(windows=WindowConfig(overlap=0))
    plan = plan_windows(copying, config, 192, 64)
    (band,) = stain_bands(
        copying, plan, array_reader(image), config, name="a", wanted=lambda x, y, side: x == 64
    )
    assert (band.sample[:, :64] == 255).all() and (band.sample[:, 128:] == 255).all()
    assert not band.sample[:, 64:128].any()


def test_neighbouring_windows_see_the_same_noise_where_they_overlap(tiny):
    config = ApplyConfig(samples=2, seed=9)
    plan = plan_windows(tiny, config, 160, 64)
    fields = noise_fields(tiny, plan, config, "image")
    assert plan.cells[1] == [0, 12, 24]
    left, right = (RegionNoise(fields, [(slice(0, 16), slice(x, x + 16))])(5) for x in (0, 12))
    assert torch.equal(left[..., 12:], right[..., :4])
    assert not torch.equal(left[0], left[1])
    other = noise_fields(tiny, plan, config.replace(seed=10), "image")
    assert not torch.equal(RegionNoise(other, [(slice(0, 16), slice(0, 16))])(5), left)


def test_batch_size_changes_nothing_but_rounding(tiny):
    image = np.random.default_rng(2).integers(0, 256, (130, 150, 3), dtype=np.uint8)
    outs = [
        stain_image(
            tiny, image, ApplyConfig(sampler=SamplerConfig(steps=3), windows=WindowConfig(batch=b)), name="x"
        )
        for b in (1, 7)
    ]
    assert int(np.abs(outs[0].sample.astype(int) - outs[1].sample).max()) <= 2
    other = stain_image(tiny, image, ApplyConfig(sampler=SamplerConfig(steps=3)), name="y")
    assert int(np.abs(outs[0].sample.astype(int) - other.sample).max()) > 10  # another name, another noise


def test_scale_is_taken_as_it_is_within_ten_percent():
    assert scale_between(0.499, 0.4661) == 1.0
    assert scale_between(0.25, 0.5) == 2.0
    assert scale_between(None, 0.5) == scale_between(0.5, None) == 1.0


def test_borders_for_the_seam_score():
    plan = WindowPlan(150, 64, 64, 16, cell=4)
    assert plan.columns == [0, 48, 88]
    assert plan.borders() == ([48, 64, 88, 112], [])


def test_windows_that_do_not_fit_are_refused(tiny):
    with pytest.raises(ConfigError, match="a window of 68 px does not fit.*multiple of 8"):
        plan_windows(tiny, ApplyConfig(windows=WindowConfig(window=68)), 200, 200)
    with pytest.raises(ConfigError, match="leaves nothing"):
        plan_windows(tiny, ApplyConfig(windows=WindowConfig(overlap=64)), 200, 200)


def test_samples_come_in_pairs_of_opposite_noise(tiny):
    """The noise of a pair cancels, everywhere and at every step; the first sample is the one of K = 1."""
    config = ApplyConfig(samples=5)
    plan = plan_windows(tiny, config, 96, 80)
    fields = noise_fields(tiny, plan, config, "a")
    region = slice(3, 17), slice(0, 9)
    for step in (-1, 0, 7):
        drawn = torch.stack([field(step, region) for field in fields])
        assert torch.equal(drawn[0], -drawn[1]) and torch.equal(drawn[2], -drawn[3])
        assert not torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[2], drawn[4])
    image = he_like(np.random.default_rng(0), 96)
    three, one, apart = (
        stain_image(tiny, image, config.replace(samples=k, antithetic=pairs), name="a")
        for k, pairs in ((3, True), (1, True), (3, False))
    )
    for found in (three, apart):  # batches of other sizes round otherwise
        assert np.abs(found.sample.astype(int) - one.sample).max() <= 1
    assert (three.mean != apart.mean).any()
