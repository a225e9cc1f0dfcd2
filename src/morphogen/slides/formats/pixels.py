"""What the samples of an image mean, and how they become RGB uint8.

Files hold palettes, ink, inverted grey, 12 bits in 16, alpha that is laid over nothing, and images turned by a tag.
Each of these is one line in a file's header and a wrong picture when it is not read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from morphogen.core.errors import SlideError

WHITE = 255
_DIM = 16383  # undeclared 16-bit samples no larger than this come from a camera of at most 14 bits
_ALPHA = {1: "associated", 2: "straight"}  # ExtraSamples of TIFF 6.0
_JPEG = (6, 7, 33007, 34892)  # compressions whose decoder gives RGB for YCbCr
_DYES = (
    r'(Emission|Excitation)Wavelength=|Fluor="|ContrastMethod="Fluorescence"'
    r'|<Channel[^>]* Name="[^"]*(?i:dapi|hoechst|fitc|tritc|\bcy\d|gfp|alexa|\baf\d{3}|texas|rhodamine)'
)
_INKS = {"RGB": 3, "YCBCR": 3, "SEPARATED": 4, "PALETTE": 1, "MINISBLACK": 1, "MINISWHITE": 1}


@dataclass(frozen=True)
class Samples:
    """How arrays of an image's samples become RGB.

    Attributes
    ----------
    axes:
        Of the stored arrays, such as ``YXS``, ``SYX``, ``CYX``, ``YX``.
    photometric:
        ``RGB``, ``YCBCR``, ``SEPARATED`` (CMYK), ``PALETTE``, ``MINISBLACK``, ``MINISWHITE``; what TIFF calls it.
    maximum:
        Sample value of full brightness; ``None`` when the file does not say (16 bits), see :meth:`settled`.
    alpha:
        ``straight``, ``associated`` (already multiplied) or ``None``; it follows the colours.
    colormap:
        (3, N) of a palette.
    orientation:
        Orientation tag of TIFF and EXIF, 1 to 8; 1 is upright.
    """

    axes: str = "YXS"
    photometric: str = "RGB"
    maximum: int | None = 255
    alpha: str | None = None
    colormap: np.ndarray | None = None
    orientation: int = 1

    @property
    def colour(self) -> bool:
        """Whether pixels can have a hue."""
        if self.photometric == "PALETTE" and self.colormap is not None:
            return bool((np.ptp(self.colormap, axis=0) > 0).any())
        return self.photometric not in ("MINISBLACK", "MINISWHITE")

    @property
    def blank(self) -> int:
        """The sample value that shows white, for tiles that a file leaves out."""
        return 0 if self.photometric in ("MINISWHITE", "SEPARATED", "PALETTE") else self.maximum or 65535

    def to_rgb(self, array: np.ndarray, where: object = None) -> np.ndarray:
        """(H, W, 3) uint8 of an array with ``axes``, not turned; alpha is laid on white.

        Raises :class:`SlideError` for a stack, floating point, or a number of channels that is no colour image's.
        """
        array = self._arranged(array, where)
        if array.dtype.kind == "b":
            array = array.astype(np.uint8) * WHITE
        elif array.dtype not in (np.uint8, np.uint16):
            raise SlideError(
                f"holds {array.dtype} samples, not 8- or 16-bit colour",
                where=where,
                fix="Export it as 8-bit RGB",
            )
        elif self.photometric != "PALETTE":
            array = to_bytes(array, self.maximum or 65535)
        inks = _INKS[self.photometric]
        colours, extra = array[..., :inks], array[..., inks:]
        if colours.shape[-1] != inks:
            raise SlideError(f"has {colours.shape[-1]} channels, not a colour image's {inks}", where=where)
        rgb = self._coloured(colours)
        if self.alpha is not None and extra.shape[-1]:
            rgb = on_white(rgb, extra[..., 0], associated=self.alpha == "associated")
        return np.ascontiguousarray(rgb)

    def settled(self, array: np.ndarray, where: object = None) -> Samples:
        """With what the header leaves open taken from the samples of the whole image, or a reduced one.

        Undeclared 16 bits are taken as full, and refused when nothing is that bright; an alpha that is 0 everywhere
        hides nothing, its writer left it empty.
        """
        maximum, alpha = self.maximum, self.alpha
        if maximum is not None and alpha is None:
            return self
        array, inks = self._arranged(array, where), _INKS[self.photometric]
        if maximum is None and array.dtype == np.uint16:
            maximum = check_range(int(array[..., :inks].max(initial=0)), where)
        if alpha is not None and array.shape[-1] > inks and not array[..., inks].any():
            alpha = None
        return replace(self, maximum=maximum, alpha=alpha)

    def _arranged(self, array: np.ndarray, where: object) -> np.ndarray:
        """(H, W, channels)."""
        axes = self.axes
        loose = [
            i for i, axis in enumerate(axes) if axis not in "YXSC" or (axis in "SC" and array.shape[i] == 1)
        ]
        if any(array.shape[i] != 1 for i in loose) or (
            "S" in axes and "C" in axes and len(loose) < len(axes) - 3
        ):
            raise SlideError(f"is a stack with axes {axes}, not one colour image", where=where)
        array = array.reshape([n for i, n in enumerate(array.shape) if i not in loose])
        axes = "".join(axis for i, axis in enumerate(axes) if i not in loose)
        if len(axes) == 2:
            return array[..., None]
        return np.moveaxis(array, next(i for i, axis in enumerate(axes) if axis in "SC"), -1)

    def _coloured(self, colours: np.ndarray) -> np.ndarray:
        if self.photometric == "PALETTE":
            table = self.colormap if self.colormap is not None else np.zeros((3, 256), np.uint16)
            # The tag holds 16 bits a colour; some writers put 8 there.
            table = (table >> 8 if table.max(initial=0) > WHITE else table).astype(np.uint8)
            return table.T[np.minimum(colours[..., 0], table.shape[1] - 1)]
        if self.photometric == "SEPARATED":
            paper = WHITE - colours.astype(np.uint16)
            return ((paper[..., :3] * paper[..., 3:] + 127) // WHITE).astype(np.uint8)
        if self.photometric == "YCBCR":
            from PIL import Image

            return np.asarray(Image.fromarray(np.ascontiguousarray(colours), mode="YCbCr").convert("RGB"))
        if self.photometric == "MINISWHITE":
            colours = WHITE - colours
        return np.repeat(colours, 3, axis=-1) if colours.shape[-1] == 1 else colours


def to_bytes(array: np.ndarray, maximum: int) -> np.ndarray:
    """Samples scaled so that ``maximum`` becomes 255, rounded, uint8."""
    if maximum == WHITE:
        return np.minimum(array, WHITE).astype(np.uint8, copy=False)
    wide = np.minimum(array.astype(np.uint32), maximum)
    return ((wide * WHITE + maximum // 2) // maximum).astype(np.uint8)


def on_white(rgb: np.ndarray, alpha: np.ndarray, *, associated: bool = False) -> np.ndarray:
    """(…, 3) colours under (…) alpha, uint8, laid on white."""
    if alpha.min(initial=WHITE) == WHITE:
        return rgb
    weight = alpha[..., None].astype(np.uint16)
    if associated:
        return np.minimum(rgb + (WHITE - weight), WHITE).astype(np.uint8)
    return ((rgb * weight + WHITE * (WHITE - weight) + 127) // WHITE).astype(np.uint8)


def turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """An image (H, W, …) as it is to be looked at, by its orientation tag (TIFF 6.0, EXIF)."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    rows = slice(None, None, -1) if orientation in (3, 4, 7, 8) else slice(None)
    columns = slice(None, None, -1) if orientation in (2, 3, 6, 7) else slice(None)
    return np.ascontiguousarray(image[rows, columns])


def stored_window(
    orientation: int, height: int, width: int, box: tuple[int, int, int, int]
) -> tuple[int, int, int, int]:
    """Where the window ``(y0, y1, x0, x1)`` of the upright image, ``height`` × ``width``, lies in the stored one."""
    y0, y1, x0, x1 = box
    if orientation in (3, 4, 7, 8):
        y0, y1 = height - y1, height - y0
    if orientation in (2, 3, 6, 7):
        x0, x1 = width - x1, width - x0
    return (x0, x1, y0, y1) if orientation in (5, 6, 7, 8) else (y0, y1, x0, x1)


def check_range(highest: int, where: object = None) -> int:
    """Full brightness of 16-bit samples whose file does not declare it, from the ``highest`` of them.

    Raises :class:`SlideError` when they look like fewer bits in 16: the image would come out black.
    """
    if highest > _DIM or highest == 0:
        return 65535
    bits = next(n for n in (8, 10, 12, 14) if highest < 1 << n)
    raise SlideError(
        f"holds 16-bit samples no larger than {highest} and does not say how bright {bits} bits are to be shown",
        where=where,
        fix="Export it as 8-bit RGB, or set its tag MaxSampleValue",
    )


def tiff_samples(series: Any, where: object = None) -> Samples:
    """The :class:`Samples` of a series of tifffile.

    Raises :class:`SlideError` for what is no colour or grey image: stacks, fluorescence channels, CIELab and the like.
    """
    page = series.keyframe
    photometric = getattr(page.photometric, "name", str(page.photometric))
    axes = series.axes
    if any(n != 1 for axis, n in zip(axes, series.shape, strict=True) if axis not in "YXSC"):
        raise SlideError(
            f"is a stack with axes {axes}, not one colour image", where=where
        )  # before it is decoded
    channels = series.shape[axes.index("C")] if "C" in axes else 1
    if photometric not in _INKS:
        raise SlideError(f"is a {photometric} image, not RGB", where=where, fix="Export it as 8-bit RGB")
    if photometric in ("MINISBLACK", "MINISWHITE"):
        per_pixel = int(page.samplesperpixel)
        if (channels == 3 and not _fluorescent(page)) or per_pixel == 3:
            photometric = "RGB"
        elif channels > 1 or per_pixel > 2:
            raise SlideError(
                f"has {max(channels, per_pixel)} channels of their own (fluorescence?), not a colour image's 3",
                where=where,
                fix="Export it as 8-bit RGB",
            )
    elif channels > 1:
        raise SlideError(f"is a stack with axes {axes}, not one colour image", where=where)
    if photometric == "YCBCR" and page.compression in _JPEG:
        photometric = "RGB"  # the decoder of JPEG has turned it already
    extra = [int(each) for each in page.extrasamples or ()]
    return Samples(
        axes=axes,
        photometric=photometric,
        maximum=_maximum(page),
        alpha=_ALPHA.get(extra[0]) if extra and photometric != "PALETTE" else None,
        colormap=page.colormap if photometric == "PALETTE" else None,
        orientation=_orientation(page),
    )


def _fluorescent(page: Any) -> bool:
    """Whether the OME-XML of a file says that its channels are dyes rather than red, green and blue."""
    return re.search(_DYES, str(page.parent.ome_metadata or "")) is not None


def _maximum(page: Any) -> int | None:
    bits = page.bitspersample
    bits = max(bits) if isinstance(bits, tuple) else int(bits)
    if bits < 16:
        return (1 << bits) - 1
    for code in (281, 341):  # MaxSampleValue, SMaxSampleValue
        tag = page.tags.get(code)
        if tag is not None:
            value = tag.value
            highest = int(max(value) if isinstance(value, tuple) else value)
            if 0 < highest < 65535:
                return highest
    return None


def _orientation(page: Any) -> int:
    tag = page.tags.get(274)
    value = int(tag.value) if tag is not None and isinstance(tag.value, int) else 1
    return value if 1 <= value <= 8 else 1
