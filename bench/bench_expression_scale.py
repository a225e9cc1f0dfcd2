"""Spatial expression: prediction of a section of 50,000 spots."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.harness import Row, child_peak_memory

_SCALE = """
import sys, tempfile, time
from pathlib import Path
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads({threads})
from bench.bench_expression import section
from morphogen.expression import ExpressionConfig, train_model
side, genes = {side}, {genes}
train = [section(f"T{{i}}", f"P{{i}}", 14, genes + 20, width=64) for i in range(2)]
config = ExpressionConfig(panel={{"size": genes, "highly_variable": genes + 19}}, training={{"steps": 60}})
with tempfile.TemporaryDirectory() as folder:
    model = train_model(train, config, Path(folder) / "m", device="cpu")
    model.head.diffused = True  # the residual network runs whether or not it won here
    large = section("large", "new", side, genes + 20, width=64)
    start = time.perf_counter()
    result = model(large, samples=20, steps=20, device="cpu", out=Path(folder) / "large.h5ad")
    print(result.n_obs, time.perf_counter() - start)
"""


def scale(quick: bool) -> list[Row]:
    """50 000 spots × 200 genes × 20 samples, in a process of its own."""
    side, genes = (40, 50) if quick else (224, 200)
    code = _SCALE.format(
        root=str(Path(__file__).resolve().parents[1]), threads=torch.get_num_threads(), side=side, genes=genes
    )
    peak, printed = child_peak_memory(code, timeout=7200)
    spots, seconds = (float(v) for v in printed.split()[-2:])
    what = f"{int(spots)} spots × {genes} genes × 20 samples, recipe spatial small"
    return [
        Row("Prediction at scale: peak memory", peak / 1024, "GiB", goal="<= 4", detail=what),
        Row("Prediction at scale: rate", spots / seconds, "spots/s", detail=f"{what}, {seconds:.0f} s"),
    ]


def run(quick: bool = False) -> list[Row]:
    """All rows."""
    return scale(quick)
