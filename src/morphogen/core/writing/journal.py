"""What a long loop has done so far, a line for each item, so that a killed run need not begin again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from morphogen.core.files import content_hash, output_error, plain, writable_folder
from morphogen.core.progress import progress
from morphogen.core.running.gather import gathered
from morphogen.core.running.spread import Spread
from morphogen.core.running.threads import cpu_cores
from morphogen.core.running.work import Item
from morphogen.core.writing.places import open_own

T = TypeVar("T")


class Journal:
    """Results by key, appended to ``path`` as they come; for loops whose outcome is one file, written at the end.

    ``settings`` is all that decides a result beside its item: a journal of other settings is begun anew, as is one that
    cannot be read. A line that a kill cut is left out. Raises :class:`~morphogen.core.errors.OutputError` when a result
    cannot be written.
    """

    def __init__(self, path: Path | str, *settings: Any) -> None:
        self.path = Path(path)
        self._mark = content_hash(*settings)
        self._found: dict[str, Any] = {}
        self._begun = False
        lines = []
        with suppress(OSError, UnicodeDecodeError):
            lines = self.path.read_text(encoding="utf-8").splitlines()
        for line in lines[1:] if lines and lines[0] == self._mark else []:
            with suppress(ValueError):
                key, value = json.loads(line)
                self._found[key] = value

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: str) -> Any:
        """The result of an item, or ``None``."""
        return self._found.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep a result: anything that JSON can hold."""
        self._found[key] = plain(value)
        if self._begun:
            self._write("a", {key: self._found[key]})
            return
        writable_folder(self.path.parent)
        self._write("w", self._found, self._mark)  # in full: a cut line must not run into the next one
        self._begun = True

    def remove(self) -> None:
        """The loop is done and its outcome written."""
        self.path.unlink(missing_ok=True)

    def _write(self, mode: str, found: dict[str, Any], *first: str) -> None:
        lines = [*first, *(json.dumps(pair) for pair in found.items())]
        try:
            with open_own(self.path, mode, encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)
        except OSError as error:
            raise output_error(error, self.path) from error


@dataclass(frozen=True, eq=False)
class _Calls:
    """A function of items, as the engine of many items takes it."""

    function: Callable[[Any], Any]

    def load(self) -> bool:
        return True  # nothing

    def __call__(self, loaded: bool, item: Item, path: Path | None) -> Any:
        return self.function(item.more)


def journalled(
    work: Callable[[T], Any],
    items: Sequence[T],
    key: Callable[[T], str],
    journal: Journal | None,
    *,
    workers: int | None = None,
    spread: Spread | None = None,
    what: str = "",
) -> Iterator[Any]:
    """``work(item)`` of all items in their order, as plain JSON values, ``workers`` threads at a time (default: as many
    as cores), or where ``spread`` says; then work and items can be pickled. What ``journal`` holds is taken from there,
    the rest is added to it.
    """
    if spread is not None and not spread.plain:
        known = [journal.get(key(item)) if journal is not None else None for item in items]
        todo = [Item(str(k), None, item) for k, item in enumerate(items) if known[k] is None]
        made = gathered(_Calls(work), todo, spread, what=what)
        for item, found in zip(items, known, strict=True):
            if found is None:
                found = plain(next(made))
                if journal is not None:
                    journal.put(key(item), found)
            yield found
        return

    def result(item: T) -> Any:
        known = journal.get(key(item)) if journal is not None else None
        return plain(work(item)) if known is None else known

    with ThreadPoolExecutor(workers or cpu_cores()) as pool:
        results = progress(pool.map(result, items), total=len(items), what=what)
        for item, found in zip(items, results, strict=True):
            if journal is not None and journal.get(key(item)) is None:
                journal.put(key(item), found)
            yield found
