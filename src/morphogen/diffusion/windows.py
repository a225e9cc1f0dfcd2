"""One large canvas, a network that sees a small window.

Each step the canvas is cut into windows, the denoiser sees them in batches of one fixed size, and what it says is
blended back into one prediction for the whole canvas; the solver then makes ONE step with ONE noise. So
``solver(windowed(guided(denoiser)))`` samples a canvas of any size (MultiDiffusion, Bar-Tal et al. 2023; the canvas
sampler of Graikos et al. 2024).

Blending is a running weighted mean, ``m ← m + w/Σw·(v − m)``: where windows agree, their common value stays as it is
to the last bit, whatever the layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from morphogen.core.errors import ConfigError
from morphogen.core.seeds import seed_for
from morphogen.diffusion.canvas import Canvas
from morphogen.diffusion.predictions import Denoiser, Prediction
from morphogen.diffusion.schedules import Time

Blend = Literal["uniform", "feather"]
Position = tuple[int, int]


@dataclass(frozen=True)
class WindowLayout:
    """Windows over a canvas: at every multiple of the stride, and one flush with each far edge.

    Parameters
    ----------
    size:
        (H, W) of the canvas; any size. Where it is smaller than the window, the window sees it mirrored at its edge.
    window, stride:
        In the units of the canvas (latent pixels for a latent canvas); a number or (height, width). The stride may
        not exceed the window, or there would be gaps.
    """

    size: tuple[int, int]
    window: int | tuple[int, int]
    stride: int | tuple[int, int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", _pair(self.window))
        object.__setattr__(self, "stride", _pair(self.stride))
        for size, window, stride in zip(self.size, *(self.window, self.stride)):  # type: ignore[arg-type]
            if min(size, window, stride) < 1:
                raise ConfigError("canvas, window and stride must be at least 1", where="windows")
            if stride > window:
                raise ConfigError(
                    f"a stride of {stride} leaves gaps between windows of {window}",
                    where="windows",
                    fix="Use a stride of at most the window",
                )

    @cached_property
    def starts(self) -> tuple[list[int], list[int]]:
        """First row of each row of windows, first column of each column of windows."""
        return tuple(  # type: ignore[return-value]
            _starts(size, window, stride)
            for size, window, stride in zip(self.size, *(self.window, self.stride))  # type: ignore[arg-type]
        )

    @property
    def positions(self) -> list[Position]:
        """(row, column) of the top-left corner of each window, row by row."""
        rows, columns = self.starts
        return [(row, column) for row in rows for column in columns]

    def __len__(self) -> int:
        rows, columns = self.starts
        return len(rows) * len(columns)

    def scaled(self, factor: int) -> WindowLayout:
        """The same windows on a canvas ``factor`` times as fine, e.g. the pixels of a latent canvas.

        Needs every start to be a multiple of the stride or the edge, which scaling keeps.
        """
        return WindowLayout(
            (self.size[0] * factor, self.size[1] * factor),
            tuple(n * factor for n in self.window),  # type: ignore[union-attr]
            tuple(n * factor for n in self.stride),  # type: ignore[union-attr]
        )


class PerWindow(NamedTuple):
    """A condition that differs from window to window."""

    of: Callable[[Sequence[Position]], Tensor] | Tensor
    """One row per window of the layout, in its order; or a function from positions (row, column) to rows."""


class Crop(NamedTuple):
    """A condition as large as the canvas, of which each window sees its own part."""

    field: Tensor | Canvas
    """(1 or B, C, H, W)."""


def windowed(
    denoiser: Denoiser, layout: WindowLayout, blend: Blend = "feather", batch: int = 8, *, width: float = 0.5
) -> Denoiser:
    """A denoiser for canvases (B, C, H, W) from one for windows.

    x0 and eps are blended with the same weights, so that ``x = alpha·x0 + sigma·eps`` holds for the blend as it
    does in each window.

    Parameters
    ----------
    blend:
        ``uniform`` weighs a window's pixels alike; ``feather`` by ``exp(−r²/width²)`` with r from −1 to 1 over the
        window, so that no border shows.
    batch:
        Windows per call of the denoiser. Every call has the same number of windows (the last repeats some), so that
        compiled networks keep one shape.

    Conditions wrapped in :class:`PerWindow` or :class:`Crop` are cut for the windows; other tensors are shared by
    all windows. With a :class:`Canvas` for x the result lives in its store, and memory stays within the batch.
    """
    blender = Blender(layout, blend, width)
    positions = layout.positions

    def denoise(x: Any, t: Time, /, **condition: Any) -> Prediction:
        _check_size(x, layout.size)
        fields: list[Any] = []
        for indices, parts in _evaluate(denoiser, x, t, positions, layout.window, batch, condition):
            fields = fields or [None if part is None else _field_like(x) for part in parts]
            ratios = blender.ratios(indices, x.device)
            for field, part in zip(fields, parts):
                if part is not None:
                    for ratio, index, value in zip(ratios, indices, part):
                        _lerp(field, positions[index], value, ratio, layout)
        return Prediction(*fields)

    return denoise


def shifted_windows(denoiser: Denoiser, window: int | tuple[int, int], seed: int, batch: int = 8) -> Denoiser:
    """A denoiser for canvases from windows that do not overlap, on a grid moved at random from step to step.

    Every pixel is predicted once a step, so a step costs a fraction of overlapping windows; seams move and average
    out over the steps (SpotDiffusion, Frolov et al. 2025). The shift is a function of ``seed`` and t. Works on any
    size; a window at the border looks inwards and is used for its own cell only. Conditions as for
    :func:`windowed`; :class:`PerWindow` must be a function, because the windows move.
    """
    height, width = _pair(window)

    def denoise(x: Any, t: Time, /, **condition: Any) -> Prediction:
        rows = _cells(x.shape[-2], height, seed_for(seed, "row shift", repr(t)))
        columns = _cells(x.shape[-1], width, seed_for(seed, "column shift", repr(t)))
        cells = [(row, column) for row in rows for column in columns]
        positions = [(row.read, column.read) for row, column in cells]
        fields: list[Any] = []
        for indices, parts in _evaluate(denoiser, x, t, positions, (height, width), batch, condition):
            fields = fields or [None if part is None else _field_like(x) for part in parts]
            for field, part in zip(fields, parts):
                if part is not None:
                    for index, value in zip(indices, part):
                        row, column = cells[index]
                        _write(field, row.region, column.region, value[..., row.inside, column.inside])
        return Prediction(*fields)

    return denoise


class Blender:
    """Weights of overlapping windows as running ratios, from one table per axis.

    With separable weights w(y)·w(x) and windows in row-major order, the total weight a pixel has after window (i, j) is
    ``before_i(y)·total(x) + w(y)·upto_j(x)``, so nothing as large as the canvas is kept.
    """

    def __init__(self, layout: WindowLayout, blend: Blend = "feather", width: float = 0.5) -> None:
        if blend not in ("uniform", "feather"):
            raise ConfigError(f"unknown blend '{blend}'", where="windows", fix="Use uniform or feather")
        if width <= 0:
            raise ConfigError(f"the feather's width must be positive, not {width}", where="windows")
        tables = []
        for starts, window in zip(layout.starts, layout.window):  # type: ignore[arg-type]
            profile = torch.ones(window, dtype=torch.float64)
            if blend == "feather":
                profile = feather(window, width)
            tables.append(_axis_table(starts, profile))
        (before_y, _, _), (_, upto_x, total_x) = tables
        self._rows, self._upto, self._total = (part.float() for part in (before_y, upto_x, total_x))
        self._columns = len(layout.starts[1])

    def ratios(self, indices: Sequence[int], device: torch.device) -> Tensor:
        """(n, h, w): the share of each window in the running mean at its turn."""
        if self._rows.device != device:
            self._rows, self._upto, self._total = (
                part.to(device) for part in (self._rows, self._upto, self._total)
            )
        rows = [index // self._columns for index in indices]
        columns = [index % self._columns for index in indices]
        return 1 / (
            self._rows[rows][:, :, None] * self._total[columns][:, None] + self._upto[columns][:, None]
        )


def feather(size: int, width: float = 0.5) -> Tensor:
    """(size,) float64: ``exp(−r²/width²)``, r from −1 to 1; a window's weight is the product over its two axes."""
    r = torch.linspace(-1, 1, size, dtype=torch.float64) if size > 1 else torch.zeros(1, dtype=torch.float64)
    return torch.exp(-(r**2) / width**2)


def _axis_table(starts: Sequence[int], profile: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per window of an axis, relative to its own weight: the weight before it, up to it, and of all windows."""
    size = len(profile)
    at = torch.tensor(starts)
    offset = at[:, None, None] + torch.arange(size)[None, :, None] - at[None, None, :]  # (n, size, n)
    weight = torch.where((offset >= 0) & (offset < size), profile[offset.clamp(0, size - 1)], 0.0)
    earlier = torch.tril(torch.ones(len(starts), len(starts), dtype=torch.float64), diagonal=-1)
    before = (weight * earlier[:, None, :]).sum(-1) / profile
    return before, before + 1, weight.sum(-1) / profile


def _evaluate(
    denoiser: Denoiser,
    x: Any,
    t: Time,
    positions: Sequence[Position],
    window: Any,
    batch: int,
    condition: dict[str, Any],
) -> Iterator[tuple[list[int], list[Any]]]:
    """Predictions for windows in batches: the windows' indices, and per field of the prediction one (B, C, h, w) each."""
    n = x.shape[0]
    for indices, keep in _batches(len(positions), batch):
        here = [positions[index] for index in indices]
        cut = torch.cat([_take(x, position, window) for position in here])
        conditions = {
            name: _condition(value, indices, here, window, n, x.device) for name, value in condition.items()
        }
        times = t.repeat(len(here)) if isinstance(t, Tensor) and t.ndim else t
        predicted = denoiser(cut, times, **conditions)
        yield indices[:keep], [None if part is None else part.split(n)[:keep] for part in predicted]


def _batches(total: int, batch: int) -> Iterator[tuple[list[int], int]]:
    """Equal batches over ``range(total)``; the last repeats its last index, and says how many count."""
    if batch < 1:
        raise ConfigError(f"a batch holds at least one window, not {batch}", where="windows")
    each = math.ceil(total / math.ceil(total / batch))
    for first in range(0, total, each):
        indices = list(range(first, min(first + each, total)))
        yield indices + [indices[-1]] * (each - len(indices)), len(indices)


def _condition(
    value: Any, indices: list[int], here: list[Position], window: Any, n: int, device: torch.device
) -> Any:
    if isinstance(value, PerWindow):
        rows = value.of(here) if callable(value.of) else value.of[indices]
        return rows.to(device).repeat_interleave(n, dim=0)
    if isinstance(value, Crop):
        parts = [_take(value.field, position, window) for position in here]
        return torch.cat([part.expand(n, *part.shape[1:]) for part in parts]).to(device)
    if isinstance(value, Tensor) and value.ndim:
        return value.expand(n, *value.shape[1:]).repeat(len(here), *(1,) * (value.ndim - 1))
    return value


def _take(x: Any, position: Position, window: Any) -> Tensor:
    """The window at ``position``; a canvas smaller than the window is mirrored at its far edge."""
    (row, column), (height, width) = position, window
    rows, columns = slice(row, row + height), slice(column, column + width)
    part = x.read(rows, columns) if isinstance(x, Canvas) else x[..., rows, columns]
    if part.shape[-2] < height:
        part = part[..., _mirrored(part.shape[-2], height), :]
    if part.shape[-1] < width:
        part = part[..., _mirrored(part.shape[-1], width)]
    return part


def _mirrored(size: int, wanted: int) -> Tensor:
    around = torch.arange(wanted) % (2 * size)
    return torch.where(around < size, around, 2 * size - 1 - around)


def _lerp(field: Any, position: Position, value: Tensor, ratio: Tensor, layout: WindowLayout) -> None:
    """Move the running mean at a window towards ``value``; what hangs over the canvas is dropped."""
    height = min(value.shape[-2], layout.size[0])
    width = min(value.shape[-1], layout.size[1])
    rows, columns = (slice(start, start + n) for start, n in zip(position, (height, width)))
    value, ratio = value[..., :height, :width], ratio[:height, :width]
    if isinstance(field, Canvas):
        _write(field, rows, columns, torch.lerp(field.read(rows, columns), value.float(), ratio))
    else:
        field[..., rows, columns].lerp_(value, ratio.to(field.dtype))


def _write(field: Any, rows: slice, columns: slice, value: Tensor) -> None:
    if isinstance(field, Canvas):
        assert field.array is not None
        field.array.write((rows, columns), value)
    else:
        field[..., rows, columns] = value


def _field_like(x: Any) -> Any:
    return x.store.empty() if isinstance(x, Canvas) else torch.zeros_like(x)


class _Cell(NamedTuple):
    """A stretch of one axis that a window predicts, and where that window reads."""

    read: int
    region: slice
    inside: slice


def _cells(size: int, window: int, seed: int) -> list[_Cell]:
    edges = sorted({0, size, *range(seed % window, size, window)})
    cells = []
    for start, stop in zip(edges, edges[1:]):
        read = max(0, min(start, size - window))
        cells.append(_Cell(read, slice(start, stop), slice(start - read, stop - read)))
    return cells


def _starts(size: int, window: int, stride: int) -> list[int]:
    if size <= window:
        return [0]
    starts = list(range(0, size - window, stride))
    return [*starts, size - window]


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _check_size(x: Any, size: tuple[int, int]) -> None:
    if tuple(x.shape[-2:]) != tuple(size) or x.ndim != 4:
        raise ConfigError(
            f"the layout is for (B, C, {size[0]}, {size[1]}), not {tuple(x.shape)}", where="windows"
        )
