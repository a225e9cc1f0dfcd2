"""Where the windows of an image lie that is larger than what a network sees at once.

A room plans its windows with :func:`plan_windows` from what its model says of itself (:class:`WindowModel`) and hands
the plan to :mod:`morphogen.tasks.bands`.
"""

from __future__ import annotations

import math
from typing import Protocol

from morphogen.core.errors import ConfigError
from morphogen.diffusion import WindowLayout
from morphogen.tasks.config import WindowConfig

SAME_SCALE = 0.10  # relative difference of µm/px up to which a source is taken as it is


class WindowModel(Protocol):
    """What a plan needs to know of a model.

    multiple: sides of a window are multiples of this many pixels. factor: pixels per latent cell. crop: side in pixels
    of the windows it was trained on. mpp: µm/px it was trained at, ``None`` where that is not known.
    """

    @property
    def multiple(self) -> int: ...

    @property
    def factor(self) -> int: ...

    @property
    def crop(self) -> int: ...

    @property
    def mpp(self) -> float | None: ...


class WindowPlan:
    """Where the windows of one image lie.

    Parameters
    ----------
    width, height:
        Size of the source in pixels.
    ratio:
        Source pixels per model pixel.
    window, overlap:
        In model pixels, multiples of ``cell``.
    cell:
        Model pixels per latent cell.

    Attributes
    ----------
    rows, columns:
        First source row of each row of windows, first source column of each column.
    side:
        Side of a window in source pixels.
    """

    def __init__(
        self, width: int, height: int, window: int, overlap: int, *, ratio: float = 1.0, cell: int = 1
    ) -> None:
        self.width, self.height, self.window, self.ratio, self.cell = width, height, window, ratio, cell
        model = tuple(math.ceil(math.ceil(size / ratio) / cell) * cell for size in (height, width))
        layout = WindowLayout(
            (model[0] // cell, model[1] // cell), window // cell, max(1, (window - overlap) // cell)
        )
        self.cells = layout.starts
        self.canvas = max(model[0], window) // cell, max(model[1], window) // cell
        self.side = round(window * ratio)
        self.rows, self.columns = (
            [round(start * cell * ratio) for start in starts] for starts in layout.starts
        )

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    @property
    def whole(self) -> bool:
        """Whether the image is one window, pixel for pixel."""
        return len(self) == 1 and self.side == self.window == self.width == self.height

    def bands(self) -> list[tuple[int, int]]:
        """(top, bottom) of the rows that are finished after each row of windows."""
        edges = [*self.rows, self.height]
        return [(edges[i], edges[i + 1]) for i in range(len(self.rows))]

    def borders(self) -> tuple[list[int], list[int]]:
        """Columns and rows at which a window begins or ends, within the image: for the seam score."""
        return tuple(  # type: ignore[return-value]
            sorted({p for start in starts for p in (start, start + self.side) if 0 < p < size})
            for starts, size in ((self.columns, self.width), (self.rows, self.height))
        )

    def rows_for(self, band: int) -> list[int]:
        """Rows of windows that a band is made of."""
        top, bottom = self.bands()[band]
        return [i for i, start in enumerate(self.rows) if start < bottom and start + self.side > top]

    def region(self, row: int, column: int) -> tuple[slice, slice]:
        """Latent cells of a window on the canvas of the whole image."""
        size = self.window // self.cell
        top, left = self.cells[0][row], self.cells[1][column]
        return slice(top, top + size), slice(left, left + size)


def plan_windows(
    model: WindowModel, config: WindowConfig, width: int, height: int, ratio: float = 1.0
) -> WindowPlan:
    """The plan for an image of ``width`` × ``height`` source pixels with ``ratio`` source pixels per model
    pixel; :class:`ConfigError` for windows that do not fit the network.
    """
    multiple, cell = model.multiple, model.factor
    window = config.window or model.crop
    if window % multiple:
        raise ConfigError(
            f"a window of {window} px does not fit this network",
            where="windows.window",
            fix=f"Use a multiple of {multiple}",
        )
    overlap = config.overlap
    if overlap is None:
        overlap = window // 4
    overlap = overlap // cell * cell
    if overlap >= window:
        raise ConfigError(
            f"an overlap of {overlap} px leaves nothing of a window of {window} px", where="windows.overlap"
        )
    # An image smaller than the window is seen by a window of its own size (rounded up), not by a mostly
    # mirrored one.
    least = max(multiple, math.ceil(min(width, height) / ratio / multiple) * multiple)
    window = min(window, least)
    overlap = min(overlap, window // 2 // cell * cell)
    return WindowPlan(width, height, window, overlap, ratio=ratio, cell=cell)


def scale_between(source_mpp: float | None, model_mpp: float | None) -> float:
    """Source pixels per model pixel; 1 where either is unknown or the two are within 10 %."""
    if source_mpp is None or model_mpp is None:
        return 1.0
    ratio = model_mpp / source_mpp
    return 1.0 if abs(ratio - 1) <= SAME_SCALE else ratio
