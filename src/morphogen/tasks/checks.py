"""What a set of files holds, looked at up front: all problems in one sentence, the good ones go on.

A room inspects every file in threads (:func:`inspected`), collects problems by kind in a :class:`CheckReport`, and lets
:func:`usable` stop with one sentence, or leave the bad ones out and say so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from morphogen.core.errors import InputError
from morphogen.core.progress import progress

T = TypeVar("T")
F = TypeVar("F")

log = logging.getLogger("morphogen.tasks")


@dataclass
class CheckReport(Generic[T]):
    """What a check of all items found.

    ``good`` are usable items; ``bad`` maps a kind of problem to the names concerned; ``warnings`` are sentences.
    """

    good: list[T] = field(default_factory=list)
    bad: dict[str, list[str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def add(self, kind: str, name: str) -> None:
        """One item more that cannot be used."""
        self.bad.setdefault(kind, []).append(name)

    @property
    def skipped(self) -> int:
        """Number of unusable items."""
        return sum(len(names) for names in self.bad.values())

    def summary(self, most: int = 5) -> str:
        """All problems in one sentence, with up to ``most`` names of each kind."""
        return "; ".join(
            f"{len(names)} {kind} ({shortened(names, most)})" for kind, names in self.bad.items()
        )


def shortened(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def inspected(
    inspect: Callable[[T], F], items: Iterable[T], *, threads: int = 8, what: str = "checking images"
) -> list[F]:
    """What ``inspect`` says of every item, in their order, several at a time."""
    items = list(items)
    with ThreadPoolExecutor(threads) as pool:
        return list(progress(pool.map(inspect, items), total=len(items), what=what))


def usable(
    report: CheckReport[T], *, skip_bad: bool = False, where: object = None, what: str = "images"
) -> list[T]:
    """The good items of a report, with warnings logged.

    :class:`InputError` with one sentence of all problems, unless ``skip_bad``; or when no item is left.
    """
    for warning in report.warnings:
        log.warning("%s", warning)
    if report.bad and not skip_bad:
        raise InputError(
            f"{report.skipped} of {len(report.good) + report.skipped} {what} cannot be used: {report.summary()}",
            where=where,
            fix="Mend or remove them, or leave them out with --skip-bad",
        )
    if not report.good:
        raise InputError(
            f"no usable {what.removesuffix('s')} is left: {report.summary() or 'none was found'}", where=where
        )
    if report.bad:
        log.warning("%d %s are left out: %s.", report.skipped, what, report.summary())
    return report.good
