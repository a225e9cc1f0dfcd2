"""Noise as a pure function of seed, step and place.

A solver asks for the noise of a step; it never draws from a generator that has a past. So the same seed gives the
same noise whatever the batch, the tiling, the number of workers, or a resume in the middle. The numbers come from
Philox (Salmon et al. 2011), a counter-based generator: the seed is its key; step and place are its counter. NumPy
draws them on the CPU and a GPU draws them by itself; they are the same numbers, within 1e-6.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from morphogen.core.errors import ConfigError
from morphogen.core.philox import standard_normals
from morphogen.core.seeds import seed_for

Key = int | str | tuple
Place = tuple[int, int]
Part = tuple[slice, slice]
_AT_ONCE = 1 << 22  # numbers that a device draws together: each takes some 200 bytes on its way
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
    device:
        Where it is drawn and given.

    ``noise(step)`` is (N, *shape) float32; step −1 is the starting noise.

    >>> both = ItemNoise(0, ["spot 1", "spot 2"], (3,))(-1)
    >>> bool((both[1] == ItemNoise(0, ["spot 2"], (3,))(-1)[0]).all())
    True
    """

    def __init__(
        self, seed: int, keys: Sequence[Key], shape: Sequence[int], device: torch.device | str = "cpu"
    ) -> None:
        self.seed, self.shape, self.device = seed, tuple(shape), torch.device(device)
        self._keys = [seed_for(*key) if isinstance(key, tuple) else seed_for(key) for key in keys]

    def __len__(self) -> int:
        return len(self._keys)

    def __call__(self, step: int) -> Tensor:
        return _drawn(self.seed, step, [(key, 0) for key in self._keys], self.shape, self.device)


class Blocks:
    """Blocks of noise that were drawn, kept up to ``most`` bytes: windows that overlap ask for the same ones, in one
    batch and again in the next row. The one unused for longest goes first.
    """

    def __init__(self, most: int = 128 << 20) -> None:
        self.most, self._bytes = most, 0
        self._blocks: OrderedDict[tuple[Any, ...], Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, keys: Sequence[tuple[Any, ...]]) -> dict[tuple[Any, ...], Tensor]:
        """Those of the keys that are here."""
        with self._lock:
            found = {key: self._blocks[key] for key in keys if key in self._blocks}
            for key in found:
                self._blocks.move_to_end(key)
        return found

    def keep(self, blocks: dict[tuple[Any, ...], Tensor]) -> None:
        with self._lock:
            for key, block in blocks.items():
                if key not in self._blocks:
                    self._blocks[key] = block
                    self._bytes += block.nbytes
            while self._bytes > self.most:
                self._bytes -= self._blocks.popitem(last=False)[1].nbytes


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
    device:
        Where it is drawn and given. A CUDA device draws by itself (:mod:`~morphogen.core.philox`).
    kept:
        Where blocks are kept for windows that overlap; several fields may share one.

    ``noise(step)`` is the whole field, ``noise(step, (rows, columns))`` a part of it, both float32; step −1 is the
    starting noise.
    """

    def __init__(
        self,
        seed: int,
        shape: Sequence[int],
        block: int = 64,
        device: torch.device | str = "cpu",
        kept: Blocks | None = None,
    ) -> None:
        if len(shape) < 2:
            raise ConfigError(
                f"a canvas has at least two axes, not shape {tuple(shape)}", where="CanvasNoise"
            )
        self.seed, self.shape, self.block = seed, tuple(shape), block
        self.device, self._kept = torch.device(device), kept

    def __call__(self, step: int, region: Part | None = None) -> Tensor:
        return self.over([region or (slice(None), slice(None))])(step)[0]

    def over(self, regions: Sequence[Part]) -> Callable[[int], Tensor]:
        """``noise(step)`` for a batch of equal parts of the canvas: (n, *lead, h, w)."""
        return self._areas(
            [(*self._within(rows, -2), *self._within(columns, -1)) for rows, columns in regions]
        )

    def _within(self, part: slice, axis: int) -> tuple[int, int]:
        first, last, _ = part.indices(self.shape[axis])
        return first, max(first, last)

    def at(self, positions: Sequence[Place], size: tuple[int, int]) -> Callable[[int], Tensor]:
        """``noise(step)`` for a batch of windows of one canvas: (n, *lead, h, w), where ``positions`` are the
        (row, column) of their corners. Windows that overlap share their noise; they may reach beyond the canvas."""
        places = [(row, row + size[0], column, column + size[1]) for row, column in positions]
        if any(place[0] < 0 or place[2] < 0 for place in places):
            raise ConfigError("rows and columns start at 0", where="CanvasNoise")
        return self._areas(places)

    def _areas(self, places: Sequence[tuple[int, int, int, int]]) -> Callable[[int], Tensor]:
        needed = {block: None for place in places for block, *_ in self._overlaps(*place)}

        def noise(step: int) -> Tensor:
            if len(places) == 1 and self._kept is None and self.device.type == "cpu":
                return torch.from_numpy(self._area(step, *places[0]))[None]
            blocks = self._blocks(step, list(needed))
            return torch.stack([self._cut(blocks, *place) for place in places])

        return noise

    def _blocks(self, step: int, places: Sequence[Place]) -> dict[Place, Tensor]:
        """Blocks by (row, column): those kept, and the others drawn together."""
        keys = {place: (self.seed, self.shape[:-2], self.block, step, *place) for place in places}
        found = self._kept.find(list(keys.values())) if self._kept is not None else {}
        missing = [place for place in places if keys[place] not in found]
        if missing:
            lead = self.shape[:-2]
            drawn = _drawn(self.seed, step, missing, (*lead, self.block, self.block), self.device)
            new = dict(zip((keys[place] for place in missing), drawn.unbind(), strict=True))
            if self._kept is not None:
                self._kept.keep(new)
            found |= new
        return {place: found[key] for place, key in keys.items()}

    def _cut(self, blocks: dict[Place, Tensor], top: int, bottom: int, left: int, right: int) -> Tensor:
        """A part of the canvas out of blocks."""
        out = torch.empty((*self.shape[:-2], bottom - top, right - left), device=self.device)
        for place, here, there in self._overlaps(top, bottom, left, right):
            out[(..., *there)] = blocks[place][(..., *here)]
        return out

    def _area(self, step: int, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """The same, drawn block by block, in the memory of one block beside the result."""
        lead = self.shape[:-2]
        out = np.empty((*lead, bottom - top, right - left), dtype=np.float32)
        block, stream = np.empty((*lead, self.block, self.block), dtype=np.float32), _Stream(self.seed)
        for place, here, there in self._overlaps(top, bottom, left, right):
            stream.fill(block, step, *place)
            out[(..., *there)] = block[(..., *here)]
        return out

    def _overlaps(self, top: int, bottom: int, left: int, right: int) -> Iterator[tuple[Place, Part, Part]]:
        """Of every block that shares cells with an area: its place, those cells in the block, and in the area."""
        b = self.block
        for i in range(top // b, -(-bottom // b)):
            y0, y1 = max(top, i * b), min(bottom, (i + 1) * b)
            for j in range(left // b, -(-right // b)):
                x0, x1 = max(left, j * b), min(right, (j + 1) * b)
                here = slice(y0 - i * b, y1 - i * b), slice(x0 - j * b, x1 - j * b)
                yield (i, j), here, (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


def _drawn(
    seed: int,
    step: int,
    places: Sequence[Place],
    shape: tuple[int, ...],
    device: torch.device,
) -> Tensor:
    """(n, *shape) standard normals, a stream for each place (a, b)."""
    if device.type == "cuda" and places:
        return on_device(seed, step, places, shape, device)
    noise = np.empty((len(places), *shape), dtype=np.float32)
    stream = _Stream(seed)
    for row, place in zip(noise, places, strict=True):
        stream.fill(row, step, *place)
    return torch.from_numpy(noise).to(device)


def on_device(
    seed: int,
    step: int,
    places: Sequence[Place],
    shape: tuple[int, ...],
    device: torch.device | str,
) -> Tensor:
    """The same numbers (within 1e-6) drawn on ``device``, which must know 64-bit integers and floats; no copy comes
    back from it."""
    counters = torch.tensor([[0, step - START, a, b] for a, b in places], dtype=torch.int64)
    if torch.device(device).type == "cuda":
        counters = counters.pin_memory().to(device, non_blocking=True)
    else:
        counters = counters.to(device)
    key, count = (seed_for("noise", seed), 0), math.prod(shape)
    parts = counters.split(max(1, _AT_ONCE // max(count, 1)))
    return torch.cat([standard_normals(key, part, count) for part in parts]).view(len(places), *shape)
