"""Pixel values of every kind of sample, codec and orientation, through both doors: read_image and open_slide."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from morphogen.core.errors import SlideError
from morphogen.slides import open_slide, readers
from morphogen.slides.images import decode, image_size, read_image

TILE = {"tile": (32, 32)}


@pytest.fixture(scope="module")
def rgb() -> np.ndarray:
    """Smooth, so that lossy codecs stay near, with more than 14 bits of range once widened; 70 × 90 px."""
    y, x = np.mgrid[:70, :90]
    planes = [200 + 40 * np.sin(x / 17), 120 + 90 * np.cos(y / 13), 160 + 60 * np.sin((x + y) / 11)]
    return np.stack(planes, axis=-1).round().astype(np.uint8)


def both(path: Path, wanted: np.ndarray, atol: float = 0) -> None:
    """``path`` gives ``wanted`` decoded whole, as a slide, and where its kind allows window by window."""
    height, width = wanted.shape[:2]
    seen = {"decoded": read_image(path)}
    with open_slide(path, mpp=0.5) as slide:
        assert (slide.height, slide.width) == (height, width)
        seen["slide"] = slide.read_region(0, 0, width, height)
        piece = slide.read_region(21, 13, 30, 40)
    assert image_size(path) == (height, width)
    for name, pixels in seen.items():
        assert np.abs(pixels.astype(int) - wanted).max() <= atol, name
    assert np.abs(piece.astype(int) - wanted[13:53, 21:51]).max() <= atol
    if path.suffix == ".tif":
        before, readers.IN_MEMORY_BYTES = readers.IN_MEMORY_BYTES, 0
        try:
            with open_slide(path, mpp=0.5) as slide:
                piece = slide.read_region(21, 13, 30, 40)
        finally:
            readers.IN_MEMORY_BYTES = before
        assert np.abs(piece.astype(int) - wanted[13:53, 21:51]).max() <= atol


def write_12_bits(path: Path, samples: np.ndarray) -> None:
    """(H, W, 3) values below 4096 in one strip, packed as TIFF 6.0 packs 12 bits; no library at hand writes it."""
    height, width, _ = samples.shape
    bits = np.unpackbits(samples.astype(">u2").reshape(height, -1, 1).view(np.uint8), axis=2)[..., 4:]
    data = np.packbits(bits.reshape(height, -1), axis=1).tobytes()
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, 134), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 140),
            (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, len(data)), (284, 3, 1, 1)]  # fmt: skip
    body = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + body + struct.pack("<I", 0)
    path.write_bytes(head + struct.pack("<HHH", 12, 12, 12) + data)


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize(
    "kind",
    ["palette", "white is zero", "cmyk", "12 bits", "declared 12 of 16", "full 16", "alpha", "associated alpha",
     "empty alpha", "unspecified extra", "1 bit", "planar", "CYX"],
)  # fmt: skip
def test_what_samples_mean(tmp_path, rgb, kind, tiled):
    path, options = tmp_path / "image.tif", TILE if tiled else {"rowsperstrip": 16}
    wide, wanted = rgb.astype(np.uint16), rgb
    alpha = np.zeros(rgb.shape[:2], np.uint8)
    alpha[:, 40:60], alpha[:, 60:] = 128, 255
    straight = np.dstack([rgb, alpha])
    laid = np.rint(rgb * (alpha[..., None] / 255) + 255 - alpha[..., None]).astype(np.uint8)
    if kind == "palette":
        indexed = Image.fromarray(rgb).quantize(200)
        table = np.zeros((3, 256), np.uint16)
        colours = np.reshape(indexed.getpalette(), (-1, 3))
        table[:, : len(colours)] = colours.T * 257
        tifffile.imwrite(path, np.asarray(indexed), photometric="palette", colormap=table, **options)
        wanted = np.asarray(indexed.convert("RGB"))
    elif kind == "white is zero":
        tifffile.imwrite(path, 255 - rgb[..., 1], photometric="miniswhite", **options)
        wanted = rgb[..., 1:2].repeat(3, axis=2)
    elif kind == "cmyk":
        inks = np.asarray(Image.fromarray(rgb).convert("CMYK")).copy()
        inks[..., 3] = 51  # a fifth of black over all
        tifffile.imwrite(path, inks, photometric="separated", **options)
        wanted = np.rint(rgb * 0.8).astype(np.uint8)
    elif kind == "12 bits":
        write_12_bits(path, wide * 16 + 8)
    elif kind == "declared 12 of 16":
        tag = (281, 3, 3, (4095, 4095, 4095), True)
        tifffile.imwrite(path, wide * 16 + 8, photometric="rgb", extratags=[tag], **options)
    elif kind == "full 16":
        tifffile.imwrite(path, wide * 257, photometric="rgb", **options)
    elif kind == "alpha":
        tifffile.imwrite(path, straight, photometric="rgb", extrasamples=["unassalpha"], **options)
        wanted = laid
    elif kind == "associated alpha":
        straight[..., :3] = np.rint(rgb * (alpha[..., None] / 255))
        tifffile.imwrite(path, straight, photometric="rgb", extrasamples=["assocalpha"], **options)
        wanted = laid
    elif kind == "empty alpha":
        straight[..., 3] = 0
        tifffile.imwrite(path, straight, photometric="rgb", extrasamples=["unassalpha"], **options)
    elif kind == "unspecified extra":
        tifffile.imwrite(path, straight, photometric="rgb", extrasamples=["unspecified"], **options)
    elif kind == "1 bit":
        tifffile.imwrite(path, rgb[..., 1] > 120, photometric="minisblack", **options)
        wanted = np.where(rgb[..., 1:2] > 120, 255, 0).astype(np.uint8).repeat(3, axis=2)
    elif kind == "planar":
        tifffile.imwrite(path, np.moveaxis(rgb, -1, 0), photometric="rgb", planarconfig="separate", **options)
    else:
        planes = np.moveaxis(rgb, -1, 0)
        tifffile.imwrite(
            path, planes, ome=True, photometric="minisblack", metadata={"axes": "CYX"}, **options
        )
    both(path, wanted, atol=1)
    assert decode(path).colour == (kind not in ("white is zero", "1 bit"))


@pytest.mark.parametrize(
    "codec, atol",
    [("jpeg2000", 0), ("webp", 12), ("lerc", 0), ("jpegxl", 12), ("png", 0), ("lzma", 0), ("zstd", 0), ("lzw", 0),
     ("jpeg", 30), (33005, 12)],
)  # fmt: skip
def test_tiles_of_any_codec(tmp_path, rgb, codec, atol):
    """Xenium and Visium HD images are JPEG 2000, which OpenSlide refuses in a generic TIFF."""
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, rgb, photometric="rgb", compression=codec, **TILE)
    both(path, rgb, atol)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", "tiled.tif"])
def test_a_turned_image_is_upright(tmp_path, rgb, orientation, suffix):
    """The stored image is the upright one turned the other way; every value of the tag, by its definition."""
    rows_are_columns, flip_rows, flip_columns = (
        orientation > 4,
        orientation in (3, 4, 7, 8),
        orientation in (2, 3, 6, 7),
    )
    stored = rgb[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
    stored = np.ascontiguousarray(stored.swapaxes(0, 1) if rows_are_columns else stored)
    path = tmp_path / f"image{suffix}"
    if suffix.endswith("tif"):
        tag = (274, 3, 1, orientation, True)
        tifffile.imwrite(
            path, stored, photometric="rgb", extratags=[tag], **(TILE if "tiled" in suffix else {})
        )
    else:
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(stored).save(
            path, exif=exif, **({"quality": 97, "subsampling": 0} if suffix == ".jpg" else {})
        )
    both(path, rgb, atol=8 if suffix == ".jpg" else 0)


def test_exif_6_is_turned_a_quarter_clockwise(tmp_path):
    """Against Pillow's own reading of the tag."""
    from PIL import ImageOps

    stored = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
        with Image.open(tmp_path / "a.png") as image:
            assert np.array_equal(read_image(tmp_path / "a.png"), np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize("highest", [255, 1023, 4095, 16383])
def test_few_bits_in_sixteen_are_refused_not_black(tmp_path, rgb, highest):
    dim = (rgb.astype(np.uint32) * highest // 240).astype(np.uint16)
    tifffile.imwrite(tmp_path / "strips.tif", dim, photometric="rgb")
    tifffile.imwrite(tmp_path / "tiles.tif", dim, photometric="rgb", **TILE)
    Image.fromarray(dim[..., 0]).save(tmp_path / "grey.png")
    import imagecodecs

    (tmp_path / "colour.png").write_bytes(imagecodecs.png_encode(dim))
    for name in ("strips.tif", "tiles.tif", "grey.png", "colour.png"):
        for opened in (read_image, open_slide):
            with pytest.raises(SlideError, match="16-bit samples no larger than .* MaxSampleValue"):
                opened(tmp_path / name)


def test_sixteen_bit_png(tmp_path, rgb):
    import imagecodecs

    path = tmp_path / "a.png"
    path.write_bytes(imagecodecs.png_encode(rgb.astype(np.uint16) * 257))
    both(path, rgb)
    path.write_bytes(
        imagecodecs.png_encode(np.dstack([rgb.astype(np.uint16) * 257, np.zeros(rgb.shape[:2], np.uint16)]))
    )
    both(path, rgb)  # an alpha left empty
    Image.fromarray(rgb[..., 0].astype(np.uint16) * 257).save(path)
    both(path, rgb[..., :1].repeat(3, axis=2))
    assert not decode(path).colour


@pytest.mark.parametrize("mode", ["P", "L", "1", "LA", "RGBA", "CMYK", "transparent colour"])
def test_modes_of_flat_images(tmp_path, rgb, mode):
    path, image = tmp_path / "a.png", Image.fromarray(rgb)
    if mode == "CMYK":
        path = tmp_path / "a.jpg"
        image.convert("CMYK").save(path, quality=100, subsampling=0)
        both(path, rgb, atol=12)
        return
    if mode == "transparent colour":
        flat = rgb.copy()
        flat[:20, :20] = (9, 8, 7)
        Image.fromarray(flat).save(path, transparency=(9, 8, 7))
        flat[:20, :20] = 255
        both(path, flat)
        return
    image = image.convert(mode) if mode != "P" else image.quantize(64)
    if mode in ("LA", "RGBA"):
        alpha = Image.fromarray(
            np.where(np.arange(90) < 30, 0, 255).astype(np.uint8)[None].repeat(70, axis=0)
        )
        image.putalpha(alpha)
    image.save(path)
    wanted = np.asarray(image.convert("RGB")).copy()
    if mode in ("LA", "RGBA"):
        wanted[:, :30] = 255
    both(path, wanted)
    assert decode(path).colour == (mode in ("P", "RGBA"))


@pytest.mark.parametrize(
    "name, written", [("a.tif", "JPEG"), ("a.jpg", "PNG"), ("a.png", "TIFF"), ("a.svs", "PNG")]
)
def test_the_suffix_does_not_decide(tmp_path, rgb, name, written):
    Image.fromarray(rgb).save(tmp_path / name, format=written, quality=100, subsampling=0)
    with open_slide(tmp_path / name, mpp=0.5) as slide:
        assert np.abs(slide.read_region(0, 0, 90, 70).astype(int) - rgb).max() <= 6


def test_fluorescence_is_no_colour_image(tmp_path, rgb):
    four = np.stack([rgb[..., 0]] * 4)
    tifffile.imwrite(
        tmp_path / "a.ome.tif", four, ome=True, photometric="minisblack", metadata={"axes": "CYX"}
    )
    names = {
        "axes": "CYX",
        "Channel": {"Name": ["DAPI", "FITC", "Cy5"], "EmissionWavelength": [461, 519, 670]},
    }
    tifffile.imwrite(tmp_path / "b.ome.tif", four[:3], ome=True, photometric="minisblack", metadata=names)
    for name in ("a.ome.tif", "b.ome.tif"):
        for opened in (read_image, open_slide):
            with pytest.raises(SlideError, match=r"channels of their own \(fluorescence\?\)"):
                opened(tmp_path / name)


def test_a_stack_is_refused_before_it_is_decoded(tmp_path, rgb, monkeypatch):
    """An OME-XML may declare any number of planes, which tifffile would fill in."""
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, rgb, ome=True, photometric="rgb", metadata={"axes": "YXS"})
    with tifffile.TiffFile(path) as file:
        text = file.pages[0].description
    assert 'SizeT="1"' in text
    tifffile.tiffcomment(path, text.replace('SizeT="1"', 'SizeT="900000"').encode())
    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", None)
    for opened in (read_image, open_slide):
        with pytest.raises(SlideError, match="is a stack with axes"):
            opened(path)


def test_the_largest_image_is_the_slide(tmp_path, rgb):
    """Whatever stands first: a thumbnail, a label, or the levels in reverse."""
    small, label = np.ascontiguousarray(rgb[::4, ::4]), np.full((20, 50, 3), 100, np.uint8)
    orders = {
        "thumbnail": [(small, {}), (rgb, {})],
        "tiled after strips": [(small, {}), (rgb, TILE)],
        "flagged": [(small, {"subfiletype": 1}), (rgb, {})],
        "reversed": [(np.ascontiguousarray(rgb[::2, ::2]), TILE), (rgb, TILE)],
    }
    for name, pages in orders.items():
        with tifffile.TiffWriter(tmp_path / f"{name}.tif") as file:
            for page, options in pages:
                file.write(page, photometric="rgb", metadata=None, **options)
        both(tmp_path / f"{name}.tif", rgb)
    with tifffile.TiffWriter(tmp_path / "label.ome.tif", ome=True) as file:
        file.write(
            label, photometric="rgb", metadata={"Name": "label", "PhysicalSizeX": 9, "PhysicalSizeY": 9}
        )
        file.write(
            rgb, photometric="rgb", metadata={"Name": "he", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
        )
    slide = open_slide(tmp_path / "label.ome.tif")
    assert slide.mpp == pytest.approx(0.25) and (slide.width, slide.height) == (90, 70)
