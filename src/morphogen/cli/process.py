"""What the process of a command does about signals and about what libraries print beside its own words."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

# How lines begin that libtiff, libjpeg, libpng, OpenJPEG, GLib and HDF5 print to the standard error by themselves.
_NATIVE = re.compile(
    rb"(_?TIFF\w*:|TIFF(Read|Fetch|Open|Client|Set|Advance|Fill)|\w*JPEG\w*:|Corrupt JPEG|Premature end of JPEG"
    rb"|libpng|OpenJPEG|\[(INFO|WARNING|ERROR)\] |\(process:\d+\)|\*\* \(|GLib|HDF5-DIAG|  #\d{3}:|    (major|minor): "
    rb"|\w[\w./-]*: (Warning|Error), |\w+Decode\w*:|JPEGLib|LZW|ZIP|Old-style)"
)


_QUIET = {
    "PYTHONWARNINGS": "ignore",  # of processes that are started
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "DIFFUSERS_VERBOSITY": "error",
}
GRACE = 5.0  # seconds that a command has for ending by itself once it was told to


class Ended(KeyboardInterrupt):
    """SIGTERM: what a scheduler or ``kill`` sends; unwinds as Ctrl-C does."""


_ENDS: dict[int, tuple[type[KeyboardInterrupt], int, str]] = {
    signal.SIGINT: (KeyboardInterrupt, 130, "Interrupted"),
    signal.SIGTERM: (Ended, 143, "Told to end"),
}


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within the block Ctrl-C and SIGTERM unwind the main thread, and end the process when that takes long.

    Threads that are at work would otherwise hold it up for as long as they like. A second signal ends at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: object) -> None:
        for each in _ENDS:
            signal.signal(each, signal.SIG_DFL)
        late = threading.Timer(GRACE, lambda: say_ended(number, at_once=True))
        late.daemon = True
        late.start()
        raise _ENDS[number][0]

    before = {number: signal.signal(number, end) for number in _ENDS}
    try:
        yield
    finally:
        for number, handler in before.items():
            with suppress(TypeError, ValueError):
                signal.signal(number, handler)


def say_ended(number: int, *, at_once: bool = False) -> NoReturn:
    """Say that a signal ended the command and leave; ``at_once`` does not wait for threads."""
    _, code, what = _ENDS[number]
    print(f"\nmorphogen: {what}; finished work is kept, run the same command to go on.", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    others = (thread for thread in threading.enumerate() if thread is not threading.main_thread())
    if at_once or any(not thread.daemon for thread in others):
        os._exit(code)
    sys.exit(code)


@contextmanager
def quiet_libraries(debug: bool) -> Iterator[None]:
    """Within the block warnings and logs of libraries, and lines that C libraries print, do not reach the user.

    All of it is shown with ``debug``. What this package logs (loggers under ``morphogen``) is always shown.
    """
    if debug:
        yield
        return
    ours = {name: value for name, value in _QUIET.items() if name not in os.environ}
    os.environ.update(ours)
    last = logging.lastResort
    if last is not None:
        last.addFilter(_is_ours)
    try:
        with warnings.catch_warnings(), _native_lines_left_out():
            warnings.simplefilter("ignore")
            yield
    finally:
        if last is not None:
            last.removeFilter(_is_ours)
        for name in ours:
            os.environ.pop(name, None)


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.split(".")[0] == "morphogen"


@contextmanager
def _native_lines_left_out() -> Iterator[None]:
    """Lines that C code writes to the standard error go through a filter; what Python prints does not."""
    stream = sys.stderr
    try:
        direct = stream is sys.__stderr__ and stream is not None and stream.fileno() == 2
    except (AttributeError, OSError, ValueError):
        direct = False
    if stream is None or not direct:  # captured, as in a notebook or a test
        yield
        return
    stream.flush()
    real = os.dup(2)
    ours = open(os.dup(real), "w", encoding=stream.encoding, errors=stream.errors, buffering=1)  # noqa: SIM115
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    reader = threading.Thread(target=_filter, args=(reading, real), name="stderr", daemon=True)
    reader.start()
    sys.stderr = ours
    try:
        yield
    finally:
        ours.flush()
        sys.stderr = stream
        os.dup2(real, 2)  # the last end of the pipe that is ours: the reader comes to an end
        reader.join(0.5)


def _filter(reading: int, real: int) -> None:
    with open(reading, "rb") as lines:
        for line in lines:
            if not _NATIVE.match(line):
                with suppress(OSError):
                    os.write(real, line)
