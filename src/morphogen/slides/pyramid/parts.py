"""Tiles of a pyramid that are not whole yet: in memory up to a limit, beyond it in the scratch file."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from morphogen.slides.pyramid.spool import PART, Spool

Place = tuple[int, int]  # row, column of a tile of the full resolution


@dataclass
class Part:
    """Pixels (h, w, channels) of an unfinished tile, and which of them are there (h, w)."""

    pixels: np.ndarray
    filled: np.ndarray

    @property
    def nbytes(self) -> int:
        """Memory taken."""
        return self.pixels.nbytes + self.filled.nbytes


class Parts:
    """Unfinished tiles by place.

    ``shape(row, column)`` gives the height and width of a tile; ``limit`` the bytes that may stay in memory.
    """

    def __init__(
        self,
        spool: Spool,
        shape: Callable[[int, int], tuple[int, int]],
        channels: int,
        fill: int,
        limit: int,
        dtype: str = "uint8",
    ) -> None:
        self._spool, self._shape, self._channels = spool, shape, channels
        self._fill, self._limit, self._dtype = fill, limit, dtype
        self._held: OrderedDict[Place, Part] = OrderedDict()
        self._bytes = 0

    def look(self, place: Place) -> Part | None:
        """The unfinished tile, if any of it was written."""
        if place in self._held:
            return self._held[place]
        key = (0, *place)
        if not self._spool.has_part(key):
            return None
        raw = np.frombuffer(zlib.decompress(self._spool.read(key, PART)), self._dtype)
        planes = raw.reshape(*self._shape(*place), self._channels + 1)
        return Part(planes[..., :-1].copy(), planes[..., -1] > 0)

    def open(self, place: Place) -> Part:
        """The unfinished tile to write into, made when it is not there, and kept in memory for now."""
        part = self._held.get(place)
        if part is None:
            part = self.look(place)
            if part is None:
                shape = self._shape(*place)
                part = Part(np.full((*shape, self._channels), self._fill, self._dtype), np.zeros(shape, bool))
            self._held[place] = part
            self._bytes += part.nbytes
        self._held.move_to_end(place)
        return part

    def forget(self, place: Place) -> None:
        """The tile is whole."""
        part = self._held.pop(place, None)
        if part is not None:
            self._bytes -= part.nbytes

    def shrink(self, limit: int | None = None) -> None:
        """Put tiles on disk, the longest untouched first, until memory is within the limit (0: all of
        them)."""
        limit = self._limit if limit is None else limit
        while self._held and self._bytes > limit:
            place, part = next(iter(self._held.items()))
            planes = np.concatenate([part.pixels, part.filled[..., None].astype(self._dtype)], axis=2)
            self._spool.add((0, *place), zlib.compress(planes.tobytes(), 1), PART)
            self.forget(place)

    def places(self) -> list[Place]:
        """All unfinished tiles, in raster order."""
        return sorted(set(self._held) | {(row, column) for _, row, column in self._spool.parts()})
