"""Runs one command in a forked child of this process: what it prints, how it ends, what it leaves on disk.

A fork starts in milliseconds with everything imported, and a child may crash, hang or eat memory without harm.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

SECONDS, MEMORY = 90.0, 6 << 30
LONGEST = 330  # "morphogen: " and a sentence of 300 characters, with the point that ends it


@dataclass
class Outcome:
    """How a command ended. status: exit status, −signal for a crash, ``None`` for a child that was stopped."""

    status: int | None
    out: str
    err: str
    seconds: float
    stopped: str = ""
    strays: list[str] = field(default_factory=list)


def preload() -> None:
    """Import what the commands use, once, before children are made."""
    import importlib

    for name in (
        "morphogen.cli.main", "morphogen.cli.slide", "morphogen.cli.stain", "morphogen.cli.expression",
        "morphogen.cli.checkpoint", "morphogen.slides.batch", "morphogen.slides.encode", "morphogen.stain.predict",
        "morphogen.stain.train", "morphogen.stain.evaluate", "morphogen.expression.train",
        "morphogen.expression.predict", "morphogen.expression.evaluate", "morphogen.checkpoints.importing",
        "morphogen.slides.encoders.texture.encoder", "morphogen.cli.tissue", "morphogen.cli.layout",
        "morphogen.tissue.train", "morphogen.tissue.evaluate", "morphogen.layout.evaluate", "morphogen.layout.predict",
    ):  # fmt: skip
        importlib.import_module(name)


def listing(folder: Path, leave: tuple[Path, ...] = ()) -> dict[str, tuple[int, int]]:
    """``{path: (size, time of change)}`` of everything below a folder, but for what ``leave`` names."""
    found = {}
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if Path(root, name) not in leave]
        for name in files:
            path = Path(root, name)
            state = path.lstat()
            found[os.fsencode(path).decode("latin-1")] = (state.st_size, state.st_mtime_ns)
    return found


def results(folder: Path) -> set[str]:
    """Names of all files below a folder, hidden ones too; but for the reports, of which every run writes its own."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in names if not name.startswith("runs/")}


def run(arguments: list[str], folder: Path, out: Path) -> Outcome:
    """Run ``morphogen ARGUMENTS`` in ``folder``; everything it writes must lie below ``out``."""
    return _run(arguments, folder, out, 1)[0]


def run_both(arguments: list[str], folder: Path, out: Path) -> list[Outcome]:
    """The same command twice at once."""
    return _run(arguments, folder, out, 2)


def _run(arguments: list[str], folder: Path, out: Path, times: int) -> list[Outcome]:
    before = listing(folder, (out,))
    started = time.monotonic()
    children = []
    for number in range(times):
        logs = [folder.parent / f"{folder.name}.{number}.{kind}" for kind in ("out", "err")]
        child = os.fork()
        if child == 0:
            _child(arguments, folder, *logs)
        children.append((child, logs))
    outcomes = []
    for child, logs in children:
        status, stopped = _watch(child, started)
        texts = [path.read_text(encoding="utf-8", errors="surrogateescape") for path in logs]
        outcomes.append(Outcome(status, *texts, time.monotonic() - started, stopped))
    after = listing(folder, (out,))
    strays = sorted(path for path in after if before.get(path) != after[path])
    strays += [f"{path} is gone" for path in before if path not in after]
    for outcome in outcomes:
        outcome.strays = strays
    return outcomes


def run_apart(arguments: list[str], folder: Path, out: Path) -> Outcome:
    """The same in a new process, which libraries also leave as they do in use: slower by their imports."""
    before, started, stopped = listing(folder, (out,)), time.monotonic(), ""
    code = "from morphogen.cli.main import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, timeout=SECONDS, stdin=subprocess.DEVNULL
        )
        status, texts = done.returncode, [done.stdout, done.stderr]
    except subprocess.TimeoutExpired as error:
        status, texts, stopped = (
            None,
            [error.stdout or b"", error.stderr or b""],
            f"no end after {SECONDS:.0f} s",
        )
    after = listing(folder, (out,))
    words = [text.decode(errors="surrogateescape") for text in texts]
    outcome = Outcome(status, *words, time.monotonic() - started, stopped)
    outcome.strays = sorted(path for path in after if before.get(path) != after[path])
    outcome.strays += [f"{path} is gone" for path in before if path not in after]
    return outcome


def apart(work: Callable[[], object]) -> None:
    """Call ``work`` in a child, so that no thread of a library is alive here when further children are made."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the well-formed inputs could not be made"


def _child(arguments: list[str], folder: Path, out: Path, err: Path) -> None:
    """Never comes back."""
    os.setsid()
    for number, path in ((1, out), (2, err)):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # pytest has put its own objects at the places of the standard streams.
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, "w" if n else "r", closefd=False) for n in range(3))
    status = 70
    try:
        os.chdir(folder)
        from morphogen.cli.main import main

        main(arguments)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _watch(child: int, started: float) -> tuple[int | None, str]:
    process, stopped = psutil.Process(child), ""
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return (None if stopped else os.waitstatus_to_exitcode(status)), stopped
        try:
            used = process.memory_info().rss
        except psutil.NoSuchProcess:
            used = 0
        if not stopped and time.monotonic() - started > SECONDS:
            stopped = f"no end after {SECONDS:.0f} s"
        if not stopped and used > MEMORY:
            stopped = f"more than {MEMORY >> 30} GiB of memory"
        if stopped:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.01)


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x9b]")


def faults(outcome: Outcome, allowed: tuple[int, ...] = (0, 2, 3)) -> list[str]:
    """What is wrong with the way a command took malformed input; empty when nothing is."""
    wrong = []
    if outcome.stopped:
        wrong.append(outcome.stopped)
    elif outcome.status is not None and outcome.status < 0:
        wrong.append(f"crashed with {signal.Signals(-outcome.status).name}")
    elif outcome.status not in allowed:
        wrong.append(f"exit status {outcome.status}")
    if "Traceback (most recent call last)" in outcome.err + outcome.out:
        wrong.append("a traceback")
    lines = [line for line in outcome.err.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("morphogen: ")]
    if outcome.status == 2:
        if len(said) != 1:
            wrong.append(f"{len(said)} sentences")
        noise = [line for line in lines if not line.startswith("morphogen: ") and not _log(line)]
        if noise:
            wrong.append(f"noise beside the sentence: {noise[0][:120]!r}")
    if any(len(line) > LONGEST for line in said):
        wrong.append(f"a sentence of {max(map(len, said))} characters")
    if _CONTROL.search((outcome.err + outcome.out).replace("\r", "").replace("\x1b[", "")):
        wrong.append("control characters")
    try:
        (outcome.err + outcome.out).encode("utf-8")
    except UnicodeEncodeError:
        wrong.append("bytes that are not UTF-8")
    if outcome.strays:
        wrong.append(f"changed outside the output: {outcome.strays[:3]}")
    return wrong


def _log(line: str) -> bool:
    """Progress and notes of the package itself may stand before the sentence."""
    return line.startswith("note: ") or "%|" in line
