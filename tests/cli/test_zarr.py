"""``--format zarr`` of every verb that has it: read by ome-zarr's own reader, and opened again wherever a slide is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader
from PIL import Image

from morphogen.cli.main import main
from morphogen.demo import TissueSimulator
from morphogen.slides import open_slide
from morphogen.slides.pyramid import write_pyramid

WIDTH, HEIGHT, MPP = 300, 220, 1.0


def run(*tokens) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(token) for token in tokens])
    return stop.value.code or 0


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A slide of 300 × 220 px and a picture of it, with tiny models of stain, segmentation and tissue."""
    from morphogen.layout.segmenter.model import Segmenter
    from morphogen.nets.layout.config import SegmenterConfig
    from morphogen.stain.config import ModelConfig
    from morphogen.stain.fitting.build import build_model
    from morphogen.tissue import ModelConfig as TissueConfig
    from morphogen.tissue import new_model

    root = tmp_path_factory.mktemp("zarr")
    he = TissueSimulator(3, mpp=MPP).render(0, 0, WIDTH, HEIGHT, ihc=False).he
    write_pyramid(root / "slide.ome.tif", [he], WIDTH, HEIGHT, mpp=MPP, tile=64, codec="deflate")
    (root / "images").mkdir()
    Image.fromarray(he[:96, :128]).save(root / "images" / "p.png")
    small = {"widths": (8, 16), "groups": 4, "heads": 2, "attention": (1,), "encoder": "none"}
    build_model(ModelConfig(**small, pixel_factor=4, detail=4), crop=64, seed=3).save_pretrained(
        root / "stain"
    )
    classes = ("background", "tumour")
    segmenter = Segmenter.fresh(SegmenterConfig(widths=(8, 16)), classes, crop=64, mpp=MPP)
    segmenter.save_pretrained(root / "segmenter")
    tissue = TissueConfig.of("tiny", embeddings={"patch": 280}, encoder="texture")
    new_model(tissue, tile_px=32, mpp=MPP).save_pretrained(root / "tissue")
    return root


STAIN = ["--steps", 1, "--samples", 2, "--mpp", MPP, "--device", "cpu"]
# The verb with its inputs and options, and its images with their channels.
VERBS = {
    "stain predict": (
        ["slide.ome.tif", "images", "--model", "stain", *STAIN],
        {"slide_IHC": 3, "slide_IHC_uncertainty": 1, "p": 3, "mean/p": 3, "uncertainty/p": 1},
    ),
    "layout segment": (
        ["slide.ome.tif", "--model", "segmenter", "--device", "cpu"],
        {"slide_mask": 1},
    ),
    "tissue canvas": (
        ["--like", "slide.ome.tif", "--model", "tissue", "--steps", 1, "--device", "cpu"],
        {"canvas": 3},
    ),
}


def planes(path: Path) -> tuple[list[np.ndarray], dict]:
    """The levels (C, H, W) of an image and its metadata, by ome-zarr's reader."""
    (node,) = list(Reader(parse_url(str(path)))())[:1]
    return [np.asarray(level) for level in node.data], node.metadata


@pytest.mark.parametrize("verb", VERBS)
def test_images_of_a_verb(verb, place, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(place)
    words, images = VERBS[verb]
    made = tmp_path / "zarr"
    lossless = ["--codec", "deflate"] if verb == "tissue canvas" else []
    assert run(*verb.split(), *words, "--format", "zarr", "--out", made) == 0, capfd.readouterr().err
    assert run(*verb.split(), *words, *lossless, "--out", tmp_path / "tiff") == 0, capfd.readouterr().err
    found = {path.relative_to(made).as_posix() for path in made.rglob("*.ome.zarr")}
    assert found == {f"{name}.ome.zarr" for name in images}
    for name, channels in images.items():
        path = made / f"{name}.ome.zarr"
        levels, metadata = planes(path)
        first = levels[0] if levels[0].ndim == 3 else levels[0][None]
        assert first.shape[0] == channels
        # The same picture as the other format: to the bit where that one is lossless.
        other = tmp_path / "tiff" / f"{name}.png"
        if other.is_file():
            theirs = np.atleast_3d(np.asarray(Image.open(other)))
            assert np.array_equal(first.transpose(1, 2, 0), theirs)
        else:
            theirs = open_slide(tmp_path / "tiff" / f"{name}.ome.tif")
            mine = open_slide(path)
            assert mine.level_shapes == theirs.level_shapes and mine.mpp == theirs.mpp == MPP
            assert [level.shape[-2:] for level in levels] == list(mine.level_shapes)
            off = mine.read_region(0, 0, WIDTH, HEIGHT).astype(int) - theirs.read_region(0, 0, WIDTH, HEIGHT)
            assert np.abs(off).mean() < (2.5 if verb == "stain predict" and channels == 3 else 1e-9)
        units = [axis.get("unit") for axis in metadata["axes"][-2:]]
        assert units == ["micrometer", "micrometer"]


@pytest.mark.slow
def test_they_are_inputs_again(place, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(place)
    words, _ = VERBS["stain predict"]
    assert run("stain", "predict", "slide.ome.tif", *words[2:], "--format", "zarr", "--out", tmp_path) == 0
    stained = tmp_path / "slide_IHC.ome.zarr"
    capfd.readouterr()
    assert run("slide", "info", stained, "--json") == 0
    told = json.loads(capfd.readouterr().out)
    assert (told["vendor"], told["mpp"], told["width"]) == ("OME-Zarr", MPP, WIDTH)
    # The pixels decide, not the container: the stain of the store is that of the same pixels in a TIFF.
    pixels = open_slide(stained).read_region(0, 0, WIDTH, HEIGHT)
    for name in ("same.ome.zarr", "same.ome.tif"):
        write_pyramid(tmp_path / name, [pixels], WIDTH, HEIGHT, mpp=MPP, tile=64, codec="deflate")
        out = tmp_path / name.replace("same", "out")
        assert run("stain", "predict", tmp_path / name, *words[2:], "--format", "zarr", "--out", out) == 0
    first, second = (
        planes(tmp_path / out / "same_IHC.ome.zarr")[0][0] for out in ("out.ome.zarr", "out.ome.tif")
    )
    assert np.array_equal(first, second)
    assert run("stain", "predict", stained, *words[2:], "--format", "zarr", "--out", tmp_path / "again") == 0
    assert planes(tmp_path / "again" / "slide_IHC_IHC.ome.zarr")[0][0].shape == (3, HEIGHT, WIDTH)
    looks = ["view", "slide.ome.tif", stained, tmp_path / "slide_IHC_uncertainty.ome.zarr"]
    assert run(*looks, "--export", tmp_path / "look") == 0
    assert (tmp_path / "look" / "index.html").is_file()
