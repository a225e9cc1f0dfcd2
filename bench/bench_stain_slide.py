"""Virtual staining of a large slide: peak memory, rate and seams, with the windows that are the default."""

from __future__ import annotations

import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import torch

from bench.harness import Row, child_peak_memory
from morphogen.demo.workspace import stain_model


def run(quick: bool) -> list[Row]:
    """Stain a square slide, a third of it tissue, in a process of its own, one evaluation per window."""
    side = 2_000 if quick else 20_000
    with tempfile.TemporaryDirectory() as folder:
        code = textwrap.dedent(
            f"""
            import sys, time, torch
            sys.path[:0] = {sys.path!r}
            torch.set_num_threads({torch.get_num_threads()})
            from bench.bench_stain_slide import write_large_slide
            from morphogen.stain import StainTransfer, stain_slide
            from morphogen.stain.config import ApplyConfig, SamplerConfig
            slide = write_large_slide({folder!r}, {side})
            model = StainTransfer.from_pretrained({str(stain_model())!r})
            config = ApplyConfig(sampler=SamplerConfig.mean())
            start = time.perf_counter()
            out = stain_slide(model, slide, {str(Path(folder) / "slide")!r}, config)
            print(out.windows, time.perf_counter() - start, out.seams.worst)
            """
        )
        peak, printed = child_peak_memory(code, timeout=10_800)
    windows, seconds, seam = (float(value) for value in printed.splitlines()[-1].split())
    what = f"{side:,} × {side:,} px slide, a third tissue, {int(windows)} windows, one evaluation each, {seconds:.0f} s"
    return [
        Row("stain, whole slide: peak memory", peak / 1024, "GiB", goal="≤ 3", detail=what),
        Row("stain, whole slide: windows with one evaluation", windows / seconds, "windows/s", detail=what),
        Row("stain, whole slide: seam score", seam, "", goal="≤ 1.03", detail=what),
    ]


def write_large_slide(folder: str, side: int) -> Path:
    """A pyramidal slide of ``side`` px: one simulated tile again and again within a disc, a third of the area."""
    from morphogen.demo.simulator.simulator import TissueSimulator
    from morphogen.slides.pyramid.writer import PyramidWriter

    path = Path(folder) / f"large_{side}.ome.tif"
    tile = TissueSimulator(0, mpp=0.5).render(0, 0, 500, 500, ihc=False).he
    centres = np.arange(250, side, 500) - side / 2
    with PyramidWriter(path, side, side, mpp=0.5) as writer:
        for top, y in zip(range(0, side, 500), centres, strict=True):
            row = np.full((500, side, 3), 245, dtype=np.uint8)
            for left, x in zip(range(0, side, 500), centres, strict=True):
                if x * x + y * y < side * side / (3 * np.pi):
                    row[:, left : left + 500] = tile
            writer.write(row, top)
    return path
