"""Small synthetic slides, and the three real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


def tissue_image(height: int = 1200, width: int = 1600, seed: int = 0) -> np.ndarray:
    """A pale background with camera noise and one textured pink piece in its middle; uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    image = 243 + rng.normal(0, 1.5, (height, width, 1)) + np.zeros(3)
    y, x = np.mgrid[:height, :width]
    inside = ((y - height / 2) / (height * 0.35)) ** 2 + ((x - width / 2) / (width * 0.35)) ** 2 < 1
    coarse = np.kron(rng.random((height // 8 + 1, width // 8 + 1)), np.ones((8, 8)))[:height, :width]
    colour = np.array([205, 130, 180]) - 90 * coarse[..., None] * np.array([0.8, 1.0, 0.3])
    return (
        np.where(inside[..., None], colour + rng.normal(0, 6, image.shape), image)
        .clip(0, 255)
        .astype(np.uint8)
    )


def write_slide(path: Path, image: np.ndarray, mpp: float | None = 0.5, levels: int = 3) -> Path:
    """A tiled pyramidal TIFF as OpenSlide reads it (generic-tiff): reduced levels as pages, µm/px in the tags."""
    import tifffile

    options: dict = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib"}
    if mpp is not None:
        options |= {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as file:
        file.write(image, **options)
        for level in range(1, levels):
            step = 2**level
            h, w = image.shape[0] // step * step, image.shape[1] // step * step
            small = image[:h, :w].reshape(h // step, step, w // step, step, 3).mean(axis=(1, 3))
            file.write(small.round().astype(np.uint8), subfiletype=1, **options)
    return path


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory) -> Path:
    """A 1600 × 1200 px pyramidal slide at 0.5 µm/px. Do not write beside it: use ``out=tmp_path``."""
    return write_slide(tmp_path_factory.mktemp("slides") / "synthetic.tif", tissue_image())


@pytest.fixture(scope="session")
def blank(tmp_path_factory) -> Path:
    """A slide with camera noise and a little dust, without tissue."""
    rng = np.random.default_rng(5)
    image = (243 + rng.normal(0, 2, (1200, 1600, 3))).clip(0, 255).astype(np.uint8)
    for _ in range(10):
        y, x = rng.integers(8, 1190, 2)
        image[y : y + 6, x : x + 6] = 120
    return write_slide(tmp_path_factory.mktemp("slides") / "blank.tif", image)


@pytest.fixture(scope="session")
def real(shared) -> dict[str, Path]:
    """The three real slides: ``cmu`` (Aperio JPEG), ``tcga`` (Aperio JPEG 2000, no µm/px), ``cyto`` (bogus µm/px)."""
    folder = shared / "data" / "wsi"
    return {
        "cmu": folder / "cmu-1-small-region.svs",
        "tcga": folder / "tcga-cr-7395-01a-01-ts1.svs",
        "cyto": folder / "cyto_A_BB_563479_1_pyramid6.tif",
    }


@pytest.fixture
def make_slide():
    """``make_slide(path, image, mpp=0.5, levels=3)``."""
    return write_slide


@pytest.fixture
def make_tissue():
    """``make_tissue(height, width, seed)``."""
    return tissue_image
