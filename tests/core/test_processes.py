"""Work in processes: one that crashes loses its item alone, nobody else can reach them, none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import closing

import pytest

from morphogen.core import processes
from morphogen.core.errors import ConfigError, MorphogenError, SlideError
from morphogen.core.processes import Crash, run_apart

MODULE = """
import os, signal, time
from morphogen.core.errors import SlideError
from morphogen.core.processes import worker_number

def work(item):
    if item == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if item == "abort":
        os.abort()
    if item == "bad":
        raise SlideError("cannot be read", where="a.svs")
    if item == "odd":
        raise ValueError("odd", lambda: None)  # cannot be pickled
    if item == "slow":
        time.sleep(60)
    return item, os.getpid(), worker_number(), os.environ["OMP_NUM_THREADS"]
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    (tmp_path / "their_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import their_module

    yield their_module.work
    sys.modules.pop("their_module")


def test_processes_that_do_not_start_are_one_sentence(work, monkeypatch):
    monkeypatch.setattr(processes, "_START", "raise SystemExit(1)")
    with pytest.raises(MorphogenError, match=r"did not start: it ended with status 1\. Run it again"):
        list(run_apart(work, ["a", "b"], 2))


def test_a_crash_is_one_item_and_the_others_are_done(work):
    items = ["a", "segfault", "b", "bad", "abort", "odd", "c"]
    with closing(run_apart(work, items, 2)) as finished:
        found = {items[done.item]: (done.value, done.error) for done in finished}
    assert sorted(found) == sorted(items)
    for name in "abc":
        value, error = found[name]
        assert error is None and value[0] == name and value[1] != os.getpid() and value[2] in (0, 1)
    for name, said in (("segfault", "SIGSEGV"), ("abort", "SIGABRT")):
        error = found[name][1]
        assert isinstance(error, Crash) and str(error) == f"its process was ended by {said}"
    assert isinstance(found["bad"][1], SlideError) and "a.svs: cannot be read" in str(found["bad"][1])
    assert "ValueError" in str(found["odd"][1])


def test_one_worker_is_a_process_too(work):
    with closing(run_apart(work, ["abort", "a"], 1)) as finished:
        assert [(done.item, done.error is None) for done in finished] == [(0, False), (1, True)]


def test_processes_end_with_the_loop(work):
    began = time.monotonic()
    with closing(run_apart(work, ["a", "slow", "b"], 2)) as finished:
        first = next(finished)
        assert first.value[0] == "a"
    assert time.monotonic() - began < 20
    assert _ended(first.value[1])


def _ended(pid: int) -> bool:
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("workers", [0, -1])
def test_fewer_than_one_worker_is_refused(work, workers):
    with pytest.raises(ConfigError, match=f"--workers: there must be at least one worker, not {workers}"):
        list(run_apart(work, ["a"], workers))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_one_that_started_it(work, tmp_path, number):
    script = tmp_path / "script.py"  # without the guard that multiprocessing asks for
    script.write_text(
        textwrap.dedent(
            """
            import signal
            from contextlib import closing
            from their_module import work
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
            from morphogen.core.processes import run_apart
            with closing(run_apart(work, ["a", "slow"], 1)) as finished:
                for item, value, error, _ in finished:
                    print(value[1], flush=True)
            """
        )
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:  # fmt: skip
        pid = int(process.stdout.readline())
        time.sleep(0.2)
        process.send_signal(number)
        process.wait(20)
    assert _ended(pid)


def test_nobody_can_connect(work):
    """No port and no named socket is opened, in this process or in the workers."""
    from pathlib import Path

    def listening() -> set[str]:
        found = set()
        for table in ("tcp", "tcp6"):
            lines = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
            found |= {line.split()[9] for line in lines if line.split()[3] == "0A"}  # inodes that listen
        lines = Path("/proc/net/unix").read_text().splitlines()[1:]
        return found | {line.split()[6] for line in lines if line.split()[3] == "00010000"}

    if not Path("/proc/net/tcp").exists():
        pytest.skip("no /proc")
    with closing(run_apart(work, ["a", "slow"], 1)) as finished:
        pid = next(finished).value[1]
        held = set()
        for process in (pid, os.getpid()):
            for handle in Path(f"/proc/{process}/fd").iterdir():
                target = os.readlink(handle) if handle.is_symlink() else ""
                held.add(target.removeprefix("socket:[").rstrip("]"))
        assert not held & listening()
