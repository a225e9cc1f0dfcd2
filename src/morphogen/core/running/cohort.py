"""One engine for many items: here, over processes and GPUs, on a cluster, or as a shard of a job array.

A room says what is done to an item (:class:`~morphogen.core.running.work.Work`); a :class:`Spread` says where. Whatever
happens to an item, the others go on; what would meet all of them is raised::

    for index, reply in run_cohort(work, items, spread, out=out, what="stain predict"):
        ...
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from morphogen.core.devices import TOGETHER
from morphogen.core.errors import InputError, MorphogenError
from morphogen.core.files import content_hash
from morphogen.core.processes import Finished, run_apart
from morphogen.core.progress import progress
from morphogen.core.running.claims import Claims
from morphogen.core.running.cluster import on_cluster
from morphogen.core.running.runs import RUNS, RunReport, State
from morphogen.core.running.spread import Spread, gpu_count
from morphogen.core.running.work import Item, Reply, Task, Work, in_words, perform

_POLL = 1.0  # seconds between two looks at items that other shards hold


def run_cohort(
    work: Work,
    items: Sequence[Item],
    spread: Spread | None = None,
    *,
    out: Path | None,
    what: str,
    loaded: Any = None,
    workers: int | None = None,
    isolated: bool = False,
    facts: Mapping[str, Any] | None = None,
    written: Callable[[Any], Sequence[Path | str]] = lambda value: (),
    unit: str = "slides",
) -> Iterator[tuple[int, Reply]]:
    """``work`` on all items; the index of each and what became of it, as it is finished.

    Parameters
    ----------
    out:
        Folder of the results, in which the run is reported (``runs/``); ``None`` reports nothing.
    what:
        The command in words.
    loaded:
        What ``work.load()`` would give, where it is loaded in this process already.
    workers:
        Processes, where ``spread`` does not say.
    isolated:
        Gives a single worker a process of its own too, so that a file that crashes a library fails alone.
    facts:
        Settings of the run, for its report and to tell it from others.
    written:
        Files that a value tells of: while they are there, other shards leave the item alone.

    Raises
    ------
    MorphogenError
        What concerns all items, two items of one name, a scheduler that does not answer; for a single item its own
        failure.
    """
    spread = spread or Spread()
    names = [item.name for item in items]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError("is named twice", where=twice)
    tasks = [Task(work, item, spread.retries, spread.stage) for item in items]
    alone = len(items) == 1 and spread.shard is None
    count = 1 if alone else min(spread.workers or workers or 1, len(items))
    with ExitStack() as stack:
        report = claims = None
        if out is not None and not alone:
            shard = {"shard": f"{spread.shard.number}/{spread.shard.count}"} if spread.shard else {}
            report = RunReport(out, what, {**shard, **dict(facts or {})})
            stack.callback(_closed, report)
            if spread.shard is not None:
                mark = content_hash(what, dict(facts or {}))
                claims = stack.enter_context(closing(Claims(out / RUNS / ".claims", mark)))
        bar = stack.enter_context(progress.bar(len(items), unit))
        engine = _engine(tasks, spread, count, loaded, alone, isolated)
        for index, reply in _Rounds(items, spread, claims, report).run(engine):
            if report is not None:
                changes = {key: getattr(reply, key) for key in ("attempts", "host", "pid", "device", "error")}
                state = "failed" if reply.error or reply.fatal else "done"
                report.note(names[index], state=state, seconds=round(reply.seconds, 3), **changes)
            if reply.fatal is not None:
                raise reply.fatal
            if claims is not None:
                if not reply.error:
                    claims.finish(names[index], "", [str(path) for path in written(reply.value)])
                else:
                    claims.finish(names[index], reply.error, [])
                claims.release(names[index])
            bar.advance()
            yield index, reply


def _closed(report: RunReport) -> None:
    with suppress(MorphogenError, OSError):  # a full disk: what the work met is what is told
        report.close()


Engine = Callable[[Iterator[int]], Generator[tuple[int, Reply], None, None]]


def _engine(
    tasks: Sequence[Task], spread: Spread, count: int, loaded: Any, alone: bool, isolated: bool
) -> Engine:
    """What works on items, whose indices it takes one by one as it has room for them."""

    def here(indices: Iterator[int]) -> Generator[tuple[int, Reply], None, None]:
        for index in indices:
            with _devices(spread.gpus):
                reply = perform(tasks[index], loaded, raising=alone)
            yield index, reply

    def apart(indices: Iterator[int]) -> Generator[tuple[int, Reply], None, None]:
        taken: list[int] = []

        def given() -> Iterator[Task]:
            for index in indices:
                taken.append(index)
                yield tasks[index]

        environment = partial(spread.environment, workers=count)
        finished = run_apart(perform, given(), count, retries=spread.retries, environment=environment)
        with closing(finished):
            for done in finished:
                yield taken[done.item], _reply(done)

    def cluster(indices: Iterator[int]) -> Generator[tuple[int, Reply], None, None]:
        assert spread.scheduler is not None
        taken: list[int] = []

        def given() -> Iterator[Task]:
            for index in indices:
                taken.append(index)
                yield replace(tasks[index], stage=spread.stage)

        with closing(on_cluster(perform, given(), spread.scheduler, spread.retries)) as finished:
            for done in finished:
                yield taken[done.item], _reply(done)

    if spread.scheduler is not None:
        return cluster
    return apart if count > 1 or (isolated and not alone) else here


@contextmanager
def _devices(gpus: Sequence[int]) -> Iterator[None]:
    """Within the block this process works on these GPUs, on all of them together."""
    before = os.environ.get(TOGETHER)
    gpus = gpus if gpu_count() else ()  # a CPU does the work where there is none
    if gpus:
        os.environ[TOGETHER] = ",".join(f"cuda:{number}" for number in gpus)
    try:
        yield
    finally:
        if before is not None:
            os.environ[TOGETHER] = before
        elif gpus:
            del os.environ[TOGETHER]


def _reply(done: Finished) -> Reply:
    """With the attempts of processes that ended counted too."""
    if done.error is None:
        reply: Reply = done.value
        reply.attempts += done.tries - 1
        return reply
    return Reply(error=str(done.error) or in_words(done.error), attempts=done.tries)


class _Rounds:
    """Which items are worked on, and when: one's own, then those of other shards that nobody is at."""

    def __init__(
        self, items: Sequence[Item], spread: Spread, claims: Claims | None, report: RunReport | None
    ) -> None:
        self._names = [item.name for item in items]
        self._claims, self._report = claims, report
        mine, others = (spread.shard or Spread.whole()).own(range(len(items)))
        self._order = [*mine, *others]
        self._left: list[int] = []
        if report is not None:
            for name in self._names:
                report.states[name] = State(name)

    def run(self, engine: Engine) -> Iterator[tuple[int, Reply]]:
        """What became of each item; those that another run is writing are looked at once more after all others."""
        busy: list[int] = []
        with closing(self._all(engine)) as finished:
            for index, reply in finished:
                if reply.busy:
                    busy.append(index)
                else:
                    yield index, reply
        if busy:
            with closing(engine(iter(busy))) as finished:
                yield from finished

    def _all(self, engine: Engine) -> Generator[tuple[int, Reply], None, None]:
        with closing(engine(self._free(self._order))) as finished:
            yield from finished
        while self._left:
            # Others hold these. A heartbeat that moves is left alone; one that stands still is waited for.
            left, self._left = self._left, []
            ready = list(self._free(left))
            if ready:
                with closing(engine(iter(ready))) as finished:
                    yield from finished
                continue
            assert self._claims is not None
            self._left = [index for index in self._left if self._claims.waiting(self._names[index])]
            if self._left:
                time.sleep(_POLL)

    def _free(self, indices: Sequence[int]) -> Iterator[int]:
        for index in indices:
            name = self._names[index]
            if self._claims is not None:
                if self._claims.finished(name):
                    self._note(name, "elsewhere")
                    continue
                if not self._claims.take(name):
                    self._note(name, "elsewhere")
                    self._left.append(index)
                    continue
                if self._claims.finished(name):  # between the look and the claim
                    self._claims.release(name)
                    self._note(name, "elsewhere")
                    continue
            self._note(name, "working")
            yield index

    def _note(self, name: str, state: str) -> None:
        if self._report is not None:
            self._report.note(name, state=state)
