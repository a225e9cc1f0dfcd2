"""A disk that fills up under any library's writer is one sentence, and nothing half-written is left."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from morphogen.core.errors import OutputError
from morphogen.core.files import Manifest, atomic_path, write_text
from morphogen.core.writing.hdf5 import write_h5ad, writing_h5
from morphogen.core.writing.replacing import recover, remove_leftovers

LIMIT = 30_000  # bytes: far less than any of the files below
NOISE = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)


@contextmanager
def no_space_after(size: int) -> Iterator[None]:
    """No file may become larger, as on a disk that is full: writes fail half-way, in C and in Python."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _png(path: Path) -> None:
    from PIL import Image

    Image.fromarray(NOISE).save(path, format="PNG")


def _tiff(path: Path) -> None:
    import tifffile

    tifffile.imwrite(path, NOISE)


def _figure(path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().imshow(NOISE)
    figure.savefig(path, format="png", dpi=150)


def _safetensors(path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(50_000)}, path)


def _zarr(path: Path) -> None:
    import zarr

    zarr.open_array(path, mode="w", shape=NOISE.shape, chunks=NOISE.shape, dtype="u1")[:] = NOISE


WRITERS = {
    "numpy": lambda path: np.save(path, NOISE),
    "torch": lambda path: torch.save({"x": torch.zeros(50_000)}, path),
    "bytes": lambda path: path.write_bytes(NOISE.tobytes()),
    "png": _png,
    "tiff": _tiff,
    "figure": _figure,
    "safetensors": _safetensors,
    "zarr": _zarr,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_under_every_library(tmp_path, name):
    final = tmp_path / f"result.{'npy' if name == 'numpy' else name}"
    with (
        pytest.raises(OutputError, match=r"nothing was left half-written"),
        no_space_after(LIMIT),
        atomic_path(final) as temporary,
    ):
        WRITERS[name](temporary)
    assert os.listdir(tmp_path) == []
    with atomic_path(final) as temporary:  # space was freed
        WRITERS[name](temporary)
    assert final.exists() and len(os.listdir(tmp_path)) == 1


@pytest.mark.parametrize("limit", [100, 3_000, LIMIT, 90_000])
def test_hdf5_closes_in_peace(tmp_path, limit):
    final = tmp_path / "patches.h5"
    with (
        pytest.raises(OutputError, match="half-written"),
        no_space_after(limit),
        writing_h5(final) as file,
    ):
        file["img"] = NOISE
        file["more"] = np.arange(5)
    assert os.listdir(tmp_path) == []
    with writing_h5(final) as file:
        file["img"] = NOISE
    with h5py.File(final) as file:
        assert np.array_equal(file["img"][:], NOISE)


def test_sections_are_written_as_anndata_does(tmp_path):
    import anndata as ad
    import pandas as pd
    from scipy import sparse

    counts = sparse.csr_matrix(np.random.default_rng(1).poisson(0.5, (60, 40)).astype(np.float32))
    data = ad.AnnData(counts, obs=pd.DataFrame({"kind": ["a", "b"] * 30}, index=[f"s{i}" for i in range(60)]))
    data.obsm["spatial"] = np.arange(120.0).reshape(60, 2)
    data.uns["morphogen"] = {"section": {"name": "A1"}, "none": np.zeros(0)}
    ours, theirs = write_h5ad(data, tmp_path / "a.h5ad"), tmp_path / "b.h5ad"
    data.write_h5ad(theirs, compression="gzip")
    seen: list[dict[str, tuple]] = []
    for path in (ours, theirs):
        with h5py.File(path) as file:
            found: dict[str, tuple] = {}
            file.visititems(lambda key, item, found=found: found.update({key: _facts(item)}))
            seen.append(found)
    assert seen[0] == seen[1]
    with pytest.raises(OutputError), no_space_after(4_000):
        write_h5ad(data, ours)
    assert ad.read_h5ad(ours).n_obs == 60  # the old one is whole


def _facts(item: h5py.Group | h5py.Dataset) -> tuple:
    attributes = {key: str(value) for key, value in item.attrs.items()}
    if isinstance(item, h5py.Group):
        return ("group", attributes)
    return (
        item.dtype.str,
        item.shape,
        item.compression,
        attributes,
        np.asarray(item[()]).tobytes() if item.dtype.kind != "O" else str(item[()]),
    )


@pytest.mark.slow
def test_a_process_that_met_a_full_disk_ends_without_a_crash(tmp_path):
    """HDF5 used to try again at exit, and ended in a segmentation fault."""
    code = (
        "import resource, numpy as np, sys\n"
        "from morphogen.core.writing.hdf5 import writing_h5\nfrom morphogen.core.errors import OutputError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), -1))\n"
        "try:\n"
        "    with writing_h5(sys.argv[2]) as file:\n"
        "        for i in range(50): file[f'd{i}'] = np.random.rand(100, 50)\n"
        "except OutputError: sys.exit(2)\n"
    )
    for limit in (500, 5_000, 100_000, 1_000_000):
        done = subprocess.run([sys.executable, "-c", code, str(limit), str(tmp_path / "x.h5")], check=False)
        assert done.returncode == 2 and os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError("Can't flush (file write failed: errno = 28, error message = '...')"),
            "the disk is full",
        ),
        (
            ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "the disk is full",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full"),
        (OSError("20 requested and 12 written"), "cannot be written"),
    ],
)
def test_what_libraries_say_of_a_failed_write(tmp_path, error, said):
    with pytest.raises(OutputError, match=said), atomic_path(tmp_path / "x"):
        raise error


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    """What cannot be read is not said to be unwritable."""
    with pytest.raises(FileNotFoundError, match="gone"), atomic_path(tmp_path / "x"):
        open(tmp_path / "gone")  # noqa: SIM115
    with pytest.raises(KeyError), atomic_path(tmp_path / "x"):
        raise KeyError("a bug is a bug")


# --- what killed runs leave ------------------------------------------------------------------------------

DEAD = 2**22 + 1  # no process has this number


def test_leftovers_are_removed_by_the_next_run(tmp_path):
    names = (
        f".a.{DEAD}.tmp.h5ad",
        f".b.{DEAD}.tmp.h5ad",
        f".a.{os.getppid()}.tmp.h5ad",
        f".a.b.{DEAD}.tmp.h5ad",
    )
    for name in names:
        (tmp_path / name).write_text("half")
    write_text(tmp_path / "a.h5ad", "whole")
    # Of b another run may be busy on another machine; the one of `a` is alive; `a.b` is another file.
    assert sorted(os.listdir(tmp_path)) == sorted([*names[1:], "a.h5ad"])
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([names[2], "a.h5ad"])


def test_leftover_folders_below_are_removed(tmp_path):
    store = tmp_path / "deep" / f".s2.{DEAD}.tmp.zarr"
    store.mkdir(parents=True)
    (store / "zarr.json").write_text("{}")
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path / "deep") == []


REPLACE = """
import os, sys
from morphogen.core.writing import replacing
from morphogen.core.files import Manifest, atomic_path

final, text, exchange, most, calls = sys.argv[1], sys.argv[2], sys.argv[3] == "1", int(sys.argv[4]), 0
if not exchange:
    replacing._exchange = lambda *_: False

def dying(real):
    def call(*args, **options):
        global calls
        if temporary is not None and (calls := calls + 1) > most:
            os._exit(9)
        return real(*args, **options)
    return call

temporary = None
os.rename, replacing.shutil.rmtree = dying(os.rename), dying(replacing.shutil.rmtree)
with atomic_path(final) as path:
    path.mkdir()
    Manifest.write(path, kind=text)
    temporary = path
"""


@pytest.mark.parametrize("exchange", [1, 0], ids=["in one step", "in two renames"])
def test_a_folder_survives_a_kill_at_any_moment_of_its_replacement(tmp_path, exchange):
    final = tmp_path / "model"

    def replace(text: str, most: int) -> int:
        command = [sys.executable, "-c", REPLACE, str(final), text, str(exchange), str(most)]
        return subprocess.run(command, check=False).returncode

    assert replace("one", 99) == 0
    codes = []
    for most in range(4):
        codes.append(replace("two", most))
        found = Manifest.read(final)  # the next run looks at it
        assert found is not None and found["kind"] in ("one", "two"), most
    assert 9 in codes and codes[-1] == 0
    assert Manifest.read(final)["kind"] == "two" and os.listdir(tmp_path) == ["model"]


def test_recovery_never_replaces_what_is_there(tmp_path):
    for name in (".store.zarr.old", "store.zarr"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(name)
    recover(tmp_path / "store.zarr")
    assert (
        os.listdir(tmp_path) == ["store.zarr"] and (tmp_path / "store.zarr/name").read_text() == "store.zarr"
    )
    os.rename(tmp_path / "store.zarr", tmp_path / ".store.zarr.old")
    recover(tmp_path / "store.zarr")
    assert os.listdir(tmp_path) == ["store.zarr"]


def test_names_as_long_as_a_file_system_allows(tmp_path):
    final = tmp_path / ("é" * 125 + ".json")  # 255 bytes
    assert write_text(final, "x").read_text() == "x"
