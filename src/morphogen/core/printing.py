"""Names and messages as they may be shown: on a terminal, in a log, in a figure, on a page."""

from __future__ import annotations

import logging
import sys
import unicodedata

# Characters that move the cursor, hide or reorder text, or are none: control, format, surrogate, private, unassigned.
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def printable(value: object, *, keep: str = "") -> str:
    """``str(value)`` with everything that is not a visible character written as an escape.

    An escape sequence, a line feed, a right-to-left override and bytes of a file name that are not UTF-8 come out as
    ``\\x1b``, ``\\n``, ``\\u202e``, ``\\xff``. Characters of ``keep`` stay.

    >>> printable("S1\\x1b[2J")
    'S1\\\\x1b[2J'
    """
    text = str(value)
    if text.isprintable():
        return text
    return "".join(c if c in keep or c == " " else _shown(c) for c in text)


def _shown(character: str) -> str:
    if unicodedata.category(character) not in _UNSEEN:
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as Python keeps it in file names
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


class TerminalLog(logging.Handler):
    """Prints the log's lines on standard error, as it is at that moment, each as one printable line."""

    def emit(self, record: logging.LogRecord) -> None:
        # "note:" tells it from the sentence that ends a command.
        text = printable(self.format(record), keep="\n" if record.exc_info else "")
        print(f"note: {text}", file=sys.stderr)


def use_terminal() -> None:
    """For the command line: the package's log goes through :class:`TerminalLog`, and no character stops a print."""
    log = logging.getLogger("morphogen")
    if not any(isinstance(handler, TerminalLog) for handler in log.handlers):
        log.addHandler(TerminalLog(logging.WARNING))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
