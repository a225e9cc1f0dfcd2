"""What a result was made of: is it there already, does it belong to another job, or does it go on where it stopped?

A job is its facts: settings, the identity of the model, the fingerprints of the sources. They are kept with the result
(in a file of their own, a manifest, the notes of a table), and the next run compares them, key by key::

    job = Job({"settings": config.to_dict(), "model": model.identity, "source": fingerprint(path)})
    goes_on = job.begin(out / "job.json", "stained images")
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from morphogen.core.errors import InputError, MorphogenError, OutputError
from morphogen.core.files import content_hash, plain, read_json, write_json

RECORD = "job.json"
_MOST_NAMED, _LONGEST = 4, 24


class Difference(NamedTuple):
    """One fact that two jobs do not share; ``None`` where one of them does not have it."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        """``steps was 20, now 5``, or ``other model`` where the values say nothing to a reader."""
        if self.before is not None and self.now is not None and _short(self.before) and _short(self.now):
            return f"{self.key} was {self.before}, now {self.now}"
        return f"other {self.key}"


class Job:
    """What a result is made of.

    Parameters
    ----------
    facts:
        All that decides the result, nested as it likes: settings, identities, fingerprints.
    free:
        Dotted keys that may change while a job goes on, because they do not move the result.
    newer:
        Dotted keys that results of earlier versions do not have; such a result is not refused for want of them.

    Examples
    --------
    >>> before, now = (
    ...     Job({"model": "a1", "sampler": {"steps": 20}}),
    ...     Job({"model": "a1", "sampler": {"steps": 5}}),
    ... )
    >>> [str(each) for each in now.differences(before.facts)]
    ['sampler.steps was 20, now 5']
    """

    def __init__(
        self, facts: Mapping[str, Any], *, free: Collection[str] = (), newer: Collection[str] = ()
    ) -> None:
        self.facts: dict[str, Any] = plain(dict(facts))
        self.free, self.newer = frozenset(free), frozenset(newer)

    @property
    def mark(self) -> str:
        """Hex digest of the facts that are not free: equal marks, equal results."""
        return content_hash({key: value for key, value in flat(self.facts).items() if key not in self.free})

    def differences(self, kept: Mapping[str, Any]) -> list[Difference]:
        """The facts in which the job of a kept result differs; other keys of ``kept`` are none of its facts."""
        before = flat({key: value for key, value in kept.items() if key in self.facts})
        now = flat(self.facts)
        return [
            Difference(key, before.get(key), now.get(key))
            for key in [*now, *(key for key in before if key not in now)]
            if content_hash(before.get(key)) != content_hash(now.get(key))
            and key not in self.free
            and not (key in self.newer and key not in before)
        ]

    def same(self, kept: Mapping[str, Any]) -> bool:
        """Whether a kept result is of this very job."""
        return not self.differences(kept)

    def check(
        self,
        kept: Mapping[str, Any],
        what: str,
        where: object,
        *,
        fix: str = "Choose another --out, or remove it",
        error: type[MorphogenError] = OutputError,
    ) -> None:
        """Raise ``error``, naming what differs, when a kept result is of another job."""
        if different := self.differences(kept):
            raise error(f"holds {what} of another run ({named(different)})", where=where, fix=fix)

    def begin(
        self,
        record: Path | str,
        what: str,
        *,
        fix: str = "Choose another --out, or remove it",
        error: type[MorphogenError] = OutputError,
    ) -> bool:
        """Whether this very job was begun at ``record`` before, so that what lies beside it can be used.

        Where no job was begun (or its record is cut short), the record is written: what lies beside it is of unknown
        making and must be made again. Raises ``error`` when another job was begun there.
        """
        record = Path(record)
        kept = kept_facts(record)
        if kept is None:
            write_json(record, self.facts)
            return False
        self.check(kept, what, record.parent, fix=fix, error=error)
        return True


def kept_facts(record: Path | str) -> dict[str, Any] | None:
    """The facts kept in a file; ``None`` when there is no such file, or it holds none."""
    try:
        value = read_json(record)
    except (InputError, OSError):
        return None
    return value if isinstance(value, dict) else None


def named(differences: Iterable[Difference]) -> str:
    """Differences in words, the first few of them: ``samples was 4, now 8; other model``."""
    words = [str(each) for each in differences]
    more = f"; {len(words) - _MOST_NAMED} more" if len(words) > _MOST_NAMED else ""
    return "; ".join(words[:_MOST_NAMED]) + more


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested facts by dotted keys; lists are values."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def _short(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str)) and len(str(value)) <= _LONGEST
