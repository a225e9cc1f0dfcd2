"""Lists of names, such as the genes of a panel, in the forms in which people keep them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from morphogen.core.errors import InputError
from morphogen.core.reading.tables import read_table
from morphogen.core.reading.text import clean, read_lines, read_text

_HEADERS = ("gene", "genes", "gene_name", "gene_names", "gene_symbol", "symbol", "name")
_BETWEEN = "[,;\t]"


def read_names(path: Path | str) -> list[str]:
    """The names in a text file, in its order.

    One name per line, with or without a header (``gene``, ``symbol`` …); all in one line with commas, semicolons, tabs
    or spaces between them; a JSON list; or a table with a column of one of those headers. Quotes around a name are not
    part of it. Raises :class:`InputError` where none of these is found, and for an empty list.

    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "genes.csv"
    >>> _ = path.write_text(",gene\\n0,ERBB2\\n1,ESR1\\n")
    >>> read_names(path)
    ['ERBB2', 'ESR1']
    """
    path = Path(path)
    lines = read_lines(path)
    if lines and lines[0].startswith("["):
        found = _json_list(path)
    elif len(lines) == 1:
        found = re.split(_BETWEEN if re.search(_BETWEEN, lines[0]) else r"\s", lines[0])
    elif lines and re.search(_BETWEEN, lines[0]):
        table = read_table(path)
        column = table.column(*_HEADERS)
        found = [row.need(column) for row in table]
    else:
        found = lines
    names = [name for name in map(_bare, found) if name]
    if names and names[0].lower() in _HEADERS:
        del names[0]
    if not names:
        raise InputError("the list is empty", where=path)
    return names


def _bare(text: str) -> str:
    return clean(text.strip().strip("\"'"))


def _json_list(path: Path) -> list[str]:
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InputError("this is not a JSON list of names", where=path)
    return value
