"""Tiles of all levels as they lie in the scratch file: whole, or every named channel by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from morphogen.slides.pyramid.codec import TileCodec
from morphogen.slides.pyramid.spool import Key, Spool

_CHANNEL = 1 << 20  # rows of tiles that one channel may have


class TileStore:
    """Compressed tiles by level, row and column, in a scratch file.

    planes: 1 where a tile is one picture of all its channels; else the number of channels, each compressed by itself
    with ``codec``, which is then of one channel.
    """

    def __init__(
        self, path: Path, codec: TileCodec, planes: int, facts: Mapping[str, Any], *, resume: bool = True
    ) -> None:
        self.codec, self.planes = codec, planes
        several = {"planes": planes} if planes > 1 else {}
        kind = {key: value for key, value in asdict(codec).items() if (key, value) != ("dtype", "uint8")}
        self.spool = Spool(path, {**facts, **kind, **several}, resume=resume)

    @property
    def channels(self) -> int:
        """Channels of a tile."""
        return self.planes if self.planes > 1 else self.codec.channels

    def __contains__(self, key: Key) -> bool:
        return key in self.spool

    def add(self, key: Key, pixels: np.ndarray) -> None:
        """Keep a tile (h, w, channels). The first channel comes last: where it is, all are."""
        if self.planes == 1:
            self.spool.add(key, self.codec.encode(pixels))
            return
        for plane in reversed(range(self.planes)):
            self.spool.add(_of(key, plane), self.codec.encode(pixels[..., plane : plane + 1]))

    def read(self, key: Key) -> np.ndarray | None:
        """(tile, tile, channels); ``None`` for a tile that is not there or shows background only."""
        if key not in self.spool or not any(self.size(key, plane) for plane in range(self.planes)):
            return None
        return np.concatenate([self._plane(key, plane) for plane in range(self.planes)], axis=2)

    def _plane(self, key: Key, plane: int) -> np.ndarray:
        if self.size(key, plane):
            return self.codec.decode(self.bytes(key, plane))
        return np.full(
            (self.codec.tile, self.codec.tile, self.codec.channels), self.codec.fill, self.codec.dtype
        )

    def size(self, key: Key, plane: int = 0) -> int:
        """Bytes of a tile in one plane; 0 for background and where there is none."""
        key = _of(key, plane)
        return self.spool.size(key) if key in self.spool else 0

    def bytes(self, key: Key, plane: int = 0) -> bytes:
        """The bytes of a tile in one plane; none for background."""
        key = _of(key, plane)
        return self.spool.read(key) if key in self.spool else b""


def _of(key: Key, plane: int) -> Key:
    level, row, column = key
    return level, row + plane * _CHANNEL, column
