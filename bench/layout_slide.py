"""A whole slide through a segmenter: time, memory of the process, and seams in the logits.

    python -m bench.layout_slide --model build/layout/seed-0/segmenters/real-only/model --side 20000 --out build/slide

The slide is one simulated field, repeated: what is measured does not depend on what it shows. Seams are those of the
blended logits of a field of 1024 px: mean difference across window borders over that elsewhere.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path

import numpy as np

from bench.harness import Row
from morphogen.demo.simulator.simulator import TissueSimulator
from morphogen.layout.segmenter.apply import segment_slide, windows_of
from morphogen.layout.segmenter.model import Segmenter
from morphogen.metrics.seams import SeamMeter
from morphogen.slides import open_slide
from morphogen.tasks.bands import make_images
from morphogen.tasks.windows import plan_windows

FIELD = 1024


def field(mpp: float) -> np.ndarray:
    """(1024, 1024, 3) simulated tissue."""
    return TissueSimulator(0, patient="P99", style="mixed", mpp=mpp).render(0, 0, FIELD, FIELD, ihc=False).he


def write(path: Path, side: int, mpp: float) -> Path:
    """A tiled TIFF of ``side`` px that repeats the field, written tile by tile."""
    import tifffile

    tile = field(mpp)
    across = -(-side // FIELD)
    if not path.is_file():
        tifffile.imwrite(
            path,
            (tile for _ in range(across * across)),
            shape=(side, side, 3),
            dtype=np.uint8,
            tile=(FIELD, FIELD),
            compression="jpeg",
            photometric="rgb",
            resolution=(1e4 / mpp, 1e4 / mpp),
            resolutionunit="CENTIMETER",
        )
    return path


def seam(segmenter: Segmenter, mpp: float) -> float:
    """Seam score of the logits of a field."""
    config = windows_of(segmenter)
    plan = plan_windows(segmenter, config, FIELD, FIELD)
    (band,) = make_images(segmenter, [field(mpp)], ["field"], config)
    columns, rows = plan.borders()
    meter = SeamMeter(FIELD, FIELD, columns, rows, period=8)
    meter.add(band.planes.transpose(1, 2, 0))
    return meter.score().worst


def run(model: Path, side: int, out: Path, threads: int = 1) -> list[Row]:
    """Seconds, peak memory, seams."""
    import torch

    torch.set_num_threads(threads)
    segmenter = Segmenter.from_pretrained(model)
    mpp = segmenter.mpp or 2.0
    out.mkdir(parents=True, exist_ok=True)
    path = write(out / "slide.tif", side, mpp)
    begun = time.perf_counter()
    with open_slide(path, mpp=mpp) as slide:
        made = segment_slide(segmenter, slide, out / "masks")
    seconds = time.perf_counter() - begun
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    detail = f"{made.count} polygons, mask pyramid of {made.mask.stat().st_size / 2**20:.0f} MiB"
    return [
        Row(
            f"layout: segmenting a slide of {side:,} px a side, {threads} thread(s)",
            seconds,
            "s",
            detail=detail,
        ),
        Row("layout: memory of that process", memory, "GiB", goal="≤ 3"),
        Row("layout: seams in the blended logits", seam(segmenter, mpp), "", goal="≤ 1.02"),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1, help="Torch's; more than one are lanes.")
    for row in run(**vars(parser.parse_args())):
        print(f"{row.name}: {row.value:.3f} {row.unit} (goal {row.goal or '–'}; {row.detail})")
