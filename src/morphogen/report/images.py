"""Pictures that travel inside the HTML file, as data URIs of bounded size."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from morphogen.core.errors import InputError
from morphogen.slides.images import open_flat

#: Longest side and bytes of an embedded picture; larger ones are scaled down until they fit.
LONGEST = 1800
LARGEST = 1_500_000
_FLAT = 64  # a picture of at most so many colours is a map or a mask, which PNG keeps exactly


@dataclass(frozen=True)
class Picture:
    """An embedded picture: data URI, size in pixels, and whether it is a plot (drawn on white)."""

    uri: str
    width: int
    height: int
    plot: bool = False
    small: bool = False


def picture(source: Any, *, longest: int = LONGEST, largest: int = LARGEST) -> Picture:
    """Embed a matplotlib figure, an image array or tensor, a PIL image or an image file.

    Arrays are (H, W), (H, W, 3 or 4) or (3, H, W); uint8, boolean, or floating point in 0–1. Plots become
    PNG, photographs WebP, masks and small pictures PNG. Raises :class:`InputError` for anything else.
    """
    if isinstance(source, Figure):
        return _plot(source, largest)
    if isinstance(source, str | Path):
        image = _read(Path(source))
    elif isinstance(source, Image.Image):
        image = source
    else:
        image = Image.fromarray(_array(source))
    image = image.convert("RGBA" if "A" in image.getbands() else "RGB")
    if max(image.size) > longest:
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS, reducing_gap=3.0)
    small = max(image.size) <= 128
    flat = small or image.getcolors(_FLAT) is not None
    data, kind = _encode(image, flat)
    while len(data) > largest and min(image.size) > 64:
        image = image.resize((image.width * 3 // 4, image.height * 3 // 4), Image.Resampling.LANCZOS)
        data, kind = _encode(image, False)
    return Picture(_uri(data, kind), *image.size, small=small)


def _plot(figure: Figure, largest: int) -> Picture:
    # Twice the usual density: sharp on a phone's screen and when enlarged.
    from morphogen.report.style import plain_labels

    plain_labels(figure)
    for dpi in (160, 110, 80):
        buffer = io.BytesIO()
        figure.savefig(
            buffer, format="png", dpi=dpi, bbox_inches="tight", facecolor="white", metadata={"Software": None}
        )
        if buffer.tell() <= largest:
            break
    data = buffer.getvalue()
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))  # IHDR
    return Picture(_uri(data, "png"), width, height, plot=True)


def _read(path: Path) -> Image.Image:
    try:
        with open_flat(path) as image:
            image.draft("RGB", (LONGEST, LONGEST))  # JPEG can be decoded at a fraction of its size
            image.load()
            return image
    except InputError as error:
        what = f"this picture cannot be read ({error.what})" if path.exists() else "there is no such picture"
        raise InputError(what, where=path) from None


def _array(source: Any) -> np.ndarray:
    if hasattr(source, "detach"):
        source = source.detach().float().cpu() if source.is_floating_point() else source.detach().cpu()
    array = np.asarray(source)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or not array.size:
        raise InputError(f"a picture is (H, W), (H, W, 3) or (3, H, W), not {np.shape(source)}")
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(np.nanmin(array)), float(np.nanmax(array))
        if low < -0.01 or high > 1.01:
            raise InputError(f"a floating-point picture is in 0-1, this one in {low:.3g} to {high:.3g}")
        return (np.nan_to_num(array).clip(0, 1) * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise InputError(f"a picture is uint8 or floating point in 0-1, not {array.dtype}")
    return np.ascontiguousarray(array)


def _encode(image: Image.Image, exact: bool) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    if exact:
        image.save(buffer, "PNG", optimize=True)
        return buffer.getvalue(), "png"
    image.save(buffer, "WEBP", quality=88, method=4)
    return buffer.getvalue(), "webp"


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
