"""From a latent canvas to pixels, in bands of rows, so that any size fits in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from morphogen.diffusion import WindowLayout, feather
from morphogen.diffusion.canvas import read_part
from morphogen.nets import ComponentFirstStage, FirstStage, PixelFirstStage

WIDTH = 0.8
"""Width of the feather over a decoded window, as published."""


def decoded_bands(
    stage: FirstStage, x: Any, *, window: int, stride: int | None = None, batch: int = 8
) -> Iterator[np.ndarray]:
    """Bands (h, W, 3) float32 in −1…1, top to bottom; their heights add up to the canvas'.

    x: (1, C, H, W) scaled latents, a tensor or a canvas. window, stride: of the decoded windows in latent cells; they
    are blended by a feather. Blocks of pixels do not see one another, so they are laid out without overlap.
    """
    blocks = isinstance(stage, PixelFirstStage | ComponentFirstStage)
    layout = WindowLayout(tuple(x.shape[-2:]), window, window if blocks else (stride or max(1, window // 4)))
    factor, (height, width) = stage.factor, layout.size
    side = [min(extent, window) * factor for extent in layout.size]
    profiles = [torch.ones(n) if blocks else feather(window * factor, WIDTH)[:n].float() for n in side]
    weight = profiles[0][:, None] * profiles[1][None]
    sums = torch.zeros(3, side[0], width * factor)
    total = torch.zeros(side[0], width * factor)
    rows, columns = layout.starts
    for number, row in enumerate(rows):
        for first in range(0, len(columns), batch):
            here = columns[first : first + batch]
            rows_here = slice(row, row + window)
            cut = torch.cat([_padded(read_part(x, rows_here, slice(c, c + window)), window) for c in here])
            # Every call has one shape, so that a result does not hang on how many windows are left.
            short = batch - len(here) if len(columns) > batch else 0
            if short:
                cut = torch.cat([cut, cut[-1:].expand(short, -1, -1, -1)])
            pixels = stage.images(cut)[: len(here), :, : side[0], : side[1]].float().cpu()
            for column, value in zip(here, pixels, strict=True):
                across = slice(column * factor, column * factor + side[1])
                sums[:, :, across] += value * weight
                total[:, across] += weight
        finished = (rows[number + 1] if number + 1 < len(rows) else height) - row
        done = finished * factor
        yield (sums[:, :done] / total[:done]).permute(1, 2, 0).numpy()
        sums = torch.cat([sums[:, done:], torch.zeros(3, done, width * factor)], dim=1)
        total = torch.cat([total[done:], torch.zeros(done, width * factor)])


def as_bytes(band: np.ndarray) -> np.ndarray:
    """Pixels in −1…1 → uint8, rounded to the nearest."""
    return np.rint(np.clip((band + 1) * 127.5, 0, 255)).astype(np.uint8)


def _padded(cut: Tensor, window: int) -> Tensor:
    """A window of a canvas smaller than it, its last row and column repeated."""
    missing = (0, window - cut.shape[-1], 0, window - cut.shape[-2])
    return torch.nn.functional.pad(cut, missing, mode="replicate") if any(missing) else cut
