"""OME-Zarr: the same pixels as the OME-TIFF, read by ome-zarr's reader, opened as a slide, from strangers too."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader
from ome_zarr.writer import write_image as write_theirs

from morphogen.core.errors import OutputError, SlideError
from morphogen.core.fingerprints import fingerprint
from morphogen.slides import open_slide
from morphogen.slides.batch import collect
from morphogen.slides.info import slide_info
from morphogen.slides.pyramid import PyramidWriter, write_pyramid
from morphogen.slides.pyramid.ngff import write_image
from morphogen.tasks.sources import sort_sources

WIDTH, HEIGHT, TILE = 301, 233, 64


def picture(channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (HEIGHT, WIDTH, channels), dtype=np.uint8)
    image[128:, 192:] = 255
    return image if channels == 3 else image[..., 0]


def write(path: Path, image: np.ndarray, **how) -> Path:
    channels = 3 if image.ndim == 3 else 1
    chosen = {"mpp": (0.5, 0.5), "tile": TILE, "channels": channels, "codec": "deflate", **how}
    return write_pyramid(path, [image], WIDTH, HEIGHT, **chosen)


def digest(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        found.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("ngff")
    for name in ("a.ome.zarr", "a.ome.tif"):
        write(place / name, picture(), facts={"made by": "a test"})
    return place


def test_every_level_has_the_pixels_of_the_ome_tiff(both):
    mine, theirs = open_slide(both / "a.ome.zarr"), open_slide(both / "a.ome.tif")
    assert mine.level_shapes == theirs.level_shapes and len(mine.level_shapes) == 4
    for level, (height, width) in enumerate(mine.level_shapes):
        assert np.array_equal(
            *(s.reader.get_region(0, 0, width, height, level=level) for s in (mine, theirs))
        )
    assert (mine.mpp, mine.mpp_source, mine.vendor) == (0.5, "file: OME-Zarr scale", "OME-Zarr")
    assert np.array_equal(mine.read_region(250, 200, 80, 60), theirs.read_region(250, 200, 80, 60))


def test_ome_zarrs_own_reader_gives_the_image_its_scale_and_its_channels(both):
    (node,) = Reader(parse_url(str(both / "a.ome.zarr")))()
    assert np.array_equal(np.asarray(node.data[0]), picture().transpose(2, 0, 1))
    assert [axis.get("unit") for axis in node.metadata["axes"]] == [None, "micrometer", "micrometer"]
    scales = [steps[0]["scale"] for steps in node.metadata["coordinateTransformations"]]
    assert scales[0] == [1.0, 0.5, 0.5] and scales[1] == pytest.approx([1, 0.5 * 233 / 117, 0.5 * 301 / 151])
    assert node.metadata["channel_names"] == ["red", "green", "blue"]
    attributes = zarr.open_group(str(both / "a.ome.zarr"), mode="r").attrs
    assert attributes["ome"]["version"] == "0.5" and attributes["morphogen"]["made by"] == "a test"


def test_chunks_of_background_are_left_out(both):
    chunks = {
        path.relative_to(both / "a.ome.zarr/0").as_posix() for path in (both / "a.ome.zarr/0/c").rglob("*")
    }
    assert "c/0/0/0" in chunks and "c/0/2/3" not in chunks  # rows 128 on, columns 192 on are white


def test_any_order_and_a_run_taken_up_again_give_the_same_bytes(tmp_path):
    image = picture()
    whole = digest(write(tmp_path / "a.ome.zarr", image))
    rows = [(y, min(50, HEIGHT - y)) for y in range(0, HEIGHT, 50)]
    shutil.rmtree(tmp_path / "a.ome.zarr")
    writer = PyramidWriter(tmp_path / "a.ome.zarr", WIDTH, HEIGHT, mpp=0.5, tile=TILE)
    for y, h in rows[::-1][:3]:
        writer.write(image[y : y + h], y)
    writer.flush()
    writer.abandon()  # as a killed run leaves it
    assert not (tmp_path / "a.ome.zarr").exists()
    with PyramidWriter(tmp_path / "a.ome.zarr", WIDTH, HEIGHT, mpp=0.5, tile=TILE) as again:
        for y, h in rows:
            if not again.done(y, 0, h, WIDTH):
                again.write(image[y : y + h], y)
    assert digest(tmp_path / "a.ome.zarr") == whole
    assert [path.name for path in tmp_path.iterdir()] == ["a.ome.zarr"]


def test_a_folder_that_is_no_image_is_not_replaced(tmp_path):
    (tmp_path / "a.ome.zarr").mkdir()
    (tmp_path / "a.ome.zarr" / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match="folder of this name"):
        PyramidWriter(tmp_path / "a.ome.zarr", 10, 10, mpp=0.5)


def test_classes_stay_classes_and_maps_keep_16_bits(tmp_path):
    mask = (np.indices((HEIGHT, WIDTH)).sum(0) // 40 % 3).astype(np.uint8)
    write(tmp_path / "m.ome.zarr", mask, labels=True, background=0)
    (node,) = Reader(parse_url(str(tmp_path / "m.ome.zarr")))()
    assert all(set(np.unique(np.asarray(level))) <= {0, 1, 2} for level in node.data)
    deep = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH)
    write_image(tmp_path / "u.ome.zarr", deep, mpp=0.25, tile=TILE)
    (node,) = Reader(parse_url(str(tmp_path / "u.ome.zarr")))()
    assert np.array_equal(np.asarray(node.data[0]), deep)
    quad = deep[:2, :2].astype(float)
    assert int(np.asarray(node.data[1])[0, 0]) == round(quad.mean())


def theirs(path: Path, image: np.ndarray, axes: str, **more) -> Path:
    group = zarr.open_group(str(path), mode="w", **more.pop("store", {}))
    write_theirs(image, group, axes=axes, **more)
    return path


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((3, 90, 120), "cyx"), ((1, 3, 1, 90, 120), "tczyx"), ((90, 120), "yx"), ((1, 90, 120), "zyx")],
)
def test_images_of_other_writers_open(tmp_path, shape, axes):
    image = np.random.default_rng(1).integers(0, 255, shape, dtype=np.uint8)
    slide = open_slide(theirs(tmp_path / "b.zarr", image, axes))
    plane = image.reshape(-1, 90, 120).transpose(1, 2, 0)
    assert np.array_equal(slide.read_region(0, 0, 120, 90), np.broadcast_to(plane, (90, 120, 3)))
    assert slide.mpp is None


def test_format_2_of_zarr_opens_too(tmp_path):
    from ome_zarr.format import FormatV04

    image = picture().transpose(2, 0, 1)
    path = theirs(tmp_path / "old.zarr", image, "cyx", fmt=FormatV04(), store={"zarr_format": 2})
    assert (path / ".zattrs").is_file()
    assert np.array_equal(open_slide(path).read_region(0, 0, WIDTH, HEIGHT), picture())


@pytest.mark.parametrize(
    ("shape", "dtype", "axes", "says"),
    [
        ((4, 64, 64), "uint8", "cyx", "4 channels"),
        ((5, 64, 64), "uint8", "zyx", "stack"),
        ((64, 64), "float32", "yx", "float32"),
    ],
)
def test_what_is_no_colour_image_is_refused(tmp_path, shape, dtype, axes, says):
    with pytest.raises(SlideError, match=says):
        open_slide(theirs(tmp_path / "b.zarr", np.ones(shape, dtype), axes)).read_region(0, 0, 8, 8)


def changed(source: Path, target: Path, change) -> Path:
    shutil.copytree(source, target)
    metadata = json.loads((target / "zarr.json").read_text())
    change(metadata["attributes"]["ome"]["multiscales"])
    (target / "zarr.json").write_text(json.dumps(metadata))
    return target


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m[0].pop("datasets"),
        lambda m: m[0].update(datasets=[]),
        lambda m: m[0].update(datasets=[{"path": "../../a.ome.tif"}]),
        lambda m: m[0].update(datasets=[{"path": "nope"}]),
        lambda m: m[0].update(axes=[{"name": "x"}, {"name": "y"}, {"name": "c"}]),
        lambda m: m[0].update(axes=["y", "x"]),
        lambda m: m[0]["datasets"][0].update(coordinateTransformations=[{"type": "scale", "scale": ["a"]}]),
        lambda m: m.__setitem__(0, 5),
    ],
)
def test_broken_metadata_is_said_in_a_sentence(both, tmp_path, change):
    with pytest.raises(SlideError) as said:
        open_slide(changed(both / "a.ome.zarr", tmp_path / "bad.ome.zarr", change))
    assert "bad.ome.zarr" in str(said.value) and len(str(said.value)) <= 300


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{}", '{"zarr_format": 3, "node_type": "array", "shape": "x"}', "\x00"]
)
def test_broken_arrays_are_said_in_a_sentence(both, tmp_path, text):
    shutil.copytree(both / "a.ome.zarr", tmp_path / "bad.ome.zarr")
    (tmp_path / "bad.ome.zarr/0/zarr.json").write_text(text)
    with pytest.raises(SlideError, match=r"bad\.ome\.zarr"):
        open_slide(tmp_path / "bad.ome.zarr")


def test_chunks_that_cannot_be_are_not_decoded(both, tmp_path):
    shutil.copytree(both / "a.ome.zarr", tmp_path / "bomb.ome.zarr")
    metadata = json.loads((tmp_path / "bomb.ome.zarr/0/zarr.json").read_text())
    metadata["shape"] = metadata["chunk_grid"]["configuration"]["chunk_shape"] = [3, 200_000, 200_000]
    (tmp_path / "bomb.ome.zarr/0/zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(SlideError, match="2 GB"):
        open_slide(tmp_path / "bomb.ome.zarr")


def test_a_damaged_chunk_is_said_where_it_is(both, tmp_path):
    shutil.copytree(both / "a.ome.zarr", tmp_path / "a.ome.zarr")
    (tmp_path / "a.ome.zarr/0/c/0/0/0").write_bytes(b"nonsense")
    with pytest.raises(SlideError, match="level 0"):
        open_slide(tmp_path / "a.ome.zarr").read_region(0, 0, 10, 10)


def test_a_folder_of_them_and_their_names(both):
    images, slides = sort_sources([both])
    assert [each.path.name for each in slides] == ["a.ome.tif", "a.ome.zarr"] and not images
    assert [Path(job.path).name for job in collect([both])] == ["a.ome.tif", "a.ome.zarr"]
    slide = open_slide(both / "a.ome.zarr")
    assert slide.store.name == "a.ome.zarr.zarr"
    assert slide_info(slide)["bytes"] == sum(p.stat().st_size for p in slide.path.rglob("*") if p.is_file())


def test_its_fingerprint_is_that_of_its_contents(both, tmp_path):
    shutil.copytree(both / "a.ome.zarr", tmp_path / "copy.zarr")
    assert fingerprint(tmp_path / "copy.zarr") == fingerprint(both / "a.ome.zarr")
    (tmp_path / "copy.zarr/3/c/0/0/0").write_bytes(b"other")
    assert fingerprint(tmp_path / "copy.zarr") != fingerprint(both / "a.ome.zarr")
