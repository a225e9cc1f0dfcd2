"""Threads: how many, how they wait, and how small work is shared out."""

import os
import subprocess
import sys
import threading

import pytest
import torch

from morphogen.core.running import threads
from morphogen.core.running.threads import (
    COUNTS,
    cpu_cores,
    fewer_threads,
    in_lanes,
    lanes,
    over_threads,
    thread_settings,
    wait_passively,
)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_small_work_runs_in_threads_of_one_torch_thread_each(two_threads):
    seen = over_threads(
        lambda item: (item, torch.get_num_threads(), threading.current_thread().name), range(5)
    )
    assert [item for item, *_ in seen] == [0, 1, 2, 3, 4]
    assert {count for _, count, _ in seen} == {1}
    assert all(name.startswith("ahead") for *_, name in seen)
    assert torch.get_num_threads() == 2


def test_a_failure_in_small_work_is_raised_and_the_threads_are_given_back(two_threads):
    with pytest.raises(ZeroDivisionError):
        over_threads(lambda item: 1 // item, [1, 0])
    assert torch.get_num_threads() == 2


def test_one_thread_stays_in_its_own_thread():
    assert torch.get_num_threads() == 1  # as every test
    own = threading.current_thread().name
    assert over_threads(lambda item: threading.current_thread().name, [1, 2]) == [own, own]
    with fewer_threads(2) as before:
        assert before == 1


def test_the_share_of_a_container_counts(tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert threads._share(tmp_path) == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert threads._share(tmp_path) is None
    (tmp_path / "cpu.max").unlink()
    assert threads._share(tmp_path) is None
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("400000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert threads._share(tmp_path) == 4
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert threads._share(tmp_path) is None


def test_a_share_caps_the_threads_of_libraries_and_what_the_user_says_stays(monkeypatch):
    monkeypatch.setattr(threads, "_share", lambda root: 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert cpu_cores() == 1
    own: dict[str, str] = {}
    wait_passively(own)
    assert [own[name] for name in COUNTS] == ["1", "1", "1"]
    assert own["NUMBA_NUM_THREADS"] == "1"
    said = {"OMP_NUM_THREADS": "7"}
    wait_passively(said)
    assert said["OMP_NUM_THREADS"] == said["NUMBA_NUM_THREADS"] == "7" and "MKL_NUM_THREADS" not in said
    for listed in ({"OMP_NUM_THREADS": "4,2"}, {"MKL_NUM_THREADS": "2"}):  # no one number of OpenMP's
        wait_passively(listed)
        assert "NUMBA_NUM_THREADS" not in listed


def test_workers_share_the_cores_unless_the_user_named_a_number(monkeypatch):
    monkeypatch.setattr(threads, "cpu_cores", lambda: 8)
    free = thread_settings(4, {"HOME": "/here"})
    assert free["OMP_NUM_THREADS"] == "2" and free["OMP_WAIT_POLICY"] == "PASSIVE" and free["HOME"] == "/here"
    assert thread_settings(4, {"OMP_NUM_THREADS": "3"})["OMP_NUM_THREADS"] == "3"
    assert thread_settings(16, {})["OMP_NUM_THREADS"] == "1"
    ours = thread_settings(1, {})  # a worker's own workers share out its share anew
    assert ours["NUMBA_NUM_THREADS"] == "8"
    assert thread_settings(8, ours)["OMP_NUM_THREADS"] == thread_settings(8, ours)["NUMBA_NUM_THREADS"] == "1"
    assert thread_settings(4, {"OMP_NUM_THREADS": "3"})["NUMBA_NUM_THREADS"] == "3"
    assert thread_settings(4, {"NUMBA_NUM_THREADS": "5"})["NUMBA_NUM_THREADS"] == "5"


def test_parallel_code_of_numba_leaves_the_number_that_was_named():
    code = (
        "from morphogen.core.running.threads import wait_passively\n"
        "wait_passively()\n"
        "import torch, numba, numpy\n"
        "@numba.njit(parallel=True)\n"
        "def total(x):\n"
        "    s = 0.0\n"
        "    for i in numba.prange(len(x)):\n"
        "        s += x[i]\n"
        "    return s\n"
        "print(total(numpy.ones(100)), torch.get_num_threads())"
    )
    clean = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, env=clean | {"OMP_NUM_THREADS": "1"}, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["100.0", "1"]


def test_a_command_waits_passively_before_a_library_with_openmp_is_loaded():
    code = (
        "import os, sys\n"
        "from morphogen.cli import main\n"
        "assert 'torch' not in sys.modules\n"
        "try: main.main(['--version'])\n"
        "except SystemExit: pass\n"
        "print(os.environ['OMP_WAIT_POLICY'], os.environ['GOMP_SPINCOUNT'])"
    )
    clean = {key: value for key, value in os.environ.items() if key not in threads._WAITING}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean, check=True)
    assert done.stdout.split()[-2:] == ["PASSIVE", "0"]


def test_lanes_keep_order_and_grad_mode_and_are_none_within_a_lane(two_threads):
    def look(item):
        return item, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), lanes("cpu")

    with torch.no_grad():
        assert list(in_lanes(look, range(4), 2)) == [(k, False, False, 1) for k in range(4)]
    assert list(in_lanes(look, range(2), 2)) == [(0, True, False, 1), (1, True, False, 1)]
    with torch.inference_mode():
        assert list(in_lanes(look, range(2), 2)) == [(0, False, True, 1), (1, False, True, 1)]
    assert lanes("cpu") == 2 and lanes("meta") == 1 and lanes("cpu", threads.LARGE) == 1


def test_lanes_take_no_more_ahead_than_they_are(two_threads):
    begun = []
    made = in_lanes(lambda item: begun.append(item) or item, iter(range(100)), 2)
    assert next(made) == 0
    made.close()
    assert len(begun) <= 4 and torch.get_num_threads() == 2
