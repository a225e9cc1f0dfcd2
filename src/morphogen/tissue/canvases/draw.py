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
from morphogen.core.errors import ConfigError, InputError
from morphogen.core.files import writable_folder, write_json
from morphogen.core.jobs import Job
from morphogen.core.progress import progress
from morphogen.core.seeds import seed_for
from morphogen.core.writing.locks import locks_folder
from morphogen.diffusion import (
    Canvas,
    CanvasNoise,
    CanvasStore,
    PerWindow,
    WindowLayout,
    map_windows,
    shifted_count,
    shifted_windows,
    windowed,
)
from morphogen.diffusion.guidance import pinned
from morphogen.diffusion.sampler import sample
from morphogen.metrics.seams import SeamMeter
from morphogen.slides.pyramid import write_pyramid
from morphogen.tasks.layers import SUFFIXES
from morphogen.tissue.canvases.config import CanvasConfig
from morphogen.tissue.canvases.decoding import as_bytes, decoded_bands
from morphogen.tissue.canvases.grid import EmbeddingGrid, conditions
from morphogen.tissue.guidance import WANTED
from morphogen.tissue.model import TissueDiffusion

NOISE_BLOCK = 64
_STATES = (
    8  # arrays that a run in memory holds at its peak: x, the prediction, the one before, sums on the way
)


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


class CanvasPlan:
    """Sizes and windows of one canvas.

    Parameters
    ----------
    model, grid, config:
        As for :func:`draw_canvas`.
    width, height:
        In pixels; by default that of the grid.

    Attributes
    ----------
    size:
        (H, W) in latent cells; the image is cut to ``height`` × ``width`` pixels in the end.
    """

    def __init__(
        self,
        model: TissueDiffusion,
        grid: EmbeddingGrid,
        config: CanvasConfig,
        width: int | None = None,
        height: int | None = None,
    ) -> None:
        factor, side = model.first_stage.factor, model.tile_px
        self.height = grid.shape[0] * side if height is None else height
        self.width = grid.shape[1] * side if width is None else width
        for name, values in (("patch", grid.patch), ("region", grid.region)):
            if values is not None:
                model.vectors(
                    name, values[:1, :1]
                )  # of the model's width, or an error before anything is written
        for name, extent, cells in (
            ("height", self.height, grid.shape[0]),
            ("width", self.width, grid.shape[1]),
        ):
            if extent < factor:
                raise ConfigError(f"a canvas of {extent} px is smaller than {factor} px", where=name)
            if extent > cells * side:
                raise InputError(
                    f"a canvas of {extent} px needs {math.ceil(extent / side)} cells of {side} px, "
                    f"the grid has {cells}",
                    where=name,
                    fix="Give a larger grid or a smaller size",
                )
        self.size = (math.ceil(self.height / factor), math.ceil(self.width / factor))
        self.window, self.channels = model.window, model.channels
        self.times = config.sampler.times(model.schedule)
        self.overlapped = self.times[len(self.times) - config.overlapped_steps :]
        self.stride = config.stride or max(1, self.window // 2)
        if config.blend == "uniform" and config.stride is None:
            self.stride = max(1, self.window // 4)  # as published
        self.config, self.shift_seed = config, seed_for(config.seed, "canvas shift")
        self.lanes, self.schedule = model.lanes, model.schedule

    @property
    def layout(self) -> WindowLayout:
        """The overlapping windows."""
        return WindowLayout(self.size, self.window, self.stride)

    def windows(self, t: float) -> int:
        """Windows looked at in the step at time ``t``."""
        if self.config.blend == "shifted" and t not in self.overlapped:
            return shifted_count(self.size, self.window, self.shift_seed, t)
        return len(self.layout)

    def evaluations(self) -> int:
        """Windows through the network in all steps; a guided one counts twice."""
        sampler = self.config.sampler
        low, high = sampler.guidance_interval or (-math.inf, math.inf)
        guided = sampler.guidance_scale != 1
        count = sum(self.windows(t) * (2 if guided and low <= t <= high else 1) for t in self.times)
        if sampler.solver == "plms":  # its first step asks twice
            count += self.windows(self.times[0]) * (2 if guided and low <= self.times[0] <= high else 1)
        return count

    def cost(self) -> float:
        """Network megapixels per megapixel of canvas."""
        return self.evaluations() * self.window**2 / (self.size[0] * self.size[1])

    def around(self) -> Callable[[Any], Any]:
        """Makes the canvas' denoiser of the windows'."""
        config, batch = self.config, self.config.batch

        def make(inner: Any) -> Any:
            blend = "uniform" if config.blend == "uniform" else "feather"
            overlapping = windowed(
                inner,
                self.layout,
                blend,  # type: ignore[arg-type]
                batch,
                lanes=self.lanes,
                schedule=self.schedule,
            )
            if config.blend != "shifted":
                return overlapping
            moving = shifted_windows(
                inner, self.window, self.shift_seed, batch, self.lanes, schedule=self.schedule
            )
            last = set(self.overlapped)

            def denoise(x: Any, t: Any, /, **condition: Any) -> Any:
                return (overlapping if t in last else moving)(x, t, **condition)

            return denoise

        return make

    def pulled(self, pull: Callable[..., Tensor], x0: Any, wanted: Any) -> Any:
        """``pull`` on every cell of the grid, each towards its own vector."""
        return map_windows(
            lambda items, wanted: pull(items, wanted),
            x0,
            WindowLayout(self.size, self.window, self.window),
            batch=self.config.batch,
            into=x0.store if isinstance(x0, Canvas) else None,
            condition={WANTED: wanted},
            lanes=self.lanes,
        )

    def borders(self, factor: int) -> tuple[list[int], list[int]]:
        """Columns and rows of pixels where windows of the overlapped steps begin: for the seam score."""
        rows, columns = self.layout.starts
        return (
            [c * factor for c in columns if 0 < c * factor < self.width],
            [r * factor for r in rows if 0 < r * factor < self.height],
        )


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
    guide = model.guide(config.sampler)
    if guide is not None:
        low, high = config.sampler.encoder_guidance_interval
        pulled = config.sampler.replace(
            encoder_guidance_interval=(max(low, config.encoder_guidance_until), high)
        )
        given[WANTED] = PerWindow(conditions(grid, plan.window, _alone, lambda name, of: guide.wanted(of)))
        plain = around

        def around(guided: Any) -> Any:
            return guide.around(plain(guided), model.schedule, pulled, plan.pulled)

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
    store = None
    if _STATES * math.prod(shape) * 4 > plan.config.memory_gib * 2**30:
        store = CanvasStore.memmap(scratch / "arrays", shape, device=model.device)
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
