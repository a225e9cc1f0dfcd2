"""What a user names becomes images and slides, and one bad source among many does not stop the others."""

import errno

import pytest

from morphogen.core.errors import InputError, OutputError, SlideError
from morphogen.tasks import FolderResult, run_sources, sort_sources


@pytest.fixture
def slide(tmp_path):
    import numpy as np

    from morphogen.slides import PyramidWriter

    path = tmp_path / "S1.ome.tif"
    with PyramidWriter(path, 600, 520, mpp=0.5, tile=256, codec="deflate") as writer:
        writer.write(np.full((520, 600, 3), 200, np.uint8), 0)
    return path


def test_images_slides_folders_and_lists(folder, slide, tmp_path):
    images, slides = sort_sources([folder, slide, folder / "i1.png"], mpp=0.4)
    assert [list(each.files) for each in images] == [["i0", "i1", "i2", "i3", "i4"], ["i1"]]
    assert [(each.path, each.mpp) for each in slides] == [(slide, 0.4)]
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for path in (slide, folder / "i0.png"):
        (mixed / path.name).write_bytes(path.read_bytes())
    (mixed / "._i9.png").write_bytes(b"")
    images, slides = sort_sources([mixed])
    assert list(images[0].files) == ["i0"] and [each.path.name for each in slides] == ["S1.ome.tif"]
    table = tmp_path / "list.csv"
    table.write_text("path,mpp\nS1.ome.tif,0.25\nimages/i2.png,\n")
    images, slides = sort_sources([table])
    assert images[0].files == {"i2": folder / "i2.png"} and slides[0].mpp == 0.25


def test_what_is_not_there_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images and no slides"):
        sort_sources([tmp_path / "empty"])
    with pytest.raises(InputError, match="no such file"):
        sort_sources([tmp_path / "gone.svs"])


def test_a_bad_source_among_several_is_an_outcome(folder, slide, tmp_path):
    def images(files):
        return FolderResult(tmp_path / "out", made=list(files), failed={"i9": "i9: is empty"})

    def bad(path, mpp):
        raise SlideError("cannot be read", where=path)

    first, second = run_sources([folder, slide], images, bad)
    assert first.written == [tmp_path / "out"] and first.failed == {"i9": "i9: is empty"}
    whole = len(list(folder.glob("*.png")))
    assert first.note == f"{whole - 1} of {whole} images"
    assert not first.whole and not second.whole and "cannot be read" in second.error
    with pytest.raises(SlideError, match="cannot be read"):
        list(run_sources([slide], images, bad))

    def full(path, mpp):
        raise OutputError("the disk is full") from OSError(errno.ENOSPC, "full")

    with pytest.raises(OutputError, match="disk is full"):
        list(run_sources([folder, slide], images, full))
    (done,) = run_sources([slide], images, lambda path, mpp: ([path], "3 windows"))
    assert done.whole and done.note == "3 windows"
