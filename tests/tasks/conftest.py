"""A translator that copies what it is shown: any cut or seam is then an error of the floor."""

import numpy as np
import pytest
import torch
from PIL import Image

from morphogen.tasks import ImageNoise


class Copier:
    """Planes: the image (3), and the mean of its colours (1)."""

    multiple, factor, crop, mpp, planes = 8, 4, 64, None, 4

    def noise(self, plan, name):
        return None

    def make(self, images, noise, posterior_noise):
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        return torch.cat([pixels, pixels.mean(dim=1, keepdim=True)], dim=1)


class Noisy(Copier):
    """Planes: the image with two samples of noise over it (3 each), in blocks of a latent cell."""

    planes = 6

    def __init__(self, seed=0):
        self.seed = seed

    def noise(self, plan, name):
        return ImageNoise(3, plan, seed=self.seed, purpose="test", name=name, samples=2, antithetic=True)

    def make(self, images, noise, posterior_noise):
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        drawn = noise(0).unflatten(0, (len(images), 2)) + posterior_noise[:, None]
        drawn = drawn.repeat_interleave(4, dim=-1).repeat_interleave(4, dim=-2)
        return torch.cat([pixels + 10 * drawn[:, k] for k in range(2)], dim=1)


@pytest.fixture
def copier():
    return Copier()


@pytest.fixture
def folder(tmp_path):
    """Five images: three of one window each and of one size, one wider, one higher."""
    place = tmp_path / "images"
    place.mkdir()
    for k, size in enumerate([(64, 64), (64, 64), (64, 64), (64, 120), (90, 64)]):
        pixels = np.random.default_rng(k).integers(40, 250, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"i{k}.png")
    return place
