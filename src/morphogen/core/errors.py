"""Errors a user can act on.

Every message is one sentence that says where, what was wrong, and what to do. The command line prints it and
exits with status 2; library users catch :class:`MorphogenError` or a subclass.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from morphogen.core.printing import printable

LONGEST = 300  # characters of a message


class MorphogenError(Exception):
    """Base of all errors that bad input or a bad environment can cause.

    Parameters
    ----------
    what:
        What was wrong, e.g. ``"the file is not a whole-slide image"``.
    where:
        File, key, row or option the problem belongs to; printed first. ``None`` when there is no such place.
    fix:
        What to do about it, in the imperative.
    """

    def __init__(self, what: str, *, where: object = None, fix: str | None = None) -> None:
        self.what = what
        self.where = where
        self.fix = fix
        super().__init__(what)

    def __str__(self) -> str:
        what, fix = printable(self.what), None if self.fix is None else printable(self.fix)
        where = None if self.where is None else printable(self.where)
        text = _sentence(what, where, fix)
        if len(text) > LONGEST:  # what is wrong must be read, then what to do, then the place
            where = None if where is None else shortened(where, 100)
            fix = None if fix is None else shortened(fix, 110)
            text = _sentence(what, where, fix)
        if len(text) > LONGEST:
            text = _sentence(shortened(what, max(60, len(what) - (len(text) - LONGEST))), where, fix)
        return text

    def __reduce__(self) -> tuple:
        # Keyword-only arguments are lost by the default protocol; workers send errors between processes.
        return _rebuild, (type(self), self.what, None if self.where is None else str(self.where), self.fix)


def _sentence(what: str, where: str | None, fix: str | None) -> str:
    text = (what if where is None else f"{where}: {what}").rstrip()
    if not text.endswith((".", "?", "!")):
        text += "."
    return text if not fix else f"{text} {fix.rstrip('.')}."


def _rebuild(kind: type[MorphogenError], what: str, where: object, fix: str | None) -> MorphogenError:
    return kind(what, where=where, fix=fix)


class ConfigError(MorphogenError):
    """A setting is unknown, has a wrong type or range, or contradicts another."""


class InputError(MorphogenError):
    """A data file or table is missing, unreadable or does not hold what it should."""


class SlideError(InputError):
    """A slide or image cannot be opened or read, or lacks its physical pixel size."""


class WeightsError(MorphogenError):
    """Weights of an encoder or a network are missing, gated or do not fit."""


class CheckpointError(MorphogenError):
    """A checkpoint or model folder is incomplete, foreign, unsafe or does not fit."""


class OutputError(MorphogenError):
    """A result cannot be written: no permission, no space, or something else is in the way."""


class BusyError(OutputError):
    """Another run is writing the same result now."""


class TrainingError(MorphogenError):
    """Training cannot go on, for example because the loss is no longer finite."""


class DependencyError(MorphogenError):
    """An optional package is needed for what was asked."""


def shortened(value: object, most: int = 60) -> str:
    """``str(value)`` on one line, its middle cut out where it is longer than ``most`` characters."""
    text = " ".join(str(value).split())
    if len(text) <= most:
        return text
    head = (most - 3) * 2 // 3
    return f"{text[:head]} … {text[len(text) - (most - 3 - head) :]}"


def nearest(name: str, choices: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the choice nearest to ``name``, or ``""`` when none is near."""
    names = [str(choice) for choice in choices]
    match = difflib.get_close_matches(str(name), names, n=1, cutoff=0.55)
    if not match:  # case and punctuation should not hide a match
        plain = {n.lower().replace("-", "_"): n for n in names}
        close = difflib.get_close_matches(str(name).lower().replace("-", "_"), plain, n=1, cutoff=0.55)
        match = [plain[c] for c in close]
    return f" Did you mean '{match[0]}'?" if match else ""
