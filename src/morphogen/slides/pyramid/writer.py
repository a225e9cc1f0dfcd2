"""Write a whole-slide image of any size, from blocks in any order, in little memory: pyramidal OME-TIFF or OME-Zarr.

Blocks of the full resolution come in any order and size. Whole tiles are compressed at once into a scratch
file beside the output (:mod:`~morphogen.slides.pyramid.spool`); unfinished ones wait in memory up to a
limit and then on disk. When the image is closed the lower levels are made tile by tile, and the file is put
together in raster order under a temporary name and renamed. Its bytes do not depend on the order of the
blocks, nor on whether the run was killed and taken up again in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from morphogen.core.errors import OutputError
from morphogen.core.files import atomic_path, output_error, writable_folder
from morphogen.slides.pyramid.codec import SUBSAMPLING, TileCodec, check_image, check_tiles
from morphogen.slides.pyramid.halving import halved, level_sizes
from morphogen.slides.pyramid.ngff import NgffWriter, is_zarr_name
from morphogen.slides.pyramid.parts import Parts
from morphogen.slides.pyramid.tiff import Layout, Level, ome_xml, write_tiff
from morphogen.slides.pyramid.tiles import TileStore

Codec = Literal["jpeg", "deflate", "none"]

_WIDER = {"uint8": np.uint16, "uint16": np.uint32}  # holds the sum of four


class PyramidWriter:
    """An image that is being written. Use as a context manager: leaving it normally writes the file.

    Parameters
    ----------
    path:
        The file, usually ``*.ome.tif``; a name that ends with ``.zarr`` becomes an OME-Zarr folder, lossless whatever
        ``codec`` says. Nothing is there until the image is whole.
    width, height:
        Full size in pixels.
    mpp:
        µm per pixel, one number or (x, y).
    channels:
        3 (RGB) or 1 (grey); with ``names`` as many as there are names.
    names, colours:
        Of channels that are no picture but measurements, each a plane of its own; colours as ``#rrggbb``.
    dtype:
        ``"uint8"``, or ``"uint16"`` for named or grey channels (not with JPEG).
    tile:
        Side of the tiles, a multiple of 16; 256 and 512 are what viewers expect.
    codec, quality, subsampling:
        ``"jpeg"`` with a quality of 1–100 and chroma ``"444"``, ``"422"`` or ``"420"``; ``"deflate"``
        (lossless) or ``"none"``.
    background:
        Value of pixels that are never written. ``None``: then a missing pixel is an error at the end.
    magnification, facts:
        Go into the OME-XML: nominal magnification, and pairs of what made the image.
    resume:
        Go on from the scratch file of an earlier, killed run with the same settings.
    labels:
        Values are classes: coarser levels show the commonest of four, never a mean.
    pending_bytes:
        Unfinished tiles in memory; more are put on disk. Default: three rows of tiles, at least 64 MiB.

    Raises
    ------
    OutputError
        Settings that no TIFF can hold, a folder that is not writable, a full disk, a block outside of the
        image.
    """

    def __init__(
        self,
        path: Path | str,
        width: int,
        height: int,
        *,
        mpp: float | tuple[float, float],
        channels: int = 3,
        names: Sequence[str] = (),
        colours: Sequence[str] = (),
        dtype: Literal["uint8", "uint16"] = "uint8",
        tile: int = 512,
        codec: Codec = "jpeg",
        quality: int = 90,
        subsampling: Literal["444", "422", "420"] = "444",
        background: int | None = 255,
        magnification: float | None = None,
        facts: Mapping[str, object] | None = None,
        resume: bool = True,
        pending_bytes: int | None = None,
        labels: bool = False,
    ) -> None:
        self.path = Path(path)
        self.width, self.height = int(width), int(height)
        self.mpp = (
            (float(mpp), float(mpp)) if isinstance(mpp, int | float) else (float(mpp[0]), float(mpp[1]))
        )
        check_image(self.path, self.width, self.height, self.mpp, background)
        self._zarr = is_zarr_name(self.path)
        codec = "deflate" if self._zarr else codec
        check_tiles(self.path, channels, tile, codec, quality, subsampling, dtype, names, colours)
        self.tile, self.channels = tile, len(names) or channels
        self.names, self.colours, self.dtype = tuple(names), tuple(colours), dtype
        self._background, self._magnification, self._facts = background, magnification, dict(facts or {})
        self._fill = 255 if background is None else background
        apart = 1 if names else channels  # channels of a compressed tile
        self._codec = TileCodec(tile, apart, codec, quality, subsampling, self._fill, dtype)
        self._sizes = level_sizes(self.width, self.height, tile)
        across = -(-self.width // tile)
        limit = (
            pending_bytes
            if pending_bytes is not None
            else max(64 << 20, 3 * across * tile**2 * (self.channels + 1))
        )
        self._closed, self._labels = False, labels
        writable_folder(self.path.parent)
        if self.path.is_dir() and not (self._zarr and (self.path / "zarr.json").is_file()):
            raise OutputError("a folder of this name is in the way of the image", where=self.path)
        size = {"width": self.width, "height": self.height}
        with self._explained():
            self._tiles = TileStore(self.scratch, self._codec, len(names) or 1, size, resume=resume)
        self._spool = self._tiles.spool
        self._parts = Parts(
            self._spool, lambda r, c: self._tile_shape(0, r, c), self.channels, self._fill, limit, dtype
        )

    @property
    def scratch(self) -> Path:
        """The scratch file; it is removed when the image is whole."""
        return self.path.with_name(f".{self.path.name}.scratch")

    @property
    def level_sizes(self) -> list[tuple[int, int]]:
        """(width, height) of all levels, full resolution first; each half the one before, rounded up."""
        return list(self._sizes)

    # ------------------------------------------------------------------ writing

    def write(self, block: np.ndarray, y: int, x: int = 0) -> None:
        """Put ``block`` (h, w, channels) or (h, w) with its top left pixel at row ``y`` and column ``x``.

        Pixels written twice keep the later value as long as their tile is unfinished; a finished tile stays
        as it is.
        """
        self._still_open()
        block = self._checked(block, y, x)
        h, w = block.shape[:2]
        t = self.tile
        with self._explained():
            for row in range(y // t, (y + h - 1) // t + 1):
                for column in range(x // t, (x + w - 1) // t + 1):
                    self._put(row, column, block, y, x)
            self._parts.shrink()

    def done(self, y: int, x: int, height: int, width: int) -> bool:
        """Whether every pixel of a rectangle is there, from this run or the one that is taken up again."""
        t = self.tile
        for row in range(y // t, (y + height - 1) // t + 1):
            for column in range(x // t, (x + width - 1) // t + 1):
                if (0, row, column) in self._spool:
                    continue
                part = self._parts.look((row, column))
                top, left, bottom, right = self._overlap(row, column, y, x, height, width)
                inside = (
                    slice(top - row * t, bottom - row * t),
                    slice(left - column * t, right - column * t),
                )
                if part is None or not part.filled[inside].all():
                    return False
        return True

    def flush(self) -> None:
        """Everything written so far on disk, unfinished tiles too: a run killed after this goes on from here."""
        self._still_open()
        with self._explained():
            self._parts.shrink(0)
            self._spool.sync()

    def _checked(self, block: np.ndarray, y: int, x: int) -> np.ndarray:
        block = np.asarray(block)
        if block.dtype != self.dtype:
            raise OutputError(f"blocks are {self.dtype}, not {block.dtype}", where=self.path)
        if block.ndim == 2:
            block = block[..., None]
        if block.ndim != 3 or block.shape[2] != self.channels:
            raise OutputError(
                f"blocks have {self.channels} channel(s) in the last axis, not shape {block.shape}",
                where=self.path,
            )
        h, w = block.shape[:2]
        if not h or not w or y < 0 or x < 0 or y + h > self.height or x + w > self.width:
            raise OutputError(
                f"rows {y}-{y + h}, columns {x}-{x + w} are not inside of {self.width} × {self.height} px "
                "(width × height)",
                where=self.path,
            )
        return block

    def _overlap(self, row: int, column: int, y: int, x: int, h: int, w: int) -> tuple[int, int, int, int]:
        t = self.tile
        bottom, right = min((row + 1) * t, y + h, self.height), min((column + 1) * t, x + w, self.width)
        return max(row * t, y), max(column * t, x), bottom, right

    def _put(self, row: int, column: int, block: np.ndarray, y: int, x: int) -> None:
        if (0, row, column) in self._spool:
            return
        t = self.tile
        top, left, bottom, right = self._overlap(row, column, y, x, *block.shape[:2])
        piece = block[top - y : bottom - y, left - x : right - x]
        if piece.shape[:2] != self._tile_shape(0, row, column):
            part = self._parts.open((row, column))
            inside = (slice(top - row * t, bottom - row * t), slice(left - column * t, right - column * t))
            part.pixels[inside] = piece
            part.filled[inside] = True
            if not part.filled.all():
                return
            piece = part.pixels
        self._tiles.add((0, row, column), piece)
        self._parts.forget((row, column))

    # ------------------------------------------------------------------ closing

    def close(self) -> Path:
        """Make the lower levels and the file; returns its path. Removes the scratch file."""
        self._still_open()
        with self._explained():
            self._finish_parts()
            self._spool.sync()
            top = len(self._sizes) - 1
            for row in range(self._rows(top)):
                for column in range(self._columns(top)):
                    self._reduce(top, row, column)
            with atomic_path(self.path) as temporary:
                if self._zarr:
                    self._assemble_zarr(temporary)
                else:
                    with open(temporary, "wb", buffering=1 << 20) as file:
                        self._assemble(file)
            self._spool.close(delete=True)
        self._closed = True
        return self.path

    def _finish_parts(self) -> None:
        if self._background is None:
            for row in range(self._rows(0)):
                for column in range(self._columns(0)):
                    if (0, row, column) not in self._spool:
                        y, x = row * self.tile, column * self.tile
                        raise OutputError(
                            f"pixels are missing, the first of them in the tile at row {y}, column {x}",
                            where=self.path,
                            fix="Write every block, or give a background value",
                        )
        for place in self._parts.places():
            self._tiles.add((0, *place), self._parts.open(place).pixels)
            self._parts.forget(place)

    def _reduce(self, level: int, row: int, column: int) -> np.ndarray | None:
        """Pixels of a tile, made from the four below it and stored; ``None`` for background only.

        Depth first, so that a few tiles per level are in memory and only the full resolution is decompressed.
        """
        if level == 0:
            h, w = self._tile_shape(0, row, column)
            found = self._tiles.read((0, row, column))
            return None if found is None else found[:h, :w]
        below: dict[tuple[int, int], np.ndarray | None] = {
            (i, j): self._reduce(level - 1, 2 * row + i, 2 * column + j)
            for i in (0, 1)
            for j in (0, 1)
            if 2 * row + i < self._rows(level - 1) and 2 * column + j < self._columns(level - 1)
        }
        if all(pixels is None for pixels in below.values()):
            return None
        t = self.tile
        h, w = self._tile_shape(level, row, column)
        quad = np.full((2 * h, 2 * w, self.channels), self._fill, _WIDER[self.dtype])
        for (i, j), pixels in below.items():
            if pixels is not None:
                quad[i * t : i * t + pixels.shape[0], j * t : j * t + pixels.shape[1]] = pixels
        last_h, last_w = self._extent(level - 1, row, column)
        quad[last_h:] = quad[last_h - 1]  # an odd side repeats its last row
        quad[:, last_w:] = quad[:, last_w - 1 : last_w]
        half = halved(quad, self._labels, self.dtype)
        self._tiles.add((level, row, column), half)
        return half

    def _extent(self, below: int, row: int, column: int) -> tuple[int, int]:
        """Height and width of what lies under tile (row, column) of the level above ``below``."""
        width, height = (n - 2 * k * self.tile for n, k in zip(self._sizes[below], (column, row)))
        return min(2 * self.tile, height), min(2 * self.tile, width)

    def _assemble(self, file: Any) -> None:
        levels = []
        for k, (width, height) in enumerate(self._sizes):
            sizes = [
                [self._tiles.size(key, plane) for key in self._keys(k)] for plane in range(self._tiles.planes)
            ]
            scale = (self.width / width, self.height / height)
            levels.append(Level(width, height, (self.mpp[0] * scale[0], self.mpp[1] * scale[1]), sizes))
        codec = self._codec
        layout = Layout(
            self.tile,
            codec.channels,
            codec.codec,
            SUBSAMPLING[codec.subsampling],
            8 * np.dtype(self.dtype).itemsize,
        )
        text = ome_xml(
            self.path.name,
            self.width,
            self.height,
            self.channels,
            self.mpp,
            self._magnification,
            self._facts,
            names=self.names,
            colours=self.colours,
            dtype=self.dtype,
        )
        write_tiff(file, layout, levels, text, self._compressed, codec.blank())

    def _assemble_zarr(self, folder: Path) -> None:
        writer = NgffWriter(
            folder,
            self.path.name,
            self._sizes,
            channels=self.channels,
            tile=self.tile,
            fill=self._fill,
            mpp=self.mpp,
            dtype=self.dtype,
            labels=self._labels,
            facts=self._facts,
            names=self.names,
            colours=self.colours,
        )
        for level in range(len(self._sizes)):
            for key in self._keys(level):
                pixels = self._tiles.read(key)
                if pixels is not None:
                    h, w = self._tile_shape(*key)
                    writer.write(*key, pixels[:h, :w])

    def _compressed(self, plane: int, level: int) -> Iterator[bytes]:
        return (self._tiles.bytes(key, plane) for key in self._keys(level))

    def _keys(self, level: int) -> Iterator[tuple[int, int, int]]:
        return ((level, r, c) for r in range(self._rows(level)) for c in range(self._columns(level)))

    def _rows(self, level: int) -> int:
        return -(-self._sizes[level][1] // self.tile)

    def _columns(self, level: int) -> int:
        return -(-self._sizes[level][0] // self.tile)

    def _tile_shape(self, level: int, row: int, column: int) -> tuple[int, int]:
        width, height = self._sizes[level]
        return min(self.tile, height - row * self.tile), min(self.tile, width - column * self.tile)

    # ------------------------------------------------------------------ life

    def __enter__(self) -> PyramidWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._closed:
            return
        if kind is None:
            self.close()
        else:
            self.abandon()

    def abandon(self, *, delete: bool = False) -> None:
        """Stop without making the file. The scratch file stays for a later run unless ``delete``."""
        self._closed = True
        with suppress(OSError):  # a full disk at the end of a failed run is not the error to report
            self._spool.close(delete=delete)

    def _still_open(self) -> None:
        if self._closed:
            raise OutputError("this image is closed already", where=self.path)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise output_error(error, self.path) from error
