"""What a run over many items did: ``runs/<id>.json`` with the state of each item, and ``summary.md`` for a reader."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from morphogen.core.errors import MorphogenError
from morphogen.core.files import read_json, writable_folder, write_json, write_text
from morphogen.core.provenance import versions

RUNS = "runs"
_SHARE = (
    20  # times as long as the last write took it waits for the next: a long list is not written for each item
)
_SHORT = 100  # items of a list that is written at every change
_MOST_LISTED = 200


@dataclass
class State:
    """Of one item: ``waiting``, ``working``, ``done``, ``failed``, or ``elsewhere`` (another shard has it)."""

    item: str
    state: str = "waiting"
    attempts: int = 0
    host: str = ""
    pid: int = 0
    device: str = ""
    seconds: float = 0.0
    error: str = ""


class RunReport:
    """The report of this process on its run, kept up to date in ``folder/runs``.

    Parameters
    ----------
    what:
        The command in words.
    facts:
        Settings that are told.
    """

    def __init__(self, folder: Path, what: str, facts: Mapping[str, Any] | None = None) -> None:
        self.folder = writable_folder(folder / RUNS)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        self.path = self.folder / f"{stamp}-{socket.gethostname()[:40]}-{os.getpid()}.json"
        self.states: dict[str, State] = {}
        self._facts = {"command": what, "started": time.strftime("%Y-%m-%d %H:%M:%S"), **dict(facts or {})}
        self._versions = versions()
        self._written = self._took = 0.0
        self._began = time.monotonic()

    def note(self, item: str, **changes: Any) -> None:
        """The state of an item."""
        state = self.states.setdefault(item, State(item))
        for key, value in changes.items():
            setattr(state, key, value)
        if len(self.states) <= _SHORT or time.monotonic() - self._written > _SHARE * self._took:
            self.write()

    def write(self, ended: bool = False) -> None:
        """The file as it stands."""
        began = time.monotonic()
        counts = Counter(state.state for state in self.states.values())
        facts = {
            **self._facts,
            "ended": time.strftime("%Y-%m-%d %H:%M:%S") if ended else None,
            "seconds": round(time.monotonic() - self._began, 2),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "counts": dict(sorted(counts.items())),
            "versions": self._versions,
            "items": [asdict(state) for state in self.states.values()],
        }
        write_json(self.path, facts)
        self._written = time.monotonic()
        self._took = self._written - began

    def close(self) -> None:
        """The last word, and the summary of all runs of the folder."""
        self.write(ended=True)
        write_text(self.folder / "summary.md", summary(self.folder))


def summary(folder: Path) -> str:
    """All runs of a folder in Markdown: a row for each, and the items whose last attempt failed."""
    rows, last = [], {}
    for path in sorted(folder.glob("*.json")):
        found: Any = None
        with suppress(MorphogenError, OSError):
            found = read_json(path)
        if not isinstance(found, dict) or "items" not in found:
            continue
        counts, cells = (
            found.get("counts", {}),
            [str(found.get("started", "")), str(found.get("command", ""))],
        )
        cells += [str(found.get("shard") or ""), f"{found.get('host', '')} ({found.get('pid', '')})"]
        cells += [str(counts.get(name, 0)) for name in ("done", "failed", "elsewhere", "waiting", "working")]
        rows.append("| " + " | ".join([*cells, f"{found.get('seconds', 0):.0f}"]) + " |")
        for state in found["items"]:
            if state.get("state") in ("done", "failed"):
                last[state.get("item", "")] = state
    failed = [state for state in last.values() if state["state"] == "failed"]
    lines = [
        "# Runs",
        "",
        "| started | command | shard | host (process) | done | failed | elsewhere | waiting | working | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        f"{len(last) - len(failed)} items are done, {len(failed)} failed.",
    ]
    if failed:
        lines += ["", "## Failed", ""]
        lines += [f"- {_told(state['item'], state['error'])}" for state in failed[:_MOST_LISTED]]
        if len(failed) > _MOST_LISTED:
            lines.append(f"- and {len(failed) - _MOST_LISTED} more")
    return "\n".join(lines) + "\n"


def _told(item: str, error: str) -> str:
    """Most errors begin with the place they are at."""
    return error if error.startswith(item) else f"{item}: {error}"
