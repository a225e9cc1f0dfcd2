"""Compression of the tiles of a pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np

from morphogen.core.errors import OutputError

#: Chroma subsampling (horizontal, vertical) by its usual name.
SUBSAMPLING = {"444": (1, 1), "422": (2, 1), "420": (2, 2)}
CODECS = ("jpeg", "deflate", "none")


@dataclass(frozen=True)
class TileCodec:
    """Square tiles of uint8 or uint16 to bytes and back. Tiles of nothing but ``fill`` become no bytes: they share one
    blank."""

    tile: int
    channels: int
    codec: str
    quality: int
    subsampling: str
    fill: int
    dtype: str = "uint8"

    def encode(self, pixels: np.ndarray) -> bytes:
        """(h, w, channels) with h, w up to ``tile`` → bytes of a whole tile, or none for background."""
        if (pixels == self.fill).all():
            return b""
        h, w = pixels.shape[:2]
        if (h, w) != (self.tile, self.tile):  # repeated edges ring less under JPEG than a jump to white
            pixels = np.pad(pixels, ((0, self.tile - h), (0, self.tile - w), (0, 0)), mode="edge")
        return self.compress(np.ascontiguousarray(pixels))

    def blank(self) -> bytes:
        """The tile that all background tiles point to."""
        return self.compress(np.full((self.tile, self.tile, self.channels), self.fill, self.dtype))

    def compress(self, pixels: np.ndarray) -> bytes:
        """A whole tile → bytes."""
        if self.codec == "jpeg" and self.channels == 1:
            return bytes(imagecodecs.jpeg8_encode(pixels[..., 0], level=self.quality))
        if self.codec == "jpeg":
            return bytes(
                imagecodecs.jpeg8_encode(
                    pixels,
                    level=self.quality,
                    colorspace="RGB",
                    outcolorspace="YCBCR",
                    subsampling=self.subsampling,
                )
            )
        if self.codec == "deflate":
            return bytes(imagecodecs.zlib_encode(imagecodecs.delta_encode(pixels, axis=1).tobytes(), level=6))
        return pixels.tobytes()

    def decode(self, data: bytes) -> np.ndarray:
        """Bytes → (tile, tile, channels)."""
        shape = (self.tile, self.tile, self.channels)
        if self.codec == "jpeg":
            return np.asarray(imagecodecs.jpeg8_decode(data)).reshape(shape)
        raw = np.frombuffer(imagecodecs.zlib_decode(data) if self.codec == "deflate" else data, self.dtype)
        raw = raw.reshape(shape)
        return np.asarray(imagecodecs.delta_decode(raw, axis=1)) if self.codec == "deflate" else raw


def check_image(
    path: Path, width: int, height: int, mpp: tuple[float, float], background: int | None
) -> None:
    """:class:`OutputError` for an image that cannot be written."""
    problems = [
        (width < 1 or height < 1, f"an image of {width} × {height} px cannot be written"),
        (not all(0 < m < 1e4 for m in mpp), f"{mpp[0]:g} µm per pixel is no physical pixel size"),
        (background is not None and not 0 <= background <= 255, f"background is 0-255, not {background}"),
    ]
    _refuse(path, problems)


def check_tiles(
    path: Path,
    channels: int,
    tile: int,
    codec: str,
    quality: int,
    subsampling: str,
    dtype: str = "uint8",
    names: Sequence[str] = (),
    colours: Sequence[str] = (),
) -> None:
    """:class:`OutputError` for tiles that no pyramid can hold."""
    problems = [
        (
            not names and channels not in (1, 3),
            f"an image has 1 or 3 channels, not {channels}, or as many as have names",
        ),
        (
            bool(colours) and len(colours) != len(names),
            f"{len(names)} channels have {len(colours)} colours",
        ),
        (dtype not in ("uint8", "uint16"), f"pixels are uint8 or uint16, not {dtype}"),
        (dtype == "uint16" and codec == "jpeg", "JPEG holds 8 bits; use deflate for uint16"),
        (tile < 16 or tile % 16 != 0, f"the side of a tile is a multiple of 16, not {tile}"),
        (codec not in CODECS, f"unknown codec '{codec}'; use {', '.join(CODECS)}"),
        (not 1 <= quality <= 100, f"JPEG quality is between 1 and 100, not {quality}"),
        (
            subsampling not in SUBSAMPLING,
            f"unknown chroma subsampling '{subsampling}'; use 444, 422 or 420",
        ),
    ]
    _refuse(path, problems)


def _refuse(path: Path, problems: list[tuple[bool, str]]) -> None:
    for wrong, sentence in problems:
        if wrong:
            raise OutputError(sentence, where=path)
