"""Files of arrays: read whole, or one sentence about what is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from morphogen.core.errors import InputError
from morphogen.core.files import read_json
from morphogen.core.reading.arrays import read_arrays


def test_arrays_come_back(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(3), y=np.ones((2, 2)))
    np.save(tmp_path / "b.npy", np.arange(4))
    found = read_arrays(tmp_path / "a.npz")
    assert sorted(found) == ["x", "y"] and found["x"].tolist() == [0, 1, 2]
    assert read_arrays(tmp_path / "b.npy")[""].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_damaged_files_are_named(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    np.savez_compressed(path, x=np.arange(500)) if suffix == "npz" else np.save(path, np.arange(500))
    whole = path.read_bytes()
    changed = bytearray(whole)
    for place in range(60, 90):
        changed[place] ^= 255
    half = len(whole) // 2
    for content in (
        b"",
        whole[:half],
        b"PK\x03\x04",
        b"text",
        *((bytes(changed),) if suffix == "npz" else ()),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match="not a file of arrays, or damaged"):
            read_arrays(path)
    with pytest.raises(InputError, match="there is no such file"):
        read_arrays(tmp_path / "absent.npz")


def test_pickles_are_not_opened(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(InputError, match="holds a pickle.* Save plain arrays of numbers"):
        read_arrays(tmp_path / "a.npy")


def test_json_that_nests_too_deeply(tmp_path):
    (tmp_path / "a.json").write_text("[" * 200_000)
    with pytest.raises(InputError, match="nests too deeply"):
        read_json(tmp_path / "a.json")
