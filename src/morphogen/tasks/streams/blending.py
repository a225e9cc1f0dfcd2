"""Windows of a row blended into finished rows of the image, on the device that made them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from morphogen.core.running.transfers import fetched
from morphogen.diffusion import feather
from morphogen.tasks.windows import WindowPlan


class Blending:
    """Weighted sums of the windows of the rows that are not finished yet.

    Everything stays on the device until a band of rows is taken; where windows were is known without asking it.

    Parameters
    ----------
    channels:
        Planes of a window.
    """

    def __init__(self, plan: WindowPlan, channels: int) -> None:
        self.plan, self.channels = plan, channels
        self._profile = feather(plan.side).float()
        self._covered = np.zeros((plan.side, plan.width), bool)
        self._sums: Tensor | None = None
        self._weights = self._weight = torch.empty(0)

    def add(self, row: int, columns: list[int], planes: Tensor) -> None:
        """A batch of windows (n, C, window, window); their row must be the one that is being filled."""
        plan, side = self.plan, self.plan.side
        values = at_source(planes, side)
        if self._sums is None:
            self._weight = (self._profile[:, None] * self._profile[None]).to(values.device)
            self._sums = values.new_zeros(self.channels, side, plan.width)
            self._weights = values.new_zeros(side, plan.width)
        height = min(side, plan.height - plan.rows[row])
        for window, column in zip(values.unbind(), columns, strict=True):
            left = plan.columns[column]
            right = min(left + side, plan.width)
            weight = self._weight[:height, : right - left]
            self._sums[:, :height, left:right].addcmul_(window[:, :height, : right - left], weight)
            self._weights[:height, left:right] += weight
            self._covered[:height, left:right] = True

    def take(self, row: int) -> tuple[Callable[[], np.ndarray], np.ndarray]:
        """Values (C, h, width) float32, on their way, and where there are any (h, width), of the rows that no later
        window reaches.

        The one copy from the device for a band.
        """
        top, bottom = self.plan.bands()[row]
        height = bottom - top
        covered = self._covered[:height].copy()
        _move_up(self._covered, height)
        if self._sums is None:  # no window so far: all glass
            nothing = np.zeros((self.channels, height, self.plan.width), np.float32)
            return (lambda: nothing), covered
        # Outside of windows sums and weights are 0.
        values = self._sums[:, :height] / self._weights[:height].clamp_min(torch.finfo(torch.float32).tiny)
        found = fetched(values)
        for sums in (self._sums, self._weights):
            _move_up(sums, height)
        return found, covered


def _move_up(rows: Tensor | np.ndarray, by: int) -> None:
    """The first ``by`` rows (of the last axis but one) leave, the others follow, zeros come in below."""
    rest = rows[..., by:, :]
    kept = rest.clone() if isinstance(rest, Tensor) else rest.copy()
    rows[..., : kept.shape[-2], :] = kept
    rows[..., kept.shape[-2] :, :] = 0


def at_source(planes: Tensor, side: int) -> Tensor:
    """(n, C, side, side) float32 of windows (n, C, window, window), at the scale of the source."""
    values = planes.float()
    if values.shape[-1] == side:
        return values
    return torch.nn.functional.interpolate(
        values, size=(side, side), mode="bicubic", antialias=values.shape[-1] > side, align_corners=False
    )
