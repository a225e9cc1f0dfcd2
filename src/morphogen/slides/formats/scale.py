"""µm per pixel, from whatever place of a file says it best.

OME-XML comes before ImageJ's unit, that before Aperio's MPP, that before TIFF's resolution, which image programs
fill with 72 dpi.
"""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

_SQUARE = 1e-4  # x and y closer than this are one number written twice
_TOLERANCE = 0.03  # a larger difference deforms cells: their mean is no µm/px
_PRINTING = (72, 75, 96, 100, 120, 150, 200, 240, 300, 600)  # dots per inch that programs write unasked
_MICROMETRES = {
    "pm": 1e-6, "å": 1e-4, "angstrom": 1e-4, "nm": 1e-3, "nanometer": 1e-3, "μm": 1.0, "um": 1.0, "micron": 1.0,
    "microns": 1.0, "micrometer": 1.0, "micrometre": 1.0, "mm": 1e3, "millimeter": 1e3, "cm": 1e4, "centimeter": 1e4,
    "m": 1e6, "in": 25400.0, "inch": 25400.0, '"': 25400.0, "thou": 25.4, "mil": 25.4,
}  # fmt: skip


@dataclass(frozen=True)
class Scale:
    """``mpp`` µm/px or ``None``; the ``source`` that says it; a ``note`` on what was mended or refused."""

    mpp: float | None = None
    source: str | None = None
    note: str | None = None
    magnification: float | None = None


def micrometres(unit: str) -> float | None:
    """How many µm a unit of length is, by any of its usual spellings (µ and μ, Å and Å); ``None`` for others.

    >>> micrometres("\\u00b5m"), micrometres("\\u03bcm"), micrometres("nm"), micrometres("pixel")
    (1.0, 1.0, 0.001, None)
    """
    text = re.sub(
        r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), unit.strip()
    )  # ImageJ's escapes
    return _MICROMETRES.get(unicodedata.normalize("NFKC", text).casefold())


def square(x: float | None, y: float | None, source: str, magnification: float | None = None) -> Scale:
    """One number of µm/px from those of x and y.

    Up to 3 % apart they are averaged, with a note; further apart pixels are not square, and there is no µm/px.
    """
    sizes = [size for size in (x, y) if size is not None and math.isfinite(size) and size > 0]
    if not sizes:
        return Scale(magnification=magnification)
    low, high = min(sizes), max(sizes)
    mean = sum(sizes) / len(sizes)
    apart = high / low - 1
    if apart <= _SQUARE:
        return Scale(mean, source, None, magnification)
    if apart <= _TOLERANCE:
        note = f"pixels are {x:.6g} × {y:.6g} µm; their mean is used"
        return Scale(mean, source, note, magnification)
    note = (
        f"pixels are {x:g} × {y:g} µm, not square ({source}): resample the image, or give one value for both"
    )
    return Scale(None, None, note, magnification)


def tiff_scale(file: Any, series: Any) -> Scale:
    """The :class:`Scale` of a series of an open tifffile."""
    ome = _ome_scale(file, series) if file.is_ome else Scale()
    note = ome.note
    if ome.mpp is not None or note is not None:
        return ome
    page = series.keyframe
    sizes = _per_unit(page.tags.get("XResolution")), _per_unit(page.tags.get("YResolution"))
    scale = Scale()
    if file.is_imagej:
        unit = micrometres(str((file.imagej_metadata or {}).get("unit", "")))
        if unit is not None:
            scale = square(*_times(sizes, unit), "ImageJ unit")
    if scale.mpp is None and scale.note is None:
        scale = _aperio(str(getattr(page, "description", "") or ""))
    if scale.mpp is None and scale.note is None:
        unit_tag = page.tags.get("ResolutionUnit")
        unit = {2: 25400.0, 3: 10000.0}.get(int(unit_tag.value) if unit_tag is not None else 2)
        if unit is not None:
            scale = square(*_times(sizes, unit), "TIFF XResolution")
    return Scale(scale.mpp, scale.source, scale.note, scale.magnification or ome.magnification)


def printing_resolution(mpp: float) -> int | None:
    """The dots per inch that a µm/px is, when it is one that image programs write without having measured anything."""
    dots = 25400 / mpp if mpp > 0 else 0
    return next((each for each in _PRINTING if abs(dots / each - 1) < 0.01), None)


def _per_unit(tag: Any) -> float | None:
    """Length of a pixel in the file's unit, from a resolution tag (pixels a unit, as a fraction)."""
    if tag is None:
        return None
    try:
        number, of = tag.value
        return float(of) / float(number) if number and of else None
    except (TypeError, ValueError):
        return None


def _times(sizes: tuple[float | None, float | None], unit: float) -> tuple[float | None, float | None]:
    x, y = sizes
    return None if x is None else x * unit, None if y is None else y * unit


def _aperio(description: str) -> Scale:
    """``MPP`` and ``AppMag`` as Aperio writes them into the description, and as converters keep them there."""
    size = re.search(r"\|\s*MPP\s*=\s*([0-9.]+)", description)
    power = re.search(r"\|\s*AppMag\s*=\s*([0-9.]+)", description)
    value, magnification = (_number(found[1]) if found else None for found in (size, power))
    if value is None:
        return Scale(magnification=magnification)
    return Scale(value, "Aperio MPP", None, magnification)


def ome_image(
    file: Any, series: Any
) -> tuple[ElementTree.Element, ElementTree.Element, ElementTree.Element] | None:
    """Of the OME-XML of a TIFF its root, the image that the series is, and its pixels; ``None`` where it has none."""
    try:
        root = ElementTree.fromstring(file.ome_metadata or "")
    except ElementTree.ParseError:
        return None
    images = root.findall("{*}Image")
    width, height = (int(series.shape[series.axes.index(axis)]) for axis in "XY")
    chosen = next(
        (
            image
            for image in images
            if (pixels := image.find("{*}Pixels")) is not None
            and (pixels.get("SizeX"), pixels.get("SizeY")) == (str(width), str(height))
        ),
        images[0] if images else None,
    )
    pixels = chosen.find("{*}Pixels") if chosen is not None else None
    return None if chosen is None or pixels is None else (root, chosen, pixels)


def _ome_scale(file: Any, series: Any) -> Scale:
    """PhysicalSize of the image of the OME-XML that the series is, and its nominal magnification."""
    found = ome_image(file, series)
    if found is None:
        return Scale()
    root, chosen, pixels = found
    magnification = _power(root, chosen)
    sizes: list[float | None] = []
    for axis in "XY":
        value = _number(pixels.get(f"PhysicalSize{axis}"))
        unit = pixels.get(f"PhysicalSize{axis}Unit", "µm")
        factor = micrometres(unit)
        if value is not None and factor is None and unit not in ("pixel", "reference frame"):
            note = f"its OME-XML gives the size of a pixel in '{unit[:20]}', which is no unit of length"
            return Scale(None, None, note, magnification)
        sizes.append(value * factor if value is not None and factor is not None else None)
    return square(sizes[0], sizes[1], "OME PhysicalSizeX", magnification)


def _power(root: ElementTree.Element, image: ElementTree.Element) -> float | None:
    """Of the objective that the image names, else of the only one there is."""
    objectives = root.findall(".//{*}Objective")
    named = image.find("{*}ObjectiveSettings")
    if named is not None:
        objectives = [each for each in objectives if each.get("ID") == named.get("ID")] or objectives
    return _number(objectives[0].get("NominalMagnification")) if objectives else None


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
