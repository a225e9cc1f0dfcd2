"""Reading files from strangers: nothing in them runs, and what is wrong is said in one line."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from morphogen.checkpoints import identify, load_stem, read_weights
from morphogen.core.errors import CheckpointError
from morphogen.core.weights.unpickler import Inert, read_inertly


class Attack:
    """An object whose pickle calls ``function(*arguments)`` when it is loaded the ordinary way."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def torch_zip(path: Path, data: bytes, storages: dict[str, bytes] | None = None, **files: bytes) -> Path:
    """A file in torch's zip format around any pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
        for key, value in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", value)
        for key, value in files.items():
            archive.writestr(f"archive/{key}", value)
    return path


def published_with(shared: Path, path: Path, **extra) -> Path:
    """A real Stem checkpoint with something else in it."""
    file = read_weights(shared / "fixtures" / "stem_forward" / "0000003.pt")
    content = {"model": dict(file.section("model")), "ema": dict(file.section("ema"))} | extra
    torch.save(content, path)
    return path


@pytest.fixture
def trap(tmp_path):
    """A path that must not come into being, and functions that would make it."""
    mark = tmp_path / "it-ran"
    attacks = {
        "os.system": Attack(os.system, f"touch {mark}"),
        "eval": Attack(eval, f"open({str(mark)!r}, 'w').close()"),
        "exec": Attack(exec, f"open({str(mark)!r}, 'w').close()"),
        "open": Attack(open, str(mark), "w"),
        "mkdir": Attack(os.mkdir, str(mark)),
        "Path.touch": Attack(Path.touch, mark),
        "torch.load": Attack(torch.load, str(mark)),
    }
    return mark, attacks


@pytest.mark.parametrize("name", ["os.system", "eval", "exec", "open", "mkdir", "Path.touch", "torch.load"])
def test_an_attack_inside_a_real_checkpoint_does_not_run_and_the_weights_are_read(
    shared, tmp_path, trap, name
):
    mark, attacks = trap
    path = published_with(shared, tmp_path / "evil.pt", args=attacks[name])
    file = read_weights(path)
    assert not mark.exists()
    assert isinstance(file.content["args"], Inert)
    named = "Path" if name == "Path.touch" else name.split(".")[-1]
    assert any(named in foreign for foreign in file.foreign), file.foreign
    clean = load_stem(shared / "fixtures" / "stem_forward" / "0000003.pt", heads=4)
    for a, b in zip(load_stem(path, heads=4).parameters(), clean.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not mark.exists()
    assert named in " ".join(identify(path).foreign)


@pytest.mark.parametrize("name", ["os.system", "eval", "mkdir"])
def test_an_attack_alone_is_refused_in_every_container(tmp_path, trap, name):
    mark, attacks = trap
    data = pickle.dumps(attacks[name], protocol=2)
    legacy = tmp_path / "legacy.pt"
    torch.save(attacks[name], legacy, _use_new_zipfile_serialization=False)
    plain = tmp_path / "plain.pt"
    plain.write_bytes(data)
    zipped = torch_zip(tmp_path / "zipped.pt", data)
    for path in (legacy, plain, zipped):
        with pytest.raises(CheckpointError):
            identify(path)
        assert not mark.exists()


def test_methods_of_allowed_objects_cannot_be_turned_against_the_reader(tmp_path, trap):
    """getattr chains, changed functions, odd storages: refused or inert, never run."""
    mark, _ = trap
    chain = (
        b"cbuiltins\ngetattr\n(c__builtin__\nopen\nS'__self__'\ntR."  # getattr(open, '__self__') → builtins
    )
    change = (  # sets an attribute of the function that rebuilds tensors
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x08\x00\x00\x00__call__K\x01s\x86b."
    )
    slots = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x09\x00\x00\x00_functionK\x01s\x86b."
    storage = b"\x80\x02(X\x07\x00\x00\x00storagecos\nsystem\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ."
    for number, data in enumerate((chain, change, slots, storage)):
        path = torch_zip(tmp_path / f"{number}.pt", data, {"0": b"\0" * 4})
        with pytest.raises(CheckpointError):
            identify(path)
        assert not mark.exists()
    from morphogen.core.weights.unpickler import _FUNCTIONS

    rebuild = _FUNCTIONS["torch._utils", "_rebuild_tensor_v2"]
    assert rebuild(torch.arange(4.0), 1, (2,), (1,)).tolist() == [1, 2]


def test_the_restricted_reader_gives_the_tensors_torch_gives(shared):
    for name in ("stem_forward/0000003.pt", "ldm_unet/checkpoint.ckpt", "hisdiff_forward/0000100.pt"):
        path = shared / "fixtures" / name
        safe = torch.load(path, weights_only=True)
        ours, foreign = read_inertly(path)
        for section in ("model", "ema", "state_dict"):
            for key, value in (safe.get(section) or {}).items():
                assert torch.equal(ours[section][key], value) and ours[section][key].dtype == value.dtype, key


def test_the_restricted_reader_knows_every_kind_of_tensor(tmp_path):
    base = torch.arange(24).reshape(4, 6)
    content = {
        "view": base[1:3, ::2],
        "transposed": base.t(),
        "base": base,
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "empty": torch.zeros(0, 5),
        "scalar": torch.tensor(2.5),
        **{str(dtype): torch.ones(3).to(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64)},
        **{
            str(dtype): torch.ones(3).to(dtype)
            for dtype in (torch.bool, torch.uint8, torch.int8, torch.int32)
        },
    }
    torch.save(content, tmp_path / "kinds.pt")
    ours, foreign = read_inertly(tmp_path / "kinds.pt")
    assert not foreign
    for key, value in content.items():
        assert torch.equal(ours[key], value) and ours[key].dtype == value.dtype, key
    assert ours["view"].untyped_storage().data_ptr() == ours["base"].untyped_storage().data_ptr()


def test_a_tensor_that_points_outside_its_data_is_refused(tmp_path):
    torch.save({"a": torch.arange(4.0), "x": Attack(os.getcwd)}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as archive:
        prefix = archive.namelist()[0].split("/")[0]
        data = archive.read(f"{prefix}/data.pkl")
        values = archive.read(f"{prefix}/data/0")
    for number, (old, new) in enumerate([(b"K\x04\x85", b"K\xff\x85"), (b"K\x04t", b"K\x09t")]):
        assert old in data
        path = torch_zip(tmp_path / f"{number}.pt", data.replace(old, new), {"0": values})
        with pytest.raises(CheckpointError, match="damaged or not a checkpoint"):
            read_weights(path)


def test_stedm_checkpoint_with_a_pickled_configuration_is_read(shared):
    path = shared / "fixtures" / "stedm_unet" / "checkpoint.ckpt"
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    file = read_weights(path)
    assert any(name.startswith("omegaconf.") for name in file.foreign)
    state = file.state()
    assert state["_model.model.diffusion_model.out.2.weight"].shape[0] == 3
    same = state["model.model.diffusion_model.out.2.weight"]
    assert same.data_ptr() == state["_model.model.diffusion_model.out.2.weight"].data_ptr()


def test_files_of_old_torch_versions_are_read_when_they_hold_tensors_alone(tmp_path):
    state = {"a": torch.arange(5.0), "b": torch.ones(2, 3).half()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    read = read_weights(tmp_path / "old.ckpt").state()
    assert all(torch.equal(read[key], value) for key, value in state.items())


@pytest.mark.parametrize("part", [0.0, 0.001, 0.3, 0.9, 0.9999])
@pytest.mark.parametrize("name", ["stem_forward/0000003.pt", "stedm_unet/checkpoint.ckpt"])
def test_files_cut_short_say_so(shared, tmp_path, name, part):
    data = (shared / "fixtures" / name).read_bytes()
    path = tmp_path / "cut.pt"
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(CheckpointError, match="cut short|is empty") as error:
        read_weights(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_flipped_byte_of_the_pickle_is_refused_or_harmless(shared, tmp_path):
    source = shared / "fixtures" / "hisdiff_forward" / "0000100.pt"
    with zipfile.ZipFile(source) as archive:
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        data = archive.read(name)
    whole = source.read_bytes()
    start = whole.index(data)
    for offset in range(0, len(data), max(1, len(data) // 60)):
        broken = bytearray(whole)
        broken[start + offset] ^= 0x41
        (tmp_path / "flip.pt").write_bytes(broken)
        try:
            read_weights(tmp_path / "flip.pt")
        except CheckpointError as error:
            assert "\n" not in str(error)


def test_safetensors_cut_short_or_damaged(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(50)}, path)
    assert read_weights(path).state()["a"].sum() == 50
    data = path.read_bytes()
    for broken in (data[:-30], data[:20], data[:8] + b"{" + b"\xff" * 60):
        path.write_bytes(broken)
        with pytest.raises(CheckpointError, match="damaged or cut short"):
            read_weights(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty. Download it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
            "Git LFS pointer.*git lfs pull",
        ),
        (b"<!DOCTYPE html><html>404</html>", "a web page, not the weights"),
        (b"gene\tcount\nA\t1\n" * 9, "not a weight file"),
    ],
)
def test_what_is_no_weight_file_is_named(tmp_path, content, message):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_weights(path)


def test_missing_files_folders_and_archives_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="there is no such file"):
        read_weights(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="this is a folder"):
        read_weights(tmp_path)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("a.png", b"x")
    with pytest.raises(CheckpointError, match="a zip archive, but not a torch file"):
        read_weights(tmp_path / "images.zip")


def test_compressed_or_big_endian_data_is_refused(tmp_path):
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(4.0), "x": Attack(os.getcwd)}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        prefix = archive.namelist()[0].split("/")[0]
        data, values = archive.read(f"{prefix}/data.pkl"), archive.read(f"{prefix}/data/0")
    path = torch_zip(tmp_path / "big.pt", data, {"0": values}, byteorder=b"big")
    with pytest.raises(CheckpointError, match="big-endian"):
        read_weights(path)
    with zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/data/0", values)
    with pytest.raises(CheckpointError, match="compressed tensor data"):
        read_weights(tmp_path / "packed.pt")
