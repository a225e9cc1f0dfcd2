"""Cells of tables: numbers, lengths with units, names of files, paths."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlparse

from morphogen.core.errors import InputError

_UNITS = {"": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "nm": 1e-3, "mm": 1e3}
_MEASURE = re.compile(r"(?P<number>[-+]?[0-9.]+(?:e[-+]?\d+)?)\s*(?P<unit>[^0-9].*)?", re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")


def parse_number(text: str, where: object) -> float:
    """A finite number; :class:`InputError` that names the text, and the decimal comma where it is one."""
    if _DECIMAL_COMMA.fullmatch(text.strip()):
        raise InputError(
            f"'{text}' has a decimal comma", where=where, fix=f"Write {text.strip().replace(',', '.')}"
        )
    try:
        value = float(text) if "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"'{text[:60]}' is not a number", where=where)
    return value


def parse_micrometres(text: str, where: object) -> float:
    """A length > 0 in µm from ``0.25``, ``0.25 um``, ``0.25µm/px``, ``250 nm``; other units are refused by name."""
    match = _MEASURE.fullmatch(text.strip())
    if match is None or _DECIMAL_COMMA.fullmatch(text.strip()):
        value, unit = parse_number(text, where), ""
    else:
        unit = re.sub(r"\s*(/|per)\s*(px|pixel)s?$", "", (match["unit"] or "").strip().lower())
        unit = unit.replace("µ", "u").replace("μ", "u")
        if unit.startswith(",") or unit not in _UNITS:
            what = "a magnification" if unit == "x" else f"'{match['unit'].strip()[:20]}', not a known unit"
            raise InputError(
                f"'{text[:40]}' is {what}" if unit == "x" else f"'{text[:40]}' has the unit {what}",
                where=where,
                fix="Give µm per pixel, such as 0.25",
            )
        value = parse_number(match["number"], where)
    if value <= 0:
        raise InputError(f"'{text[:40]}' is not a size in µm", where=where, fix="Give a number above 0")
    return value * _UNITS[unit]


def without_suffix(name: str, suffixes: Iterable[str]) -> str:
    """A file's name without the longest of these suffixes, in any case; other dots are part of the name."""
    for suffix in sorted(suffixes, key=len, reverse=True):
        if name.lower().endswith(suffix.lower()) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def path_in(table: Path | str, text: str) -> Path:
    """The file that a table or list names: absolute, or relative to the table's folder."""
    folder = Path(table).parent
    if text.startswith("file://"):
        return folder / unquote(urlparse(text).path)
    spellings = (
        text,
        text.replace("\\", "/"),
        *(unicodedata.normalize(form, text) for form in ("NFC", "NFD")),
    )
    return next((folder / spelt for spelt in spellings if _exists(folder / spelt)), folder / text)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or no name at all
        return False
