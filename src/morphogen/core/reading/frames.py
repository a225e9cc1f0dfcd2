"""Large tables of numbers for pandas, read as :mod:`.tables` reads rows: by name, nothing guessed."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morphogen.core.errors import InputError
from morphogen.core.reading.cells import parse_number
from morphogen.core.reading.tables import fold, header_names, last_filled, opened, split_line
from morphogen.core.reading.text import clean, is_missing

if TYPE_CHECKING:
    import pandas as pd


def read_frame(
    path: Path | str,
    columns: Sequence[str],
    text: Sequence[str] = (),
    *,
    optional: Sequence[str] = (),
    headed: bool = False,
) -> pd.DataFrame:
    """Columns by name of a table whose other columns are numbers, CSV (``.gz``) or Parquet.

    columns: those wanted, folded, in the order they have where the table has no header; a header is recognised by
    holding one of them, and then its order counts; headed says that there must be one. text: those of them that are
    names. optional: others that are taken where they are. A logical column (``True``/``False``) becomes 1 and 0.
    ``attrs["lines"]`` are the numbers of the rows. Raises :class:`InputError`, with the row, for what is no number.
    """
    import pandas as pd

    path = Path(path)
    if path.name.lower().endswith(".parquet"):
        try:
            frame = pd.read_parquet(path)
        except Exception as error:
            raise InputError(f"cannot be read as Parquet ({_line(error)})", where=path) from None
        if set(frame.index.names) != {None}:
            frame = frame.reset_index()
        frame.columns = pd.Index([fold(name) for name in frame.columns])
        frame.attrs["lines"] = range(1, len(frame) + 1)
    else:
        content, delimiter = opened(path)
        lines = _lines(content, delimiter)
        if not lines:
            raise InputError("the table is empty", where=path)
        header = [fold(cell) for cell in split_line(lines[0][1], delimiter, path)]
        if headed or set(header) & set(columns):
            names, lines = header_names(header, (), path), lines[1:]
        else:
            names = list(columns)
        frame = _parsed(lines, delimiter, names, path, [i for i, name in enumerate(names) if name in text])
    names = [str(name) for name in frame.columns]
    for name in columns:
        if names.count(name) != 1:
            what = "comes more than once" if name in names else "is missing"
            raise InputError(f"the column '{name}' {what} (columns: {', '.join(names)})", where=path)
    wanted = [*columns, *(name for name in optional if names.count(name) == 1)]
    frame = frame[wanted].copy()
    for name in wanted:
        if name in text:
            frame[name] = [clean(value) for value in frame[name]]
        else:
            frame[name] = _numbers(frame, name, path)
    return frame


def read_matrix(path: Path | str) -> pd.DataFrame:
    """A table of numbers with names on both sides, as they stand: rows by the first column, columns by the header.

    A header that lacks the corner cell, as R writes it, is understood. Names that come twice are kept. Raises
    :class:`InputError`, with row and column, for what is not a number.
    """
    path = Path(path)
    content, delimiter = opened(path)
    lines = _lines(content, delimiter)
    if len(lines) < 2:
        raise InputError("the table is empty", where=path)
    header = [clean(cell) for cell in split_line(lines[0][1], delimiter, path)]
    if {len(split_line(line, delimiter, path)) for _, line in lines[1:3]} == {len(header) + 1} and header[-1]:
        header = ["", *header]
    frame = _parsed(
        lines[1:], delimiter, header_names([header[0] or "name", *header[1:]], (), path), path, [0]
    )
    names = [clean(value) for value in frame.iloc[:, 0]]
    frame = frame.iloc[:, 1:]
    for place, dtype in enumerate(frame.dtypes):
        if dtype.kind not in "iuf":
            frame.isetitem(place, _numbers(frame, place, path))
    frame.index = names
    return frame


def _lines(text: str, delimiter: str) -> list[tuple[int, str]]:
    empty = delimiter + ' "'
    return [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip(empty)]


def _parsed(
    lines: list[tuple[int, str]], delimiter: str, names: list[str], path: Path, text: list[int]
) -> pd.DataFrame:
    """The lines by pandas, with these names; ``attrs["lines"]`` are the numbers of the rows."""
    import pandas as pd

    width = len(names)
    for place, (number, line) in enumerate(lines):
        if line.count(delimiter) + 1 == width and '"' not in line:
            continue
        found = split_line(line, delimiter, path)  # pandas would fill or cut without a word
        if len(found) < width or last_filled([cell.strip() for cell in found]) > width:
            raise InputError(
                f"the row has {len(found)} cells where there are {width} columns",
                where=f"{path}, line {number}",
                fix="Mend the row",
            )
        if len(found) > width:  # empty cells at its end
            cut = io.StringIO()
            csv.writer(cut, delimiter=delimiter, lineterminator="").writerow(found[:width])
            lines[place] = number, cut.getvalue()
    try:
        frame = pd.read_csv(
            io.StringIO("\n".join(line for _, line in lines)),
            sep=delimiter,
            header=None,
            names=list(range(width)),
            index_col=False,
            dtype=dict.fromkeys(text, str),
            skipinitialspace=True,
            low_memory=False,
        )
    except (ValueError, pd.errors.ParserError) as error:
        raise InputError(f"cannot be read as a table ({_line(error)})", where=path) from None
    frame.columns = pd.Index(names)
    frame.attrs["lines"] = [number for number, _ in lines]
    return frame


def _numbers(frame: pd.DataFrame, column: str | int, path: Path) -> Any:
    """A column as numbers, missing cells as NaN; an error with row and column for the first that is none."""
    import pandas as pd

    values = frame.iloc[:, column] if isinstance(column, int) else frame[column]
    if values.dtype.kind in "iufb":
        return values.astype(float) if values.dtype.kind == "b" else values
    logical = {"true": 1, "false": 0}
    values = values.map(lambda v: logical.get(str(v).strip().lower(), v))
    found = pd.to_numeric(values, errors="coerce")
    for row in (found.isna() & ~values.map(is_missing)).to_numpy().nonzero()[0]:
        name = frame.columns[column] if isinstance(column, int) else column
        parse_number(str(values.iloc[row]), f"{path}, line {frame.attrs['lines'][row]}, column '{name}'")
    return found


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]
