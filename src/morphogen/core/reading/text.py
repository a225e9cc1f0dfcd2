"""Text of others: files in whatever encoding they were saved, names cleaned, and names made safe to print.

A name from a file may hold an escape sequence that a terminal obeys, a line feed that forges a line of a log, or bytes
that are no text at all. :func:`printable` is the one place that turns such characters into what can be seen.
"""

from __future__ import annotations

import gzip
import io
import logging
import re
import unicodedata
import zlib
from functools import lru_cache
from pathlib import Path

from morphogen.core.errors import InputError
from morphogen.core.printing import printable

log = logging.getLogger("morphogen")

MAX_TEXT_BYTES = 1 << 30  # a compressed table must not unpack to more than this
_MISSING = {"", "na", "n/a", "#n/a", "nan", "null", "none", "<na>", "-nan"}
_INVISIBLE = dict.fromkeys([0xFEFF, 0x200B, 0x200C, 0x200D, 0x2060])
_NOT_TEXT = re.compile("[\x00-\x08\x0e-\x19\x1b-\x1f\x7f]")


def clean(value: object) -> str:
    """One form for one name: no spaces around it, single ones inside, composed accents (NFC), nothing invisible.

    >>> clean(" P1 ") == clean("P1")
    True
    """
    return unicodedata.normalize("NFC", " ".join(str(value).translate(_INVISIBLE).split()))


def is_missing(value: object) -> bool:
    """Whether a cell says that there is no value: empty, NA, N/A, NaN, null, None in any case; ``None`` and NaN."""
    return value is None or value != value or clean(value).lower() in _MISSING


def read_bytes(path: Path | str, limit: int = MAX_TEXT_BYTES) -> bytes:
    """The bytes of a regular file, unpacked where they are gzip, whatever its name says.

    Raises :class:`InputError` when there is no such file, it is no regular file, or it holds more than ``limit``.
    """
    path = Path(path)
    if not path.is_file():
        what = "this is not a file" if path.exists() else "there is no such file"
        raise InputError(what, where=path)
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            data = (gzip.GzipFile(fileobj=file) if packed else file).read(limit + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"the compressed file is damaged ({error})", where=path) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror or error})", where=path) from None
    if len(data) > limit:
        raise InputError(f"holds more than {limit >> 20} MiB of text", where=path)
    return data


def read_text(path: Path | str) -> str:
    """The text of a file: UTF-8 or UTF-16, with or without a byte order mark, else Latin-1; line ends become ``\\n``.

    What had to be guessed is said in the log. Raises :class:`InputError` for what is no text, and as
    :func:`read_bytes`.
    """
    data = read_bytes(path)
    text, guessed = _decoded(data)
    if guessed:
        _say_guess(str(path), guessed)
    if (found := _NOT_TEXT.search(text)) is not None:
        raise InputError(
            f"this is not a text file (it holds the byte {ord(found[0]):#04x})",
            where=path,
            fix="Save it as CSV in UTF-8",
        )
    return io.StringIO(text.lstrip("\ufeff").rstrip("\x1a"), newline=None).read()


@lru_cache(maxsize=1024)  # once for a file, however often it is asked
def _say_guess(path: str, encoding: str) -> None:
    log.warning("%s: not UTF-8, read as %s; save it as UTF-8 to be sure", printable(path), encoding)


def _decoded(data: bytes) -> tuple[str, str]:
    """The text, and the name of an encoding that was guessed."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", "replace"), ""
    head = data[:512]
    half = len(head) // 2
    for encoding, zeros in (("utf-16-le", head[1::2]), ("utf-16-be", head[0::2])):
        if half >= 4 and zeros.count(0) > 0.7 * half:
            return data.decode(encoding, "replace"), encoding.upper()
    try:
        return data.decode("utf-8-sig"), ""
    except UnicodeDecodeError:
        pass
    try:
        return data.decode("cp1252"), "Latin-1 (Windows-1252)"
    except UnicodeDecodeError:
        return data.decode("latin-1"), "Latin-1"


def read_lines(path: Path | str) -> list[str]:
    """The lines of a text file without spaces around them, empty ones and comments (``#``)."""
    lines = [line.strip() for line in read_text(path).split("\n")]
    return [line for line in lines if line and not line.startswith("#")]
