"""Where windows lie on a canvas, and how overlapping results become one.

Blending is a running weighted mean: window after window, ``m ← m + w/Σw·(v − m)``. Where windows agree, their common
value stays as it is to the last bit, whatever the layout and the weights; and nothing is divided by zero, since the
first window at a pixel has the share 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from morphogen.core.errors import ConfigError
from morphogen.core.seeds import seed_for

Blend = Literal["uniform", "feather"]
Position = tuple[int, int]

_KEPT_RATIOS = 1 << 24  # numbers; beyond this many they are computed anew at every step


class WindowLayout:
    """Windows over a canvas: at every multiple of the stride, and one flush with each far edge.

    Parameters
    ----------
    size:
        (H, W) of the canvas; any size. Where it is smaller than the window, the window sees it mirrored at its edge.
    window, stride:
        In the units of the canvas (latent pixels for a latent canvas); a number or (height, width). The stride may
        not exceed the window, or there would be gaps.

    Attributes
    ----------
    starts:
        First row of each row of windows, first column of each column of windows.
    positions:
        (row, column) of the top-left corner of each window, row by row.
    """

    def __init__(
        self, size: tuple[int, int], window: int | tuple[int, int], stride: int | tuple[int, int]
    ) -> None:
        self.size, self.window, self.stride = pair(size), pair(window), pair(stride)
        for extent, side, step in zip(self.size, self.window, self.stride):
            if min(extent, side, step) < 1:
                raise ConfigError("canvas, window and stride must be at least 1", where="windows")
            if step > side:
                raise ConfigError(
                    f"a stride of {step} leaves gaps between windows of {side}",
                    where="windows",
                    fix="Use a stride of at most the window",
                )
        self.starts: tuple[list[int], list[int]] = (
            _starts(self.size[0], self.window[0], self.stride[0]),
            _starts(self.size[1], self.window[1], self.stride[1]),
        )
        self.positions: list[Position] = [
            (row, column) for row in self.starts[0] for column in self.starts[1]
        ]

    def __len__(self) -> int:
        return len(self.positions)

    def scaled(self, factor: int) -> WindowLayout:
        """The same windows on a canvas ``factor`` times as fine, e.g. on the pixels of a latent canvas."""
        sides = [(a * factor, b * factor) for a, b in (self.size, self.window, self.stride)]
        return WindowLayout(*sides)


class Blender:
    """The share of each window in the running mean, from one table per axis.

    With separable weights w(y)·w(x) and windows in row-major order, the weight gathered at a pixel after window (i, j)
    is ``before_i(y)·total(x) + w(y)·upto_j(x)``, so nothing as large as the canvas is kept.

    Parameters
    ----------
    blend:
        ``uniform``, or ``feather`` of this ``width``; see :func:`feather`.
    """

    def __init__(self, layout: WindowLayout, blend: Blend = "feather", width: float = 0.5) -> None:
        if blend not in ("uniform", "feather"):
            raise ConfigError(f"unknown blend '{blend}'", where="windows", fix="Use uniform or feather")
        if width <= 0:
            raise ConfigError(f"the feather's width must be positive, not {width}", where="windows")
        self.layout = layout
        tables = []
        for starts, side in zip(layout.starts, layout.window):
            profile = torch.ones(side, dtype=torch.float64) if blend == "uniform" else feather(side, width)
            tables.append(_axis_table(starts, profile))
        (self._before, _, _), (_, self._upto, self._total) = tables
        self._keep = len(layout) * layout.window[0] * layout.window[1] <= _KEPT_RATIOS
        self._kept: dict[tuple[torch.device, int, int], Tensor] = {}

    def ratios(self, indices: Sequence[int], device: torch.device) -> Tensor:
        """(n, h, w) float32: the share of each of these consecutive windows at its turn."""
        key = (device, indices[0], len(indices))
        if key in self._kept:
            return self._kept[key]
        columns = len(self.layout.starts[1])
        rows, across = [i // columns for i in indices], [i % columns for i in indices]
        before, upto, total = (
            table[which].float().to(device)
            for table, which in ((self._before, rows), (self._upto, across), (self._total, across))
        )
        ratios = 1 / (before[:, :, None] * total[:, None] + upto[:, None])
        if self._keep:
            self._kept[key] = ratios
        return ratios


def feather(size: int, width: float = 0.5) -> Tensor:
    """(size,) float64: ``exp(−r²/width²)``, r from −1 to 1. A window's weight is the product over its two axes."""
    r = torch.linspace(-1, 1, size, dtype=torch.float64) if size > 1 else torch.zeros(1, dtype=torch.float64)
    return torch.exp(-(r**2) / width**2)


def _axis_table(starts: Sequence[int], profile: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(n, size) each: the weight of the windows before, of those up to, and of all, relative to the window's own."""
    n, size = len(starts), len(profile)
    before, total = profile.new_zeros(n, size), profile.repeat(n, 1)
    for i in range(n):
        for j in range(i + 1, n):
            shift = starts[j] - starts[i]
            if shift >= size:
                break
            # The last `size − shift` pixels of window i are the first ones of window j.
            total[i, shift:] += profile[: size - shift]
            total[j, : size - shift] += profile[shift:]
            before[j, : size - shift] += profile[shift:]
    before, total = before / profile, total / profile
    return before, before + 1, total


def _starts(size: int, window: int, stride: int) -> list[int]:
    if size <= window:
        return [0]
    return [*range(0, size - window, stride), size - window]


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    """One number for both axes, or one each."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


class Cell(NamedTuple):
    """A stretch of one axis that a window predicts, and where that window reads."""

    read: int
    region: slice
    inside: slice


def shifted_cells(
    size: Sequence[int], window: tuple[int, int], seed: int, t: float
) -> list[tuple[Cell, Cell]]:
    """The cells of one step, row by row: (vertical, horizontal)."""
    rows = _cells(size[0], window[0], seed_for(seed, "rows", repr(float(t))))
    columns = _cells(size[1], window[1], seed_for(seed, "columns", repr(float(t))))
    return [(row, column) for row in rows for column in columns]


def _cells(size: int, window: int, seed: int) -> list[Cell]:
    """Cells of a grid that starts at a random offset; the first and the last may be cut by the border."""
    edges = sorted({0, size, *range(seed % window, size, window)})
    cells = []
    for start, stop in zip(edges, edges[1:]):
        read = max(0, min(start, size - window))
        cells.append(Cell(read, slice(start, stop), slice(start - read, stop - read)))
    return cells


def with_settled(
    asked: Iterable[tuple[list[int], list[Any]]],
    left: Sequence[int],
    settled: Mapping[int, Tensor],
    batch: int,
) -> Iterator[tuple[list[int], list[Any]]]:
    """The windows that were evaluated and those that needed none, together in the order of the layout.

    asked: places in ``left`` and what was predicted there, batch by batch; only the first field is passed on. left:
    the windows evaluated, by index. settled: the first field of all others. At most ``batch`` windows are given at a
    time, so that memory does not grow with the canvas.
    """
    evaluated = (
        (left[place], value)
        for indices, parts in asked
        for place, value in zip(indices, parts[0], strict=True)
    )
    waiting = next(evaluated, None)
    indices, values = [], []
    for index in range(len(left) + len(settled)):
        if waiting is not None and waiting[0] == index:
            values.append(waiting[1])
            waiting = next(evaluated, None)
        else:
            values.append(settled[index])
        indices.append(index)
        if len(indices) == batch:
            yield indices, [values, None, None]
            indices, values = [], []
    if indices:
        yield indices, [values, None, None]
