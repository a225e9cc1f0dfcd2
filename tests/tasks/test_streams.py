"""What flows through the bands: one copy back for a band, no look at the device in between, pixels read once."""

import contextlib

import numpy as np
import pytest
import torch

from morphogen.demo.workspace import stain_model
from morphogen.diffusion import ItemNoise
from morphogen.stain import StainTransfer
from morphogen.stain.config import ApplyConfig, SamplerConfig
from morphogen.stain.recipes.translator import StainTranslator
from morphogen.tasks import WindowConfig, array_reader, joined, make_bands, plan_windows
from morphogen.tasks.streams import blending
from morphogen.tasks.streams.batches import batch_for
from morphogen.tasks.streams.pixels import BLOCK, slide_reader

from .conftest import Noisy


@pytest.fixture(scope="module")
def model():
    return StainTransfer.from_pretrained(stain_model(), device="cpu")


@pytest.mark.parametrize("sampler", ["fast", "reference", "mean"])
def test_no_step_waits_for_the_device(model, sampler, monkeypatch, looks):
    """On the meta device there are no numbers to look at: any look would fail, and is counted before it does."""
    chosen = getattr(SamplerConfig, sampler)()
    samples = 1 if sampler == "mean" else 2  # of one answer there are no several
    config = ApplyConfig(sampler=chosen.replace(steps=min(chosen.steps, 4)), samples=samples)
    meta = StainTransfer.from_pretrained(stain_model(), device="cpu")
    meta.encoder.device = torch.device("meta")
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # meta has none
    for part in (meta.network, meta.first_stage):
        part.to("meta")
    images = np.zeros((2, 64, 64, 3), np.uint8)
    latent = (meta.network.channels, 64 // meta.factor, 64 // meta.factor)
    noise = ItemNoise(0, range(2 * samples), latent)
    with looks() as looked:
        planes = StainTranslator(meta, config).make(
            images, lambda step: noise(step).to("meta"), torch.zeros((2, *latent), device="meta")
        )
    assert planes.device.type == "meta" and planes.shape == (2, 7, 64, 64)
    assert looked.found == []


def test_a_band_comes_back_from_the_device_in_one_copy(copier, monkeypatch):
    """Sums and weights stay where they were made; how many copies there are does not depend on the windows."""
    copies = []

    def counted(tensor):
        copies.append(tuple(tensor.shape))
        return tensor.clone().numpy

    monkeypatch.setattr(blending, "fetched", counted)
    image = np.random.default_rng(0).integers(0, 256, (300, 500, 3), dtype=np.uint8)
    plan = plan_windows(copier, WindowConfig(), 500, 300)
    out = joined(list(make_bands(copier, plan, array_reader(image), name="a", batch=3)))
    np.testing.assert_array_equal(out.picture(), image)
    assert len(plan.rows) > 3 and len(copies) == len(plan.rows)
    assert sum(height for _, height, _ in copies) == 300


def test_a_picture_is_rounded_once_and_fades_to_white():
    planes = np.array([[[10.4, 10.6, -3.0, 300.0, 100.0]]] * 3, np.float32)
    band = blending_band(planes, np.array([[True, True, True, True, False]]))
    assert band.picture()[0, :, 0].tolist() == [10, 11, 0, 255, 255]
    faded = blending_band(planes, np.ones((1, 5), bool), np.array([[1.0, 0.5, 0.0, 0.25, 0.001]], np.float32))
    assert faded.picture()[0, :, 1].tolist() == [10, 133, 255, 255, 255]


def blending_band(planes, covered, weights=None):
    from morphogen.tasks import Band

    return Band(0, planes, covered, weights)


class CountedSlide:
    """An image that counts what is read of it."""

    def __init__(self, image):
        self.image, self.height, self.width = image, *image.shape[:2]
        self.reads = []

    def read_region(self, x, y, width, height):
        self.reads.append((x, y))
        out = np.full((height, width, 3), 255, np.uint8)
        part = self.image[y : y + height, x : x + width]
        out[: part.shape[0], : part.shape[1]] = part
        return out


def test_a_block_of_a_slide_is_read_once_however_many_windows_show_it(copier):
    image = np.random.default_rng(0).integers(0, 256, (BLOCK + 100, 2 * BLOCK + 30, 3), dtype=np.uint8)
    slide = CountedSlide(image)
    plan = plan_windows(copier, WindowConfig(), image.shape[1], image.shape[0])
    out = joined(list(make_bands(copier, plan, slide_reader(slide, plan), name="a"))).picture()
    np.testing.assert_array_equal(out, image)
    assert len(slide.reads) == len(set(slide.reads)) == 6


def test_bands_do_not_depend_on_what_noise_was_kept():
    model = Noisy()
    image = np.random.default_rng(1).integers(0, 256, (200, 180, 3), dtype=np.uint8)
    plan = plan_windows(model, WindowConfig(), 180, 200)
    whole = joined(list(make_bands(model, plan, array_reader(image), name="a")))
    noise = model.noise(plan, "a")
    for row, column in ((0, 0), (2, 1), (1, 2)):
        fresh = model.noise(plan, "a").over([plan.region(row, column)])(0)
        assert torch.equal(noise.over([plan.region(row, column)])(0), fresh)
    again = joined(list(make_bands(model, plan, array_reader(image), name="a")))
    np.testing.assert_array_equal(whole.planes, again.planes)


class FakeMemory:
    """A device on which a window takes ``each`` bytes beside ``fixed`` ones."""

    def __init__(self, there, each, fixed=10):
        self.there, self.each, self.fixed, self.seen = there, each, fixed, []

    def free(self):
        return self.there

    def peak(self, work):
        self.seen.append(0)
        work()
        return self.fixed + self.each * self.seen[-1]


def test_batches_fill_the_memory_of_the_device(copier):
    plan = plan_windows(copier, WindowConfig(), 300, 300)

    def chosen(there, each):
        memory = FakeMemory(there, each)
        real = copier.make
        copier.make = lambda images, *rest: (memory.seen.__setitem__(-1, len(images)), real(images, *rest))[1]
        try:
            return batch_for(WindowConfig(batch="auto"), copier, plan, memory)
        finally:
            copier.make = real

    assert chosen(10_000, 100) == 64  # 70 would fit
    assert chosen(10_000_000, 100) == 256 and chosen(100, 100) == 1
    assert batch_for(WindowConfig(batch=5), copier, plan, FakeMemory(1, 1)) == 5
    assert batch_for(WindowConfig(batch="auto"), copier, plan) == 8  # no GPU
