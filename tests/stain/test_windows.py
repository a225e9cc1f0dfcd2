"""The stain model over windows: batches and samples change nothing but rounding."""

import numpy as np

from morphogen.stain.config import ApplyConfig, SamplerConfig
from morphogen.stain.predict import stain_image
from morphogen.tasks import WindowConfig

from .conftest import he_like


def test_a_model_that_copies_leaves_any_image_as_it_is(copying):
    image = np.random.default_rng(0).integers(0, 256, (131, 77, 3), dtype=np.uint8)
    config = ApplyConfig(samples=2, windows=WindowConfig(overlap=16, batch=3))
    out = stain_image(copying, image, config)
    for found in (out.sample, out.mean, *out.samples):
        np.testing.assert_array_equal(found, image)
    np.testing.assert_allclose(out.uncertainty, image.astype(np.float32).mean(axis=2), rtol=1e-5)


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


def test_samples_in_pairs_begin_with_the_sample_of_one(tiny):
    config = ApplyConfig(samples=5)
    image = he_like(np.random.default_rng(0), 96)
    three, one, apart = (
        stain_image(tiny, image, config.replace(samples=k, antithetic=pairs), name="a")
        for k, pairs in ((3, True), (1, True), (3, False))
    )
    for found in (three, apart):  # batches of other sizes round otherwise
        assert np.abs(found.sample.astype(int) - one.sample).max() <= 1
    assert (three.mean != apart.mean).any()
