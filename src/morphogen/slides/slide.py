"""One slide: opened once, read in micrometres, its results kept in a SpatialData store beside it."""

from __future__ import annotations

import logging
import math
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from morphogen.core.errors import InputError, SlideError
from morphogen.core.reading.listing import list_files
from morphogen.core.writing.replacing import recover
from morphogen.slides.formats.ngff import is_ome_zarr
from morphogen.slides.formats.opening import Opened, open_reader
from morphogen.slides.formats.pixels import WHITE
from morphogen.slides.formats.scale import Scale, printing_resolution
from morphogen.slides.images import FLAT_SUFFIXES, SLIDE_SUFFIXES, TIFF_SUFFIXES, first_bytes, short
from morphogen.slides.resample import margin, resample
from morphogen.slides.store import read_store, stored_mpp

if TYPE_CHECKING:
    from wsidata import WSIData

log = logging.getLogger("morphogen.slides")

PLAUSIBLE_MPP = (0.05, 20.0)  # µm/px of level 0: from oil immersion to a whole-slide overview
_BAND_PIXELS = 16_000_000


class Slide:
    """A whole slide or image. Make it with :func:`open_slide`.

    Attributes
    ----------
    path, store:
        The image file, and the SpatialData store (``<name>.zarr``) that holds its tissues, tiles and features.
    width, height:
        Size of level 0 in pixels. All coordinates are level-0 pixels, x to the right, y down.
    mpp, mpp_source, mpp_note:
        µm per level-0 pixel or ``None``; where it came from (``given``, ``store``, ``file: …``); why the file's own
        value was refused, if it was.
    bounds:
        (x, y, width, height) of what was scanned, in level-0 pixels; the whole image for most formats. QuPath crops SCN
        and MRXS to it: see :meth:`within_bounds`.
    origin:
        (x, y) of this slide's pixel (0, 0) in the whole slide: not (0, 0) where it is cut to its bounds.
    magnification, vendor:
        Objective power or ``None``; scanner vendor as OpenSlide names it, or the kind of image.
    """

    def __init__(self, path: Path, opened: Opened, mpp: float | None, store: Path) -> None:
        self.path, self.reader, self.vendor, self.store = path, opened.reader, opened.vendor, store
        self._opened, self._gaps = opened, opened.gaps
        properties = opened.reader.properties
        self.height, self.width = (int(n) for n in properties.shape)
        self.level_downsamples = [float(d) for d in properties.level_downsample]
        self.level_shapes = [(int(h), int(w)) for h, w in properties.level_shape]
        self.magnification: float | None = properties.magnification or opened.scale.magnification
        self.bounds = opened.bounds or (0, 0, self.width, self.height)
        self.origin = (0, 0)
        self.given_mpp = mpp
        self.mpp, self.mpp_source, self.mpp_note = _resolve_mpp(opened.scale, mpp, store)
        properties.mpp = self.mpp
        if opened.scale.note is not None and opened.scale.mpp is not None and mpp is None:
            log.warning("%s: %s.", path, opened.scale.note)

    def __repr__(self) -> str:
        size = "unknown µm/px" if self.mpp is None else f"{self.mpp:g} µm/px"
        return f"Slide({self.path.name!r}, {self.width}×{self.height}, {size}, {self.vendor})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return open_slide, (str(self.path), self.given_mpp, str(self.store.parent))

    @property
    def damage(self) -> str | None:
        """What of the file is missing, in a sentence; reading it is a :class:`SlideError`."""
        gap = next((each for each in self._gaps if each is not None), None)
        if gap is None:
            return None
        return (
            f"the last {gap.total - gap.first} of {gap.total} tiles of the level of {gap.width} × {gap.height} px "
            "hold no data: the file was not written to its end"
        )

    @property
    def whole(self) -> Slide:
        """The slide that this one is cut from, of which the store is; itself for most."""
        return self

    def within_bounds(self) -> Slide:
        """The slide as QuPath shows it: cropped to its ``bounds``, whose corner is pixel (0, 0); itself for most."""
        return self if self.bounds == (0, 0, self.width, self.height) else _Cropped(self)

    def close(self) -> None:
        """Release the file; a later read opens it again."""
        self.reader.detach_reader()

    @cached_property
    def wsi(self) -> WSIData:
        """The slide as wsidata's :class:`WSIData` (a SpatialData), with what the store holds."""
        from wsidata import WSIData

        wsi = WSIData.from_spatialdata(read_store(self), self.reader)
        wsi.reader.properties.mpp = self.mpp
        wsi.attrs[WSIData.SLIDE_PROPERTIES_KEY] = self.reader.properties.to_dict()
        wsi.set_wsi_store(self.store)
        return wsi

    def require_mpp(self) -> float:
        """µm per level-0 pixel; :class:`SlideError` that says how to give it when it is not known."""
        if self.mpp is not None:
            return self.mpp
        example = 0.5 if not self.magnification else 10 / self.magnification
        raise SlideError(
            self.mpp_note or "the file does not say how many µm a pixel is",
            where=self.path,
            fix=f"Give it, for example --mpp {example:g} (in Python: open_slide(path, mpp={example:g}))",
        )

    def read_region(
        self, x: float, y: float, width: int, height: int, *, mpp: float | None = None
    ) -> np.ndarray:
        """Read ``height`` × ``width`` output pixels at ``mpp`` µm/px whose top-left corner is level-0 ``(x, y)``.

        Returns (height, width, 3) uint8 RGB, white outside the slide. ``mpp=None`` reads level-0 pixels (no µm/px
        needed). The nearest finer pyramid level is read and reduced with an antialiasing filter; asking for finer
        than level 0 enlarges it. ``x, y`` may be fractions of a pixel.
        """
        scale = 1.0 if mpp is None else mpp / self.require_mpp()
        return self.read_box(x, y, width * scale, height * scale, width, height)

    def read_box(self, x: float, y: float, w: float, h: float, width: int, height: int) -> np.ndarray:
        """Read the level-0 rectangle ``(x, y, w, h)`` as (height, width, 3) uint8 RGB, white outside the slide."""
        level = self.level_for(min(w / width, h / height))
        d = self.level_downsamples[level]
        block, left, top = self.read_block(level, x, y, x + w, y + h, margin(max(w / width, h / height) / d))
        box = (x / d - left, y / d - top, (x + w) / d - left, (y + h) / d - top)
        return resample(block, box, width, height)

    def level_for(self, downsample: float) -> int:
        """The coarsest level that still has the detail of ``downsample`` (1 % tolerance for rounded pyramids)."""
        fitting = [i for i, d in enumerate(self.level_downsamples) if d <= downsample * 1.01]
        return max(fitting, key=lambda i: self.level_downsamples[i], default=0)

    def read_block(
        self, level: int, x0: float, y0: float, x1: float, y1: float, margin: int
    ) -> tuple[np.ndarray, float, float]:
        """Pixels of ``level`` that cover a level-0 rectangle and ``margin`` pixels more, and their corner in it."""
        self._refuse_gap(level, x0, y0, x1, y1)
        d = self.level_downsamples[level]
        left, top = math.floor(x0 / d) - margin, math.floor(y0 / d) - margin
        right, bottom = math.ceil(x1 / d) + margin, math.ceil(y1 / d) + margin
        rows, columns = self.level_shapes[level]
        # Only what exists is read: OpenSlide takes no negative corner at coarse levels without rounding trouble.
        a, b = min(max(left, 0), columns), min(max(right, 0), columns)
        c, e = min(max(top, 0), rows), min(max(bottom, 0), rows)
        if (a, b, c, e) == (left, right, top, bottom):
            return self._level_pixels(level, a, c, b - a, e - c), left, top
        block = np.full((bottom - top, right - left, 3), WHITE, dtype=np.uint8)
        if b > a and e > c:
            block[c - top : e - top, a - left : b - left] = self._level_pixels(level, a, c, b - a, e - c)
        return block, left, top

    def _refuse_gap(self, level: int, x0: float, y0: float, x1: float, y1: float) -> None:
        gap = self._gaps[level] if self._gaps else None
        if gap is None:
            return
        across, down = gap.width / self.width, gap.height / self.height
        at = gap.touched(x0 * across, y0 * down, x1 * across, y1 * down)
        if at is not None:
            raise SlideError(
                f"has no data for the tile at x {at[0]}, y {at[1]} of {gap.width} × {gap.height} px",
                where=self.path,
                fix="The file was not written to its end: make or copy it again",
            )

    def _level_pixels(self, level: int, left: int, top: int, width: int, height: int) -> np.ndarray:
        d = self.level_downsamples[level]
        try:
            return self.reader.get_region(round(left * d), round(top * d), width, height, level=level)
        except SlideError:
            raise
        except Exception as error:
            raise SlideError(
                f"cannot be read ({short(error)})",
                where=self.path,
                fix="The file may be damaged or incomplete",
            ) from error

    def overview(self, downsample: float) -> np.ndarray:
        """The whole slide reduced by ``downsample`` ≥ 1, (H, W, 3) uint8; read in bands, so memory stays bounded."""
        width = max(1, round(self.width / downsample))
        height = max(1, round(self.height / downsample))
        sy = self.height / height
        source = self.level_downsamples[self.level_for(downsample)]
        rows = max(1, int(_BAND_PIXELS / (self.width / source) / max(1.0, sy / source)))
        out = np.empty((height, width, 3), dtype=np.uint8)
        for row in range(0, height, rows):
            n = min(rows, height - row)
            out[row : row + n] = self.read_box(0, row * sy, self.width, n * sy, width, n)
        return out

    def thumbnail(self, size: int = 1024) -> np.ndarray:
        """The whole slide with its longer side at most ``size`` pixels, (H, W, 3) uint8."""
        return self.overview(max(1.0, max(self.width, self.height) / size))


class _Cropped(Slide):
    """A slide cut to its bounds. Blocks are those of the whole slide, so that pixels are the same to the bit."""

    def __init__(self, whole: Slide) -> None:
        super().__init__(whole.path, whole._opened, whole.given_mpp, whole.store)
        self._whole = whole
        self.mpp, self.mpp_source, self.mpp_note = whole.mpp, whole.mpp_source, whole.mpp_note
        self._x, self._y, self.width, self.height = whole.bounds
        self.origin = self._x, self._y
        self.bounds = (0, 0, self.width, self.height)

    @property
    def whole(self) -> Slide:
        return self._whole

    def __reduce__(self) -> tuple[Any, ...]:
        return _Cropped, (self._whole,)

    def read_block(
        self, level: int, x0: float, y0: float, x1: float, y1: float, margin: int
    ) -> tuple[np.ndarray, float, float]:
        x, y, d = self._x, self._y, self.level_downsamples[level]
        block, left, top = self._whole.read_block(level, x0 + x, y0 + y, x1 + x, y1 + y, margin)
        return block, left - x / d, top - y / d


def store_name(path: Path) -> str:
    """Name of a slide's store: ``<stem>.zarr``, or with the suffix too where another slide of its stem comes first.

    That of an OME-Zarr image has its whole name: ``s1.ome.zarr.zarr``.

    Beside ``s1.svs`` or ``s1.tif``, ``s1.jpg`` (its thumbnail, most likely) keeps its results in ``s1.jpg.zarr``.
    """

    if path.suffix.lower() == ".zarr":
        return f"{path.name}.zarr"

    def rank(other: Path) -> tuple[int, str]:
        suffix = other.suffix.lower()
        return (2 if suffix in FLAT_SUFFIXES else 1 if suffix in TIFF_SUFFIXES else 0, other.name)

    try:
        twins = [
            other for other in list_files(path.parent, suffixes=SLIDE_SUFFIXES) if other.stem == path.stem
        ]
    except OSError:  # a folder that may not be listed
        twins = []
    first = min([path, *twins], key=rank)
    return f"{path.stem if first.name == path.name else path.name}.zarr"


def open_slide(
    path: str | Path,
    mpp: float | None = None,
    out: str | Path | None = None,
    *,
    staged: str | Path | None = None,
) -> Slide:
    """Open a slide or image: SVS, NDPI, MRXS, SCN, BIF, DICOM, (pyramidal, OME-) TIFF, OME-Zarr, PNG, JPEG.

    Parameters
    ----------
    path:
        The file.
    mpp:
        µm per level-0 pixel; overrides what the file says. A value given once is kept in the store with the first
        result written.
    out:
        Folder of the store; beside the slide when ``None``.
    staged:
        A copy of the file on a faster disk, which is read in its place.

    Raises
    ------
    SlideError
        When the file is missing, is not an image, is cut short or damaged.
    """
    path = Path(path)
    if mpp is not None and not PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1]:
        low, high = PLAUSIBLE_MPP
        raise InputError(
            f"{mpp:g} µm/px is not plausible for level 0; expected {low:g} to {high:g}", where="mpp"
        )
    if not is_ome_zarr(path):
        first_bytes(path, 1)  # missing, another folder, a pipe, empty
    folder = Path(out) if out is not None else path.parent
    store = folder / store_name(path)
    recover(store)
    return Slide(path, open_reader(path if staged is None else Path(staged)), mpp, store)


def _resolve_mpp(
    scale: Scale, given: float | None, store: Path
) -> tuple[float | None, str | None, str | None]:
    low, high = PLAUSIBLE_MPP
    found, note = scale.mpp, scale.note
    if found is not None and not low <= found <= high:
        dots = printing_resolution(found)
        means = (
            "" if dots is None else f" ({dots} dpi, which programs write without having measured anything)"
        )
        note = f"the file says {found:g} µm/px, which cannot be right{means}"
        found = None
    if given is not None:
        return float(given), "given", note
    stored = stored_mpp(store)
    if stored is not None and stored != found:
        return stored, "store", note
    return (None, None, note) if found is None else (float(found), f"file: {scale.source}", note)
