"""µm/px, and files that lie about themselves: sizes that cannot be, directories and tiles that are not there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from morphogen.core.errors import SlideError
from morphogen.slides import open_slide
from morphogen.slides.formats.scale import micrometres, square
from morphogen.slides.info import slide_info

TILE = {"tile": (32, 32)}
IMAGE = np.random.default_rng(5).integers(0, 256, (96, 128, 3), dtype=np.uint8)

# --- µm/px -----------------------------------------------------------------------------------------------


def ome(x=0.25, unit="µm", y=None) -> dict:
    y = x if y is None else y
    units = {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit} if unit else {}
    return {"ome": True, "metadata": {"axes": "YXS", "PhysicalSizeX": x, "PhysicalSizeY": y, **units}}


def tags(per_unit, unit) -> dict:
    return {"resolution": per_unit, "resolutionunit": unit, "metadata": None}


def imagej(per_unit, unit) -> dict:
    return {"imagej": True, "resolution": (per_unit, per_unit), "metadata": {"unit": unit, "axes": "YXS"}}


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize(
    "options, mpp, source",
    [
        (ome(), 0.25, "OME PhysicalSizeX"),
        (ome(unit=None), 0.25, "OME PhysicalSizeX"),
        (ome(unit="um"), 0.25, "OME PhysicalSizeX"),
        (ome(250, "nm"), 0.25, "OME PhysicalSizeX"),
        (ome(0.00025, "mm"), 0.25, "OME PhysicalSizeX"),
        (ome(2.5e-5, "cm"), 0.25, "OME PhysicalSizeX"),
        (ome(2500, "\u00c5"), 0.25, "OME PhysicalSizeX"),
        (ome(0.25 / 25400, "in"), 0.25, "OME PhysicalSizeX"),
        (ome() | {"resolution": (72, 72), "resolutionunit": "INCH"}, 0.25, "OME PhysicalSizeX"),
        (ome() | {"resolution": (1e4, 1e4), "resolutionunit": "CENTIMETER"}, 0.25, "OME PhysicalSizeX"),
        (tags((4e4, 4e4), "CENTIMETER"), 0.25, "TIFF XResolution"),
        (tags((101600, 101600), "INCH"), 0.25, "TIFF XResolution"),
        (tags((4, 4), "NONE"), None, None),
        (tags((0, 0), "CENTIMETER"), None, None),
    ],
)  # fmt: skip
def test_micrometres_of_a_tiff(tmp_path, options, mpp, source, tiled):
    """With tiles OpenSlide opens the file as a generic TIFF; the scale is the same."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, IMAGE, photometric="rgb", **options, **(TILE if tiled else {}))
    slide = open_slide(path)
    assert slide.mpp == (None if mpp is None else pytest.approx(mpp, rel=1e-5))
    assert slide.mpp_source == (None if source is None else f"file: {source}")


@pytest.mark.parametrize(
    "per_unit, unit", [(4, "um"), (4, "micron"), (4, "\\u00B5m"), (4000, "mm"), (101600, "inch")]
)
def test_imagej_units(tmp_path, per_unit, unit):
    tifffile.imwrite(tmp_path / "a.tif", IMAGE, **imagej(per_unit, unit))
    slide = open_slide(tmp_path / "a.tif")
    assert slide.mpp == pytest.approx(0.25, rel=1e-5) and slide.mpp_source == "file: ImageJ unit"


def test_imagej_pixels_are_no_length(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", IMAGE, **imagej(4, "pixel"))
    assert open_slide(tmp_path / "a.tif").mpp is None


@pytest.mark.parametrize("mu", ["\u00b5m", "\u03bcm", "um", "Micron", "\\u00B5m"])
def test_micro_has_two_letters(mu):
    assert micrometres(mu) == 1.0
    assert micrometres("\u212b") == micrometres("\u00c5") == 1e-4
    assert micrometres("pixel") is None and micrometres("") is None


@pytest.mark.parametrize("tiled", [True, False])
def test_pixels_that_are_not_square(tmp_path, tiled, caplog):
    options = TILE if tiled else {}
    tifffile.imwrite(
        tmp_path / "a.tif", IMAGE, photometric="rgb", **tags((4e4, 2e4), "CENTIMETER"), **options
    )
    slide = open_slide(tmp_path / "a.tif")
    assert slide.mpp is None
    with pytest.raises(SlideError, match=r"pixels are 0\.25 × 0\.5 µm, not square .* --mpp"):
        slide.require_mpp()
    assert open_slide(tmp_path / "a.tif", mpp=0.25).mpp == 0.25
    tifffile.imwrite(
        tmp_path / "b.tif", IMAGE, photometric="rgb", **tags((4e4, 4.08e4), "CENTIMETER"), **options
    )
    slide = open_slide(tmp_path / "b.tif")
    assert slide.mpp == pytest.approx((0.25 + 0.25 / 1.02) / 2, rel=1e-5)
    assert "their mean is used" in slide.mpp_note and "b.tif: pixels are 0.25 × 0.245098 µm" in caplog.text


def test_square_pixels():
    assert square(0.25, 0.25, "x").mpp == 0.25 and square(0.25, None, "x").mpp == 0.25
    assert square(0.25, 0.257, "x").mpp == pytest.approx(0.2535)
    assert square(0.25, 0.2576, "x").mpp is None
    assert square(float("nan"), -1.0, "x") == square(None, None, "x")


@pytest.mark.parametrize("dots, unit", [(72, "INCH"), (96, "INCH"), (300, "INCH"), (72 / 2.54, "CENTIMETER")])
def test_dots_per_inch_of_programs_are_no_resolution(tmp_path, dots, unit):
    tifffile.imwrite(tmp_path / "a.tif", IMAGE, photometric="rgb", **tags((dots, dots), unit), **TILE)
    slide = open_slide(tmp_path / "a.tif")
    assert slide.mpp is None and f"{dots if unit == 'INCH' else 72:g} dpi" in slide.mpp_note


def test_an_unknown_unit_is_named(tmp_path):
    tifffile.imwrite(tmp_path / "a.ome.tif", IMAGE, photometric="rgb", **ome(0.25, "furlong"))
    slide = open_slide(tmp_path / "a.ome.tif")
    assert slide.mpp is None and "'furlong'" in slide.mpp_note


# --- structure -------------------------------------------------------------------------------------------


def changed(path: Path, values: dict[int, object], page: int = 0) -> Path:
    """A tiled TIFF with other values in the tags of a page."""
    tifffile.imwrite(path, IMAGE, photometric="rgb", metadata=None, **TILE)
    with tifffile.TiffFile(path, mode="r+b") as file:
        for code, value in values.items():
            file.pages[page].tags[code].overwrite(value)
    return path


@pytest.mark.parametrize(
    "values, what",
    [
        ({322: 2_000_000_000}, "its tiles have 2000000000 × 32 pixels, which cannot be"),
        ({322: 65520, 323: 65520}, "which cannot be"),
        ({322: 16, 323: 16}, "lists 12 of the 48 tiles"),
        ({256: 1_000_000_000, 257: 1_000_000_000}, "lists 12 of the"),
        ({256: 4_000_000_000}, "4000000000 × 96 pixels, which cannot be"),
        ({256: 0}, "0 × 96 pixels, which cannot be"),
        ({284: 9}, "laid out"),
        ({277: 60000}, "cannot be"),
        ({259: 9999}, "cannot be decoded"),
    ],
)
def test_sizes_that_cannot_be(tmp_path, values, what):
    with pytest.raises(SlideError) as error:
        open_slide(changed(tmp_path / "a.tif", values))
    assert what in str(error.value) and len(error.value.what) < 300


def test_a_hostile_tiff_does_not_end_the_process(tmp_path):
    """GLib aborts on a tile of 2·10⁹ pixels: it must not see it."""
    changed(tmp_path / "b.tif", {322: 2_000_000_000})
    tifffile.imwrite(tmp_path / "a.tif", IMAGE, photometric="rgb", **TILE)
    code = (
        "import sys; from morphogen.slides.batch import collect, run_jobs\n"
        "jobs = collect([sys.argv[1]], mpp=0.5)\n"
        "print([outcome.status for outcome in run_jobs(jobs, workers=1)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split("\n")[-2] == "['blank', 'failed']", done.stderr


def pyramid(path: Path) -> Path:
    with tifffile.TiffWriter(path) as file:
        file.write(IMAGE, photometric="rgb", metadata=None, **TILE)
        file.write(
            np.ascontiguousarray(IMAGE[::2, ::2]), photometric="rgb", subfiletype=1, metadata=None, **TILE
        )
    return path


def sub_images(path: Path) -> Path:
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(IMAGE, photometric="rgb", subifds=1, **TILE)
        file.write(np.ascontiguousarray(IMAGE[::2, ::2]), photometric="rgb", subfiletype=1, **TILE)
    return path


@pytest.mark.parametrize("write", [pyramid, sub_images])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.75, 0.9, 0.99])
def test_a_cut_slide_is_refused_when_it_is_opened(tmp_path, write, share):
    """Libraries leave out what they cannot reach: without a check a level is missing and nothing is said."""
    path = write(tmp_path / "a.ome.tif")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(SlideError, match="is cut short at"):
        open_slide(path)


@pytest.mark.parametrize("kept", [0, 1, 40])
def test_a_slide_cut_where_its_second_directory_begins(tmp_path, kept):
    """All pixels are there, but the last directory, which libtiff writes behind them, is not."""
    path = pyramid(tmp_path / "a.tif")
    with tifffile.TiffFile(path) as file:
        first, second = (page.offset for page in file.pages)
    data = bytearray(path.read_bytes())
    count, entries = (int.from_bytes(data[at : at + 2], "little") for at in (second, first))
    pointer = first + 2 + 12 * entries
    data[pointer : pointer + 4] = len(data).to_bytes(4, "little")
    whole = len(data)
    data += data[second : second + 2 + 12 * count + 4]
    path.write_bytes(data)
    assert len(open_slide(path, mpp=0.5).level_shapes) == 2
    path.write_bytes(data[: whole + kept])
    with pytest.raises(SlideError, match="is cut short at|corrupted"):
        open_slide(path)


@pytest.mark.parametrize("tiled", [True, False])
def test_tiles_that_were_never_written(tmp_path, tiled):
    """The end of a level is empty: told at once, refused where it is read, fine elsewhere."""
    path = tmp_path / "a.tif"
    layout = TILE if tiled else {"rowsperstrip": 32}
    tifffile.imwrite(path, IMAGE, photometric="rgb", metadata=None, **layout)
    total = 12 if tiled else 3
    with tifffile.TiffFile(path, mode="r+b") as file:
        code = 325 if tiled else 279
        sizes = list(file.pages[0].databytecounts)
        file.pages[0].tags[code].overwrite([*sizes[:-2], 0, 0])
    slide = open_slide(path, mpp=0.5)
    assert f"the last 2 of {total} tiles" in slide_info(slide)["damage"]
    top = 96 - 32 if tiled else 32
    assert np.array_equal(slide.read_region(0, 0, 128, top), IMAGE[:top])
    corner = (64, 64) if tiled else (0, 32)
    with pytest.raises(
        SlideError, match=f"no data for the tile at x {corner[0]}, y {corner[1]} of 128 × 96 px"
    ):
        slide.read_region(40, 20, 80, 70)
    if tiled:
        assert np.array_equal(slide.read_region(0, 64, 64, 32), IMAGE[64:, :64])


def test_tiles_left_out_here_and_there_are_glass(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, IMAGE, photometric="rgb", metadata=None, compression="lzma", **TILE)
    with tifffile.TiffFile(path, mode="r+b") as file:
        sizes = list(file.pages[0].databytecounts)
        file.pages[0].tags[325].overwrite([0, *sizes[1:6], 0, *sizes[7:]])
    slide = open_slide(path, mpp=0.5)
    assert slide.damage is None
    read = slide.read_region(0, 0, 128, 96)
    wanted = IMAGE.copy()
    wanted[:32, :32] = wanted[32:64, 64:96] = 255
    assert np.array_equal(read, wanted)


# --- stores ----------------------------------------------------------------------------------------------


def test_twins_of_one_stem_have_stores_of_their_own(tmp_path):
    from PIL import Image

    tifffile.imwrite(tmp_path / "s1.tif", IMAGE, photometric="rgb", **TILE)
    assert open_slide(tmp_path / "s1.tif").store.name == "s1.zarr"
    for name in ("s1.jpg", "s1.PNG", "s2.jpg"):
        Image.fromarray(IMAGE).save(tmp_path / name)
    stores = {path.name: open_slide(path).store.name for path in tmp_path.iterdir()}
    assert stores == {
        "s1.tif": "s1.zarr",
        "s1.jpg": "s1.jpg.zarr",
        "s1.PNG": "s1.PNG.zarr",
        "s2.jpg": "s2.zarr",
    }
    assert open_slide(tmp_path / "s1.jpg", out=tmp_path / "out").store == tmp_path / "out" / "s1.jpg.zarr"
