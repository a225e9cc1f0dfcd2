"""The one place that opens raster images: by what they are, not by their suffix, and not before their size is known.

PNG, JPEG, BMP, WebP and JPEG 2000 go through Pillow with these formats alone (its others reach programs such as
Ghostscript), TIFF through tifffile. All become RGB uint8, upright: see :mod:`morphogen.slides.formats.pixels`.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from morphogen.core.devices import check_memory
from morphogen.core.errors import InputError, MorphogenError, SlideError
from morphogen.core.reading.listing import list_files
from morphogen.slides.formats.pixels import Samples, on_white, tiff_samples, turned
from morphogen.slides.formats.tiff import check_directories, main_series, missing_tiles

if TYPE_CHECKING:
    from PIL import Image
    from tifffile import TiffFile

TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf2", ".tf8")
FLAT_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".jp2")
VENDOR_SUFFIXES = (
    ".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".dcm", ".qptiff"
)  # fmt: skip
IMAGE_SUFFIXES = FLAT_SUFFIXES + TIFF_SUFFIXES
SLIDE_SUFFIXES = IMAGE_SUFFIXES + VENDOR_SUFFIXES
LIMIT = "MORPHOGEN_MAX_MEGAPIXELS"

_FORMATS = ["PNG", "JPEG", "BMP", "WEBP", "JPEG2000"]
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"BM", "BMP"),
    (b"\0\0\0\x0cjP  ", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
_MEGAPIXELS = 1000.0  # decoded whole, this takes 7 GB
_BAND = 1 << 24  # pixels converted at once
_PILLOW = threading.Lock()
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Picture:
    """A decoded image: ``pixels`` (H, W, 3) uint8, whether the file holds ``colour``, and its full size (H, W)."""

    pixels: np.ndarray
    colour: bool
    size: tuple[int, int]


def read_image(path: Path | str) -> np.ndarray:
    """An image file as (H, W, 3) uint8 RGB, upright, alpha laid on white, 16 bits scaled, grey repeated.

    Raises :class:`SlideError` when it is missing, no regular file, not an image, damaged, larger than the limit, or
    neither colour nor grey.

    >>> read_image("tile.png").shape  # doctest: +SKIP
    (256, 256, 3)
    """
    return decode(path).pixels


def read_raw(path: Path | str) -> np.ndarray:
    """The samples of a grey PNG or TIFF as they are, (H, W): a map that this package wrote, or a mask."""
    if sniff(path) == "TIFF":
        with open_tiff(path) as file:
            series = main_series(file)
            _check_memory(int(series.size) * int(series.dtype.itemsize), path)
            return np.squeeze(series.asarray())
    with open_flat(path) as image:
        return np.asarray(image)


def image_size(path: Path | str) -> tuple[int, int]:
    """(height, width) px of an image file as :func:`read_image` gives it, from its header."""
    kind = sniff(path)
    if kind == "TIFF":
        with open_tiff(path) as file:
            series = main_series(file)
            samples = tiff_samples(series, path)
            height, width = (int(series.shape[series.axes.index(axis)]) for axis in "YX")
        return (width, height) if samples.orientation > 4 else (height, width)
    with open_flat(path) as image:
        return (image.width, image.height) if _orientation(image) > 4 else (image.height, image.width)


def decode(path: Path | str, longest: int | None = None) -> Picture:
    """Decode an image file whole; :func:`read_image` says what it becomes.

    With ``longest`` the pixels may be reduced, to not less than that on the longer side: JPEG decodes faster so.
    """
    kind = sniff(path)
    if kind == "TIFF":
        return _decode_tiff(path)
    if kind == "PNG" and (deep := _deep_png(path)) is not None:
        return deep
    with open_flat(path) as image:
        size = image.height, image.width
        if longest is not None:
            image.draft("RGB", (longest, longest))  # every block is decoded, at 1/2 … 1/8 scale
        _check_memory(image.width * image.height * 7, path)
        orientation = _orientation(image)
        pixels, colour = _pixels(image, path)
    if orientation > 4:
        size = size[1], size[0]
    return Picture(turned(pixels, orientation) if orientation > 1 else pixels, colour, size)


def sniff(path: Path | str) -> str:
    """``PNG``, ``JPEG``, ``BMP``, ``WEBP``, ``JPEG2000``, ``TIFF``, or ``""``, by the first bytes of a regular file."""
    head = first_bytes(path, 16)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), "")


def first_bytes(path: Path | str, count: int) -> bytes:
    """The first ``count`` bytes of a regular file; :class:`SlideError` for what cannot be one or be read."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise SlideError("is a folder, not an image", where=path, fix="Name a file in it")
        if not stat.S_ISREG(mode):  # a pipe would wait for ever
            raise SlideError("is a pipe or device, not a file", where=path, fix="Save it as a file first")
        with open(path, "rb") as file:
            head = file.read(count)
    except FileNotFoundError:
        raise SlideError("there is no such file", where=path) from None
    except (OSError, ValueError) as error:
        raise SlideError(f"cannot be read ({short(error)})", where=path) from None
    if not head:
        raise SlideError("is empty", where=path, fix="Copy it again")
    return head


@contextmanager
def open_flat(path: Path | str) -> Iterator[Image.Image]:
    """A PNG, JPEG, BMP, WebP or JPEG 2000 file as Pillow opens it, not decoded yet, within the limit of its size.

    Whatever fails inside becomes a :class:`SlideError`.
    """
    from PIL import Image

    if sniff(path) in ("", "TIFF"):
        raise SlideError("is not an image of a known format", where=path)
    try:
        with open(path, "rb") as file:
            with _PILLOW:  # Pillow's own limit is a global; ours is checked below
                before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
                try:
                    image = Image.open(file, formats=_FORMATS)
                finally:
                    Image.MAX_IMAGE_PIXELS = before
            with image:
                check_pixels(image.width, image.height, path)
                yield image
    except MorphogenError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds
        raise _undecodable(error, path) from error


@contextmanager
def open_tiff(path: Path | str) -> Iterator[TiffFile]:
    """A TIFF as tifffile opens it, its directories checked (:func:`check_directories`); what it logs is silenced.

    Whatever fails inside becomes a :class:`SlideError`.
    """
    import tifffile

    sniff(path)
    logger = logging.getLogger("tifffile")
    logger.addFilter(_silent)  # what it would log is said in one sentence
    try:
        with tifffile.TiffFile(path) as file:
            check_directories(file, path)
            yield file
    except MorphogenError:
        raise
    except Exception as error:  # tifffile and the codecs raise many kinds
        raise _undecodable(error, path) from error
    finally:
        logger.removeFilter(_silent)


def check_pixels(width: int, height: int, where: Path | str) -> None:
    """Refuse an image that is to be decoded whole and declares more pixels than the limit."""
    try:
        limit = float(os.environ.get(LIMIT, "") or _MEGAPIXELS)
    except ValueError:
        raise InputError(f"'{os.environ[LIMIT][:40]}' is not a number of megapixels", where=LIMIT) from None
    if width * height > limit * 1e6:
        raise SlideError(
            f"says that it has {width} × {height} pixels, more than the limit of {limit:g} megapixels",
            where=where,
            fix=f"Convert it to a tiled TIFF, or raise the environment variable {LIMIT}",
        )


def list_images(
    folder: Path | str, *, leave_out: Collection[Path] = (), suffixes: Sequence[str] = IMAGE_SUFFIXES
) -> dict[str, Path]:
    """Image files of a folder by name (:func:`name_of`), sorted; :class:`InputError` when there is none.

    ``leave_out`` are files taken elsewhere, such as the slide of which an image is the thumbnail.

    Two files of one name (``a.png`` and ``a.jpg``) are an error, because a partner could not be told.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError("there is no such folder", where=folder)
    files: dict[str, Path] = {}
    for path in list_files(folder, suffixes=suffixes):
        if path in leave_out:
            continue
        name = name_of(path)
        if name in files:
            raise InputError(
                f"'{path.name}' and '{files[name].name}' have the same name",
                where=folder,
                fix="Keep one of them",
            )
        files[name] = path
    if not files:
        raise InputError(
            f"there are no images in this folder ({', '.join(s[1:] for s in suffixes)})", where=folder
        )
    return files


def name_of(path: Path | str) -> str:
    """File name without suffix; ``.ome.tif`` and the like count as one: ``S1.ome.TIF`` and ``S1.ome.zarr``
    are ``S1``."""
    path = Path(path)
    if path.suffix.lower() in (*TIFF_SUFFIXES, ".zarr") and path.stem.lower().endswith(".ome"):
        return path.stem[:-4] or path.stem
    return path.stem


def short(error: BaseException) -> str:
    """What an error of a library says, in one line of at most 160 characters."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return (text if len(text) <= 160 else text[:159] + "…") or type(error).__name__


def _undecodable(error: Exception, path: Path | str) -> SlideError:
    if isinstance(error, MemoryError):
        return SlideError("does not fit into memory", where=path, fix="Convert it to a tiled TIFF")
    what = short(error).split(" <_io")[0]  # Pillow's own would name a Python object
    return SlideError(
        f"cannot be decoded ({what})",
        where=path,
        fix="It is not an image, or it is damaged or incomplete",
    )


def _check_memory(wanted: int, path: Path | str) -> None:
    check_memory(wanted, "to be decoded", path, "Convert it to a tiled TIFF, which is read piece by piece")


def _decode_tiff(path: Path | str) -> Picture:
    with open_tiff(path) as file:
        series = main_series(file)
        samples = tiff_samples(series, path)
        height, width = (int(series.shape[series.axes.index(axis)]) for axis in "YX")
        check_pixels(width, height, path)
        level = series.levels[0]
        _check_memory(int(level.size) * level.dtype.itemsize + 3 * width * height, path)
        if any(missing_tiles(page) for page in level.pages if page is not None):
            import zarr

            array = np.asarray(zarr.open(level.aszarr(fillvalue=samples.blank), mode="r"))
        else:
            array = level.asarray()
    samples = samples.settled(array, path)
    pixels = turned(samples.to_rgb(array, path), samples.orientation)
    return Picture(pixels, samples.colour, (pixels.shape[0], pixels.shape[1]))


def _deep_png(path: Path | str) -> Picture | None:
    """A PNG of 16 bits and colour, which Pillow would cut to its upper 8; ``None`` for others."""
    head = first_bytes(path, 26)
    if len(head) < 26 or head[24] != 16 or head[25] not in (2, 6):
        return None
    width, height = (int.from_bytes(head[at : at + 4], "big") for at in (16, 20))
    check_pixels(width, height, path)
    alpha = head[25] == 6
    _check_memory(width * height * (22 if alpha else 18), path)
    try:
        import imagecodecs

        array = imagecodecs.png_decode(Path(path).read_bytes())
    except Exception as error:
        raise _undecodable(error, path) from error
    samples = Samples(maximum=None, alpha="straight" if alpha else None).settled(array, path)
    with open_flat(path) as image:
        orientation = _orientation(image)
    pixels = turned(samples.to_rgb(array, path), orientation)
    return Picture(pixels, True, (pixels.shape[0], pixels.shape[1]))


def _pixels(image: Image.Image, path: Path | str) -> tuple[np.ndarray, bool]:
    """((H, W, 3) uint8 of what Pillow decodes, whether it has colour), converted in bands."""
    mode = image.mode
    if mode.startswith("I"):
        array = np.asarray(image)
        if array.min(initial=0) < 0 or array.max(initial=0) > 65535:
            raise SlideError("holds samples of more than 16 bits", where=path, fix="Export it as 8-bit RGB")
        grey = Samples(axes="YX", photometric="MINISBLACK", maximum=None)
        array = array.astype(np.uint16)
        return grey.settled(array, path).to_rgb(array, path), False
    if mode == "F":
        raise SlideError(
            "holds float32 samples, not 8- or 16-bit colour", where=path, fix="Export it as 8-bit RGB"
        )
    image.load()
    palette = np.reshape(image.getpalette() or [0, 0, 0], (-1, 3)) if mode in ("P", "PA") else None
    colour = bool(np.ptp(palette, axis=1).any()) if palette is not None else mode not in ("1", "L", "LA")
    transparent = "A" in mode or "a" in mode or "transparency" in image.info
    rgb = np.empty((image.height, image.width, 3), dtype=np.uint8)
    alpha = np.empty(rgb.shape[:2], dtype=np.uint8) if transparent else None
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        part = np.asarray(band.convert("RGBA" if transparent else "RGB"))
        rgb[top : top + rows] = part[..., :3]
        if alpha is not None:
            alpha[top : top + rows] = part[..., 3]
    if alpha is not None and alpha.any():  # an alpha of 0 everywhere was left empty
        rgb = on_white(rgb, alpha)
    return rgb, colour


def _orientation(image: Any) -> int:
    try:
        value = int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # broken EXIF is no reason to refuse the pixels
        return 1
    return value if 1 <= value <= 8 else 1


def _silent(record: logging.LogRecord) -> bool:
    return False
