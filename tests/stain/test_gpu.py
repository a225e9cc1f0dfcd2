"""The same code on a GPU: the CPU's numbers in fp32, and bf16 and compilation close to them."""

import numpy as np
import pytest
import torch

from morphogen.stain.config import ApplyConfig, SamplerConfig
from morphogen.stain.predict import stain_image

from .conftest import he_like

pytestmark = pytest.mark.gpu


@pytest.fixture
def cuda():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")


def test_gpu_gives_the_cpus_image(tiny, cuda):
    image = he_like(np.random.default_rng(0), 150)
    config = ApplyConfig(sampler=SamplerConfig(steps=4), samples=2)
    expected = stain_image(tiny, image, config)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    found = stain_image(tiny.to(cuda), image, config)
    assert int(np.abs(found.sample.astype(int) - expected.sample).max()) <= 2
    half = stain_image(tiny, image, config, precision="bf16")
    assert float(np.abs(half.sample.astype(float) - expected.sample).mean()) < 6
    compiled = stain_image(tiny.compile(), image, config)
    assert int(np.abs(compiled.sample.astype(int) - expected.sample).max()) <= 3


def test_no_batch_waits_for_the_gpu(tiny, cuda):
    """From pixels to blended planes nothing is asked of the GPU; a band comes back in one copy."""
    from morphogen.stain.recipes.translator import StainTranslator
    from morphogen.tasks import plan_windows
    from morphogen.tasks.streams.blending import Blending

    translator = StainTranslator(tiny.to(cuda), ApplyConfig(sampler=SamplerConfig(steps=3)))
    plan = plan_windows(translator, ApplyConfig().windows, 300, 300)
    noise, blending = translator.noise(plan, "a"), Blending(plan, translator.planes)
    windows = np.full((2, plan.window, plan.window, 3), 200, np.uint8)
    regions = [plan.region(0, 0), plan.region(0, 1)]
    for strict in (False, True):
        torch.cuda.set_sync_debug_mode("error" if strict else "default")
        try:
            planes = translator.make(windows, noise.over(regions), noise.start(regions))
            blending.add(0, [0, 1], planes)
            wait, _ = blending.take(0)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert np.isfinite(wait()).all()
