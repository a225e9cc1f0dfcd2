"""Two runs into one place: the second is refused and told of the first; a dead run holds nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from morphogen.core.errors import OutputError
from morphogen.core.writing.locks import file_lock, folder_lock

HOLD = """
import sys, time
from morphogen.core.writing import locks
with getattr(locks, sys.argv[1])(sys.argv[2]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["folder_lock", "file_lock"])
def test_the_second_run_is_refused_and_a_dead_one_holds_nothing(tmp_path, kind):
    lock, place = {"folder_lock": folder_lock, "file_lock": file_lock}[kind], tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", HOLD, kind, str(place)], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        said = f"another run is writing here \\(process {other.pid} on {socket.gethostname()}, since"
        with pytest.raises(OutputError, match=said), lock(place):
            pass
        other.send_signal(signal.SIGKILL)
    with lock(place):
        pass
    assert [name for _, _, names in os.walk(tmp_path) for name in names] == []


def test_one_thread_may_lock_twice_and_another_may_not(tmp_path):
    errors = []

    def other() -> None:
        try:
            with folder_lock(tmp_path):
                pass
        except OutputError as error:
            errors.append(str(error))

    with folder_lock(tmp_path):
        with folder_lock(tmp_path):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert len(errors) == 1 and f"process {os.getpid()}" in errors[0]
    other()
    assert len(errors) == 1


def test_files_side_by_side_do_not_hinder_each_other(tmp_path):
    with file_lock(tmp_path / "a.zarr"), file_lock(tmp_path / "b.zarr"):
        assert sorted(os.listdir(tmp_path)) == [".a.zarr.lock", ".b.zarr.lock"]


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path):
    target = tmp_path / "precious"
    target.write_text("kept")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").symlink_to(target)
    with folder_lock(tmp_path / "out"):
        pass
    assert target.read_text() == "kept" and os.listdir(tmp_path / "out") == []


def test_the_first_process_of_a_launcher_holds_it_for_all(tmp_path, monkeypatch):
    with folder_lock(tmp_path):
        monkeypatch.setenv("RANK", "1")
        with folder_lock(tmp_path):
            pass


def test_what_killed_runs_left_is_removed(tmp_path):
    (tmp_path / "mean").mkdir()
    (tmp_path / "mean" / f".i1.{2**22 + 1}.tmp.png").write_text("half")
    with folder_lock(tmp_path):
        pass
    assert os.listdir(tmp_path / "mean") == []
