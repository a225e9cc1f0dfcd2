"""What a user names becomes images and slides, and one bad source among many does not stop the others."""

import errno
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from morphogen.core.errors import InputError, OutputError, SlideError
from morphogen.core.running.spread import Spread
from morphogen.tasks import FolderResult, sort_sources, spread_sources
from morphogen.tasks.sources import LARGE


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


@pytest.mark.parametrize("name", ["big.png", "big.jpg", "big.tif"])
def test_an_image_of_great_size_is_a_slide(tmp_path, name):
    for folder, width in (("at", LARGE), ("above", LARGE + 8)):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (width, 16), "white").save(tmp_path / folder / name)
        images, slides = sort_sources([tmp_path / folder], mpp=0.5)
        assert (len(images), [each.path.name for each in slides]) == (
            (1, []) if folder == "at" else (0, [name])
        )


def test_what_is_not_there_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images and no slides"):
        sort_sources([tmp_path / "empty"])
    with pytest.raises(InputError, match="no such file"):
        sort_sources([tmp_path / "gone.svs"])


@dataclass(frozen=True)
class Copies:
    """A room that can go to other processes: it writes the names of its sources."""

    out: Path

    def load(self):
        return "model"

    def images(self, model, files):
        first, *rest = files
        result = FolderResult(self.out, made=rest, failed={first: f"{first}: is empty"})
        (self.out / "images.txt").write_text("\n".join(files))
        return result

    def slide(self, model, source, path):
        target = self.out / f"{source.path.stem}.txt"
        target.write_text(f"{model} {path.read_bytes()[:4]!r} {source.mpp}")
        return [target], path.parent.name


@dataclass(frozen=True)
class Failing(Copies):
    """A room whose slides fail."""

    error: Exception = SlideError("cannot be read")
    cause: Exception | None = None

    def slide(self, model, source, path):
        raise self.error from self.cause


def test_a_bad_source_among_several_is_an_outcome(folder, slide, tmp_path):
    (tmp_path / "out").mkdir()
    how = {"out": tmp_path / "out", "what": "copy"}
    bad = Failing(tmp_path / "out")
    first, second = spread_sources(bad, [folder, slide], **how)
    assert first.written == [tmp_path / "out"] and first.failed == {"i0": "i0: is empty"}
    assert first.note == "4 of 5 images" and not first.whole
    assert not second.whole and "cannot be read" in second.error
    with pytest.raises(SlideError, match="cannot be read"):
        list(spread_sources(bad, [slide], **how))
    full = Failing(tmp_path / "out", OutputError("the disk is full"), OSError(errno.ENOSPC, "full"))
    with pytest.raises(OutputError, match="disk is full"):
        list(spread_sources(full, [folder, slide], **how))


def test_sources_are_spread_over_a_room_that_can_be_sent(folder, slide, tmp_path):
    (tmp_path / "out").mkdir()
    room, again = Copies(tmp_path / "out"), tmp_path / "list.csv"
    again.write_text(f"path,mpp\n{slide},0.25\n{slide},0.25\n")
    spread = Spread(stage=tmp_path / "stage")
    outcomes = list(spread_sources(room, [folder, slide, again], spread, out=room.out, what="copy"))
    assert [outcome.source for outcome in outcomes] == [folder, slide]  # whatever lists name it, once
    assert outcomes[1].whole and outcomes[1].written[0].read_text().endswith("0.25")
    assert outcomes[1].note != slide.parent.name and list((tmp_path / "stage").iterdir()) == []
    assert (room.out / "runs" / "summary.md").is_file()


def test_equal_names_and_two_scales_of_a_slide_are_refused(slide, tmp_path):
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / slide.name
    twin.write_bytes(slide.read_bytes())
    room = Copies(tmp_path)
    with pytest.raises(InputError, match="has the name of"):
        list(spread_sources(room, [slide, twin], out=tmp_path, what="copy"))
    table = tmp_path / "list.csv"
    table.write_text(f"path,mpp\n{slide},0.25\n")
    with pytest.raises(InputError, match="is named with 0.5 and with 0.25"):
        list(spread_sources(room, [slide, table], out=tmp_path, what="copy", mpp=0.5))
