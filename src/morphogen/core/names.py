"""Names that become paths: stains, sections, slides, pairs and encoders, as models and tables from strangers name them.

Every such name goes through :func:`path_name` where it is read, so that what is written stays in the folder it belongs
to, whatever a file says.
"""

from __future__ import annotations

import unicodedata
from pathlib import PurePosixPath

from morphogen.core.errors import InputError, MorphogenError

LONGEST = 255  # bytes of a file name on every common file system


def path_name(
    name: object,
    what: str,
    *,
    suffix: str = "",
    where: object = None,
    error: type[MorphogenError] = InputError,
) -> str:
    """``name`` where it can be a file's name or a part of one; ``error`` says in one sentence why not.

    No separators, no control characters, no dot or dash in front, no blank at the ends, and at most 255 bytes of UTF-8
    together with ``suffix``, the longest that is put behind it.

    >>> path_name("CD3", "stain", suffix=".ome.tif")
    'CD3'
    >>> path_name("../../x", "stain")
    Traceback (most recent call last):
    morphogen.core.errors.InputError: the stain '../../x' cannot name a file: it has a separator. Rename it.
    """
    problem = _problem(name, suffix)
    if problem is None:
        return str(name)
    shown = ascii(name) if not isinstance(name, str) or not name.isprintable() else repr(name)
    if len(shown) > 60:
        shown = f"{shown[:28]}…{shown[-28:]}"
    raise error(f"the {what} {shown} cannot name a file: {problem}", where=where, fix="Rename it")


def _problem(name: object, suffix: str) -> str | None:
    if not isinstance(name, str):
        return "it is no text"
    if not name or name != name.strip():
        return "it is empty or has blanks at its ends"
    if any(each in name for each in "/\\"):
        return "it has a separator"
    if name[0] in ".-":
        return "it begins with a dot or a dash"
    if any(unicodedata.category(each) in ("Cc", "Cf", "Cs", "Zl", "Zp") for each in name):
        return "it has control characters"
    if len(name.encode()) + len(suffix.encode()) > LONGEST:
        return f"it is longer than {LONGEST - len(suffix.encode())} bytes"
    return None


def inner_path(name: object, *, where: object = None, error: type[MorphogenError] = InputError) -> str:
    """A relative path with ``/``, every part of which is a name: a file of a model folder, as its manifest says."""
    for part in name.split("/") if isinstance(name, str) else [name]:
        path_name(part, "file name", where=where, error=error)
    return str(PurePosixPath(str(name)))
