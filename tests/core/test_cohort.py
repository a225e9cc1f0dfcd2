"""Many items: retries, takeovers, reports, GPUs; whatever happens to one, the others are done."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from morphogen.core.errors import ConfigError, InputError, OutputError
from morphogen.core.running import claims as claims_file
from morphogen.core.running import work as work_file
from morphogen.core.running.claims import Claims
from morphogen.core.running.cohort import run_cohort
from morphogen.core.running.spread import Shard, Spread
from morphogen.core.running.work import Item

MODULE = '''
import errno, os, signal, time
from dataclasses import dataclass
from pathlib import Path
from morphogen.core.errors import BusyError, OutputError, SlideError

@dataclass(frozen=True)
class Copy:
    """Writes what an item's file holds, twice over; some items do other things."""
    out: Path
    seconds: float = 0.0

    def load(self):
        (self.out / f"loaded-{os.getpid()}").touch()
        return "model"

    def __call__(self, loaded, item, path):
        assert loaded == "model"
        name = Path(item.name).name
        tried = self.out / f"{name}.tries"
        tried.write_text(tried.read_text() + "x" if tried.exists() else "x")
        count = len(tried.read_text())
        if "away" in name and count == 1:
            raise SlideError("cannot be read", where=name) from OSError(errno.EIO, "Input/output error")
        if "bad" in name:
            raise SlideError("is a text file", where=name)
        if "busy" in name and (count == 1 or "ever" in name):
            raise BusyError("another run is writing here", where=name)
        if "odd" in name:
            raise ValueError("odd")
        if "full" in name:
            raise OutputError("the disk is full") from OSError(errno.ENOSPC, "No space left on device")
        if "dies" in name and count == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if "slow" in name and count == 1:
            (self.out / f"{name}.begun").touch()
            time.sleep(60)
        time.sleep(self.seconds)
        target = self.out / f"{name}.out"
        target.write_bytes(path.read_bytes() * 2)
        return {"written": target, "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), "read": path}
'''


@pytest.fixture
def copy(tmp_path, monkeypatch):
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "their_copy.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setattr(work_file, "PAUSE", 0.01)
    import their_copy

    (tmp_path / "out").mkdir()
    yield their_copy.Copy(tmp_path / "out")
    sys.modules.pop("their_copy")


@pytest.fixture
def items(tmp_path):
    def made(*names):
        (tmp_path / "in").mkdir(exist_ok=True)
        paths = [tmp_path / "in" / name for name in names]
        for path in paths:
            path.write_bytes(path.name.encode())
        return [Item(str(path), path) for path in paths]

    return made


def run(copy, items, spread=None, **options):
    options = {"out": copy.out, "what": "copy", "written": lambda value: [value["written"]], **options}
    found = dict(run_cohort(copy, items, spread, **options))
    return [found.get(index) for index in range(len(items))]


def report(out, number=-1):
    return json.loads(sorted((out / "runs").glob("*.json"))[number].read_text())


@pytest.mark.parametrize("workers", [1, 2])
def test_whatever_happens_to_an_item_the_others_are_done_and_all_is_reported(copy, items, workers):
    names = ["a", "bad", "away", "b", "odd", "c"]
    replies = run(copy, items(*names), Spread(workers=workers))
    assert [reply.error.split(":")[0] for reply in replies] == ["", "bad", "", "", "ValueError", ""]
    assert [reply.attempts for reply in replies] == [1, 1, 2, 1, 1, 1]  # only what may pass is tried again
    assert (copy.out / "c.out").read_bytes() == b"cc"
    assert len(list(copy.out.glob("loaded-*"))) == workers  # once in a process
    found = report(copy.out)
    states = {Path(state["item"]).name: state for state in found["items"]}
    assert [states[name]["state"] for name in names] == ["done", "failed", "done", "done", "failed", "done"]
    assert states["away"]["attempts"] == 2 and states["bad"]["error"] == "bad: is a text file."
    assert states["a"]["host"] == socket.gethostname() and states["a"]["pid"] > 0 and states["a"]["device"]
    assert found["counts"] == {"done": 4, "failed": 2} and found["ended"] and "torch" in found["versions"]
    summary = (copy.out / "runs" / "summary.md").read_text()
    assert "4 items are done, 2 failed." in summary and "is a text file" in summary


@pytest.mark.parametrize("workers", [1, 2])
def test_what_another_run_writes_is_looked_at_again_after_all_others(copy, items, workers):
    found = list(
        run_cohort(
            copy, items("busy", "for ever busy", "a", "b"), Spread(workers=workers), out=copy.out, what="copy"
        )
    )
    assert sorted(index for index, _ in found[:2]) == [2, 3] and sorted(index for index, _ in found[2:]) == [
        0,
        1,
    ]
    replies = dict(found)
    assert (copy.out / "busy.out").read_bytes() == b"busybusy" and not replies[0].error
    assert "another run is writing here" in replies[1].error
    assert [len((copy.out / f"{name}.tries").read_text()) for name in ("busy", "for ever busy", "a")] == [
        2,
        2,
        1,
    ]
    states = {Path(each["item"]).name: each["state"] for each in report(copy.out)["items"]}
    assert states == {"busy": "done", "for ever busy": "failed", "a": "done", "b": "done"}


def test_an_item_whose_process_ends_is_tried_in_another(copy, items):
    replies = run(copy, items("a", "dies", "b"), Spread(workers=2))
    assert [reply.error for reply in replies] == ["", "", ""]
    assert [reply.attempts for reply in replies] == [1, 2, 1]
    replies = run(copy, items("dies2", "c"), Spread(workers=2, retries=0))
    assert "SIGKILL" in replies[0].error and replies[1].error == ""
    assert [reply.attempts for reply in replies] == [1, 1]


def test_what_would_meet_all_items_stops_the_run(copy, items):
    for workers in (1, 2):
        with pytest.raises(OutputError, match="full"):
            run(copy, items("a", "full", "b"), Spread(workers=workers))


def test_a_single_item_raises_its_own_error_and_leaves_no_report(copy, items):
    with pytest.raises(ValueError, match="odd"):
        run(copy, items("odd"))
    assert not (copy.out / "runs").exists()


def test_two_workers_get_different_gpus_of_eight(copy, items, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")
    slow = type(copy)(copy.out, 0.3)
    replies = run(slow, items(*"abcdef"), Spread(workers=2))
    assert {reply.value["gpu"] for reply in replies} == {"0", "1"}
    assert Spread(gpus=(5, 2)).environment(1, {}) == {"CUDA_VISIBLE_DEVICES": "2"}
    assert Spread(gpus=(5, 2)).processes(10) == 2
    # Numbers count among those the process may use.
    assert Spread(gpus=(1,)).environment(0, {"CUDA_VISIBLE_DEVICES": "6,7"}) == {"CUDA_VISIBLE_DEVICES": "7"}
    with pytest.raises(ConfigError, match="there is no GPU 2 among the 2"):
        Spread(gpus=(2,)).environment(0, {"CUDA_VISIBLE_DEVICES": "6,7"})


def test_fewer_items_than_gpus_share_them_out():
    """``--gpus 4 5 6`` with two workers: two GPUs for the first, one for the second; with three one each."""
    spread = Spread(gpus=(4, 5, 6))
    first, second = (spread.environment(k, {}, workers=2) for k in range(2))
    assert first == {"CUDA_VISIBLE_DEVICES": "4,6", "MORPHOGEN_DEVICES": "cuda:0,cuda:1"}
    assert second == {"CUDA_VISIBLE_DEVICES": "5"}
    assert [spread.environment(k, {}, workers=3)["CUDA_VISIBLE_DEVICES"] for k in range(3)] == ["4", "5", "6"]
    # Nobody asked for several: one each, whatever the machine has.
    assert Spread().environment(0, {"CUDA_VISIBLE_DEVICES": "0,1"}, workers=1) == {
        "CUDA_VISIBLE_DEVICES": "0"
    }


def test_one_item_finds_all_gpus_that_were_named(copy, items, monkeypatch):
    import morphogen.core.running.cohort as cohort
    from morphogen.core.devices import TOGETHER

    monkeypatch.delenv(TOGETHER, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    seen, real = [], cohort.perform

    def looked(*arguments, **options):
        seen.append(os.environ.get(TOGETHER))
        return real(*arguments, **options)

    monkeypatch.setattr(cohort, "perform", looked)
    run(copy, items("a"), Spread(gpus=(2, 0)))
    run(copy, items("b"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    run(copy, items("c"), Spread(gpus=(2, 0)))  # there is none: the CPU does it
    assert seen == ["cuda:2,cuda:0", None, None] and TOGETHER not in os.environ


def test_an_input_is_staged_and_the_copy_removed(copy, items, tmp_path):
    stage = tmp_path / "disk"
    (reply, _) = run(copy, items("a", "b"), Spread(stage=stage))
    assert reply.value["read"].parent.parent == stage and reply.value["read"].name == "a"
    assert (copy.out / "a.out").read_bytes() == b"aa" and list(stage.iterdir()) == []


# -- shards ---------------------------------------------------------------------------------------------------------

SHARD = """
import sys
from pathlib import Path
from morphogen.core.running import claims, cohort
from morphogen.core.running.spread import Shard, Spread
from morphogen.core.running.work import Item
sys.path.insert(0, sys.argv[1])
from their_copy import Copy
paths = sorted(Path(sys.argv[2]).iterdir())
copy = Copy(Path(sys.argv[3]), 0.05)
options = {"out": copy.out, "what": "copy", "written": lambda value: [value["written"]]}
items = [Item(str(path), path) for path in paths]
for _ in cohort.run_cohort(copy, items, Spread(shard=Shard.of(sys.argv[4])), **options): pass
"""


def test_four_shards_one_killed_make_the_same_files_as_one_process(copy, items, tmp_path):
    made = items(*[f"s{k:02d}" for k in range(11)], "s99slow")
    slow = next(n for n in range(1, 5) if made[-1] in Shard(n, 4).own(made)[0])

    def start(number):
        arguments = [str(tmp_path / "modules"), str(tmp_path / "in"), str(copy.out), f"{number}/4"]
        return subprocess.Popen([sys.executable, "-c", SHARD, *arguments], env=os.environ)

    first = start(slow)
    until = time.monotonic() + 60
    while not (copy.out / "s99slow.begun").exists() and time.monotonic() < until:
        time.sleep(0.05)
    others = [start(number) for number in range(1, 5) if number != slow]
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert [other.wait(120) for other in others] == [0, 0, 0]
    for item in made:
        assert (copy.out / f"{item.path.name}.out").read_bytes() == item.path.name.encode() * 2
    tries = [len((copy.out / f"{item.path.name}.tries").read_text()) for item in made]
    assert tries == [1] * 11 + [2]  # nobody did another's work but for what was left lying
    assert not list((copy.out / "runs" / ".claims").glob("*.lock"))
    assert "12 items are done, 0 failed." in (copy.out / "runs" / "summary.md").read_text()


def test_a_finished_item_is_done_again_when_its_file_is_gone_or_the_settings_are_others(copy, items):
    made, spread = items("a", "b"), Spread(shard=Shard(1, 1))
    run(copy, made, spread)
    assert run(copy, made, spread) == [None, None]
    (copy.out / "a.out").unlink()
    assert [reply is None for reply in run(copy, made, spread)] == [False, True]
    assert [reply is None for reply in run(copy, made, spread, facts={"steps": 3})] == [False, False]


def test_a_claim_of_a_living_process_holds_and_one_of_another_host_while_its_heart_beats(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(claims_file, "STALE", 0.2)
    ours, theirs = Claims(tmp_path, "m"), Claims(tmp_path, "m")
    assert ours.take("a") and not theirs.take("a")
    ours.release("a")
    assert theirs.take("a")
    theirs.close()
    lock = ours._path("b", "lock")
    lock.write_text(json.dumps({"item": "b", "host": "elsewhere", "pid": 1}))
    for _ in range(3):  # it beats
        assert not ours.take("b")
        time.sleep(0.15)
        os.utime(lock)
    assert not ours.take("b")
    assert ours.waiting("b")
    time.sleep(0.3)
    assert ours.take("b")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    ours._path("c", "lock").write_text(json.dumps({"host": socket.gethostname(), "pid": gone.pid}))
    assert ours.take("c")
    ours.close()
    assert not list(tmp_path.glob("*.lock"))


def test_shards_are_equal_parts_in_every_number():
    for count in (1, 3, 7):
        parts = [Shard(n, count).own(range(20))[0] for n in range(1, count + 1)]
        assert sorted(sum(parts, [])) == list(range(20)) and max(map(len, parts)) - min(map(len, parts)) <= 1
    for text, said in (("0/4", "no shard 0 of 4"), ("5/4", "no shard 5 of 4"), ("two", "is no shard")):
        with pytest.raises(ConfigError, match=said):
            Shard.of(text)


def test_bad_settings_are_told(copy, items):
    for options, said in (
        ({"workers": 0}, "at least one worker"),
        ({"gpus": (1, 1)}, "once each"),
        ({"retries": -1}, "not possible"),
        ({"scheduler": "x", "shard": Shard(1, 2)}, "needs no shards"),
    ):
        with pytest.raises(ConfigError, match=said):
            Spread(**options)
    (item,) = items("a")
    with pytest.raises(InputError, match="is named twice"):
        run(copy, [item, item])


def test_a_long_list_costs_little_for_each_item(copy, items, monkeypatch):
    """The report of thousands of items is not written thousands of times."""
    from morphogen.core.running import runs

    class Nothing:
        def load(self):
            return 1

        def __call__(self, loaded, item, path):
            return item.more

    writes = []
    real = runs.write_json
    monkeypatch.setattr(runs, "write_json", lambda *a: writes.append(a[0]) or real(*a))
    many = [Item(f"slide {k}", more=k) for k in range(2000)]
    found = [reply.value for _, reply in run_cohort(Nothing(), many, out=copy.out, what="nothing", loaded=1)]
    assert found == list(range(2000)) and len(writes) < 50
