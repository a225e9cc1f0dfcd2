"""Files are whole or absent."""

import errno
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from morphogen.core import files
from morphogen.core.errors import InputError, OutputError
from morphogen.core.files import (
    Manifest,
    atomic_path,
    content_hash,
    read_json,
    writable_folder,
    write_bytes,
    write_json,
    write_text,
)


def test_nothing_is_left_when_writing_fails(tmp_path):
    final = write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), atomic_path(final) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert final.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_the_suffix_is_kept_for_libraries_that_choose_by_it(tmp_path):
    with atomic_path(tmp_path / "x.ome.tif") as temporary:
        assert temporary.suffix == ".tif" and temporary.parent == tmp_path
        temporary.write_bytes(b"1")
    assert (tmp_path / "x.ome.tif").read_bytes() == b"1"


def test_weights_can_be_read_by_all_whom_the_umask_lets(tmp_path):
    """safetensors alone leaves mode 600, which nobody else of a lab can read."""
    with atomic_path(tmp_path / "model") as temporary:
        temporary.mkdir()
        save_file({"x": torch.zeros(2)}, temporary / "a.safetensors")
    plain = tmp_path / "plain.txt"
    plain.write_text("")
    assert (tmp_path / "model" / "a.safetensors").stat().st_mode == plain.stat().st_mode


def test_a_folder_replaces_a_folder(tmp_path):
    final = tmp_path / "model"
    for text in ("one", "two"):
        with atomic_path(final) as temporary:
            temporary.mkdir()
            (temporary / "w").write_text(text)
    assert (final / "w").read_text() == "two"
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize(
    ("code", "message"),
    [(errno.ENOSPC, "disk is full"), (errno.EACCES, "no permission"), (errno.EROFS, "no permission")],
)
def test_a_full_disk_is_one_sentence(tmp_path, code, message):
    final = write_text(tmp_path / "a.txt", "old")
    with pytest.raises(OutputError, match=message), atomic_path(final) as temporary:
        temporary.write_text("half")
        raise OSError(code, os.strerror(code))
    assert final.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_file_in_the_way_of_a_folder(tmp_path):
    write_text(tmp_path / "results", "a file")
    with pytest.raises(OutputError, match="in the way"):
        files.writable_folder(tmp_path / "results")
    with pytest.raises(OutputError, match="is a file, not a folder"):
        files.writable_folder(tmp_path / "results" / "deeper")


def test_killed_while_writing_leaves_the_old_file(tmp_path):
    final = write_text(tmp_path / "a.json", "[1]")
    code = (
        "import os, signal; from morphogen.core.files import atomic_path\n"
        f"with atomic_path({str(final)!r}) as t:\n t.write_text('[1, 2'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert read_json(final) == [1]


def test_json_takes_what_results_hold(tmp_path):
    value = {"a": np.float32(0.5), "b": np.array([1, 2]), "c": float("nan"), 3: {"x", "y"}, "p": tmp_path}
    path = write_json(tmp_path / "r.json", value)
    assert json.loads(path.read_text()) == {
        "a": 0.5,
        "b": [1, 2],
        "c": None,
        "3": ["x", "y"],
        "p": str(tmp_path),
    }
    with pytest.raises(InputError, match="not a valid JSON"):
        read_json(write_text(tmp_path / "cut.json", '{"a": 1'))


def test_content_hash_sees_values_shapes_and_types():
    a = np.arange(6, dtype=np.float32)
    assert content_hash(a) == content_hash(torch.arange(6, dtype=torch.float32))
    different = {
        content_hash(v) for v in (a, a.reshape(2, 3), a.astype(np.float64), a + 1, [a], {"a": a}, "a", b"a")
    }
    assert len(different) == 8
    assert content_hash({"x": 1, "y": 2}) == content_hash({"y": 2, "x": 1})
    assert content_hash("ab", "c") != content_hash("a", "bc")


def test_a_folder_is_complete_when_its_manifest_is_there(tmp_path):
    assert Manifest.read(tmp_path) is None
    Manifest.write(tmp_path, kind="test", items=3)
    found = Manifest.read(tmp_path)
    assert found["kind"] == "test" and found["items"] == 3 and found["versions"]["morphogen"]
    (tmp_path / Manifest.NAME).write_text('{"kind": "te')
    assert Manifest.read(tmp_path) is None


def test_trying_a_folder_follows_no_link(tmp_path):
    folder, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    folder.mkdir()
    for probe in ("write-test", "space-test"):
        (folder / f".{probe}.{os.getpid()}-{threading.get_native_id()}").symlink_to(elsewhere)
    assert writable_folder(folder) == folder
    with pytest.raises(ValueError, match="odd"), atomic_path(folder / "file"):
        raise ValueError("odd")
    assert not elsewhere.exists() and list(folder.iterdir()) == []


def test_threads_write_into_one_folder_side_by_side(tmp_path):
    """Each tries the folder with a file of its own: none takes away another's."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda k: write_bytes(tmp_path / "out" / f"{k}", b"x"), range(400)))
    assert len(list((tmp_path / "out").iterdir())) == 400
