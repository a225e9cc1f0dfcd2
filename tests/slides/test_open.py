"""Opening slides and images, reading them at a wanted µm/px, and saying what is wrong with bad ones."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from morphogen.core.errors import InputError, SlideError
from morphogen.slides import open_slide, readers
from morphogen.slides.info import slide_info

# --- formats ---------------------------------------------------------------------------------------------


def test_level_0_is_openslides_own_pixels(real):
    import openslide

    slide = open_slide(real["cmu"])
    with openslide.OpenSlide(str(real["cmu"])) as other:
        wanted = np.asarray(other.read_region((700, 1500), 0, (333, 222)).convert("RGB"))
    assert np.array_equal(slide.read_region(700, 1500, 333, 222), wanted)


def test_where_micrometres_per_pixel_come_from(real):
    cmu, tcga, cyto = (open_slide(real[name]) for name in ("cmu", "tcga", "cyto"))
    assert cmu.mpp == pytest.approx(0.499) and cmu.mpp_source == "file: openslide.mpp-x"
    assert tcga.mpp is None and tcga.mpp_note is None
    assert cyto.mpp is None and "1000 µm/px" in cyto.mpp_note  # bogus: detected, not used
    given = open_slide(real["cyto"], mpp=0.25)
    assert given.mpp == 0.25 and given.mpp_source == "given"
    with pytest.raises(
        SlideError, match=r"1000 µm/px, which cannot be right\. Give it, for example --mpp 0.5"
    ):
        cyto.require_mpp()
    with pytest.raises(SlideError, match=r"does not say how many µm a pixel is\. Give it, for example --mpp"):
        tcga.require_mpp()


def test_an_implausible_given_value_is_refused(synthetic):
    with pytest.raises(InputError, match="1000 µm/px is not plausible"):
        open_slide(synthetic, mpp=1000)


@pytest.mark.parametrize(
    "kind", ["rgb", "rgba", "grey", "grey16", "rgb16", "palette", "jpeg", "flat tiff", "planar tiff"]
)
def test_flat_images_open_as_rgb(tmp_path, kind):
    import tifffile

    rng = np.random.default_rng(1)
    rgb = rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)
    path = tmp_path / "image.png"
    wanted = rgb
    if kind == "rgb":
        Image.fromarray(rgb).save(path)
    elif kind == "rgba":
        alpha = np.zeros((90, 120, 1), np.uint8)
        alpha[:, 60:] = 255
        Image.fromarray(np.concatenate([rgb, alpha], axis=2)).save(path)
        wanted = np.where(alpha > 0, rgb, 255)
    elif kind == "grey":
        Image.fromarray(rgb[..., 0]).save(path)
        wanted = rgb[..., :1].repeat(3, axis=2)
    elif kind == "grey16":
        Image.fromarray(rgb[..., 0].astype(np.uint16) * 257).save(path)
        wanted = rgb[..., :1].repeat(3, axis=2)
    elif kind == "rgb16":
        path = tmp_path / "image.tif"
        tifffile.imwrite(path, rgb.astype(np.uint16) * 257, photometric="rgb")
    elif kind == "palette":
        indexed = Image.fromarray(rgb).quantize(64)
        indexed.save(path)
        wanted = np.asarray(indexed.convert("RGB"))
    elif kind == "jpeg":
        path = tmp_path / "image.jpg"
        Image.fromarray(rgb).save(path, quality=95)
        wanted = np.asarray(Image.open(path).convert("RGB"))
    elif kind == "flat tiff":
        path = tmp_path / "image.tiff"
        tifffile.imwrite(path, rgb, photometric="rgb")
    else:
        path = tmp_path / "image.tif"
        tifffile.imwrite(path, rgb.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    slide = open_slide(path, mpp=0.5)
    assert (slide.width, slide.height, slide.mpp) == (120, 90, 0.5)
    assert np.array_equal(slide.read_region(0, 0, 120, 90), wanted)


@pytest.mark.parametrize("piecewise", [False, True])
def test_ome_tiff_opens_with_its_levels_and_size(tmp_path, monkeypatch, make_tissue, piecewise):
    """Coarser levels in SubIFDs, which OpenSlide does not see; large files are read window by window."""
    import tifffile

    image, path = make_tissue(900, 1300), tmp_path / "image.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        facts = {"PhysicalSizeX": 0.2527, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.2527, "axes": "YXS"}
        file.write(image, subifds=2, tile=(256, 256), photometric="rgb", compression="zlib", metadata=facts)
        for step in (2, 4):
            file.write(
                image[::step, ::step], subfiletype=1, tile=(256, 256), photometric="rgb", compression="zlib"
            )
    if piecewise:
        monkeypatch.setattr(readers, "IN_MEMORY_BYTES", 0)
    slide = open_slide(path)
    assert slide.mpp == pytest.approx(0.2527) and slide.mpp_source == "file: OME PhysicalSizeX"
    assert slide.reader.name == ("tifffile" if piecewise else "flat")
    assert slide.level_shapes[:2] == [(900, 1300), (450, 650)]
    assert np.array_equal(slide.read_region(100, 50, 300, 200), image[50:250, 100:400])
    if piecewise:
        block, left, top = slide.read_block(1, 200, 100, 400, 300, margin=0)
        assert np.array_equal(block, image[::2, ::2][top : top + 100, left : left + 100])
    again = pickle.loads(pickle.dumps(slide))  # workers get a path, not an open file
    assert np.array_equal(again.read_region(0, 0, 64, 64), image[:64, :64])


# --- reading ---------------------------------------------------------------------------------------------


def test_reading_outside_the_slide_is_white(synthetic):
    slide = open_slide(synthetic)
    region = slide.read_region(-50, -40, 100, 100)
    assert (region[:40] == 255).all() and (region[:, :50] == 255).all()
    assert np.array_equal(region[40:, 50:], slide.read_region(0, 0, 50, 60))
    assert (slide.read_region(5000, 5000, 10, 10) == 255).all()
    assert (slide.read_region(-50, -40, 40, 40, mpp=2.0)[:10, :12] == 255).all()


@pytest.mark.parametrize(
    "mpp, shift", [(0.5, 0.5), (0.73, 0.0), (1.0, 0.25), (1.7, 3.3), (4.0, 7.0), (0.3, 2.0)]
)
def test_a_spot_stays_where_it_is_at_any_scale_and_fraction(tmp_path, make_slide, mpp, shift):
    """Centroid to 0.1 level-0 px and mass to 2 %: the pyramid and the filter neither shift nor brighten."""
    y, x = np.mgrid[:1024, :1024]
    spot = 250 * np.exp(-((x - 300.3) ** 2 + (y - 280.7) ** 2) / (2 * 24**2))
    slide = open_slide(
        make_slide(tmp_path / "spot.tif", np.repeat(spot[..., None], 3, 2).round().astype(np.uint8))
    )
    x0, y0, scale = 101 + shift, 57 + shift, mpp / 0.5
    width, height = round(400 / scale), round(440 / scale)
    read = slide.read_region(x0, y0, width, height, mpp=mpp)[..., 0].astype(float)
    read[read < 4] = 0  # rounding far away has a long lever
    across = x0 + (np.arange(width) + 0.5) * scale - 0.5
    down = y0 + (np.arange(height) + 0.5) * scale - 0.5
    assert (read * across).sum() / read.sum() == pytest.approx(300.3, abs=0.1)
    assert (read * down[:, None]).sum() / read.sum() == pytest.approx(280.7, abs=0.1)
    assert read.sum() * scale**2 == pytest.approx(spot[spot >= 4].sum(), rel=0.02)


def test_fine_stripes_average_out_instead_of_aliasing(tmp_path, make_slide):
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 200
    slide = open_slide(make_slide(tmp_path / "stripes.tif", stripes, levels=1))
    inner = slide.read_region(64, 64, 60, 60, mpp=1.9)  # a factor of 3.8 without any coarser level to help
    assert abs(inner.mean() - 100) < 2 and inner.std() < 12


def test_levels_agree(synthetic):
    """The same field from level 0 by our filter, and from the file's own coarser level, look the same."""
    slide = open_slide(synthetic)
    coarse = slide.read_region(300, 200, 200, 150, mpp=2.0).astype(float)
    slide.level_downsamples = [1.0, 1e9, 1e9]  # only level 0 is left
    fine = slide.read_region(300, 200, 200, 150, mpp=2.0).astype(float)
    assert np.abs(coarse - fine).mean() < 2 and np.corrcoef(coarse.ravel(), fine.ravel())[0, 1] > 0.995


def test_thumbnail_and_overview_in_bands(synthetic, monkeypatch):
    slide = open_slide(synthetic)
    whole = slide.thumbnail(400)
    assert whole.shape == (300, 400, 3)
    monkeypatch.setattr("morphogen.slides.slide._BAND_PIXELS", 20_000)
    assert np.abs(slide.thumbnail(400).astype(int) - whole).max() <= 1  # bands leave no seam


def test_unscanned_areas_are_white(tmp_path, monkeypatch, synthetic):
    """What OpenSlide gives as transparent (MRXS gaps) must not turn black."""
    slide = open_slide(synthetic)

    class Gap:
        level_downsamples = [1.0]

        def read_region(self, corner, level, size):
            return Image.new("RGBA", size, (0, 0, 0, 0))

        def close(self):
            pass

    slide.reader.set_reader(Gap())
    assert (slide.reader.get_region(0, 0, 16, 16) == 255).all()


def test_info_says_what_the_file_says(real):
    info = slide_info(open_slide(real["cmu"]))
    assert (info["width"], info["height"], info["vendor"], info["magnification"]) == (
        2220,
        2967,
        "aperio",
        20,
    )
    assert info["associated_images"] == ["label", "macro", "thumbnail"]
    assert info["bytes"] == real["cmu"].stat().st_size
    assert [level["downsample"] for level in slide_info(open_slide(real["cyto"]))["levels"]] == [
        1,
        2,
        4,
        8,
        16,
        32,
    ]


# --- bad input -------------------------------------------------------------------------------------------


def _one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text and len(text) < 400
    return text


@pytest.mark.parametrize("name", ["cmu", "tcga", "cyto"])
def test_a_slide_cut_at_30_percent(real, tmp_path, name):
    data = real[name].read_bytes()
    path = tmp_path / real[name].name
    path.write_bytes(data[: int(len(data) * 0.3)])
    with pytest.raises(SlideError) as error:
        open_slide(path)
    assert "is cut short" in _one_line(error) and "copy it again" in str(error.value)


def test_a_slide_whose_directory_survives_the_cut(tmp_path, synthetic):
    """Directory at the front, pixels cut off: found at opening, not in the middle of the work."""
    import tifffile

    path = tmp_path / "front.tif"
    with tifffile.TiffFile(synthetic) as file:
        image = file.pages[0].asarray()
    tifffile.imwrite(path, image, tile=(256, 256), photometric="rgb")  # uncompressed: directory first
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SlideError, match="is cut short"):
        open_slide(path)


def test_damage_found_while_reading(tmp_path, real):
    data = bytearray(real["cmu"].read_bytes())
    for start in range(2000, len(data) // 2, 500):
        data[start : start + 200] = b"\0" * 200
    path = tmp_path / "damaged.svs"
    path.write_bytes(data)
    slide = open_slide(path)
    with pytest.raises(SlideError) as error:
        slide.read_region(0, 0, 2220, 2967)
    assert "damaged" in _one_line(error)


@pytest.mark.parametrize(
    "name, content, what",
    [
        ("notes.svs", b"slide 12: see the other folder\n" * 20, "is a text file, not a slide"),
        ("image.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "cannot be decoded"),
        ("noise.svs", bytes(range(256)) * 40, "is not a slide or image of a known format"),
        ("gone.mrxs", bytes(range(256)), "the folder of the same name"),
        ("empty.svs", b"", "is empty"),
    ],
)
def test_files_that_are_no_slides(tmp_path, name, content, what):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SlideError) as error:
        open_slide(path)
    assert what in _one_line(error) and str(path) in str(error.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(SlideError, match="there is no such file"):
        open_slide(tmp_path / "none.svs")
    with pytest.raises(SlideError, match="is a folder"):
        open_slide(tmp_path)


def test_a_cut_jpeg(tmp_path, shared):
    source = shared / "data" / "patches" / "hgsc_stromal_he.jpg"
    path = tmp_path / "cut.jpg"
    path.write_bytes(source.read_bytes()[:200_000])
    with pytest.raises(SlideError, match="cannot be decoded"):
        open_slide(path)


def test_a_stack_or_float_tiff_is_refused_with_its_reason(tmp_path):
    import tifffile

    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((5, 64, 64), np.uint8), photometric="minisblack")
    with pytest.raises(SlideError, match="stack|channels"):
        open_slide(tmp_path / "stack.tif")
    tifffile.imwrite(tmp_path / "float.tif", np.zeros((64, 64, 3), np.float32), photometric="rgb")
    with pytest.raises(SlideError, match="float32 samples"):
        open_slide(tmp_path / "float.tif")


def test_a_store_of_another_slide_is_refused(tmp_path, synthetic, make_slide, make_tissue):
    from morphogen.slides.tiles import tile_slide

    tile_slide(open_slide(synthetic, out=tmp_path))
    other = make_slide(tmp_path / "synthetic.tif", make_tissue(600, 700))
    with pytest.raises(InputError, match="belongs to a slide of 1600×1200 px"):
        _ = open_slide(other, out=tmp_path).wsi
    shutil.rmtree(tmp_path / "synthetic.zarr" / "shapes" / "tiles")
    with pytest.raises(InputError, match="not a readable SpatialData store|belongs"):
        (tmp_path / "synthetic.zarr" / "zarr.json").write_text("{")
        _ = open_slide(synthetic, out=tmp_path).wsi
