"""Pyramid writer: megapixels per second and peak memory for a large image, beside tifffile with the image
in memory."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import tifffile

from bench.harness import Row, child_peak_memory, compare
from morphogen.slides.pyramid import write_pyramid

_LARGE = """
import time
import numpy as np
from morphogen.slides.pyramid.writer import PyramidWriter
side, band = {side}, 512
noise = np.random.default_rng(0).integers(0, 40, (band, side, 3), dtype=np.uint8)
start = time.perf_counter()
with PyramidWriter({path!r}, side, side, mpp=0.5, tile=512) as writer:
    for y in range(0, side, band):
        rows = min(band, side - y)
        writer.write(noise[:rows] + np.uint8(100 + y // band), y)
print(time.perf_counter() - start)
"""


def _in_memory(path: Path, image: np.ndarray) -> None:
    """The usual way: all levels in memory, handed to tifffile."""
    options = {
        "tile": (512, 512),
        "photometric": "rgb",
        "compression": "jpeg",
        "compressionargs": {"level": 90},
    }
    with tifffile.TiffWriter(path) as file:
        file.write(image, subifds=3, **options)
        level = image
        for _ in range(3):
            h, w = level.shape[0] // 2 * 2, level.shape[1] // 2 * 2
            parts = level[:h, :w].reshape(h // 2, 2, w // 2, 2, 3).astype(np.uint16).sum((1, 3))
            level = ((parts + 2) >> 2).astype(np.uint8)
            file.write(level, subfiletype=1, **options)


def run(quick: bool) -> list[Row]:
    """Peak memory and rate of a streamed image; time against the in-memory way on a small one."""
    side = 6_000 if quick else 20_000
    small = 2048 if quick else 4096
    y, x = np.mgrid[:small, :small]
    image = np.stack([x // 16 % 256, y // 16 % 256, (x + y) // 16 % 256], -1).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        peak, printed = child_peak_memory(_LARGE.format(side=side, path=str(path / "large.ome.tif")))
        rate = side * side / 1e6 / float(printed)
        bands = [image[k : k + 512] for k in range(0, small, 512)]
        ratio = compare(
            f"{small} px pyramid: streamed against tifffile in memory",
            lambda: write_pyramid(path / "a.ome.tif", bands, small, small, mpp=0.5),
            lambda: _in_memory(path / "b.ome.tif", image),
            pairs=3 if quick else 5,
        )
    return [
        Row(f"pyramid of {side} × {side} px: peak memory", peak, "MiB", goal="≤ 1024"),
        Row(f"pyramid of {side} × {side} px: written", rate, "Mpx/s"),
        ratio,
    ]
