"""Bare glass on a canvas: known beforehand, so that no network is asked for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from morphogen.core.running.transfers import sent
from morphogen.diffusion import Denoiser, Schedule
from morphogen.diffusion.blending import Position
from morphogen.diffusion.guidance import pinned
from morphogen.nets import FirstStage

#: The condition that holds where a window is glass, as :meth:`BareCells.kept` makes it.
KEPT = "kept"


class BareCells:
    """The cells of a grid that are bare glass.

    A bare cell has the colour of the source's glass; over a quarter of a cell from its neighbours that are drawn, it
    goes over into what the network sees there. Windows with nothing else in them need no evaluation. Nothing transmits
    more light than glass: what is drawn brighter, as networks draw the glass beside tissue, gets its colour, too.

    Parameters
    ----------
    bare:
        (R, C) bool.
    colour:
        (3,) RGB of the glass, 0–255.
    stage:
        Pixels ↔ latents.
    cell:
        Side of a cell, and of a window, in latent cells.
    device:
        Where ``stage`` is.
    """

    def __init__(
        self,
        bare: np.ndarray,
        colour: np.ndarray,
        stage: FirstStage,
        cell: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.cell, self.reach, self.device = cell, max(1, cell // 4), torch.device(device)
        self.colour = np.rint(colour).astype(np.uint8)
        # Beyond the border the grid's last cells go on.
        self._bare = np.pad(bare, 2, mode="edge")
        side = cell * stage.factor
        pixels = torch.as_tensor(colour, dtype=torch.float32).view(1, 3, 1, 1) / 127.5 - 1
        with torch.no_grad():
            self.latent: Tensor = stage.latents(pixels.expand(1, 3, side, side).to(device))

    def settled(self, position: Position) -> Tensor | None:
        """The latent (C, h, w) of a window with nothing but glass within reach; ``None`` for others."""
        return self.latent[0] if self._around(position).all() else None

    def inside(self, positions: Sequence[Position]) -> Tensor:
        """(N, 1, 1, 1) bool: windows in which every cell is bare, whatever lies beside them."""
        found = []
        for position in positions:
            rows, columns = (
                slice(start // self.cell + 2, (start + self.cell - 1) // self.cell + 3) for start in position
            )
            found.append(bool(self._bare[rows, columns].all()))
        return sent(torch.tensor(found).view(-1, 1, 1, 1), self.device)

    def kept(self, positions: Sequence[Position]) -> Tensor:
        """(N, 1, h, w): 1 where windows are glass, 0 where they are drawn, in between around drawn cells."""
        out = torch.zeros(len(positions), 1, self.cell, self.cell)
        for number, position in enumerate(positions):
            around = self._around(position)
            if around.any():
                out[number, 0] = 1.0 if around.all() else torch.from_numpy(self._soft(position))
        return sent(out, self.device)

    def behind(self, pixels: np.ndarray) -> np.ndarray:
        """A picture (H, W, 3) uint8 with no channel brighter than the glass."""
        return np.minimum(pixels, self.colour)

    def pinned(self, denoiser: Denoiser, schedule: Schedule) -> Denoiser:
        """A denoiser of windows whose x0 is glass where the condition :data:`KEPT` says so."""

        def denoise(x: Tensor, t: Any, /, **condition: Any) -> Any:
            kept = condition.pop(KEPT)
            return pinned(denoiser, self.latent, kept, schedule)(x, t, **condition)

        return denoise

    def _span(self, start: int) -> slice:
        """The cells that a window at ``start`` sees, and those within reach of it."""
        first, last = start - self.reach, start + self.cell + self.reach - 1
        return slice(first // self.cell + 2, last // self.cell + 3)

    def _around(self, position: Position) -> np.ndarray:
        return self._bare[self._span(position[0]), self._span(position[1])]

    def _soft(self, position: Position) -> np.ndarray:
        """(h, w) float32: how far from drawn cells, as a smooth step over the reach."""
        around = self._around(position).astype(np.uint8)
        fine = around.repeat(self.cell, 0).repeat(self.cell, 1)
        away = cv2.distanceTransform(fine, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        top, left = (start - (self._span(start).start - 2) * self.cell for start in position)
        part = np.clip(away[top : top + self.cell, left : left + self.cell] / self.reach, 0, 1)
        return (part * part * (3 - 2 * part)).astype(np.float32)
