"""One item in whatever process it is: the model loaded once, the file staged, trouble that passes tried again."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from morphogen.core.devices import TOGETHER
from morphogen.core.errors import BusyError, ConfigError, MorphogenError, OutputError, WeightsError, shortened
from morphogen.core.files import output_error, writable_folder

# What a network disk says when it is away for a moment.
_PASSING = {
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EREMOTEIO,
    errno.ENOTCONN,
    errno.EHOSTDOWN,
    errno.EAGAIN,
}
_FULL = {errno.ENOSPC, errno.EDQUOT}
PAUSE = 1.0  # seconds before something is tried again; doubled every time
_prepared: dict[bytes, Any] = {}


@dataclass(frozen=True)
class Item:
    """One piece of a cohort: what it is called in reports, the file that may be staged, and whatever a room adds."""

    name: str
    path: Path | None = None
    more: Any = None


class Work(Protocol):
    """What is done to items. It can be pickled; what it needs is loaded once in a process."""

    def load(self) -> Any:
        """The model, the encoder; ``None`` for work that needs none."""
        ...

    def __call__(self, loaded: Any, item: Item, path: Path | None) -> Any:
        """The outcome of an item; ``path`` is its file, staged or not. Outcomes can be pickled."""
        ...


@dataclass(frozen=True)
class Task:
    """An item with all that a process needs to work on it."""

    work: Work
    item: Item
    retries: int = 0
    stage: Path | None = None
    device: str = ""  # CUDA device of a process that sees several; "" for the only one


@dataclass
class Reply:
    """What became of an item in a process: a value or an error in words, and of what kind it is.

    fatal: the error would meet all items. busy: another run is writing this item's result.
    """

    value: Any = None
    error: str = ""
    fatal: MorphogenError | None = None
    busy: bool = False
    attempts: int = 1
    seconds: float = 0.0
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    device: str = ""


def concerns_all(error: BaseException) -> bool:
    """Whether an error at one item would meet all others too: a wrong setting, an encoder without weights, a full
    disk."""
    return isinstance(error, (ConfigError, WeightsError)) or _has(error, _FULL, (OutputError,))


def passes(error: BaseException) -> bool:
    """Whether an error may be gone in a moment: a disk that does not answer."""
    return _has(error, _PASSING, (Exception,))


def _has(error: BaseException | None, numbers: set[int], kinds: tuple[type[BaseException], ...]) -> bool:
    if not isinstance(error, kinds):
        return False
    while error is not None:
        if isinstance(error, OSError) and error.errno in numbers:
            return True
        error = error.__cause__
    return False


def in_words(error: BaseException) -> str:
    """An error as one line of a report."""
    if isinstance(error, MorphogenError):
        return str(error)
    return f"{type(error).__name__}: {shortened(' '.join(str(error).split()), 200)}"


def perform(task: Task, loaded: Any = None, *, raising: bool = False) -> Reply:
    """Work on an item in this process. Its error is in the reply; ``raising`` gives it as it is."""
    began = time.perf_counter()
    reply = Reply(device=task.device or _device_here())
    try:
        if loaded is None:
            with bound_to(task.device):
                loaded = _loaded(task.work)
    except MorphogenError as error:
        if raising:
            raise
        reply.fatal = error
        return reply
    pause = PAUSE
    for attempt in range(task.retries + 1):
        reply.attempts = attempt + 1
        try:
            with bound_to(task.device), staged(task.item.path, task.stage) as path:
                reply.value, reply.error = task.work(loaded, task.item, path), ""
            break
        except Exception as error:
            last = attempt == task.retries or not passes(error)
            if raising and last:
                raise
            reply.error, reply.busy = in_words(error), isinstance(error, BusyError)
            if isinstance(error, MorphogenError) and concerns_all(error):
                reply.fatal = error
                break
            if last:
                break
            time.sleep(pause)
            pause *= 2
    reply.seconds = time.perf_counter() - began
    return reply


@contextmanager
def bound_to(device: str) -> Iterator[None]:
    """Within the block ``cuda`` is this CUDA device; for processes that see several."""
    if not device.startswith("cuda:"):
        yield
        return
    import torch

    with torch.cuda.device(device):
        yield


def _device_here() -> str:
    number = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return f"cuda {number}" if number else "cpu"


def _loaded(work: Work) -> Any:
    """What a work needs, loaded once in a process for the devices of this item; the one before is let go."""
    key = hashlib.sha256(pickle.dumps((work, os.environ.get(TOGETHER)))).digest()
    if key not in _prepared:
        _prepared.clear()
        _prepared[key] = work.load()
    return _prepared[key]


@contextmanager
def staged(path: Path | None, stage: Path | None) -> Iterator[Path | None]:
    """A copy of a file (and of the folder of its name beside it, as MRXS has) below ``stage``, while the block runs;
    the file itself where nothing is staged. What a killed run left is copied over."""
    if path is None or stage is None or not path.is_file():
        yield path
        return
    mark = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
    folder = writable_folder(Path(stage) / f"{mark}-{os.getpid()}")
    try:
        try:
            shutil.copyfile(path, folder / path.name)
            beside = path.with_suffix("")
            if path.suffix and beside.is_dir():
                shutil.copytree(beside, folder / beside.name, dirs_exist_ok=True)
        except OSError as error:
            if error.errno in _PASSING or not isinstance(error.filename2 or error.filename, (str, bytes)):
                raise
            raise output_error(error, folder) from error
        yield folder / path.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)
