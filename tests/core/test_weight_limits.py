"""Pickles and archives made to cost time, memory or a stack: refused in one sentence before anything reads them."""

from __future__ import annotations

import io
import os
import pickle
import struct
import time
import zipfile
from pathlib import Path

import pytest
import torch

from morphogen.core.errors import CheckpointError
from morphogen.core.weights.finding import candidates, find_by_names, find_network
from morphogen.core.weights.limits import check_pickle
from morphogen.core.weights.reading import WeightFile, read_weights, walk_tensors


def torch_zip(path: Path, data: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/version", "3\n")
    return path


def shared_tuples(depth: int) -> tuple:
    """2^depth items, written as ``depth``."""
    value: tuple = ()
    for _ in range(depth):
        value = (value, value)
    return value


DEEP = b"\x80\x02}" + b")" + b"\x85" * 100_000 + b"K\x01s."  # a key whose hash overflows the stack
WIDE = pickle.dumps([shared_tuples(40)], protocol=2)  # whose hash has no end
MEMO = b"\x80\x02}r\xff\xff\xff\x7f."  # a memo of sixteen gigabytes


@pytest.mark.parametrize("data", [DEEP, WIDE, MEMO, b"\x80\x02}q"], ids=range(4))
def test_a_pickle_made_to_cost_is_refused_at_once(tmp_path, data):
    start = time.monotonic()
    with pytest.raises(pickle.UnpicklingError):
        check_pickle(io.BytesIO(data))
    for name in ("zip.pt", "bare.pt"):
        path = tmp_path / name
        if name == "zip.pt":
            torch_zip(path, data)
        else:
            path.write_bytes(data)
        with pytest.raises(CheckpointError) as error:
            read_weights(path)
        assert len(str(error.value)) - len(str(path)) < 260 and "\n" not in str(error.value)
    assert time.monotonic() - start < 5


def test_what_pickles_hold_is_within_the_bounds():
    every = {
        "list": list(range(5000)),
        "set": {1, (2, 3)},
        "frozen": frozenset([1, 2]),
        "nested": shared_tuples(8),
    }
    for protocol in range(6):
        file = io.BytesIO(pickle.dumps(every, protocol) + b"rest")
        check_pickle(file)
        assert file.read() == b"rest"  # it stops where the pickle does


def test_an_archive_that_unpacks_to_a_huge_pickle_is_refused(tmp_path):
    path = torch_zip(tmp_path / "bomb.pt", b"\x80\x02" + b"0" * (300 << 20), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(CheckpointError, match="too large for a file of weights"):
        read_weights(path)


def test_encrypted_archives_programs_and_pipes_are_named(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "plain.pt")
    data = bytearray((tmp_path / "plain.pt").read_bytes())
    start = 0
    while (start := data.find(b"PK\x01\x02", start)) >= 0:  # the flag of every entry of the directory
        flags = struct.unpack_from("<H", data, start + 8)[0]
        struct.pack_into("<H", data, start + 8, flags | 1)
        start += 4
    (tmp_path / "locked.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match="the archive is encrypted"):
        read_weights(tmp_path / "locked.pt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "scripted.pt")
    with pytest.raises(CheckpointError, match="TorchScript program, and loading one can run code"):
        read_weights(tmp_path / "scripted.pt")
    torch.export.save(
        torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),)), tmp_path / "program.pt2"
    )
    with pytest.raises(CheckpointError, match="an exported program"):
        read_weights(tmp_path / "program.pt2")
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(CheckpointError, match="no ordinary file"):
        read_weights(tmp_path / "pipe.pt")


def test_containers_that_hold_each_other_are_not_walked_for_ever():
    value: dict = {"a": torch.ones(1)}
    for _ in range(7):
        value = {str(i): value for i in range(30)}
    with pytest.raises(CheckpointError, match="more than"):
        list(walk_tensors(value))


def test_tensors_that_cannot_be_weights_are_refused(tmp_path):
    bad = {
        "sparse or quantised": torch.eye(3).to_sparse(),
        "no values": torch.empty(3, device="meta"),
        "claims more numbers": torch.ones(1).expand(100_000, 1000),
    }
    for what, tensor in bad.items():
        torch.save({"state_dict": {"w": tensor, "b": torch.ones(2)}}, tmp_path / "bad.pt")
        with pytest.raises(CheckpointError, match=what):
            find_network(read_weights(tmp_path / "bad.pt"))


def test_old_files_with_other_objects_give_their_tensors(tmp_path):
    import argparse

    state = {"a": torch.arange(6.0).reshape(2, 3).t(), "b": torch.ones(2).half(), "none": torch.zeros(0)}
    torch.save(
        {"model": state, "args": argparse.Namespace(lr=1)},
        tmp_path / "old.pt",
        _use_new_zipfile_serialization=False,
    )
    read = read_weights(tmp_path / "old.pt")
    assert read.foreign == ("argparse.Namespace",)
    for key, value in state.items():
        assert (
            torch.equal(read.content["model"][key], value) and read.content["model"][key].dtype == value.dtype
        )
    data = (tmp_path / "old.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[:-5])
    with pytest.raises(CheckpointError, match="cut short"):
        read_weights(tmp_path / "cut.pt")


def test_averaged_weights_come_first_and_can_be_chosen():
    one, two = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
    file = WeightFile(
        Path("x.pt"), {"model": one, "ema": {"decay": 0.9, "shadow": two}, "optimizer": {"w": one["w"]}}
    )
    found = find_network(file)
    assert found.ema and found.place == "ema.shadow" and found.state["w"] == 1
    assert find_network(file, weights="model").state["w"] == 0
    assert not any(each.place == "optimizer" for each in candidates(file.content))
    with pytest.raises(CheckpointError, match="no EMA weights"):
        find_network(WeightFile(Path("x.pt"), {"model": one}), weights="ema")


def test_names_decide_between_readings():
    inner = {"encoder.layer.weight": torch.ones(1), "decoder.weight": torch.ones(2)}
    file = WeightFile(Path("x.pt"), {"state_dict": {f"model.{key}": value for key, value in inner.items()}})
    assert find_by_names(file, inner).state.keys() == inner.keys()
    assert find_network(file).state.keys() == inner.keys()  # what all share is taken off, and no more
    assert find_by_names(file, ["layer.weight"]).state.keys() == {"layer.weight"}
