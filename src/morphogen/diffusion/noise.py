"""Noise as a pure function of seed, step and place.

A solver asks for the noise of a step; it never draws from a generator that has a past. So the same seed gives the
same noise whatever the batch, the tiling, the number of workers, or a resume in the middle. The numbers come from
Philox (Salmon et al. 2011), a counter-based generator: the seed is its key; step and place are its counter. They are
drawn on the CPU, so that they do not depend on the device either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from morphogen.core.errors import ConfigError
from morphogen.core.seeds import seed_for

Key = int | str | tuple
START = -1
"""The step whose noise is the starting point x_T."""


class _Stream:
    """A Philox generator that is put wherever it is needed."""

    def __init__(self, seed: int) -> None:
        self._philox = np.random.Philox(key=seed_for("noise", seed))
        self._generator = np.random.Generator(self._philox)
        self._state: Any = self._philox.state

    def fill(self, out: np.ndarray, step: int, a: int, b: int = 0) -> None:
        """Standard normals into a contiguous float32 array, from the counter (0, step, a, b) onwards."""
        self._state["state"]["counter"] = np.array([0, step - START, a, b], dtype=np.uint64)
        self._philox.state = self._state  # a fresh one but for the counter: nothing is left over from before
        self._generator.standard_normal(dtype=np.float32, out=out)


class ItemNoise:
    """Noise for a batch of independent items: spots, patches, replicates.

    Parameters
    ----------
    seed:
        Seed of the job.
    keys:
        One key per item, e.g. ``("slide", barcode, replicate)``: an integer, a string or a tuple of these. An item's
        noise depends on its key, not on its neighbours in the batch.
    shape:
        Shape of one item.

    ``noise(step)`` is (N, *shape) float32; step −1 is the starting noise.

    >>> both = ItemNoise(0, ["spot 1", "spot 2"], (3,))(-1)
    >>> bool((both[1] == ItemNoise(0, ["spot 2"], (3,))(-1)[0]).all())
    True
    """

    def __init__(self, seed: int, keys: Sequence[Key], shape: Sequence[int]) -> None:
        self.seed, self.shape = seed, tuple(shape)
        self._keys = [seed_for(*key) if isinstance(key, tuple) else seed_for(key) for key in keys]

    def __len__(self) -> int:
        return len(self._keys)

    def __call__(self, step: int) -> Tensor:
        noise = np.empty((len(self._keys), *self.shape), dtype=np.float32)
        stream = _Stream(self.seed)
        for row, key in zip(noise, self._keys):
            stream.fill(row, step, key)
        return torch.from_numpy(noise)


class CanvasNoise:
    """Noise of a field whose last two axes are space, cut into fixed blocks with a stream each.

    Parameters
    ----------
    seed:
        Seed of the job.
    shape:
        (…, H, W). Noise at a place does not depend on H and W: a larger canvas continues a smaller one.
    block:
        Side of a block. Part of what the noise is: another block, another noise.

    ``noise(step)`` is the whole field, ``noise(step, (rows, columns))`` a part of it, both float32; step −1 is the
    starting noise.
    """

    def __init__(self, seed: int, shape: Sequence[int], block: int = 64) -> None:
        if len(shape) < 2:
            raise ConfigError(
                f"a canvas has at least two axes, not shape {tuple(shape)}", where="CanvasNoise"
            )
        self.seed, self.shape, self.block = seed, tuple(shape), block

    def __call__(self, step: int, region: tuple[slice, slice] | None = None) -> Tensor:
        rows, columns = region or (slice(None), slice(None))
        top, bottom, _ = rows.indices(self.shape[-2])
        left, right, _ = columns.indices(self.shape[-1])
        return torch.from_numpy(self._area(step, top, bottom, left, right))

    def at(self, positions: Sequence[tuple[int, int]], size: tuple[int, int]) -> Callable[[int], Tensor]:
        """``noise(step)`` for a batch of windows of one canvas: (n, *lead, h, w), where ``positions`` are the
        (row, column) of their corners. Windows that overlap share their noise; they may reach beyond the canvas."""
        places = [(row, row + size[0], column, column + size[1]) for row, column in positions]
        if any(place[0] < 0 or place[2] < 0 for place in places):
            raise ConfigError("rows and columns start at 0", where="CanvasNoise")
        return lambda step: torch.from_numpy(np.stack([self._area(step, *place) for place in places]))

    def _area(self, step: int, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        lead, b = self.shape[:-2], self.block
        out = np.empty((*lead, max(bottom - top, 0), max(right - left, 0)), dtype=np.float32)
        block = np.empty((*lead, b, b), dtype=np.float32)
        stream = _Stream(self.seed)
        for i in range(top // b, -(-bottom // b)):
            y0, y1 = max(top, i * b), min(bottom, (i + 1) * b)
            for j in range(left // b, -(-right // b)):
                x0, x1 = max(left, j * b), min(right, (j + 1) * b)
                stream.fill(block, step, i, j)
                part = block[..., y0 - i * b : y1 - i * b, x0 - j * b : x1 - j * b]
                out[..., y0 - top : y1 - top, x0 - left : x1 - left] = part
        return out
