"""Names of strangers stay names; scratch files are never somebody's link to elsewhere."""

from __future__ import annotations

import os

import numpy as np
import pytest

from morphogen.core.errors import ConfigError, InputError
from morphogen.core.names import inner_path, path_name
from morphogen.core.writing.journal import Journal
from morphogen.core.writing.places import open_own, own_place

BAD = ["../../../x", "/etc/passwd", "a/b", "a\\b", "..", ".", ".hidden", "-rf", "", " x", "x ", "a\nb", "a\x00b",
       "\x1b[31mred", "a\u202eb", "x" * 256, "é" * 128, "\ud800", 7, None, ["x"]]  # fmt: skip


@pytest.mark.parametrize("name", BAD, ids=range(len(BAD)))
def test_a_name_that_would_leave_its_folder_is_refused(name):
    with pytest.raises(InputError) as error:
        path_name(name, "stain", where="model.json")
    text = str(error.value)
    assert text.startswith("model.json: the stain ") and text.isprintable() and len(text) < 200


@pytest.mark.parametrize("name", ["CD3", "α-SMA", "HER2 (4B5)", "H&E", "a.b", "Ki-67", "区", "x" * 255])
def test_names_as_people_give_them(name):
    assert path_name(name, "stain") == name
    with pytest.raises(InputError, match="longer than 248 bytes"):
        path_name("x" * 249, "stain", suffix=".ome.tf")


def test_files_of_a_folder_by_relative_paths():
    assert inner_path("unet/model.safetensors") == "unet/model.safetensors"
    for bad in ("../x", "/x", "a//b", "a/../b", "", 3):
        with pytest.raises(InputError):
            inner_path(bad)


@pytest.fixture
def theirs(tmp_path):
    """A file that nothing here may change, and a folder that nothing may be written to."""
    (tmp_path / "theirs.txt").write_text("precious")
    (tmp_path / "folder").mkdir()
    yield tmp_path
    assert (tmp_path / "theirs.txt").read_text() == "precious"
    assert not list((tmp_path / "folder").iterdir())


@pytest.mark.parametrize("mode", ["r+b", "w+b", "w", "a"])
@pytest.mark.parametrize("kind", ["link", "dangling", "hard", "pipe"])
def test_what_lies_at_a_scratch_file_is_replaced_not_written_to(theirs, mode, kind):
    path = theirs / "scratch"
    if kind == "link":
        path.symlink_to(theirs / "theirs.txt")
    elif kind == "dangling":
        path.symlink_to(theirs / "folder" / "new")
    elif kind == "hard":
        os.link(theirs / "theirs.txt", path)
    else:
        os.mkfifo(path)
    with open_own(path, mode) as file:
        file.write(b"ours" if "b" in mode else "ours")
    assert path.read_bytes() == b"ours" and not path.is_symlink()
    with open_own(path, "r+b" if mode == "r+b" else "a") as file:  # our own is kept
        file.seek(0, 2)
        file.write(b"!" if mode == "r+b" else "!")
    assert path.read_bytes() == b"ours!"


def test_parts_folders_that_are_links_are_made_anew(theirs):
    (theirs / "x.parts").symlink_to(theirs / "folder")
    assert not own_place(theirs / "x.parts").exists()
    (theirs / "own").mkdir()
    assert own_place(theirs / "own").is_dir()


def test_pyramids_journals_and_canvases_follow_no_link(theirs):
    from morphogen.diffusion.canvas import _MappedFile
    from morphogen.slides.pyramid.writer import PyramidWriter

    for name in (".a.ome.tif.scratch", "journal", "canvas-0.npy"):
        (theirs / name).symlink_to(theirs / ("theirs.txt" if name != "canvas-0.npy" else "folder/new.npy"))
    with PyramidWriter(theirs / "a.ome.tif", 64, 48, mpp=0.5, tile=32) as image:
        image.write(np.zeros((48, 64, 3), np.uint8), 0)
    assert (theirs / "a.ome.tif").is_file()
    Journal(theirs / "journal", 1).put("a", 1)
    assert Journal(theirs / "journal", 1).get("a") == 1
    canvas = _MappedFile(theirs / "canvas-0.npy", (2, 2))
    canvas[:] = 1.0
    assert canvas[0, 0] == 1 and not (theirs / "canvas-0.npy").is_symlink()


def test_a_model_or_table_of_a_stranger_cannot_name_a_place(tmp_path):
    from morphogen.expression.data import SectionFacts
    from morphogen.expression.sections.readers import Source
    from morphogen.stain.config import ModelConfig
    from morphogen.stain.data import find_pairs

    with pytest.raises(ConfigError, match="the stain '/../../../x' cannot name a file: it has a separator"):
        ModelConfig(stains=("/../../../x",))
    for build in (lambda: SectionFacts("../x"), lambda: Source("..", "hest", tmp_path)):
        with pytest.raises(InputError, match="the section"):
            build()
    table = tmp_path / "pairs.csv"
    table.write_text("name,he,ihc\n../../x,a.png,b.png\n")
    with pytest.raises(InputError, match="pairs.csv, line 2: the pair '../../x' cannot name a file"):
        find_pairs(table, "train")
