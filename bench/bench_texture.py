"""Texture encoder: tiles per second on one core, beside the same kinds of statistics from scikit-image and
SciPy."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage, stats
from skimage.color import rgb2hed
from skimage.feature import (
    graycomatrix,
    graycoprops,
    local_binary_pattern,
    peak_local_max,
    structure_tensor,
    structure_tensor_eigenvalues,
)
from skimage.filters import rank
from skimage.measure import label, regionprops
from skimage.morphology import disk

from bench.harness import Row, compare, rate
from morphogen.slides.encoders.texture.encoder import TextureEncoder


def plain(image: np.ndarray) -> np.ndarray:
    """What one would write with scikit-image and SciPy: the same families, one tile, full resolution."""
    hed = rgb2hed(image) * 6
    grey = image.mean(-1)
    out: list[float] = []
    for plane in (*np.moveaxis(hed, -1, 0), grey / 255):
        flat = plane.ravel()
        out += [flat.mean(), flat.std(), stats.skew(flat)]
        out += list(np.quantile(flat, [0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99]))
        blurred = [plane] + [ndimage.gaussian_filter(plane, s) for s in (1, 2, 4, 8, 16)]
        for fine, coarse in zip(blurred[:-1], blurred[1:], strict=True):
            band = fine - coarse
            out += [band.std(), np.abs(band).mean(), stats.skew(band.ravel())]
    for plane in (hed[..., 0], hed[..., 1], grey / 255):
        for sigma in (1, 2):
            gradient = ndimage.gaussian_gradient_magnitude(plane, sigma)
            out += [gradient.mean(), gradient.std(), (gradient > 0.06).mean()]
            one, two = structure_tensor_eigenvalues(structure_tensor(plane, sigma=2 * sigma))
            coherence = (one - two) / (one + two + 1e-9)
            out += [coherence.mean(), coherence.std()]
        step = (plane / max(plane.max(), 1e-6) * 255).clip(0, 255).astype(np.uint8)
        entropy = rank.entropy(step, disk(8))
        out += [entropy.mean(), entropy.std(), *np.quantile(entropy, [0.1, 0.5, 0.9])]
    for radius in (1, 2, 4):
        pattern = local_binary_pattern(grey.astype(np.uint8), 8, radius, "uniform")
        out += list(np.bincount(pattern.astype(int).ravel(), minlength=10) / pattern.size)
    for plane in (hed[..., 0], hed[..., 1]):
        levels = (plane / 0.6 * 8).clip(0, 7).astype(np.uint8)
        matrix = graycomatrix(levels, [2, 6, 12, 24], [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4], 8, True, True)
        for kind in ("contrast", "correlation", "homogeneity", "energy"):
            out += list(graycoprops(matrix, kind).mean(1))
    for sigma in (3, 6):
        response = ndimage.gaussian_filter(hed[..., 0], sigma) - ndimage.gaussian_filter(
            hed[..., 0], 1.6 * sigma
        )
        peaks = peak_local_max(response, min_distance=2 * sigma, threshold_abs=0.03)
        out += [len(peaks), response[tuple(peaks.T)].mean() if len(peaks) else 0.0]
        areas = [region.area for region in regionprops(label(response > 0.03))]
        out += [float(np.mean(areas)) if areas else 0.0, float(len(areas))]
    return np.array(out, np.float32)


def tiles(n: int, side: int = 224) -> np.ndarray:
    """Blobs on a textured ground: as much to count and to compare as tissue has."""
    rng = np.random.default_rng(0)
    ground = ndimage.gaussian_filter(rng.standard_normal((n, side, side)), (0, 3, 3)) * 40
    blobs = ndimage.gaussian_filter((rng.random((n, side, side)) > 0.997).astype(float), (0, 5, 5)) * 9000
    shade = np.stack([205 - blobs * 0.9, 150 + ground - blobs, 190 + ground / 2 - blobs * 0.5], -1)
    return (shade + rng.normal(0, 3, shade.shape)).clip(0, 255).astype(np.uint8)


def run(quick: bool) -> list[Row]:
    """Rate on one core, ratio to plain code, and the grid tokens."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        n = 16 if quick else 64
        images = tiles(n)
        few = images[: 4 if quick else 8]
        encoder, tokens = TextureEncoder(), TextureEncoder((14, 14))
        rows = [
            rate("texture, 224 px, one core", lambda: encoder(images), n, unit="tiles/s", goal="≥ 60"),
            rate("texture tokens 14 × 14, 224 px, one core", lambda: tokens(images), n, unit="tiles/s"),
            compare(
                f"texture ({len(encoder.names)} numbers) against scikit-image + SciPy ({len(plain(few[0]))})",
                lambda: encoder(few),
                lambda: [plain(image) for image in few],
                pairs=3 if quick else 5,
                detail=f"{len(few)} tiles of 224 px",
            ),
        ]
        if torch.cuda.is_available():
            on_gpu = torch.as_tensor(np.concatenate([images] * 8)).cuda()
            rows.append(rate("texture, 224 px, GPU", lambda: encoder(on_gpu), len(on_gpu), unit="tiles/s"))
        return rows
    finally:
        torch.set_num_threads(threads)
