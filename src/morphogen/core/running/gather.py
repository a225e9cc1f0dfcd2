"""Items whose outcomes are one result together: worked on here one after another, or spread, and given in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from morphogen.core.errors import InputError
from morphogen.core.progress import progress
from morphogen.core.running.cohort import run_cohort
from morphogen.core.running.spread import Spread
from morphogen.core.running.work import Item, Work


def gathered(
    work: Work,
    items: Sequence[Item],
    spread: Spread | None = None,
    *,
    what: str,
    out: Path | None = None,
    facts: Mapping[str, Any] | None = None,
    unit: str = "items",
) -> Iterator[Any]:
    """What ``work`` makes of every item, in the order of the items, each as soon as those before it are there.

    Without a ``spread`` that says anything it is a plain loop in this process. With one, ``work``, items and outcomes
    can be pickled, and the run is reported in ``out``.

    Raises
    ------
    MorphogenError
        The first failure: the result needs all items.
    """
    if spread is None or spread.plain:
        loaded = work.load()
        for item in progress(items, what=what):
            yield work(loaded, item, item.path)
        return
    found: dict[int, Any] = {}
    given = 0
    workers = spread.processes(len(items)) if spread.gpus else 1
    replies = run_cohort(work, items, spread, out=out, what=what, workers=workers, facts=facts, unit=unit)
    with closing(replies):  # type: ignore[type-var]
        for index, reply in replies:
            if reply.error:
                raise InputError(reply.error)
            found[index] = reply.value
            while given in found:
                yield found.pop(given)
                given += 1
