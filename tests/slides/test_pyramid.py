"""Writing pyramids: what readers see, any order gives the same bytes, kill and resume, bad input."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from morphogen.core.errors import OutputError
from morphogen.slides.pyramid import PyramidWriter, write_pyramid
from morphogen.slides.pyramid import tiff as pyramid_tiff
from morphogen.slides.pyramid.spool import Spool

WIDTH, HEIGHT, TILE = 531, 397, 64


def picture(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Smooth colours, so that JPEG is close, with a white corner."""
    y, x = np.mgrid[:height, :width].astype(float)
    image = np.stack([128 + 80 * np.sin(x / 40), 128 + 80 * np.cos(y / 30), 100 + x / width * 100], -1)
    image[height // 2 :, width // 2 :] = 255
    return image.astype(np.uint8)


def blocks(height: int = 90, width: int = 120) -> list[tuple[int, int, int, int]]:
    return [
        (y, x, min(height, HEIGHT - y), min(width, WIDTH - x))
        for y in range(0, HEIGHT, height)
        for x in range(0, WIDTH, width)
    ]


def write(path: Path, order, image: np.ndarray | None = None, **how) -> bytes:
    image = picture() if image is None else image
    with PyramidWriter(path, WIDTH, HEIGHT, mpp=0.5, tile=TILE, **how) as writer:
        for y, x, h, w in order:
            writer.write(image[y : y + h, x : x + w], y, x)
    return path.read_bytes()


@pytest.mark.parametrize(("codec", "tolerance"), [("jpeg", 6), ("deflate", 0), ("none", 0)])
def test_openslide_tifffile_and_pillow_read_the_image_back(tmp_path, codec, tolerance) -> None:
    path = tmp_path / "image.ome.tif"
    image = picture()
    with PyramidWriter(
        path, WIDTH, HEIGHT, mpp=(0.4661, 0.4700), tile=TILE, codec=codec, quality=95
    ) as writer:
        for y, x, h, w in blocks():
            writer.write(image[y : y + h, x : x + w], y, x)
    sizes = [(531, 397), (266, 199), (133, 100), (67, 50), (34, 25)]
    assert writer.level_sizes == sizes

    slide = openslide.OpenSlide(path)
    assert list(slide.level_dimensions) == sizes
    assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.4661, rel=1e-6)
    assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.4700, rel=1e-6)
    seen = np.asarray(slide.read_region((0, 0), 0, (WIDTH, HEIGHT)))
    assert (seen[..., 3] == 255).all()
    inner = _away_from_the_corner()
    assert np.abs(seen[..., :3].astype(int) - image)[inner].max() <= tolerance

    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        assert file.is_ome and not file.is_bigtiff and series.kind == "ome"
        assert [level.shape for level in series.levels] == [(h, w, 3) for w, h in sizes]
        assert np.abs(series.asarray().astype(int) - image)[inner].max() <= tolerance
        half = series.levels[1].asarray().astype(int)
        pixels = ElementTree.fromstring(file.ome_metadata).find(".//{*}Pixels")
    assert pixels is not None and float(pixels.get("PhysicalSizeX")) == 0.4661
    assert pixels.get("PhysicalSizeYUnit") == "µm"
    even = image[:396, :530].astype(int).reshape(198, 2, 265, 2, 3).mean((1, 3))
    inside = inner[:396:2, :530:2]
    assert np.abs(half[:198, :265] - even)[inside].max() <= tolerance + 0.5

    opened = np.asarray(Image.open(path)).astype(int)
    assert np.abs(opened - image)[inner].max() <= tolerance


def _away_from_the_corner() -> np.ndarray:
    # JPEG rings where colour meets white.
    inner = np.ones((HEIGHT, WIDTH), bool)
    inner[HEIGHT // 2 - 20 : HEIGHT // 2 + 20] = False
    inner[:, WIDTH // 2 - 20 : WIDTH // 2 + 20] = False
    return inner


@pytest.mark.parametrize("codec", ["jpeg", "deflate"])
def test_any_order_and_any_memory_gives_the_same_bytes(tmp_path, codec) -> None:
    expected = write(tmp_path / "a.ome.tif", blocks(), codec=codec)
    shuffled = [blocks()[i] for i in np.random.default_rng(0).permutation(len(blocks()))]
    (tmp_path / "b").mkdir()
    for name, order, memory in (
        ("shuffled", shuffled, None),
        ("tiny", shuffled, 20_000),
        ("bands", [(y, 0, min(50, HEIGHT - y), WIDTH) for y in range(0, HEIGHT, 50)], 0),
        ("whole", [(0, 0, HEIGHT, WIDTH)], None),
    ):
        folder = tmp_path / name
        folder.mkdir()
        assert write(folder / "a.ome.tif", order, codec=codec, pending_bytes=memory) == expected, name
        assert os.listdir(folder) == ["a.ome.tif"]  # no scratch left


def test_memory_limit_is_kept(tmp_path) -> None:
    writer = PyramidWriter(tmp_path / "a.tif", 4096, 4096, mpp=1, tile=256, pending_bytes=600_000)
    for y in range(0, 4096, 256):
        for x in range(0, 4096, 256):
            writer.write(np.zeros((100, 100, 3), np.uint8), y, x)
            assert writer._parts._bytes <= 600_000
    writer.abandon()


def test_lower_levels_are_means_of_two_by_two(tmp_path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (128, 192, 3), dtype=np.uint8)
    write_pyramid(tmp_path / "a.tif", [image], 192, 128, mpp=1, tile=64, codec="deflate")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        levels = [level.asarray().astype(float) for level in file.series[0].levels]
    for fine, coarse in zip(levels[:-1], levels[1:], strict=True):
        h, w = fine.shape[0] // 2, fine.shape[1] // 2
        mean = fine[: 2 * h, : 2 * w].reshape(h, 2, w, 2, 3).mean((1, 3))
        assert np.abs(coarse[:h, :w] - mean).max() <= 0.5


def test_pixels_never_written_are_background(tmp_path) -> None:
    with PyramidWriter(
        tmp_path / "a.tif", WIDTH, HEIGHT, mpp=1, tile=TILE, codec="deflate", background=240
    ) as w:
        w.write(picture()[100:150, 200:260], 100, 200)
    slide = openslide.OpenSlide(tmp_path / "a.tif")
    seen = np.asarray(slide.read_region((0, 0), 0, (WIDTH, HEIGHT)))[..., :3]
    expected = np.full_like(picture(), 240)
    expected[100:150, 200:260] = picture()[100:150, 200:260]
    np.testing.assert_array_equal(seen, expected)
    assert (tmp_path / "a.tif").stat().st_size < 60_000  # background tiles share one


def test_missing_pixels_are_an_error_without_background(tmp_path) -> None:
    with pytest.raises(OutputError, match="row 128, column 64"):
        with PyramidWriter(tmp_path / "a.tif", WIDTH, HEIGHT, mpp=1, tile=TILE, background=None) as writer:
            writer.write(picture()[:128], 0, 0)
            writer.write(picture()[128:200, :64], 128, 0)
    assert not (tmp_path / "a.tif").exists()


@pytest.mark.parametrize("codec", ["jpeg", "deflate"])
def test_grey_images(tmp_path, codec) -> None:
    image = picture()[..., 0]
    write_pyramid(
        tmp_path / "g.tif", [image], WIDTH, HEIGHT, mpp=1, tile=TILE, codec=codec, channels=1, quality=95
    )
    seen = np.asarray(openslide.OpenSlide(tmp_path / "g.tif").read_region((0, 0), 0, (WIDTH, HEIGHT)))[..., 0]
    assert np.abs(seen.astype(int) - image)[_away_from_the_corner()].max() <= 6


def test_bigtiff_when_it_has_to_be(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(pyramid_tiff, "_LARGEST_CLASSIC", 0)
    write(tmp_path / "a.ome.tif", blocks(), codec="deflate")
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        assert file.is_bigtiff and len(file.series[0].levels) == 5
        np.testing.assert_array_equal(file.asarray(), picture())
    slide = openslide.OpenSlide(tmp_path / "a.ome.tif")
    assert slide.level_count == 5 and float(slide.properties["openslide.mpp-x"]) == 0.5
    np.testing.assert_array_equal(
        np.asarray(slide.read_region((0, 0), 0, (WIDTH, HEIGHT)))[..., :3], picture()
    )


def test_facts_are_in_the_ome_xml(tmp_path) -> None:
    write(tmp_path / "a.ome.tif", blocks(), facts={"model": 'x < "y" & µ', "seed": 3}, magnification=20)
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        root = ElementTree.fromstring(file.ome_metadata)
    notes = {m.get("K"): m.text for m in root.findall(".//{*}MapAnnotation//{*}M")}
    assert notes == {"model": 'x < "y" & µ', "seed": "3"}
    objective = root.find(".//{*}Objective")
    assert objective is not None and objective.get("NominalMagnification") == "20"


_KILLED = """
    import os, signal, sys
    import numpy as np
    sys.path.insert(0, {here!r})
    from test_pyramid import blocks, picture, PyramidWriter, WIDTH, HEIGHT, TILE
    image = picture()
    writer = PyramidWriter({path!r}, WIDTH, HEIGHT, mpp=0.5, tile=TILE)
    for k, (y, x, h, w) in enumerate(blocks()):
        writer.write(image[y:y+h, x:x+w], y, x)
        if k == 11:
            writer.flush()
        if k == 14:
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_is_taken_up_again_to_the_same_bytes(tmp_path) -> None:
    (tmp_path / "whole").mkdir()
    expected = write(tmp_path / "whole" / "a.ome.tif", blocks())
    path = tmp_path / "a.ome.tif"
    script = textwrap.dedent(_KILLED.format(here=str(Path(__file__).parent), path=str(path)))
    finished = subprocess.run([sys.executable, "-c", script])
    assert finished.returncode == -signal.SIGKILL and not path.exists()

    image, again = picture(), []
    with PyramidWriter(path, WIDTH, HEIGHT, mpp=0.5, tile=TILE) as writer:
        for k, (y, x, h, w) in enumerate(blocks()):
            if not writer.done(y, x, h, w):
                again.append(k)
                writer.write(image[y : y + h, x : x + w], y, x)
    assert set(range(15, len(blocks()))) <= set(again) <= set(range(12, len(blocks())))
    assert path.read_bytes() == expected
    assert not writer.scratch.exists()


@pytest.mark.parametrize("damage", ["cut", "zeros"])
def test_a_scratch_file_cut_short_loses_only_its_last_record(tmp_path, damage) -> None:
    path = tmp_path / "a.tif"
    writer = PyramidWriter(path, WIDTH, HEIGHT, mpp=0.5, tile=TILE)
    writer.write(picture()[:128], 0)
    writer.flush()
    writer.abandon()
    with open(writer.scratch, "r+b") as file:
        file.truncate(size := writer.scratch.stat().st_size - 5)
        if damage == "zeros":  # the length reached the disk before the bytes did
            file.truncate(size + 5)
    writer = PyramidWriter(path, WIDTH, HEIGHT, mpp=0.5, tile=TILE)
    assert writer.done(0, 0, 128, 512) and not writer.done(64, 512, 64, 19)
    writer.abandon()


def test_other_settings_or_no_resume_start_over(tmp_path) -> None:
    path = tmp_path / "a.tif"
    for how in ({"quality": 50}, {"resume": False}):
        first = PyramidWriter(path, WIDTH, HEIGHT, mpp=0.5, tile=TILE)
        first.write(picture(), 0)
        assert first.done(0, 0, HEIGHT, WIDTH)
        first.flush()
        first.abandon()
        second = PyramidWriter(path, WIDTH, HEIGHT, mpp=0.5, tile=TILE, **how)
        assert not second.done(0, 0, TILE, TILE)
        second.abandon(delete=True)


def test_two_runs_do_not_write_one_file(tmp_path) -> None:
    first = PyramidWriter(tmp_path / "a.tif", 100, 100, mpp=1)
    with pytest.raises(OutputError, match="another run"):
        PyramidWriter(tmp_path / "a.tif", 100, 100, mpp=1)
    first.abandon(delete=True)


def test_a_full_disk_is_said_and_leaves_nothing_under_the_name(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(b"the one before")
    add = Spool.add

    def full(self, key, *rest, **more):
        if key == (0, 3, 0):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        add(self, key, *rest, **more)

    monkeypatch.setattr(Spool, "add", full)
    with pytest.raises(OutputError, match="disk is full"):
        write(path, blocks())
    assert path.read_bytes() == b"the one before"
    monkeypatch.setattr(Spool, "add", add)  # space was made: go on from the tiles that are there
    write(path, blocks())
    assert openslide.OpenSlide(path).level_count == 5


def test_a_disk_that_fills_while_the_file_is_put_together(tmp_path, monkeypatch) -> None:
    def full(self, file):
        file.write(b"II")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(PyramidWriter, "_assemble", full)
    with pytest.raises(OutputError, match="disk is full"):
        write(tmp_path / "a.tif", blocks())
    assert os.listdir(tmp_path) == [".a.tif.scratch"]


@pytest.mark.parametrize(
    ("block", "y", "x", "words"),
    [
        (np.zeros((64, 64, 3), np.uint8), 380, 0, "rows 380-444"),
        (np.zeros((64, 64, 3), np.uint8), -1, 0, "rows -1"),
        (np.zeros((64, 64, 3), np.uint8), 0, 500, "columns 500-564"),
        (np.zeros((64, 64, 4), np.uint8), 0, 0, "3 channel"),
        (np.zeros((64, 64), np.uint8), 0, 0, "3 channel"),
        (np.zeros((64, 64, 3), np.float32), 0, 0, "float32"),
    ],
)
def test_blocks_that_do_not_fit_are_named(tmp_path, block, y, x, words) -> None:
    writer = PyramidWriter(tmp_path / "a.tif", WIDTH, HEIGHT, mpp=1, tile=TILE)
    with pytest.raises(OutputError, match=words):
        writer.write(block, y, x)
    writer.abandon()
    with pytest.raises(OutputError, match="closed"):
        writer.write(picture(), 0)


@pytest.mark.parametrize(
    ("bands", "words"),
    [
        ([picture()[:100], picture()[:100]], "end at row 200 of 397"),
        ([picture(), picture()[:1]], "does not fit at row 397"),
        ([picture()[:, :500]], "500 columns"),
    ],
)
def test_bands_that_do_not_make_the_image_are_refused(tmp_path, bands, words) -> None:
    with pytest.raises(OutputError, match=words):
        write_pyramid(tmp_path / "a.tif", bands, WIDTH, HEIGHT, mpp=1)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"mpp": 0.0}, "pixel size"),
        ({"mpp": float("nan")}, "pixel size"),
        ({"tile": 100}, "multiple of 16"),
        ({"codec": "jpg"}, "codec"),
        ({"quality": 0}, "quality"),
        ({"channels": 4}, "channels"),
        ({"background": 300}, "background"),
        ({"subsampling": "411"}, "subsampling"),
        ({"width": 0}, "cannot be written"),
    ],
)
def test_settings_that_no_pyramid_can_have(tmp_path, how, words) -> None:
    with pytest.raises(OutputError, match=words):
        PyramidWriter(tmp_path / "a.tif", **{"width": 10, "height": 10, "mpp": 1.0, **how})
    assert os.listdir(tmp_path) == []


def test_places_that_cannot_be_written(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        PyramidWriter(tmp_path / "file" / "a.tif", 10, 10, mpp=1)
    (tmp_path / "a.tif").mkdir()
    with pytest.raises(OutputError, match="folder of this name"):
        PyramidWriter(tmp_path / "a.tif", 10, 10, mpp=1)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_named_channels_are_planes_with_their_colours(tmp_path, dtype) -> None:
    names, colours = (
        ("DNA", "CD45", "SHG", "a <b>", "AF"),
        ("#0000ff", "#00ff00", "#ffffff", "#ff0000", "#123456"),
    )
    most = np.iinfo(dtype).max
    image = np.random.default_rng(1).integers(0, most + 1, (HEIGHT, WIDTH, 5)).astype(dtype)
    image[:, :, 3] = 0  # a channel of nothing but background
    path = tmp_path / "a.ome.tif"
    how = {"names": names, "colours": colours, "dtype": dtype, "codec": "deflate", "background": 0}
    expected = write(path, [(0, 0, HEIGHT, WIDTH)], image, **how)
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        assert series.axes == "CYX" and series.dtype == dtype and series.is_pyramidal
        assert np.array_equal(series.asarray(), image.transpose(2, 0, 1))
        half = series.levels[1].asarray().astype(float)
        text = ElementTree.fromstring(file.ome_metadata)
    even = image[:396, :530].astype(float).reshape(198, 2, 265, 2, 5).mean((1, 3)).transpose(2, 0, 1)
    assert np.abs(half[:, :198, :265] - even).max() <= 0.5
    channels = text.findall(".//{*}Channel")
    assert [each.get("Name") for each in channels] == list(names)
    rgba = [int(each.get("Color")) % 2**32 for each in channels]
    assert [f"#{value >> 8:06x}" for value in rgba] == list(colours)
    (tmp_path / "b").mkdir()
    order = [blocks()[i] for i in np.random.default_rng(0).permutation(len(blocks()))]
    assert write(tmp_path / "b" / "a.ome.tif", order, image, pending_bytes=20_000, **how) == expected


def test_what_named_channels_cannot_be(tmp_path) -> None:
    for how, words in (
        ({"names": ("A", "B"), "colours": ("#000000",)}, "2 channels have 1 colours"),
        ({"dtype": "uint16", "channels": 1}, "JPEG holds 8 bits"),
        ({"channels": 4}, "1 or 3 channels, not 4"),
        ({"dtype": "int8"}, "uint8 or uint16"),
    ):
        with pytest.raises(OutputError, match=words):
            PyramidWriter(tmp_path / "a.tif", 10, 10, mpp=1, **how)
