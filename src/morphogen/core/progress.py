"""Progress bars with rate and time left, silent when the output is not a terminal and it is quick."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm.auto import tqdm

from morphogen.core.printing import printable
from morphogen.core.processes import worker_number

T = TypeVar("T")


class Bar:
    """A running bar; :meth:`advance` moves it, :meth:`note` shows figures beside it."""

    def __init__(self, bar: tqdm) -> None:
        self._bar = bar

    def advance(self, n: int = 1) -> None:
        self._bar.update(n)

    def note(self, **figures: object) -> None:
        self._bar.set_postfix({key: str(value) for key, value in figures.items()}, refresh=False)


def _tqdm(total: int | None, what: str, initial: int = 0, iterable: Iterable | None = None) -> tqdm:
    # In a log file a bar every 0.1 s is noise: write a line now and then.
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(
        iterable,
        total=total,
        initial=initial,
        desc=printable(what),
        unit=f" {what.split()[-1]}" if what else "it",
        mininterval=interval,
        delay=0.5,
        disable=worker_number() is not None,  # the process that started it has a bar of its own
        dynamic_ncols=sys.stderr.isatty(),
        leave=True,
        file=sys.stderr,
    )


class _Progress:
    def __call__(self, iterable: Iterable[T], total: int | None = None, what: str = "") -> Iterator[T]:
        """Iterate with a bar; ``total`` is taken from ``len`` when it is not given."""
        yield from _tqdm(total, what, iterable=iterable)

    @contextmanager
    def bar(self, total: int | None, what: str = "", done: int = 0) -> Iterator[Bar]:
        """A bar moved by hand: ``with progress.bar(100, "spots") as bar: bar.advance(10)``."""
        with _tqdm(total, what, initial=done) as bar:
            yield Bar(bar)


progress = _Progress()
