"""Tables for reading: numbers aligned and rounded alike, intervals, the best value of a column marked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from morphogen.core.errors import InputError

MISSING = "–"


@dataclass
class Cell:
    """Text of a cell, whether it is a number, and whether it is the best of its column."""

    text: str
    number: bool = False
    best: bool = False
    interval: str = ""


@dataclass
class Table:
    """Header and rows of :class:`Cell`; ``numeric`` says which columns are aligned to the right."""

    header: list[str]
    rows: list[list[Cell]]
    numeric: list[bool]
    caption: str = ""
    more: int = 0
    best: Mapping[str, str] = field(default_factory=dict)


def table(
    data: Any,
    caption: str = "",
    *,
    best: Mapping[str, Literal["max", "min"]] | None = None,
    digits: int = 3,
    index: bool | None = None,
    header: Sequence[str] | None = None,
    longest: int = 500,
) -> Table:
    """Prepare a table.

    Parameters
    ----------
    data:
        A DataFrame, a list of dicts, a dict of columns, or rows (lists) with ``header``. Cells are numbers,
        text, or intervals: anything with ``value``, ``low`` and ``high``, shown as ``0.57 [0.52, 0.61]``.
    best:
        Columns whose largest (``"max"``) or smallest value is marked.
    digits:
        Significant places after the point for floating-point numbers.
    index:
        Show the DataFrame's index; by default when it is not a plain 0…n−1.
    longest:
        Rows beyond this are left out and counted below the table.
    """
    frame = _frame(data, header)
    shown = index if index is not None else not isinstance(frame.index, pd.RangeIndex)
    if shown:
        frame = frame.reset_index(names=frame.index.names if any(frame.index.names) else [""])
    names = [str(name) for name in frame.columns]
    wanted = dict(best or {})
    for name, direction in wanted.items():
        if name not in names:
            raise InputError(f"there is no column '{name}' to mark the best of; columns: {', '.join(names)}")
        if direction not in ("max", "min"):
            raise InputError(f"the best of '{name}' is 'max' or 'min', not '{direction}'")
    more = max(0, len(frame) - longest)
    columns = [[_cell(value, digits) for value in frame.iloc[:longest, k]] for k in range(len(names))]
    for name, direction in wanted.items():
        k = names.index(name)
        _mark(columns[k], [_value(v) for v in frame.iloc[:longest, k]], direction)
    numeric = [
        any(c.number for c in column) and all(c.number or c.text == MISSING for c in column)
        for column in columns
    ]
    rows = [list(row) for row in zip(*columns, strict=True)]
    return Table(names, rows, numeric, caption, more, wanted)


def _frame(data: Any, header: Sequence[str] | None) -> pd.DataFrame:
    if isinstance(data, pd.Series):
        return data.to_frame()
    if isinstance(data, pd.DataFrame):
        return data
    if isinstance(data, Mapping):
        return pd.DataFrame({key: pd.Series(list(value), dtype=object) for key, value in data.items()})
    rows = list(data)
    if rows and isinstance(rows[0], Mapping):
        names = list(dict.fromkeys(key for row in rows for key in row))
        return pd.DataFrame(
            {name: pd.Series([row.get(name) for row in rows], dtype=object) for name in names}
        )
    widths = {len(row) for row in rows}
    if header is not None:
        widths.add(len(header))
    if len(widths) > 1:
        raise InputError(f"rows of a table have the same length, these have {sorted(widths)}")
    names = list(header) if header is not None else [str(k + 1) for k in range(widths.pop() if widths else 0)]
    return pd.DataFrame(
        {k: pd.Series([row[k] for row in rows], dtype=object) for k in range(len(names))}
    ).set_axis(names, axis=1)


def _cell(value: Any, digits: int) -> Cell:
    if all(hasattr(value, part) for part in ("value", "low", "high")):
        text = _number(float(value.value), digits)
        known = math.isfinite(value.low) and math.isfinite(value.high)
        interval = (
            f"[{_number(float(value.low), digits)}, {_number(float(value.high), digits)}]" if known else ""
        )
        return Cell(text, number=text != MISSING, interval=interval)
    if value is None or value is pd.NA or (isinstance(value, float | np.floating) and math.isnan(value)):
        return Cell(MISSING)
    if isinstance(value, bool | np.bool_):
        return Cell("yes" if value else "no")
    if isinstance(value, int | np.integer):
        return Cell(_group(f"{int(value):d}"), number=True)
    if isinstance(value, float | np.floating):
        return Cell(_number(float(value), digits), number=True)
    return Cell(str(value))


def _number(value: float, digits: int) -> str:
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value and (abs(value) < 10.0**-digits or abs(value) >= 1e7):
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa}×10{_raised(int(exponent))}".replace("-", "−")
    places = digits if abs(value) < 100 else 1
    return _group(f"{value:.{places}f}")


def _raised(exponent: int) -> str:
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _group(text: str) -> str:
    sign, digits = ("−", text[1:]) if text.startswith("-") else ("", text)
    whole, point, rest = digits.partition(".")
    if len(whole) > 4:
        whole = f"{int(whole):,}".replace(",", "\u202f")  # narrow space, the same in every country
    return sign + whole + point + rest


def _value(value: Any) -> float:
    value = getattr(value, "value", value) if hasattr(value, "low") else value
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return float(value) if number else math.nan


def _mark(cells: list[Cell], values: list[float], direction: str) -> None:
    known = [v for v in values if math.isfinite(v)]
    if len(known) < 2:
        return
    target = max(known) if direction == "max" else min(known)
    for cell, value in zip(cells, values, strict=True):
        cell.best = value == target
