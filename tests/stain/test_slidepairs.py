"""Pairs cut from two slides: the same tissue in both, also through a rotation and another µm/px."""

import csv

import numpy as np
import pytest
from PIL import Image

from morphogen.core.errors import InputError, SlideError
from morphogen.core.files import read_json
from morphogen.slides.formats.channels import save_channels
from morphogen.slides.formats.regions import ChannelRegions
from morphogen.slides.pyramid.writer import PyramidWriter
from morphogen.stain.data import find_pairs
from morphogen.stain.pairs.slides import cut_slide_pairs, is_slide, read_pairs, read_warped, slide_table
from morphogen.stain.registration.table import register_table

from .conftest import he_like
from .test_cli import run


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


def test_tiles_that_the_other_slide_does_not_show_are_left_out(slides, tmp_path, caplog):
    """The other slide begins 150 px of the H&E to the right: what lies before is no glass, nobody looked."""
    path = table(slides, [["he.ome.tif", "same.ome.tif", "ER", "A", "train", "0.5 0 -75 0 0.5 0"]])
    out = cut_slide_pairs(slide_table(path), tmp_path / "pairs", tile=64, mpp=1.0, min_tissue=0.0)
    left = [float(row["x"]) for row in csv.DictReader(out.read_text().splitlines())]
    assert left and min(left) >= 150 - 0.02 * 128
    assert "tiles of he.ome.tif lie beyond what the other slide shows" in caplog.text
    path = table(slides, [["he.ome.tif", "same.ome.tif", "ER", "A", "train", "0.5 0 -900 0 0.5 0"]])
    with pytest.raises(InputError, match="the other slide shows none of the tissue.*stain register"):
        cut_slide_pairs(slide_table(path), tmp_path / "none", tile=64, mpp=1.0, min_tissue=0.0)


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
    for act in (lambda: cut_slide_pairs(slide_table(path), tmp_path / "out"),
                lambda: register_table(path, tmp_path / "out.csv")):  # fmt: skip
        with pytest.raises(SlideError, match="many µm a pixel is. Give it in the column ihc_mpp"):
            act()


def test_bad_tables_are_refused(slides, tmp_path):
    path = table(slides, [["he.ome.tif", "same.ome.tif", "ER", "A", "train", "1 2 3"]])
    with pytest.raises(InputError, match="line 2: '1 2 3' are not six numbers"):
        slide_table(path)
    path = table(slides, [["he.ome.tif", "same.ome.tif", "ER", "A", "tain", ""]])
    with pytest.raises(InputError, match="unknown split 'tain'"):
        slide_table(path)
    path = table(slides, [["he.ome.tif", "same.ome.tif", "ER", "A", split, ""] for split in ("", "val")])
    with pytest.raises(InputError, match="some rows have no split and others do"):
        slide_table(path)
    assert slide_table(tmp_path) is None


def made_slide(path, pixels, names):
    """A pyramid of channels (H, W, C) uint8, as `predict` writes them."""
    height, width, count = pixels.shape
    with PyramidWriter(
        path, width, height, mpp=0.5, tile=64, codec="deflate", channels=count, dtype="uint8", names=names
    ) as writer:
        writer.write(pixels if count > 1 else pixels[..., 0], 0)


@pytest.fixture
def signals(tmp_path):
    """Two H&E slides; real slides of two channels, the second slide's turned by a quarter; what two methods made."""
    rng, rows = np.random.default_rng(0), []
    names = ("DNA", "SHG")
    for number in range(2):
        scene = he_like(np.random.default_rng(number), 384)
        with PyramidWriter(tmp_path / f"s{number}.ome.tif", 384, 384, mpp=0.5, tile=64, codec="deflate") as w:
            w.write(scene, 0)
        real = 255 - scene[..., :2]
        turned, affine = (real, "") if number == 0 else (np.rot90(real).copy(), "0 1 0 -1 0 384")
        made_slide(tmp_path / f"real{number}.ome.tif", turned, names)
        rows.append([f"s{number}.ome.tif", f"real{number}.ome.tif", "SHG", "", "val", affine])
        noise = rng.integers(0, 60, real.shape)
        for method, pixels in (("good", real), ("noisy", np.clip(real / 2 + noise, 0, 255).astype(np.uint8))):
            (tmp_path / method).mkdir(exist_ok=True)
            name = f"s{number}_SHG.ome.tif" if method == "good" else f"s{number}.ome.tif"
            made_slide(tmp_path / method / name, pixels, names)
    (tmp_path / "target.yaml").write_text("channels: [DNA, SHG]\nfull: [255, 255]\nthreshold: [99, 99]\n")
    return table(tmp_path, rows)


def test_whole_slides_of_channels_are_scored(signals, tmp_path, capsys):
    """What was made and what is real are cut at the same places; every slide has one r over all its tiles."""
    folders = [str(tmp_path / "good"), str(signals), "--other", f"noisy={tmp_path / 'noisy'}"]
    more = ["--out", str(tmp_path / "scores"), "--field", "128", "--tile", "16", "--resamples", "200"]
    assert run("stain", "evaluate", *folders, *more, "--panels", "0") == 0, capsys.readouterr().err
    results = read_json(tmp_path / "scores" / "metrics.json")
    slides = results["slides"]
    for values in slides["predicted"]["slides"].values():
        assert values["DNA slide_correlation"] > 0.99 and values["SHG slide_correlation"] > 0.99
        assert values["mean"] == pytest.approx(values["mean_real"], abs=1.5)
    for values in slides["noisy"]["slides"].values():
        assert values["slide_correlation"] < 0.999 and values["mean"] < values["mean_real"] - 5
    assert slides["noisy"]["intervals"]["slide_correlation"]["units"] == 2
    assert results["methods"]["predicted"]["intervals"]["tile_mae"]["value"] < 2
    assert results["images"] > 8 and results["unit"] == "patient"
    lines = (tmp_path / "scores" / "slides.csv").read_text().splitlines()
    assert len(lines) == 5 and lines[0].startswith("method,slide,slide_correlation")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "scores").rglob("fields*/**/*.tif")}
    assert len(before) > 24
    assert run("stain", "evaluate", *folders, *more, "--panels", "0") == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}  # cut once
    # Another slide in its place is cut again; a slide that is missing is named.
    (tmp_path / "good" / "s0_SHG.ome.tif").unlink()
    assert run("stain", "evaluate", *folders, *more) == 2
    assert "no slide of s0 is here. Name it s0_SHG.ome.tif" in capsys.readouterr().err


def test_whole_slides_in_colour_are_scored(slides, tmp_path, capsys):
    path = table(tmp_path, [[str(slides / "he.ome.tif"), str(slides / "same.ome.tif"), "ER", "", "", ""]])
    assert [pair.split for pair in slide_table(path)] == [""]  # of any split
    (tmp_path / "made").symlink_to(slides)
    more = [
        "--out",
        str(tmp_path / "scores"),
        "--field",
        "128",
        "--mpp",
        "1",
        "--tile",
        "16",
        "--resamples",
        "200",
    ]
    arguments = ["stain", "evaluate", str(tmp_path / "made"), str(path), *more, "--panels", "0"]
    assert run(*arguments) == 0, capsys.readouterr().err
    found = read_json(tmp_path / "scores" / "metrics.json")["slides"]["predicted"]["slides"]["he"]
    assert found["slide_correlation"] > 0.98  # the H&E itself, at another µm/px


def test_channels_of_a_slide_are_read_where_they_are_asked_for(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 60_000, (90, 70, 3), dtype=np.uint16)
    save_channels(tmp_path / "a.ome.tif", pixels, ("a", "b", "c"))
    with ChannelRegions(tmp_path / "a.ome.tif") as slide:
        assert (slide.size, slide.channels, slide.dtype) == ((90, 70), 3, "uint16")
        assert np.array_equal(slide.read_box(10, 20, 30, 40, 30, 40), pixels[20:60, 10:40])
        half = slide.read_box(10, 20, 30, 40, 15, 20)
        exact = pixels[20:60, 10:40].reshape(20, 2, 15, 2, 3).mean(axis=(1, 3))
        assert np.abs(half - exact).max() <= 1
        outside = slide.read_box(-8, 80, 16, 16, 16, 16)
        assert np.array_equal(outside[:10, 8:], pixels[80:, :8]) and not outside[10:].any()
        assert not outside[:, :8].any() and not slide.read_box(200, 0, 8, 8, 8, 8).any()
