"""Canvases: what a step costs beside the network alone, and how many network megapixels a megapixel takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bench.harness import Row, child_peak_memory, compare
from morphogen.diffusion import PerWindow
from morphogen.diffusion.sampler import guided_by
from morphogen.tissue import CanvasConfig, EmbeddingGrid, ModelConfig, TissueSampler, new_model
from morphogen.tissue.canvases.grid import conditions
from morphogen.tissue.canvases.plan import CanvasPlan

CELLS = 8


def model_and_grid(size: Any) -> tuple[Any, EmbeddingGrid]:
    """A model with fresh weights, windows of 64 px, and a grid of 8 × 8 cells."""
    model = new_model(ModelConfig.of(size, embeddings={"patch": 280}), tile_px=64, mpp=1.0)
    model.network.to(memory_format=torch.channels_last).eval()
    return model, EmbeddingGrid(np.random.default_rng(0).normal(size=(CELLS, CELLS, 280)).astype(np.float32))


def step_overhead(size: str, quick: bool) -> Row:
    """One guided step over the canvas against the bare network on as many windows in the same batches."""
    model, grid = model_and_grid(size)
    plan = CanvasPlan(model, grid, CanvasConfig())
    sampler = TissueSampler()
    denoiser = guided_by(model.denoiser(), model.schedule, sampler, {"context": model.null()})
    step = plan.around()(denoiser)
    t = plan.times[5]
    windows = plan.windows(t)
    x = torch.randn(1, model.channels, *plan.size, generator=torch.Generator().manual_seed(0))
    condition = PerWindow(conditions(grid, plan.window, model.network.embedder, model.vectors))
    batch = plan.config.batch
    part = torch.randn(2 * batch, model.channels, model.window, model.window)
    times, context = torch.full((2 * batch,), float(t)), torch.randn(2 * batch, 1, model.config.token_width)

    @torch.no_grad()
    def ours() -> None:
        step(x, t, context=condition)

    @torch.no_grad()
    def bare() -> None:
        for _ in range(-(-windows // batch)):
            model.network(part, times, context=context)

    return compare(
        f"a step of a canvas over the bare network, {size}",
        ours,
        bare,
        pairs=3 if quick else 9,
        goal="≤ 1.05",
        detail=f"{windows} windows of 64 px, guided, batches of {batch}",
        inverse=True,
    )


def costs() -> list[Row]:
    """Counted, not timed: windows of 256 px on a canvas of 1024²."""
    model = new_model(ModelConfig.of("tiny", embeddings={"patch": 5}), tile_px=256, mpp=0.5)
    grid = EmbeddingGrid(np.ones((4, 4, 5), np.float32))
    reference = CanvasPlan(model, grid, CanvasConfig.named("reference-canvas")).cost()
    rows = []
    for name, goal in (("standard", "≤ 40"), ("fast", "≤ 16")):
        cost = CanvasPlan(model, grid, CanvasConfig.named(name)).cost()
        detail = f"the published recipe: {reference:.0f}, {reference / cost:.0f} times as much"
        rows.append(Row(f"network Mpx per Mpx, {name}", cost, "Mpx/Mpx", goal=goal, detail=detail))
    return rows


CANVAS = """
import numpy as np, tempfile, torch
torch.set_num_threads(1)
from morphogen.tissue import CanvasConfig, EmbeddingGrid, ModelConfig, TissueSampler, draw_canvas, new_model
model = new_model(ModelConfig.of("tiny", embeddings={{"patch": 1024}}), tile_px=256, mpp=0.5)
config = CanvasConfig(sampler=TissueSampler(steps=2, guidance_scale=1.0), overlapped_steps=0, memory_gib=0)
grid = EmbeddingGrid(np.random.default_rng(0).normal(size=({cells}, {cells}, 1024)).astype(np.float32))
with tempfile.TemporaryDirectory() as folder:
    draw_canvas(model, grid, folder, config)
"""


def memory(quick: bool) -> list[Row]:
    """Peak memory of canvases on disk: how it grows with the area."""
    sides = (1024, 2048) if quick else (2048, 4096, 8192)
    peaks = {side: child_peak_memory(CANVAS.format(cells=side // 256))[0] for side in sides}
    areas, values = np.log([side**2 for side in sides]), np.log(list(peaks.values()))
    exponent = float(np.polyfit(areas, values, 1)[0])
    detail = ", ".join(f"{side}²: {peak:.0f} MiB" for side, peak in peaks.items())
    return [Row("memory against area of a canvas, exponent", exponent, "", goal="≤ 0.1", detail=detail)]


def run(quick: bool = False) -> list[Row]:
    """All rows of this module."""
    return [*(step_overhead(size, quick) for size in ("small", "tiny")), *costs(), *memory(quick)]
