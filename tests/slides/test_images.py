"""What opens as an image, and with which pixels."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from morphogen.core.errors import InputError, SlideError
from morphogen.slides import images, open_slide
from morphogen.slides.images import image_size, list_images, name_of, read_image

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
(/FILE) (w) file dup (x) writestring closefile
showpage
"""


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.svs", "a.bmp"])
def test_postscript_is_never_run(tmp_path, name):
    """Pillow hands EPS to Ghostscript, which runs it; here it is no image, whatever its suffix."""
    trace = tmp_path / "written"
    (tmp_path / name).write_bytes(EPS.replace(b"/FILE", str(trace).encode()))
    for opened in (read_image, image_size, open_slide):
        with pytest.raises(SlideError):
            opened(tmp_path / name)
    assert not trace.exists()


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    os.mkfifo(tmp_path / "a.svs")
    for path in (tmp_path / "a.png", tmp_path / "a.svs", "/dev/zero"):
        for opened in (read_image, image_size, open_slide):
            with pytest.raises(SlideError, match="pipe or device"):
                opened(path)


def test_declared_size_is_limited_before_decoding(tmp_path, rgb, monkeypatch):
    import tifffile

    Image.fromarray(rgb).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", rgb, photometric="rgb")
    monkeypatch.setenv(images.LIMIT, "0.002")
    for name in ("a.png", "a.tif"):
        with pytest.raises(SlideError, match=r"60 × 40 pixels, more than the limit of 0\.002 megapixels"):
            read_image(tmp_path / name)
    monkeypatch.setenv(images.LIMIT, "many")
    with pytest.raises(InputError, match="'many' is not a number of megapixels"):
        read_image(tmp_path / "a.png")


def test_more_pixels_than_pillow_allows(tmp_path, rgb, monkeypatch):
    Image.fromarray(rgb).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert np.array_equal(read_image(tmp_path / "a.png"), rgb)
    assert Image.MAX_IMAGE_PIXELS == 10  # others' limit is left as it was


def test_names_and_suffixes(tmp_path, rgb):
    for name in ("S1.ome.TIF", "S2.PNG", "S3_HE.JPG", "S4.btf"):
        (tmp_path / name).write_bytes(b"x")
    assert list(list_images(tmp_path)) == ["S1", "S2", "S3_HE", "S4"]
    assert name_of("a.b.ome.tf2") == "a.b" and name_of("x.ome.png") == "x.ome"
    (tmp_path / "S1.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match="'S1.ome.TIF' and 'S1.jpg'"):
        list_images(tmp_path)
    (tmp_path / "S5.png").symlink_to(tmp_path / "nowhere.png")
    found = list_images(tmp_path, leave_out=[tmp_path / "S1.ome.TIF"])
    assert found["S1"].name == "S1.jpg" and "S5" in found
    with pytest.raises(SlideError, match="S5.png: there is no such file"):
        read_image(found["S5"])
