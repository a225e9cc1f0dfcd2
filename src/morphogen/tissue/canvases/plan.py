"""Sizes and windows of one canvas, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from morphogen.core.errors import ConfigError, InputError
from morphogen.core.seeds import seed_for
from morphogen.diffusion import (
    Canvas,
    PerWindow,
    WindowLayout,
    map_windows,
    shifted_positions,
    shifted_windows,
    windowed,
)
from morphogen.tissue.canvases.bare import BareCells
from morphogen.tissue.canvases.config import CanvasConfig
from morphogen.tissue.canvases.grid import EmbeddingGrid
from morphogen.tissue.guidance import WANTED
from morphogen.tissue.model import TissueDiffusion


class CanvasPlan:
    """Sizes and windows of one canvas.

    Parameters
    ----------
    model, grid, config:
        As for :func:`~morphogen.tissue.draw_canvas`.
    width, height:
        In pixels; by default that of the grid.

    Attributes
    ----------
    size:
        (H, W) in latent cells; the image is cut to ``height`` × ``width`` pixels in the end.
    glass:
        The bare cells of the grid, where there are any and ``config`` fills them.
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
        self.glass: BareCells | None = None
        if config.glass == "fill" and grid.bare is not None and grid.glass is not None and grid.bare.any():
            self.glass = BareCells(grid.bare, grid.glass, model.first_stage, self.window, model.device)

    @property
    def layout(self) -> WindowLayout:
        """The overlapping windows."""
        return WindowLayout(self.size, self.window, self.stride)

    def windows(self, t: float) -> int:
        """Windows looked at in the step at time ``t``."""
        if self.config.blend == "shifted" and t not in self.overlapped:
            positions = shifted_positions(self.size, self.window, self.shift_seed, t)
        else:
            positions = self.layout.positions
        glass = self.glass
        return len(positions) if glass is None else sum(glass.settled(each) is None for each in positions)

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
        config, batch, glass = self.config, self.config.batch, self.glass
        settled = None if glass is None else glass.settled

        def make(inner: Any) -> Any:
            if glass is not None:
                inner = glass.pinned(inner, self.schedule)
            blend = "uniform" if config.blend == "uniform" else "feather"
            overlapping = windowed(
                inner,
                self.layout,
                blend,  # type: ignore[arg-type]
                batch,
                lanes=self.lanes,
                schedule=self.schedule,
                settled=settled,
            )
            if config.blend != "shifted":
                return overlapping
            moving = shifted_windows(
                inner,
                self.window,
                self.shift_seed,
                batch,
                self.lanes,
                schedule=self.schedule,
                settled=settled,
            )
            last = set(self.overlapped)

            def denoise(x: Any, t: Any, /, **condition: Any) -> Any:
                return (overlapping if t in last else moving)(x, t, **condition)

            return denoise

        return make

    def pulled(self, pull: Callable[..., Tensor], x0: Any, wanted: Any) -> Any:
        """``pull`` on every cell of the grid, each towards its own vector.

        The windows of the network move, and what they want lies between the vectors of cells; the vector of a cell is
        known exactly. Glass stays as it is.
        """
        glass, condition = self.glass, {WANTED: wanted}
        if glass is not None:
            condition["bare"] = PerWindow(glass.inside)

        def pulled(items: Tensor, wanted: Tensor, bare: Tensor | None = None) -> Tensor:
            moved = pull(items, wanted)
            return moved if bare is None else torch.where(bare, items, moved)

        return map_windows(
            pulled,
            x0,
            WindowLayout(self.size, self.window, self.window),
            batch=self.config.batch,
            into=x0.store if isinstance(x0, Canvas) else None,
            condition=condition,
            lanes=self.lanes,
            settled=None if glass is None else glass.settled,
        )

    def borders(self, factor: int) -> tuple[list[int], list[int]]:
        """Columns and rows of pixels where windows of the overlapped steps begin: for the seam score."""
        rows, columns = self.layout.starts
        return (
            [c * factor for c in columns if 0 < c * factor < self.width],
            [r * factor for r in rows if 0 < r * factor < self.height],
        )
