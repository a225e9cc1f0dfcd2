"""Noise as a pure function of seed, step and place.

A solver asks for the noise of a step; it never draws from a generator that has a past. So the same seed gives the
same noise whatever the batch, the tiling, the number of workers, or a resume in the middle. The numbers come from
Philox (Salmon et al. 2011), a counter-based generator: seed is its key; step and place are its counter. They are
drawn on the CPU, so that they do not depend on the device either.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from morphogen.core.errors import ConfigError
from morphogen.core.seeds import seed_for

START = -1
"""The step whose noise is the starting point x_T."""


class _Source:
    """One Philox generator, put wherever it is needed."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.Philox(key=seed_for("noise", seed))
        self._generator = np.random.Generator(self._bits)
        self._state = self._bits.state

    def fill(self, out: np.ndarray, step: int, a: int, b: int = 0) -> None:
        """Standard normals into a contiguous float32 array, from counter (0, step, a, b)."""
        self._state["state"]["counter"] = np.array([0, step + 1, a, b], dtype=np.uint64)
        self._state["buffer_pos"], self._state["has_uint32"] = 4, 0  # nothing left over from before
        self._bits.state = self._state
        self._generator.standard_normal(dtype=np.float32, out=out)


class ItemNoise:
    """Noise for a batch of independent items (spots, patches, replicates).

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
    """

    def __init__(self, seed: int, keys: Sequence[Hashable], shape: Sequence[int]) -> None:
        self.seed, self.shape = seed, tuple(shape)
        self._keys = [seed_for(*key) if isinstance(key, tuple) else seed_for(key) for key in keys]  # type: ignore[arg-type]
        self._source = _Source(seed)

    def __len__(self) -> int:
        return len(self._keys)

    def __call__(self, step: int) -> Tensor:
        noise = np.empty((len(self._keys), *self.shape), dtype=np.float32)
        for row, key in zip(noise, self._keys):
            self._source.fill(row, step, key)
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

    ``noise(step)`` is the whole field, ``noise(step, (rows, columns))`` a part of it, both float32.
    """

    def __init__(self, seed: int, shape: Sequence[int], block: int = 64) -> None:
        if len(shape) < 2:
            raise ConfigError(
                f"a canvas has at least two axes, not shape {tuple(shape)}", where="CanvasNoise"
            )
        self.seed, self.shape, self.block = seed, tuple(shape), block
        self._source = _Source(seed)

    def __call__(self, step: int, region: tuple[slice, slice] | None = None) -> Tensor:
        *lead, height, width = self.shape
        top, bottom = _span(region[0] if region else slice(None), height)
        left, right = _span(region[1] if region else slice(None), width)
        out = np.empty((*lead, bottom - top, right - left), dtype=np.float32)
        b = self.block
        buffer = np.empty((*lead, b, b), dtype=np.float32)
        for i in range(top // b, -(-bottom // b)):
            y0, y1 = max(top, i * b), min(bottom, (i + 1) * b)
            for j in range(left // b, -(-right // b)):
                x0, x1 = max(left, j * b), min(right, (j + 1) * b)
                self._source.fill(buffer, step, i, j)
                out[..., y0 - top : y1 - top, x0 - left : x1 - left] = buffer[
                    ..., y0 - i * b : y1 - i * b, x0 - j * b : x1 - j * b
                ]
        return torch.from_numpy(out)


def _span(part: slice, size: int) -> tuple[int, int]:
    start, stop, _ = part.indices(size)
    return start, stop
