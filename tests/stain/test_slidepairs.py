"""Pairs cut from two slides: the same tissue in both, also through a rotation and another µm/px."""

import numpy as np
import pytest
from PIL import Image

from morphogen.core.errors import InputError, SlideError
from morphogen.slides.pyramid.writer import PyramidWriter
from morphogen.stain.data import find_pairs
from morphogen.stain.pairs.slides import cut_slide_pairs, is_slide, read_pairs, read_warped, slide_table
from morphogen.stain.registration.table import register_table

from .conftest import he_like


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """The same 600 px scene at 0.5 µm/px, and at 1 µm/px turned by a quarter."""
    folder = tmp_path_factory.mktemp("slides")
    scene = he_like(np.random.default_rng(0), 600)
    half = np.array(Image.fromarray(scene).resize((300, 300), Image.Resampling.BOX))
    for name, image, mpp in (("he", scene, 0.5), ("same", half, 1.0), ("turned", np.rot90(half).copy(), 1.0)):
        with PyramidWriter(
            folder / f"{name}.ome.tif", *image.shape[1::-1], mpp=mpp, tile=64, codec="deflate"
        ) as w:
            w.write(image, 0)
    return folder


def table(folder, rows):
    path = folder / "slides.csv"
    path.write_text("he,ihc,stain,patient,split,affine\n" + "\n".join(",".join(row) for row in rows) + "\n")
    return path


def test_slides_are_recognised(slides, shared, tmp_path):
    assert is_slide(slides / "he.ome.tif") and is_slide(shared / "data/wsi/cmu-1-small-region.svs")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "plain.tif")
    assert not is_slide(tmp_path / "plain.tif") and not is_slide(tmp_path / "image.png")


def test_pairs_show_the_same_tissue_in_both_images(slides, tmp_path):
    # Quarter turn of a 300 px image: (x, y) of the unturned goes to (y, 299 - x), in pixel edges (y, 300 -
    # x).
    turn = "0 0.5 0 -0.5 0 300"
    path = table(slides, [["he.ome.tif", "same.ome.tif", "ER", "A", "train", ""],
                          ["he.ome.tif", "turned.ome.tif", "PR", "A", "val", turn]])  # fmt: skip
    pairs = slide_table(path)
    assert pairs[0].affine is None and pairs[1].affine.shape == (2, 3)
    out = cut_slide_pairs(pairs, tmp_path / "pairs", tile=128, mpp=1.0, min_tissue=0.0)
    for split, stain in (("train", "ER"), ("val", "PR")):
        found = find_pairs(out, split)
        assert len(found.pairs) >= 4 and {pair.stain for pair in found.pairs} == {stain}
        for pair in found.pairs:
            a, b = (np.array(Image.open(path)).astype(float)[4:-4, 4:-4] for path in (pair.he, pair.ihc))
            assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.98
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "pairs").rglob("*.png")}
    assert cut_slide_pairs(pairs, tmp_path / "pairs", tile=128, mpp=1.0, min_tissue=0.0) == out
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "pairs").rglob("*.png")}
    assert len(read_pairs(path, "val", tmp_path / "run", tile=128, mpp=1.0).pairs) >= 4


def test_rotation_by_any_angle_agrees_with_the_box_it_turns():
    class Scene:
        def read_box(self, x, y, w, h, width, height):
            ys, xs = (np.arange(n) + 0.5 for n in (height, width))
            value = np.broadcast_to((x + xs * w / width)[None], (height, width))
            other = np.broadcast_to((y + ys * h / height)[:, None], (height, width))
            return np.stack([value, other, value], -1).clip(0, 255).astype(np.uint8)

    angle = np.deg2rad(20)
    c, s = np.cos(angle), np.sin(angle)
    affine = np.array([[c, -s, 90], [s, c, 20]])
    out = read_warped(Scene(), affine, 30, 40, 60, 60).astype(float)
    u, v = np.meshgrid(30.5 + np.arange(60), 40.5 + np.arange(60))
    expected = np.stack([c * u - s * v + 90, s * u + c * v + 20], -1)
    assert np.abs(out[2:-2, 2:-2, :2] - expected[2:-2, 2:-2]).max() < 1.5


def test_a_slide_without_its_scale_names_the_column(slides, shared, tmp_path):
    unknown = shared / "data/wsi/tcga-cr-7395-01a-01-ts1.svs"
    path = table(slides, [["he.ome.tif", str(unknown), "ER", "A", "train", ""]])
    for run in (lambda: cut_slide_pairs(slide_table(path), tmp_path / "out"),
                lambda: register_table(path, tmp_path / "out.csv")):  # fmt: skip
        with pytest.raises(SlideError, match="many µm a pixel is. Give it in the column ihc_mpp"):
            run()


def test_bad_tables_are_refused(slides, tmp_path):
    path = table(slides, [["he.ome.tif", "same.ome.tif", "ER", "A", "train", "1 2 3"]])
    with pytest.raises(InputError, match="line 2: '1 2 3' are not six numbers"):
        slide_table(path)
    path = table(slides, [["he.ome.tif", "same.ome.tif", "ER", "A", "tain", ""]])
    with pytest.raises(InputError, match="unknown split 'tain'"):
        slide_table(path)
    assert slide_table(tmp_path) is None
