"""One large canvas, a network that sees a small window.

Each step the canvas is cut into windows, the denoiser sees them in batches of one fixed size, and what it says is
blended back into one prediction for the whole canvas; the solver then makes ONE step with ONE noise. So
``solver(windowed(guided(denoiser)))`` samples a canvas of any size (MultiDiffusion, Bar-Tal et al. 2023; the canvas
sampler of Graikos et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from morphogen.core.errors import ConfigError
from morphogen.core.running.threads import in_lanes
from morphogen.diffusion.blending import (
    Blend,
    Blender,
    Cell,
    Position,
    WindowLayout,
    pair,
    shifted_cells,
    with_settled,
)
from morphogen.diffusion.canvas import (
    Canvas,
    CanvasStore,
    cut_windows,
    empty_like,
    read_part,
    runs,
    write_part,
)
from morphogen.diffusion.predictions import Denoiser, Prediction
from morphogen.diffusion.schedules import Schedule, Time

_AHEAD = 256  # windows whose conditions are made together


Settled = Callable[[Position], Tensor | None]
"""What a window at a position shows, (C, h, w), where that needs no evaluation; ``None`` elsewhere."""


class PerWindow(NamedTuple):
    """A condition that differs from window to window."""

    of: Callable[[Sequence[Position]], Tensor] | Tensor
    """One row per window of the layout, in its order; or a function from positions (row, column) to rows."""


class Crop(NamedTuple):
    """A condition as large as the canvas, of which each window sees its own part."""

    field: Tensor | Canvas
    """(1 or B, C, H, W)."""


def windowed(
    denoiser: Denoiser,
    layout: WindowLayout,
    blend: Blend = "feather",
    batch: int = 8,
    *,
    width: float = 0.5,
    lanes: int = 1,
    schedule: Schedule | None = None,
    settled: Settled | None = None,
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
        Windows per call of the denoiser. Every call has the same number of windows (the last repeats one to fill
        up), so that compiled networks keep one shape.
    lanes:
        Batches beside one another (:func:`~morphogen.core.running.threads.in_lanes`).
    schedule:
        With it x0 alone is blended, and eps is what it leaves of x; on a disk it is not written, but computed where
        it is read.
    settled:
        x0 of windows that are known, such as bare glass; the network is not asked for them. Needs the ``schedule``;
        variances that a network predicts are left out.

    Conditions wrapped in :class:`PerWindow` or :class:`Crop` are cut for the windows; other tensors are shared by
    all windows. With a :class:`Canvas` for x the result lives in its store, and memory stays within the batch.
    """
    blender = Blender(layout, blend, width)
    _check_settled(settled, schedule)

    def denoise(x: Any, t: Time, /, **condition: Any) -> Prediction:
        _check_size(x, layout.size)

        def predict(windows: Tensor, count: int, **conditions: Any) -> Sequence[Tensor | None]:
            times = t.repeat(count) if isinstance(t, Tensor) and t.ndim else t
            return _blendable(denoiser(windows, times, **conditions), schedule)

        fields = _blended(
            predict, x, layout, blender, batch, condition, lambda part: empty_like(x), lanes, settled
        )
        return _whole(fields, x, t, schedule)

    return denoise


def map_windows(
    function: Callable[..., Tensor],
    x: Tensor | Canvas,
    layout: WindowLayout,
    blend: Blend = "feather",
    batch: int = 8,
    *,
    width: float = 0.5,
    scale: int = 1,
    into: CanvasStore | None = None,
    condition: Mapping[str, Any] | None = None,
    lanes: int = 1,
    settled: Settled | None = None,
) -> Any:
    """Apply a function window by window and blend its results: decoding a large latent, staining a large image.

    Parameters
    ----------
    function:
        From windows (n, C, h, w), and conditions cut as in :func:`windowed`, to (n, C', h·scale, w·scale).
    scale:
        Result pixels per pixel of x.
    into:
        A store of the result's shape (B, C', H·scale, W·scale) to write into; then the result is a
        :class:`Canvas`. ``None`` makes a tensor.
    settled:
        Results (C', h·scale, w·scale) of windows that ``function`` is not asked for.
    """
    _check_size(x, layout.size)
    fine = layout.scaled(scale)

    def apply(windows: Tensor, count: int, **conditions: Any) -> tuple[Tensor]:
        return (function(windows, **conditions),)

    def field(part: Tensor) -> Any:
        if into is not None:
            return into.empty()
        return part.new_zeros(x.shape[0], part.shape[1], *fine.size)

    blender = Blender(fine, blend, width)
    return _blended(apply, x, layout, blender, batch, condition or {}, field, lanes, settled)[0]


def shifted_windows(
    denoiser: Denoiser,
    window: int | tuple[int, int],
    seed: int,
    batch: int = 8,
    lanes: int = 1,
    *,
    schedule: Schedule | None = None,
    settled: Settled | None = None,
) -> Denoiser:
    """A denoiser for canvases from windows that do not overlap, on a grid moved at random from step to step.

    Every pixel is predicted once a step, so a step costs a fraction of overlapping windows; seams move and average
    out over the steps (SpotDiffusion, Frolov et al. 2025). The shift is a function of ``seed`` and t. Works on any
    size; a window at the border looks inwards and is used for its own cell only. Conditions, ``schedule`` and
    ``settled`` as for :func:`windowed`, but a :class:`PerWindow` must be a function, because the windows move.
    """
    height, width = pair(window)
    _check_settled(settled, schedule)

    def denoise(x: Any, t: Time, /, **condition: Any) -> Prediction:
        if isinstance(t, Tensor):
            raise ConfigError("shifted windows need one time for the batch, a number", where="windows")
        _check_conditions(condition, x, None)
        cells = shifted_cells(x.shape[-2:], (height, width), seed, t)
        positions = shifted_positions(x.shape[-2:], (height, width), seed, t)

        def predict(windows: Tensor, count: int, **conditions: Any) -> Sequence[Tensor | None]:
            return _blendable(denoiser(windows, t, **conditions), schedule)

        fields: list[Any] = []
        for indices, parts in _evaluate(
            predict, x, positions, (height, width), batch, condition, lanes, settled
        ):
            fields = fields or [None if part is None else empty_like(x) for part in parts]
            for field, part in zip(fields, parts):
                if part is not None:
                    _write_cells(field, [cells[index] for index in indices], part)
        return _whole(fields, x, t, schedule)

    return denoise


def shifted_positions(
    size: tuple[int, int], window: int | tuple[int, int], seed: int, t: float
) -> list[Position]:
    """Where the windows lie that :func:`shifted_windows` looks at on a canvas of ``size`` at time ``t``."""
    return [(row.read, column.read) for row, column in shifted_cells(size, pair(window), seed, t)]


def _blendable(predicted: Prediction, schedule: Schedule | None) -> Sequence[Tensor | None]:
    """The parts of a window's prediction that are put together."""
    return predicted if schedule is None else (predicted.x0, None, predicted.variance_position)


def _whole(fields: Sequence[Any], x: Any, t: Time, schedule: Schedule | None) -> Prediction:
    """The canvas' prediction, eps from x and x0 where it was left out."""
    if schedule is None:
        return Prediction(*fields)
    alpha, sigma = schedule.levels_like(t, x)
    return Prediction(fields[0], (x - alpha * fields[0]) / sigma, fields[2])


# -- cutting ---------------------------------------------------------------------------------------------------


def _blended(
    predict: Callable[..., Sequence[Tensor | None]],
    x: Any,
    layout: WindowLayout,
    blender: Blender,
    batch: int,
    condition: Mapping[str, Any],
    new_field: Callable[[Tensor], Any],
    lanes: int = 1,
    settled: Settled | None = None,
) -> list[Any]:
    """Predictions of all windows, each field blended into a canvas of its own."""
    _check_conditions(condition, x, len(layout))
    fields: list[Any] = []
    evaluated = _evaluate(predict, x, layout.positions, layout.window, batch, condition, lanes, settled)
    for indices, parts in evaluated:
        fields = fields or [None if part is None else new_field(part[0]) for part in parts]
        ratios = blender.ratios(indices, x.device)
        for field, part in zip(fields, parts):
            if part is not None:
                _move_towards(field, blender.layout, indices, part, ratios)
    return fields


def _evaluate(
    predict: Callable[..., Sequence[Tensor | None]],
    x: Any,
    positions: Sequence[Position],
    window: tuple[int, int],
    batch: int,
    condition: Mapping[str, Any],
    lanes: int = 1,
    settled: Settled | None = None,
) -> Iterator[tuple[list[int], list[Any]]]:
    """Batch by batch: the windows' indices, in order, and for every field of the prediction one (B, C, h, w) each."""
    n = x.shape[0]
    if settled is not None:
        shown = {k: value for k, each in enumerate(positions) if (value := settled(each)) is not None}
        left = [k for k in range(len(positions)) if k not in shown]
        asked = (
            _evaluate(predict, x, [positions[k] for k in left], window, batch, condition, lanes)
            if left
            else ()
        )
        # Nearly always one tensor for all: a canvas may have hundreds of thousands of windows.
        unique = {id(value): value for value in shown.values()}
        expanded = {key: value.to(x.device).expand(n, *value.shape) for key, value in unique.items()}
        known = {k: expanded[id(value)] for k, value in shown.items()}
        yield from with_settled(asked, left, known, batch)
        return

    def one(work: tuple[list[int], dict[str, Any]]) -> tuple[list[int], list[Any]]:
        indices, given = work
        here = [positions[index] for index in indices]
        cut = torch.cat(cut_windows(x, here, window))
        conditions = {name: _condition(value, here, window, n, cut.device) for name, value in given.items()}
        predicted = predict(cut, len(here), **conditions)
        counting = list(dict.fromkeys(indices))  # without the repetition that fills up the last batch
        return counting, [None if part is None else part.split(n)[: len(counting)] for part in predicted]

    batches = list(_batches(len(positions), batch))
    work = _with_rows(batches, positions, condition)
    with closing(in_lanes(one, work, min(lanes, len(batches)))) as finished:
        yield from finished


def _with_rows(
    batches: list[list[int]], positions: Sequence[Position], condition: Mapping[str, Any]
) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Batches with their conditions, :class:`PerWindow` ones as the rows of a batch.

    Functions of the positions are asked for several batches at once: beside a small network, asking costs as much for
    one as for many.
    """
    given = {name: value.of for name, value in condition.items() if isinstance(value, PerWindow)}
    several = max(1, _AHEAD // len(batches[0]))
    for first in range(0, len(batches), several):
        some = batches[first : first + several]
        indices = [index for each in some for index in each]
        here = [positions[index] for index in indices]
        sizes = [len(each) for each in some]
        rows = {name: (of(here) if callable(of) else of[indices]).split(sizes) for name, of in given.items()}
        for k, each in enumerate(some):
            yield each, {**condition, **{name: PerWindow(parts[k]) for name, parts in rows.items()}}


def _batches(total: int, batch: int) -> Iterator[list[int]]:
    """Batches of one size over ``range(total)``, as even as can be; the last repeats its last index to be full."""
    if batch < 1:
        raise ConfigError(f"a batch holds at least one window, not {batch}", where="windows")
    each = math.ceil(total / math.ceil(total / batch))
    for first in range(0, total, each):
        yield [min(index, total - 1) for index in range(first, first + each)]


def _check_settled(settled: Settled | None, schedule: Schedule | None) -> None:
    if settled is not None and schedule is None:
        raise ConfigError("settled windows have no eps of their own", where="windows", fix="Give schedule=")


def _condition(
    value: Any, here: list[Position], window: tuple[int, int], n: int, device: torch.device
) -> Any:
    if isinstance(value, PerWindow):
        assert isinstance(value.of, Tensor)
        return value.of.to(device).repeat_interleave(n, dim=0)
    if isinstance(value, Crop):
        parts = cut_windows(value.field, here, window)
        return torch.cat([part.expand(n, *part.shape[1:]) for part in parts]).to(device)
    if isinstance(value, Tensor) and value.ndim:
        return value.expand(n, *value.shape[1:]).repeat(len(here), *(1,) * (value.ndim - 1))
    return value


def _check_conditions(condition: Mapping[str, Any], x: Any, windows: int | None) -> None:
    """``windows``: how many a table of conditions must have rows for; ``None`` when no table fits."""
    for name, value in condition.items():
        if isinstance(value, PerWindow) and not callable(value.of):
            if windows is None:
                raise ConfigError(
                    "shifted windows move from step to step, so a table of conditions does not fit them",
                    where=name,
                    fix="Give PerWindow a function of the positions",
                )
            if len(value.of) != windows:
                raise ConfigError(f"there are {len(value.of)} rows for {windows} windows", where=name)
        if isinstance(value, Crop) and tuple(value.field.shape[-2:]) != tuple(x.shape[-2:]):
            raise ConfigError(
                f"{tuple(value.field.shape[-2:])} is not the size of the canvas, {tuple(x.shape[-2:])}",
                where=name,
            )


# -- putting back ----------------------------------------------------------------------------------------------


def _move_towards(
    field: Any, layout: WindowLayout, indices: list[int], values: Sequence[Tensor], ratios: Tensor
) -> None:
    """Steps of the running mean; what a window shows beyond the canvas is dropped."""
    if values[0].shape[-2:] != layout.window:
        raise ConfigError(f"windows of {layout.window} were expected back, not {tuple(values[0].shape[-2:])}")
    height, width = (min(a, b) for a, b in zip(layout.window, layout.size))
    done = 0
    for row, columns in runs([layout.positions[index] for index in indices]):
        rows, across = slice(row, row + height), slice(min(columns), max(columns) + width)
        strip = read_part(field, rows, across)  # of a tensor: a view, so that the mean moves in place
        for column in columns:
            value, ratio = values[done][..., :height, :width], ratios[done][:height, :width]
            area = strip[..., column - across.start : column - across.start + width]
            area.lerp_(value.to(strip.device, strip.dtype), ratio.to(strip.device, strip.dtype))
            done += 1
        if isinstance(field, Canvas):
            write_part(field, rows, across, strip)


def _write_cells(field: Any, cells: Sequence[tuple[Cell, Cell]], values: Sequence[Tensor]) -> None:
    """What windows predict for their own cells. Neighbours in a row are written in one go: on a disk every line of a
    window lies on a page of its own."""
    for row, run in groupby(zip(cells, values), key=lambda each: each[0][0]):
        parts = [(column, value) for (_, column), value in run]
        strip = torch.cat([value[..., row.inside, column.inside] for column, value in parts], dim=-1)
        write_part(field, row.region, slice(parts[0][0].region.start, parts[-1][0].region.stop), strip)


def _check_size(x: Any, size: tuple[int, int]) -> None:
    if tuple(x.shape[-2:]) != tuple(size) or x.ndim != 4:
        raise ConfigError(
            f"the layout is for (B, C, {size[0]}, {size[1]}), not {tuple(x.shape)}", where="windows"
        )
