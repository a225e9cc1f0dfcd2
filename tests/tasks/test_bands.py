"""Windows: every pixel is covered, nothing is lost at borders, seeds and places decide the noise."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from morphogen.core.errors import ConfigError
from morphogen.tasks import (
    ImageNoise,
    WindowConfig,
    WindowPlan,
    array_reader,
    joined,
    make_bands,
    make_images,
    plan_windows,
    scale_between,
    together,
)

from .conftest import Noisy


def random_image(*size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(64, 64), (64, 200), (131, 77), (30, 40), (65, 257)])
@pytest.mark.parametrize("overlap", [0, 16, 40])
def test_a_copy_leaves_any_image_as_it_is(copier, size, overlap):
    image = random_image(*size)
    (band,) = make_images(copier, [image], ["a"], WindowConfig(overlap=overlap, batch=3))
    np.testing.assert_array_equal(band.picture(), image)
    np.testing.assert_allclose(band.values(3), image.astype(np.float32).mean(axis=2), rtol=1e-5)
    assert len(band) == size[0] and band.top == 0


@pytest.mark.parametrize("ratio", [2.0, 0.5, 1.37])
def test_a_source_of_another_scale_comes_back_at_its_own(copier, ratio):
    y, x = np.mgrid[:240, :300]
    image = (np.stack([x / 300, y / 240, (x + y) / 540], axis=-1) * 255).astype(np.uint8)
    plan = plan_windows(copier, WindowConfig(), 300, 240, ratio)
    out = joined(list(make_bands(copier, plan, array_reader(image), name="a"))).picture()
    assert out.shape == image.shape
    inner = (slice(8, -8), slice(8, -8))
    assert int(np.abs(out[inner].astype(int) - image[inner]).max()) <= 4


def test_bands_are_the_same_from_wherever_they_begin():
    model, image = Noisy(), random_image(300, 150, seed=1)
    plan = plan_windows(model, WindowConfig(), 150, 300)
    whole = list(make_bands(model, plan, array_reader(image), name="a"))
    assert len(whole) == len(plan.rows) > 3
    for first in range(len(whole) + 1):
        later = list(make_bands(model, plan, array_reader(image), name="a", first=first))
        assert [band.top for band in later] == [band.top for band in whole[first:]]
        for a, b in zip(later, whole[first:], strict=True):
            np.testing.assert_array_equal(a.planes, b.planes)


def test_windows_that_are_not_wanted_stay_white(copier):
    image = np.full((64, 192, 3), 7, np.uint8)
    plan = plan_windows(copier, WindowConfig(overlap=0), 192, 64)
    (band,) = make_bands(
        copier, plan, array_reader(image), name="a", wanted=lambda x, y, side: x == 64, batch=2
    )
    picture, values = band.picture(), band.values(3)
    for glass in (slice(0, 64), slice(128, 192)):
        assert (picture[:, glass] == 255).all() and (values[:, glass] == 0).all()
    assert (picture[:, 64:128] == 7).all()
    np.testing.assert_allclose(values[:, 64:128], 7, rtol=1e-6)


def test_neighbouring_windows_see_the_same_noise_where_they_overlap(copier):
    plan = plan_windows(copier, WindowConfig(), 160, 64)

    def noise(seed=9, name="image", purpose="test"):
        return ImageNoise(2, plan, seed=seed, purpose=purpose, name=name, samples=2)

    assert plan.cells[1] == [0, 12, 24]
    left, right = (noise().over([(slice(0, 16), slice(x, x + 16))])(5) for x in (0, 12))
    assert torch.equal(left[..., 12:], right[..., :4])
    assert not torch.equal(left[0], left[1])
    for other in (noise(seed=10), noise(name="another"), noise(purpose="room")):
        assert not torch.equal(other.over([(slice(0, 16), slice(0, 16))])(5), left)
    assert not torch.equal(noise().start([plan.region(0, 0)])[0], noise().over([plan.region(0, 0)])(-1)[0])


def test_samples_come_in_pairs_of_opposite_noise(copier):
    """The noise of a pair cancels, everywhere and at every step; the first sample is the one of K = 1."""
    plan = plan_windows(copier, WindowConfig(), 96, 80)
    five, one = (
        ImageNoise(2, plan, seed=0, purpose="test", name="a", samples=k, antithetic=True) for k in (5, 1)
    )
    region = slice(3, 17), slice(0, 9)
    for step in (-1, 0, 7):
        drawn = five.over([region])(step)
        assert torch.equal(drawn[0], -drawn[1]) and torch.equal(drawn[2], -drawn[3])
        assert not torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[2], drawn[4])
        assert torch.equal(one.over([region])(step)[0], drawn[0])


def test_a_name_decides_the_noise_whatever_the_batch():
    model = Noisy()
    images, names = [random_image(64, 64, seed=k) for k in range(3)], ["a", "b", "c"]
    among = list(make_images(model, images, names, WindowConfig()))
    for image, name, band in zip(images, names, among, strict=True):
        (alone,) = make_images(model, [image], [name], WindowConfig())
        np.testing.assert_array_equal(alone.planes, band.planes)
    (renamed,) = make_images(model, images[:1], ["other"], WindowConfig())
    assert np.abs(renamed.planes - among[0].planes).max() > 5
    large = random_image(130, 150)
    outs = [next(make_images(model, [large], ["x"], WindowConfig(batch=b))).planes for b in (1, 7)]
    np.testing.assert_allclose(*outs, atol=1e-4)


def test_images_that_fit_a_window_go_together(copier):
    sizes = dict(zip("abcdefg", [(64, 64)] * 3 + [(40, 64), (120, 64), (64, 64), (64, 64)], strict=True))
    groups = list(together(copier, sizes, WindowConfig(batch=2)))
    assert groups == [["a", "b"], ["c"], ["d"], ["e"], ["f", "g"]]
    # At half the µm/px an image of 120 px is one window of the model too.
    copier.mpp = 1.0
    groups = list(together(copier, {"e": (120, 120), "f": (120, 120)}, WindowConfig(), mpp=0.5))
    assert groups == [["e", "f"]]


def test_a_large_image_has_a_bar_of_its_own(copier, monkeypatch):
    from contextlib import contextmanager

    from morphogen.tasks import bands

    seen = []

    @contextmanager
    def bar(total, what, done=0):
        seen.append([what, total, 0])
        yield SimpleNamespace(advance=lambda n: seen[-1].__setitem__(2, seen[-1][2] + n))

    monkeypatch.setattr(bands.progress, "bar", bar)
    for height in (128, 640):  # 9 windows, and 117
        list(make_images(copier, [random_image(height, 512 if height > 200 else 128)], ["x"], WindowConfig()))
    assert len(seen) == 1 and seen[0][0] == "x: windows" and seen[0][1] == seen[0][2] > 64


def test_scale_is_taken_as_it_is_within_ten_percent():
    assert scale_between(0.499, 0.4661) == 1.0
    assert scale_between(0.25, 0.5) == 2.0
    assert scale_between(None, 0.5) == scale_between(0.5, None) == 1.0


def test_borders_for_the_seam_score():
    plan = WindowPlan(150, 64, 64, 16, cell=4)
    assert plan.columns == [0, 48, 88]
    assert plan.borders() == ([48, 64, 88, 112], [])


def test_windows_that_do_not_fit_are_refused(copier):
    with pytest.raises(ConfigError, match="a window of 68 px does not fit.*multiple of 8"):
        plan_windows(copier, WindowConfig(window=68), 200, 200)
    with pytest.raises(ConfigError, match="leaves nothing"):
        plan_windows(copier, WindowConfig(overlap=64), 200, 200)


def test_bands_shared_over_devices_are_those_of_one():
    """Three simulated devices: each makes its part of the batches, and bytes are the same from any band on."""
    import threading

    class Counted(Noisy):
        device = torch.device("cpu")

        def __init__(self):
            super().__init__()
            self.batches, self.within = [], threading.Semaphore(1)

        def make(self, images, noise, posterior_noise):
            assert self.within.acquire(blocking=False), "two batches at once on one device"
            try:
                self.batches.append(len(images))
                return super().make(images, noise, posterior_noise)
            finally:
                self.within.release()

    image, alone, several = random_image(300, 260), Noisy(), Counted()
    several.replicas = [Counted(), Counted()]
    plan = plan_windows(alone, WindowConfig(), 260, 300)
    for first in (0, 2):
        expected, found = (
            list(make_bands(each, plan, array_reader(image), name="a", batch=2, first=first))
            for each in (alone, several)
        )
        assert len(expected) == len(found) == len(plan.rows) - first
        for a, b in zip(expected, found, strict=True):
            assert (
                a.top == b.top and np.array_equal(a.planes, b.planes) and np.array_equal(a.covered, b.covered)
            )
    counts = [len(each.batches) for each in (several, *several.replicas)]
    assert max(counts) - min(counts) <= 2 and min(counts) > 3


def test_an_error_on_one_of_several_devices_comes_up():
    class Broken(Noisy):
        device = torch.device("cpu")

        def make(self, images, noise, posterior_noise):
            raise RuntimeError("out of memory")

    several = Noisy()
    several.device, several.replicas = torch.device("cpu"), [Broken()]
    plan = plan_windows(several, WindowConfig(), 260, 300)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(make_bands(several, plan, array_reader(random_image(300, 260)), name="a", batch=2))


def test_bands_made_in_lanes_are_those_of_one():
    import threading

    class Lanes(Noisy):
        lanes = 2

        def make(self, images, noise, posterior_noise):
            seen.add((threading.get_ident(), torch.get_num_threads()))
            return super().make(images, noise, posterior_noise)

    seen: set[tuple[int, int]] = set()
    image, alone = random_image(300, 260), Noisy()
    plan = plan_windows(alone, WindowConfig(), 260, 300)
    torch.set_num_threads(2)
    found = joined(list(make_bands(Lanes(), plan, array_reader(image), name="a", batch=2)))
    torch.set_num_threads(1)
    expected = joined(list(make_bands(alone, plan, array_reader(image), name="a", batch=2)))
    assert np.array_equal(found.planes, expected.planes)
    assert len({thread for thread, _ in seen}) == 2 and {count for _, count in seen} == {1}
