"""A tiny stain model, a model that copies its input, and small pairs on disk."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from morphogen.slides.formats.channels import save_channels
from morphogen.stain.config import ModelConfig
from morphogen.stain.fitting.build import build_model
from morphogen.stain.model import StainOutput
from morphogen.stain.targets.config import TargetConfig

NAMES = ("DNA", "membrane", "stroma", "CD8", "empty-ish")
TINY = ModelConfig(
    widths=(8, 16), groups=4, heads=2, attention=(1,), encoder="none", pixel_factor=4, detail=4
)


@pytest.fixture
def tiny():
    """A stain model of 20 000 parameters with weights that do something."""
    return lively(build_model(TINY, crop=64, seed=3))


def lively(model):
    """New networks begin with an output of zero; give it weights, so that everything has an effect."""
    conv = model.network.latent.unet.conv_out
    with torch.no_grad():
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=torch.Generator().manual_seed(0)) * 0.05)
    model.network.eval()
    return model


class CopyModel:
    """Gives back the H&E it is shown: any cut or seam is then an error of the windows."""

    class first_stage:
        factor = 4

    class network:
        channels = 2

    multiple, factor, crop, mpp, stains, mean, others = 8, 4, 64, None, ("IHC",), None, ()
    identity, device, lanes = "copy", torch.device("cpu"), 1

    class config:
        encoder, regression, seen, target = "none", False, "none", TargetConfig()
        image_effects = None
        noise_shares = None

    def label(self, stain=None):
        return 1

    def expect(self, calls):
        self.expected = calls

    def __call__(self, images, sampler, *, samples=1, **_):
        copies = images[:, None].expand(-1, samples, -1, -1, -1)
        spread = images.float().mean(dim=-1)
        return StainOutput(copies, images, spread, torch.zeros(len(images), samples, 1, 1, 1))


@pytest.fixture
def copying():
    return CopyModel()


def he_like(rng, size=64, pink=True):
    """An image with nuclei in the colours of H&E, or of haematoxylin and DAB."""
    from scipy.ndimage import gaussian_filter

    from morphogen.slides.colour import reconstruct

    field = gaussian_filter(rng.normal(size=(size, size)), 3)
    nuclei = np.clip(field / field.std(), 0, 1.5) * 0.5
    matrix = np.clip(gaussian_filter(rng.normal(size=(size, size)), 6) * 8 + 0.4, 0.1, 0.8)
    amounts = np.stack([nuclei, matrix, np.zeros_like(nuclei)])[None].astype(np.float32)
    image = reconstruct(amounts, "he" if pink else "hdab", dtype="uint8")
    return image[0].permute(1, 2, 0).numpy()


@pytest.fixture
def make_pairs(tmp_path):
    """``make_pairs(n, size, root=…)``: a MIST folder of n pairs; the IHC is the same nuclei with DAB for
    eosin.
    """

    def make(n=3, size=64, root=tmp_path / "data", split="train", suffix=".png", stain=None):
        base = root / (stain or "") / "TrainValAB"
        for side in "AB":
            (base / f"{split}{side}").mkdir(parents=True, exist_ok=True)
        for k in range(n):
            for side, pink in (("A", True), ("B", False)):
                image = he_like(np.random.default_rng(k), size, pink)
                Image.fromarray(image).save(base / f"{split}{side}" / f"p{k}{suffix}")
        return root

    return make


def channels_of(he, count, most):
    """Signals that follow the colours of an H&E."""
    dark = 255 - he.astype(np.float64)
    planes = [dark[..., k % 3] / 255 * most / (1 + k) for k in range(count)]
    return np.stack(planes, axis=-1)


@pytest.fixture
def make_channels(tmp_path):
    """``make_channels(count, dtype, suffix)``: a folder of H&E with targets of channels, stated in target.yaml."""

    def make(
        count=1,
        dtype="uint8",
        suffix=".png",
        n=3,
        size=64,
        root=tmp_path / "channels",
        split="train",
        mask=False,
    ):
        (root / "he").mkdir(parents=True, exist_ok=True)
        (root / "target").mkdir(exist_ok=True)
        most = {"uint8": 255, "uint16": 40_000, "float32": 3.0}[dtype]
        rows = []
        for k in range(n):
            he = he_like(np.random.default_rng(k), size)
            Image.fromarray(he).save(root / "he" / f"p{k}.png")
            made = channels_of(he, count, most).astype(dtype)
            path = root / "target" / f"p{k}{suffix}"
            if suffix == ".npy":
                np.save(path, made)
            elif suffix == ".ome.tif":
                save_channels(path, made, NAMES[:count])
            else:
                Image.fromarray(made[..., 0]).save(path)
            row = {"he": f"he/p{k}.png", "ihc": f"target/p{k}{suffix}", "split": "train"}
            if mask:
                seen = np.full((size, size), 255, np.uint8)
                seen[:, : size // 4] = 0
                Image.fromarray(seen).save(root / f"mask{k}.png")
                row["mask"] = f"mask{k}.png"
            rows.append(row)
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        (root / "pairs.csv").write_text("\n".join(lines) + "\n")
        (root / "target.yaml").write_text(f"channels: {json.dumps(list(NAMES[:count]))}\n")
        return root / "pairs.csv"

    return make
