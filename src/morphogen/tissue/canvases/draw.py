"""Drawing a canvas: one solver over the whole of it, windows blended at every step, decoded in a stream.

``solver(windowed(guided(denoiser)))`` on a latent canvas that lies in memory or on disk. Windows that do not overlap,
on a grid that moves at every step (SpotDiffusion, Frolov et al. 2025), cost a small part of the published 169 windows
per 1024² (Graikos et al. 2024); the last steps overlap, which takes what is left of the seams.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from morphogen.core.devices import chosen_precision
from morphogen.core.errors import ConfigError
from morphogen.core.files import writable_folder, write_json
from morphogen.core.jobs import Job
from morphogen.core.progress import progress
from morphogen.core.seeds import seed_for
from morphogen.core.writing.locks import locks_folder
from morphogen.diffusion import CanvasNoise, CanvasStore, PerWindow
from morphogen.diffusion.guidance import pinned
from morphogen.diffusion.sampler import sample
from morphogen.metrics.seams import SeamMeter
from morphogen.slides.pyramid import write_pyramid
from morphogen.tasks.layers import SUFFIXES
from morphogen.tissue.canvases.bare import KEPT
from morphogen.tissue.canvases.config import CanvasConfig
from morphogen.tissue.canvases.decoding import as_bytes, decoded_bands
from morphogen.tissue.canvases.grid import EmbeddingGrid, conditions
from morphogen.tissue.canvases.plan import CanvasPlan
from morphogen.tissue.guidance import WANTED
from morphogen.tissue.model import TissueDiffusion

NOISE_BLOCK = 64
# Arrays that a run in memory holds at its peak: x, the prediction, the one before, sums on the way.
_STATES = 8


@dataclass(frozen=True)
class CanvasResult:
    """A canvas on disk.

    image: the OME-TIFF. width, height: in pixels. evaluations: windows through the network, guided ones twice.
    cost: network megapixels per megapixel of the image. seams: mean step across window borders of the last
    non-overlapping grid, by axis the larger, over that elsewhere; 1 = none. seams_plain: over that of all other
    positions, inside blocks of pixels, too. Both are of the picture before it is compressed: JPEG has borders of its
    own, every 8 px, where windows also begin. seconds: of this run.
    """

    image: Path
    width: int
    height: int
    evaluations: int
    cost: float
    seams: float
    seams_plain: float
    seconds: float


@torch.no_grad()
def draw_latents(
    model: TissueDiffusion,
    grid: EmbeddingGrid,
    plan: CanvasPlan,
    *,
    store: CanvasStore | None = None,
    state: Path | None = None,
    job: str = "",
    known: Tensor | None = None,
    keep: Tensor | None = None,
    precision: str = "fp32",
    advance: Callable[[int], Any] = lambda n: None,
) -> Any:
    """(1, C, H, W) scaled latents of a canvas: a tensor, or a canvas in ``store``.

    known, keep: latents (1, C, H, W) of an image that stays where ``keep`` (1, 1, H, W) is 1; only tensors.
    advance: told of each step done.
    """
    config = plan.config
    shape = (1, plan.channels, *plan.size)
    noise = CanvasNoise(seed_for(config.seed, "canvas"), shape, block=NOISE_BLOCK)
    draw: Callable[[int], Any] = noise if store is None else store.noise(noise)
    start = draw(-1)
    if store is None:
        start = start.to(model.device)
    condition = PerWindow(conditions(grid, plan.window, model.network.embedder, model.vectors))
    denoiser = model.denoiser(precision, config.sampler.time_offset)
    around, given = plan.around(), {"context": condition}
    if plan.glass is not None:
        given[KEPT] = PerWindow(plan.glass.kept)
    guide = model.guide(config.sampler)
    if guide is not None:
        given[WANTED] = PerWindow(conditions(grid, plan.window, _alone, lambda name, of: guide.wanted(of)))
        plain = around

        def around(guided: Any) -> Any:
            return guide.around(plain(guided), model.schedule, config.sampler, plan.pulled)

    if known is not None and keep is not None:
        alpha, sigma = model.schedule.levels(plan.times[0])
        start = torch.lerp(start, float(alpha) * known + float(sigma) * start, keep)
        inner = around

        def around(window_denoiser: Any) -> Any:
            return pinned(inner(window_denoiser), known, keep, model.schedule)

    return sample(
        denoiser,
        start,
        model.schedule,
        config.sampler,
        noise=draw,
        condition=given,
        null_condition={"context": model.null()},
        around=around,
        callback=lambda state, prediction: advance(1),
        state=state,
        save_every=config.save_every,
        job=job,
    )


def _alone(patch: Tensor, region: Tensor | None = None) -> Tensor:
    """The vectors of the cells, without those of the region around them."""
    return patch


@locks_folder()
def draw_canvas(
    model: TissueDiffusion,
    grid: EmbeddingGrid,
    out: Path | str,
    config: CanvasConfig | None = None,
    *,
    width: int | None = None,
    height: int | None = None,
    precision: str = "fp32",
) -> CanvasResult:
    """Draw ``out/canvas.ome.tif`` (or ``.ome.zarr``) from a grid of embeddings, with ``grid.npz`` and
    ``canvas.json`` beside it.

    A run that was killed goes on from its last finished step and gives the same bytes. The image does not depend on
    whether the canvas lay in memory or on disk.

    Raises
    ------
    InputError
        A grid of another encoder than the model's, with NaN, or too small for ``width`` × ``height``.
    OutputError
        ``out`` holds a canvas of other settings, or the disk is full; what is done so far is kept.
    """
    config = config or CanvasConfig()
    out, began = writable_folder(out), time.perf_counter()
    mpp = model.mpp or config.mpp
    if mpp is None:
        raise ConfigError(
            "the model does not know its µm per pixel, which the image must carry",
            where="--mpp",
            fix="Give it, for example --mpp 0.5",
        )
    plan = CanvasPlan(model, grid, config, width, height)
    precision = chosen_precision(precision, model.device)
    model.expect(plan.evaluations() / plan.config.batch)
    facts = {
        "model": model.identity,
        "grid": grid.identity(),
        "settings": config.to_dict(),
        "size": [plan.width, plan.height],
        "precision": precision,
    }
    job = Job(facts, free={"settings.batch", "settings.memory_gib", "settings.save_every", "settings.format"})
    image = out / f"canvas{SUFFIXES[config.format]}"
    record, scratch = out / "canvas.json", out / ".canvas"
    goes_on = job.begin(out / "job.json", "a canvas")
    if goes_on and record.is_file() and image.exists():
        return _kept(image, record)
    if not goes_on:
        shutil.rmtree(scratch, ignore_errors=True)
    writable_folder(scratch)
    grid.save(out / "grid.npz")
    latents = _latents(model, grid, plan, scratch, job.mark, precision)
    borders = plan.borders(model.first_stage.factor)
    # Blocks of pixels have steps of their own at every one of their borders, windows or not.
    period = model.first_stage.factor
    meter = SeamMeter(plan.width, plan.height, *borders, period=period) if any(borders) else None
    bands = _bands(model, latents, plan, grid, meter)
    write_pyramid(
        image,
        bands,
        plan.width,
        plan.height,
        mpp=mpp,
        codec=config.codec,
        quality=config.quality,
        facts={"made by": "morphogen tissue canvas", "model": model.identity[:16]},
    )
    result = CanvasResult(
        image,
        plan.width,
        plan.height,
        plan.evaluations(),
        plan.cost(),
        meter.score().worst if meter is not None else math.nan,
        meter.plain().worst if meter is not None else math.nan,
        time.perf_counter() - began,
    )
    recipe = {name: value for name, value in vars(result).items() if name != "image"}
    write_json(record, {**facts, **recipe, "source": grid.facts, "mpp": mpp})
    shutil.rmtree(scratch, ignore_errors=True)
    return result


def _latents(
    model: TissueDiffusion, grid: EmbeddingGrid, plan: CanvasPlan, scratch: Path, mark: str, precision: str
) -> Any:
    shape = (1, plan.channels, *plan.size)
    store, arrays = None, scratch / "arrays"
    # A run that was begun on disk goes on there, whatever memory it is given now.
    if arrays.is_dir() or _STATES * math.prod(shape) * 4 > plan.config.memory_gib * 2**30:
        store = CanvasStore.memmap(arrays, shape, device=model.device)
    with progress.bar(len(plan.times), "canvas steps") as bar:
        return draw_latents(
            model,
            grid,
            plan,
            store=store,
            state=scratch / "state.pt",
            job=mark,
            precision=precision,
            advance=bar.advance,
        )


@torch.no_grad()
def _bands(
    model: TissueDiffusion, latents: Any, plan: CanvasPlan, grid: EmbeddingGrid, meter: SeamMeter | None
) -> Iterator[np.ndarray]:
    row = 0
    for band in decoded_bands(model.first_stage, latents, window=plan.window, batch=plan.config.batch):
        pixels = as_bytes(band[: plan.height - row, : plan.width])
        if not len(pixels):
            break
        if plan.glass is not None:
            pixels = plan.glass.behind(pixels)
        if meter is not None:
            meter.add(pixels)
        row += len(pixels)
        yield pixels


def _kept(image: Path, record: Path) -> CanvasResult:
    from morphogen.core.files import read_json

    found = read_json(record)
    names = ("width", "height", "evaluations", "cost", "seams", "seams_plain", "seconds")
    values: dict[str, Any] = {name: math.nan if found.get(name) is None else found[name] for name in names}
    return CanvasResult(image, **values)
