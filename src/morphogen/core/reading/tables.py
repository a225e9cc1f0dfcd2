"""The one reader of tables: CSV, TSV and what spreadsheets make of them, with columns by name.

Delimiters (comma, tab, semicolon) are found from the header, encodings and gzip as in :mod:`.text`.
Spaces and case of headers do not matter, nor do trailing empty columns and rows, nor an index column without a name.
What cannot be understood without a guess is an error with the row's number: a row that is short or has a comma too
many, a column that comes twice, a number with a decimal comma, an unknown unit.

:func:`read_table` gives rows of text (lists, patients, pairs); :mod:`.frames` large tables of numbers.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from morphogen.core.errors import InputError, nearest
from morphogen.core.reading.cells import parse_micrometres, parse_number, path_in, without_suffix
from morphogen.core.reading.text import clean, is_missing, read_text

_DELIMITERS = ",\t;"


def fold(header: object) -> str:
    """A column's name as it is looked for: lower case, spaces and dashes as underscores."""
    return re.sub(r"[\s-]+", "_", clean(header)).lower()


@dataclass(frozen=True)
class Row:
    """One row: cells by folded column name. Missing cells (empty, NA …) are ``""``."""

    path: Path
    line: int
    cells: Mapping[str, str]

    @property
    def where(self) -> str:
        """``table.csv, line 3``."""
        return f"{self.path}, line {self.line}"

    def text(self, column: str, default: str = "") -> str:
        """A cell, cleaned; ``default`` where the column or the value is missing."""
        return clean(self.cells.get(column, "")) or default

    def need(self, column: str) -> str:
        """A cell that must be there; :class:`InputError` that names row and column when it is missing."""
        if not self.text(column):
            raise InputError(f"the column '{column}' is empty", where=self.where)
        return self.text(column)

    def number(self, column: str) -> float | None:
        """A finite number, ``None`` when it is missing."""
        value = self.text(column)
        return parse_number(value, f"{self.where}, column '{column}'") if value else None

    def integer(self, column: str) -> int | None:
        """A whole number (``2`` or ``2.0``), ``None`` when it is missing."""
        value = self.number(column)
        if value is not None and value != round(value):
            raise InputError(
                f"{self.text(column)} is not a whole number", where=f"{self.where}, column '{column}'"
            )
        return None if value is None else int(value)

    def micrometres(self, column: str) -> float | None:
        """A length in µm (a µm/px, say), > 0, ``None`` when it is missing; see :func:`parse_micrometres`."""
        value = self.text(column)
        return parse_micrometres(value, f"{self.where}, column '{column}'") if value else None

    def file(self, column: str) -> Path:
        """A path in the row, relative to the table; ``file://`` and Windows separators are understood."""
        self.need(column)
        return path_in(self.path, self.cells[column])  # as it stands: a file's name may hold two spaces


@dataclass(frozen=True)
class Table:
    """Rows of text. ``columns`` are folded names in the order of the file."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, *names: str) -> str:
        """The first of these columns that the table has; :class:`InputError` that says which there are."""
        for name in names:
            if name in self.columns:
                return name
        hint = nearest(names[0], self.columns)
        raise InputError(
            f"no column is called {' or '.join(names)} (columns: {', '.join(self.columns) or 'none'}).{hint}",
            where=self.path,
        )

    def by_name(self, key: str, value: str, suffixes: Iterable[str] = ()) -> dict[str, str]:
        """Values by the names of a column. A name may carry one of the file ``suffixes``; what else follows a dot is
        part of it. One name with two values is an error that gives both rows."""
        found: dict[str, Row] = {}
        for row in self.rows:
            name = without_suffix(row.need(key), suffixes)
            first = found.setdefault(name, row)
            if first.text(value) != row.text(value):
                raise InputError(
                    f"'{name}' has two values of {value}: '{first.text(value)}' in line {first.line} and "
                    f"'{row.text(value)}' in line {row.line}",
                    where=self.path,
                )
        return {name: row.text(value) for name, row in found.items()}


def read_table(
    path: Path | str, required: Sequence[str] = (), aliases: Mapping[str, str] | None = None
) -> Table:
    """Rows of a table as text.

    required: columns that must be there. aliases: other names of columns, folded, to the name they get. Raises
    :class:`InputError` for what is no table, has no header, lacks a column or has a bad row.

    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "slides.csv"
    >>> _ = path.write_text("Path; MPP\\na.svs; 0.25 um\\n")
    >>> [(row.text("path"), row.micrometres("mpp")) for row in read_table(path)]
    [('a.svs', 0.25)]
    """
    path = Path(path)
    text, delimiter = opened(path)
    lines: list[tuple[int, list[str]]] = []
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=False
    )
    start = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append((start, [cell.strip() for cell in cells]))
            start = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"this is not a table ({error})", where=f"{path}, line {start}") from None
    if not lines:
        raise InputError("the table is empty", where=path, fix="The first line must name the columns")
    header, rows = lines[0][1], lines[1:]
    named = header_names(header, [(number, last_filled(cells)) for number, cells in rows], path)
    columns = [(aliases or {}).get(fold(name), fold(name)) for name in named]
    for name in columns:
        if name and columns.count(name) > 1:
            raise InputError(f"the column '{name}' comes more than once", where=path)
    found = []
    for number, cells in rows:
        if len(cells) < len(columns):
            raise InputError(
                f"the row has {len(cells)} cells where the header names {len(columns)} columns",
                where=f"{path}, line {number}",
                fix="Fill it, with empty cells where there is no value",
            )
        named_cells = {name: cell for name, cell in zip(columns, cells, strict=False) if name}
        found.append(Row(path, number, {k: "" if is_missing(v) else v for k, v in named_cells.items()}))
    table = Table(path, tuple(name for name in columns if name), tuple(found))
    for name in required:
        table.column(name)
    return table


def last_filled(cells: list[str]) -> int:
    """Cells up to the last one that holds something."""
    return max((i for i, cell in enumerate(cells, 1) if cell), default=0)


def header_names(header: Sequence[str], widths: Iterable[tuple[int, int]], path: Path) -> list[str]:
    """The header without the empty names at its end; an error for the first row that goes beyond it."""
    names = list(header)
    while names and not names[-1]:
        names.pop()
    if not names:
        raise InputError("the first line names no columns", where=path)
    for number, width in widths:
        if width > len(names):
            raise InputError(
                f"the row has {width} cells where the header names {len(names)} columns",
                where=f"{path}, line {number}",
                fix="Put a value that holds the delimiter in double quotes, or name the column",
            )
    return names


def opened(path: Path) -> tuple[str, str]:
    """The text and the delimiter: the one that cuts the first line into most cells, or what ``sep=`` says."""
    text = read_text(path)
    stated = re.match(r"\ufeff?sep=(.)\n", text)  # Excel's own line
    if stated:
        return "\n" + text[stated.end() :], stated[1]
    first = next((line for line in text.split("\n") if line.strip()), "")
    counts = {d: len(split_line(first, d, path)) for d in _DELIMITERS}
    return text, max(_DELIMITERS, key=lambda d: counts[d])


def split_line(line: str, delimiter: str, path: Path) -> list[str]:
    """The cells of one line; :class:`InputError` for a cell that is longer than any table holds (131,072)."""
    try:
        return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error as error:
        raise InputError(f"this is not a table ({error})", where=path) from None
