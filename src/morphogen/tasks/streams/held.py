"""Decoded pictures of a training set: kept in memory, shared with worker processes, or on the device itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import Tensor

from morphogen.core.progress import progress
from morphogen.core.running.pipeline import ahead
from morphogen.core.running.threads import cpu_cores
from morphogen.tasks.streams.turns import squares

log = logging.getLogger("morphogen.tasks")

_SHARE = 0.25  # of a GPU's free memory that pictures may take


class HeldImages:
    """Pictures by number, each in one or more layers (H, W) or (H, W, C) of one size, as tensors.

    What was read stays until ``gib`` are full; the rest is read again at every call. Crops come in random order, so
    keeping the latest instead would save no more reading.

    Parameters
    ----------
    read:
        The layers of a picture.
    count:
        How many pictures there are.
    """

    def __init__(self, read: Callable[[int], Sequence[np.ndarray]], count: int, gib: float) -> None:
        self._read, self.count, self._budget = read, count, int(gib * 2**30)
        self._kept: dict[int, tuple[Tensor, ...]] = {}
        self.bytes = 0
        self._flat: tuple[list[Tensor], Tensor, Tensor] | None = None

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._kept)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        if index not in self._kept:
            return self._keep(index, self._decoded(index))
        return self._kept[index]

    def size(self, index: int) -> tuple[int, int] | None:
        """(H, W) of a picture that is kept."""
        kept = self._kept.get(index)
        return None if kept is None else (kept[0].shape[0], kept[0].shape[1])

    def _decoded(self, index: int) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(np.ascontiguousarray(layer)) for layer in self._read(index))

    def _keep(self, index: int, layers: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        size = sum(layer.nbytes for layer in layers)
        if self.bytes + size <= self._budget:
            self._kept[index] = layers
            self.bytes += size
        return layers

    # -- made ready for a training

    def prepare(self, device: torch.device, *, resident: bool = True) -> None:
        """Decode what fits, by all cores: worker processes that start after this share the memory. With ``resident``
        pictures that all fit, into a quarter of a GPU's free memory too, are copied to the GPU."""
        missing = [index for index in range(self.count) if index not in self._kept]
        decoded = ahead(self._decoded, missing, threads=cpu_cores())
        with closing(decoded), progress.bar(len(missing), "decoding images") as bar:
            for index, layers in zip(missing, decoded):
                self._keep(index, layers)
                if index not in self._kept:
                    log.info(
                        "%d of %d images fit into memory_gib; the others are decoded again for every crop.",
                        len(self._kept),
                        self.count,
                    )
                    break
                bar.advance()
        if resident and device.type != "cpu" and len(self._kept) == self.count and self._has_room(device):
            self.move(device)

    def _has_room(self, device: torch.device) -> bool:
        return device.type == "cuda" and self.bytes <= _SHARE * torch.cuda.mem_get_info(device)[0]

    def move(self, device: torch.device) -> None:
        """Copy all pictures to a device; from there :meth:`cut_there` takes them."""
        pictures = [self[index] for index in range(self.count)]
        flat = []
        for number in range(len(pictures[0])):
            layers = [picture[number].flatten(0, 1) for picture in pictures]
            whole = torch.empty(
                (sum(map(len, layers)), *layers[0].shape[1:]), dtype=layers[0].dtype, device=device
            )
            for part, layer in zip(whole.split([len(layer) for layer in layers]), layers, strict=True):
                part.copy_(layer)
            flat.append(whole)
        sizes = torch.tensor([picture[0].shape[:2] for picture in pictures])
        areas = sizes.prod(1)
        self._flat = flat, (areas.cumsum(0) - areas).to(device), sizes[:, 1].to(device)

    @property
    def resident(self) -> bool:
        """Whether all pictures lie on the device."""
        return self._flat is not None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_flat": None}  # worker processes have no business on the device

    # -- crops

    def cut(self, places: np.ndarray, side: int) -> list[Tensor]:
        """Squares of every layer, (B, side, side) or (B, side, side, C) on the host, of the rows (number, top, left, …)
        of ``places``; not turned."""
        pictures = [self[index] for index in places[:, 0].tolist()]
        found = []
        for layer in range(len(pictures[0])):
            first = pictures[0][layer].numpy()
            batch = np.empty((len(places), side, side, *first.shape[2:]), first.dtype)
            for out, picture, (top, left) in zip(batch, pictures, places[:, 1:3].tolist(), strict=True):
                out[...] = picture[layer].numpy()[top : top + side, left : left + side]
            found.append(torch.from_numpy(batch))
        return found

    def cut_there(self, places: Tensor, side: int) -> list[Tensor]:
        """Squares of every layer on the device, of the rows (number, top, left, turn) of ``places``; turned."""
        assert self._flat is not None
        flat, starts, widths = self._flat
        index = places[:, 0]
        return [
            squares(layer, starts[index], widths[index], places[:, 1:3], places[:, 3], side) for layer in flat
        ]
