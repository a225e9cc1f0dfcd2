"""Who works on which item, for processes that share nothing but a folder: lock files with a heartbeat.

A claim says host, process and since when; its time of change is its heartbeat. A claim is stale when its process is
gone (on this host), or when its heartbeat has not moved for :data:`STALE` seconds (on others), and is then taken over.
Finished items leave a mark that names their files, so that other shards need not look at them again.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from morphogen.core.errors import MorphogenError
from morphogen.core.files import output_error, read_json, writable_folder, write_json
from morphogen.core.writing.replacing import alive

BEAT = 5.0  # seconds between two beats
STALE = 60.0  # seconds after the last beat of another host


class Claims:
    """The claims of one process on the items of a cohort.

    Parameters
    ----------
    folder:
        Where all shards of the cohort keep them.
    mark:
        Of the settings: finished items of other settings do not count.
    """

    def __init__(self, folder: Path, mark: str) -> None:
        self.folder, self.mark = writable_folder(folder), mark
        self._held: dict[str, Path] = {}
        self._seen: dict[
            str, tuple[float, float]
        ] = {}  # a foreign claim's beat, and when it was first seen so
        self._lock, self._end = threading.Lock(), threading.Event()
        self._began = time.time()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let go of everything."""
        self._end.set()
        self._thread.join()
        for name in list(self._held):
            self.release(name)

    def _beat(self) -> None:
        while not self._end.wait(BEAT):
            with self._lock:
                held = list(self._held.values())
            for path in held:
                with suppress(OSError):  # a disk that is away: the next beat may reach it
                    os.utime(path)

    def _path(self, name: str, kind: str) -> Path:
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.{kind}"

    def take(self, name: str) -> bool:
        """Whether the item is ours now; ``False`` when another process is at it."""
        path = self._path(name, "lock")
        facts = {"item": name, "host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        for _ in range(2):
            try:
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
            except FileExistsError:
                if not self._stale(path):
                    return False
                self._remove_stale(path)
                continue
            except OSError as error:
                raise output_error(error, path) from error
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(facts, file)
            with self._lock:
                self._held[name] = path
            return True
        return False

    def _remove_stale(self, path: Path) -> None:
        """Of two that find a claim stale at once, one removes it: the rename of the other fails."""
        aside = path.with_name(f"{path.name}.{socket.gethostname()[:40]}.{os.getpid()}")
        with suppress(OSError):
            os.rename(path, aside)
            os.unlink(aside)

    def _stale(self, path: Path) -> bool:
        try:
            beat = path.stat().st_mtime
            facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return True
        except (OSError, ValueError):  # being written just now, or cut
            facts, beat = {}, 0.0
            with suppress(OSError):
                beat = path.stat().st_mtime
        if facts.get("host") == socket.gethostname():
            return not alive(int(facts.get("pid", -1)))
        # Clocks of two hosts may differ: what counts is whether the beat moves while we look.
        before, since = self._seen.get(path.name, (None, 0.0))
        now = time.monotonic()
        if before != beat:
            self._seen[path.name] = beat, now
            return False
        return now - since > STALE

    def waiting(self, name: str) -> bool:
        """Whether an item that another process holds may still become ours: its heartbeat has not moved so far."""
        path = self._path(name, "lock")
        known = self._seen.get(path.name)
        with suppress(OSError):
            return known is not None and path.stat().st_mtime == known[0]
        return True

    def release(self, name: str) -> None:
        """The item is done with."""
        with self._lock:
            path = self._held.pop(name, None)
        if path is not None:
            with suppress(OSError):
                path.unlink()

    def finish(self, name: str, error: str, written: list[str]) -> None:
        """Leave the mark of an item that is done, or failed."""
        facts = {"item": name, "mark": self.mark, "error": error, "written": written, "at": time.time()}
        write_json(self._path(name, "done"), facts)

    def finished(self, name: str) -> bool:
        """Whether another shard did the item under these settings and its files are there, or failed at it since this
        process began."""
        try:
            facts = read_json(self._path(name, "done"))
        except (MorphogenError, OSError):
            return False
        if not isinstance(facts, dict) or facts.get("mark") != self.mark:
            return False
        if facts.get("error"):
            return float(facts.get("at", 0)) >= self._began
        return all(Path(path).exists() for path in facts.get("written", []))
