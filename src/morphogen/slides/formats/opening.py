"""Which reader opens a file: by what it is, OpenSlide where it gives the right pixels, ours where it does not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morphogen.core.errors import SlideError
from morphogen.slides import readers
from morphogen.slides.formats.pixels import tiff_samples
from morphogen.slides.formats.scale import Scale, square, tiff_scale
from morphogen.slides.formats.tiff import Gap, gaps_of, main_series
from morphogen.slides.images import first_bytes, open_tiff, short, sniff

if TYPE_CHECKING:
    from wsidata.reader.base import ReaderBase

_PLAIN = {"RGB", "YCBCR", "MINISBLACK"}  # what OpenSlide shows as it is, at 8 bits and upright
_CODECS = {1, 5, 7, 8, 32946}  # none, LZW, JPEG, deflate; not every OpenSlide has libtiff's others


@dataclass(frozen=True)
class Opened:
    """A reader, the ``vendor`` as OpenSlide names it or the kind of image, its scale, gaps by level, and the part
    that was scanned: ``bounds`` (x, y, width, height) in level-0 pixels where the file says so.
    """

    reader: ReaderBase
    vendor: str
    scale: Scale
    gaps: tuple[Gap | None, ...]
    bounds: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class _Tiff:
    """What the header of a TIFF says that decides about its reader."""

    scale: Scale
    kind: str
    plain: bool
    levels: int
    nbytes: int
    gaps: dict[tuple[int, int], Gap]
    size: tuple[int, int]


def open_reader(path: Path) -> Opened:
    """Open a slide or image with the reader that gives its pixels right.

    Raises :class:`SlideError` when the file is missing, no file, no image, cut short, damaged, or of a kind that no
    reader knows.
    """
    if path.is_dir():
        zarr = readers.OmeZarrReader(path)
        return Opened(zarr, "OME-Zarr", zarr.scale, ())
    kind = sniff(path)
    if kind not in ("", "TIFF") and path.suffix.lower() != ".mrxs":  # whose index is a JPEG
        return Opened(readers.FlatReader(path), "flat image", Scale(), ())
    tiff = _look(path) if kind == "TIFF" else None  # before GLib, which aborts on sizes that cannot be
    import openslide

    vendor = openslide.OpenSlide.detect_format(str(path))
    if vendor is not None and (vendor != "generic-tiff" or (tiff is not None and tiff.plain)):
        opened = _with_openslide(path, vendor, tiff)
        if opened is not None:
            return opened
    if tiff is None:
        raise SlideError(_not_a_slide(path), where=path)
    return _with_ours(path, tiff)


def _with_openslide(path: Path, vendor: str, tiff: _Tiff | None) -> Opened | None:
    """``None`` when OpenSlide cannot decode the file, or does not see all its levels, and tifffile may."""
    import openslide

    try:
        reader = readers.VendorSlideReader(path)
    except openslide.OpenSlideError as error:
        if tiff is not None and (vendor == "generic-tiff" or "compression" in str(error)):
            return None
        raise SlideError(
            f"cannot be opened ({short(error)})",
            where=path,
            fix="The file is damaged or incomplete: copy it again",
        ) from error
    raw = reader.reader.properties
    if vendor == "generic-tiff" and tiff is not None:
        if tiff.levels > reader.properties.n_level:  # in SubIFDs, which OpenSlide ignores
            reader.detach_reader()
            return None
        scale = tiff.scale
    else:
        sizes = [_float(raw.get(f"openslide.mpp-{axis}")) for axis in "xy"]
        scale = square(sizes[0], sizes[1], "openslide.mpp-x", reader.properties.magnification)
    shapes = [(int(h), int(w)) for h, w in reader.properties.level_shape]
    gaps = tuple(tiff.gaps.get(shape) for shape in shapes) if tiff is not None else ()
    return Opened(reader, vendor, scale, gaps, _bounds(raw, shapes[0]))


def _bounds(raw: Any, shape: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """OpenSlide's bounds where they lie in the image: SCN and MRXS scans fill a part of theirs."""
    try:
        x, y, width, height = (int(raw[f"openslide.bounds-{key}"]) for key in ("x", "y", "width", "height"))
    except (KeyError, ValueError):
        return None
    inside = min(x, y) >= 0 and min(width, height) > 0 and x + width <= shape[1] and y + height <= shape[0]
    return (x, y, width, height) if inside else None


def _with_ours(path: Path, tiff: _Tiff) -> Opened:
    facts = {"mpp": tiff.scale.mpp, "magnification": tiff.scale.magnification}
    gap = tiff.gaps.get(tiff.size)
    if tiff.nbytes <= readers.IN_MEMORY_BYTES:
        flat = readers.FlatReader(path, facts)
        return Opened(flat, tiff.kind, tiff.scale, (gap,) * flat.properties.n_level)
    reader = readers.TiffReader(path, facts)
    shapes = [(int(h), int(w)) for h, w in reader.properties.level_shape]
    return Opened(reader, tiff.kind, tiff.scale, tuple(tiff.gaps.get(shape) for shape in shapes))


def _look(path: Path) -> _Tiff:
    with open_tiff(path) as file:
        gaps = gaps_of(file)  # before the series, which let go of pages
        series = main_series(file)
        page = series.keyframe
        level = series.levels[0]
        size = tuple(int(level.shape[level.axes.index(axis)]) for axis in "YX")
        return _Tiff(
            scale=tiff_scale(file, series),
            kind="OME-TIFF" if file.is_ome else "TIFF",
            plain=_plain(file, series, page, path),
            levels=len(series.levels),
            nbytes=int(level.size) * int(level.dtype.itemsize),
            gaps=gaps,
            size=(size[0], size[1]),
        )


def _plain(file: Any, series: Any, page: Any, path: Path) -> bool:
    """Whether OpenSlide gives the pixels of a generic TIFF as they are to be shown."""
    if page.offset != file.pages[0].offset or not page.is_tiled or int(page.compression) not in _CODECS:
        return False
    try:
        samples = tiff_samples(series, path)
    except SlideError:
        return False  # our reader says why
    return (
        samples.maximum == 255
        and samples.orientation == 1
        and not page.extrasamples
        and getattr(page.photometric, "name", "") in _PLAIN
        and ("C" not in series.axes or series.shape[series.axes.index("C")] == 1)
    )


def _float(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _not_a_slide(path: Path) -> str:
    head = first_bytes(path, 512)
    if path.suffix.lower() == ".mrxs":
        return "cannot be opened as MRXS: the folder of the same name with its .dat files must lie beside it"
    if head[:2] == b"\x1f\x8b":
        return "is compressed with gzip: unpack it first"
    printable = sum(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head) / max(1, len(head))
    if printable > 0.95:
        start = head[:24].decode("ascii", "replace").split()[:3]
        return f"is a text file, not a slide (it starts with {start})"
    return "is not a slide or image of a known format"
