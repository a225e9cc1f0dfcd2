"""The structure of a TIFF: directories that can be trusted, the image that is the slide, tiles that are not there."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from morphogen.core.errors import SlideError

_NEEDED = {258, 270, 273, 279, 282, 283, 320, 324, 325, 330, 347}  # what pixels are read by
_SEGMENT_BYTES = 1 << 31  # a tile or strip that takes more once decoded is not one


def check_directories(file: Any, path: Path | str) -> None:
    """Refuse a TIFF whose directories lie, before anything reads by them.

    Every image of the chain and of its SubIFDs must say a possible size and tile size, hold as many tiles as that
    takes, and end within the file; the chain must end where it says. Raises :class:`SlideError`.
    """
    size = file.filehandle.size
    cut = SlideError(
        f"is cut short at {size:,} bytes: its directory or pixel data lie further on",
        where=path,
        fix="The download or copy was interrupted: copy it again",
    )
    if not len(file.pages) or not _chain_ends(file):
        raise cut
    for page in file.pages:
        if not file.is_ndpi and not _values_inside(file, page.offset):
            raise cut
        _check_page(page, path, size, cut)
        for offset in page.subifds or ():
            if offset >= size:
                raise cut
        for inner in page.pages or ():
            _check_page(inner, path, size, cut)


def _check_page(page: Any, path: Path | str, size: int, cut: SlideError) -> None:
    key = page.keyframe  # a page like an earlier one holds only where its data lie
    width, height, tiled = int(key.imagewidth), int(key.imagelength), bool(key.is_tiled)
    if not (0 < width < 1 << 31 and 0 < height < 1 << 31):
        raise SlideError(f"says that it has {width} × {height} pixels, which cannot be", where=path)
    if int(key.planarconfig) not in (1, 2):
        raise SlideError("says that its samples are laid out in a way that TIFF does not know", where=path)
    offsets, counts = page.dataoffsets, page.databytecounts
    if not len(offsets) or len(counts) < len(offsets):
        raise cut
    if tiled:
        across, down = int(key.tilewidth), int(key.tilelength)
        samples = max(1, int(key.samplesperpixel))
        if min(across, down) < 1 or across * down * samples * 2 > _SEGMENT_BYTES:
            raise SlideError(
                f"says that its tiles have {across} × {down} pixels, which cannot be", where=path
            )
        planes = samples if int(key.planarconfig) == 2 else 1
        wanted = math.ceil(width / across) * math.ceil(height / down) * max(1, int(key.imagedepth)) * planes
        if len(offsets) < wanted and not page.is_ndpi:
            raise SlideError(
                f"lists {len(offsets)} of the {wanted} tiles that its size takes",
                where=path,
                fix="The file is damaged: copy it again",
            )
    ends = np.asarray(offsets, dtype=np.float64) + np.asarray(counts[: len(offsets)], dtype=np.float64)
    if ends.max() > size:
        raise cut


def _chain_ends(file: Any) -> bool:
    """Whether the last directory found is the last there should be: one that was cut off is left out silently."""
    tiff, handle = file.tiff, file.filehandle
    last = file.pages[-1].offset
    try:
        handle.seek(last)
        count = struct.unpack(tiff.tagnoformat, handle.read(tiff.tagnosize))[0]
        handle.seek(last + tiff.tagnosize + count * tiff.tagsize)
        following = struct.unpack(tiff.offsetformat, handle.read(tiff.offsetsize))[0]
    except (struct.error, OSError):
        return False
    return int(following) == 0 or int(following) in {int(page.offset) for page in file.pages}


def _values_inside(file: Any, offset: int) -> bool:
    """Whether the values that pixels are read by lie in the file; tifffile leaves out tags whose values do not."""
    tiff, handle = file.tiff, file.filehandle
    order, sizes = tiff.byteorder, {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 13: 4, 16: 8, 18: 8}
    handle.seek(offset)
    count = struct.unpack(tiff.tagnoformat, handle.read(tiff.tagnosize))[0]
    entries = handle.read(count * tiff.tagsize)
    for at in range(0, len(entries) - tiff.tagsize + 1, tiff.tagsize):
        code, kind = struct.unpack_from(order + "HH", entries, at)
        number = struct.unpack_from(tiff.offsetformat, entries, at + 4)[0]
        length = sizes.get(kind, 0) * number
        if code in _NEEDED and length > tiff.offsetsize:
            where = struct.unpack_from(tiff.offsetformat, entries, at + 4 + tiff.offsetsize)[0]
            if where + length > handle.size:
                return False
    return True


def main_series(file: Any) -> Any:
    """The series of a TIFF that is the slide: the one with the largest image, whatever stands first."""

    def area(series: Any) -> int:
        axes = series.axes
        if "Y" not in axes or "X" not in axes:
            return 0
        return int(series.shape[axes.index("Y")]) * int(series.shape[axes.index("X")])

    return max(file.series, key=area)  # the first of equals


def missing_tiles(page: Any) -> list[int]:
    """Numbers of the tiles or strips of a page, in raster order, that hold no bytes."""
    empty = np.asarray(page.databytecounts) == 0
    return [int(number) for number in np.flatnonzero(empty | (np.asarray(page.dataoffsets) == 0))]


@dataclass(frozen=True)
class Gap:
    """The end of an image that its writer never wrote: tiles from number ``first`` on, of ``total``, hold no bytes."""

    width: int
    height: int
    tile: tuple[int, int]
    first: int
    total: int

    def touched(self, left: float, top: float, right: float, bottom: float) -> tuple[int, int] | None:
        """Corner in pixels of the first missing tile that a rectangle of this image touches."""
        if left >= self.width or right <= 0 or top >= self.height or bottom <= 0:
            return None
        across = math.ceil(self.width / self.tile[0])
        x0, x1 = (min(max(int(x // self.tile[0]), 0), across - 1) for x in (left, max(left, right - 1)))
        y0, y1 = (max(int(y // self.tile[1]), 0) for y in (top, max(top, bottom - 1)))
        for row in range(y0, min(y1, (self.total - 1) // across) + 1):
            column = max(x0, self.first - row * across)
            if column <= x1:
                return column * self.tile[0], row * self.tile[1]
        return None


def gaps_of(file: Any) -> dict[tuple[int, int], Gap]:
    """The gaps of all images of a TIFF by their (height, width)."""
    pages = [each for page in file.pages for each in (page, *(page.pages or ()))]
    return {(gap.height, gap.width): gap for page in pages if (gap := gap_of(page)) is not None}


def gap_of(page: Any) -> Gap | None:
    """The :class:`Gap` of a page; ``None`` when it is whole, or leaves out tiles here and there (blank glass)."""
    key = page.keyframe
    width, height = int(key.imagewidth), int(key.imagelength)
    tile = (int(key.tilewidth), int(key.tilelength)) if key.is_tiled else (width, int(key.rowsperstrip))
    total = math.ceil(width / tile[0]) * math.ceil(height / max(1, tile[1]))
    missing = sorted({number % total for number in missing_tiles(page)})
    if not missing or missing != list(range(total - len(missing), total)):
        return None
    return Gap(width, height, tile, missing[0], total)
