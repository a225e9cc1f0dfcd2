"""A further task room is cheap: what the floor gives it works from the first line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from morphogen import tasks
from morphogen.core.errors import CheckpointError
from morphogen.core.files import Manifest
from morphogen.slides import PyramidWriter, open_slide
from morphogen.slides.images import read_image
from morphogen.tasks import WindowConfig

from . import room
from .room import Colours, Pictures, RoomConfig, evaluate, train


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Eight pairs of four patients: the target is the picture turned grey and halved in contrast."""
    root = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for k in range(8):
        he = rng.integers(60, 250, (16, 18, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        grey = (he.mean(axis=2, keepdims=True) / 2 + 100).repeat(3, 2).astype(np.uint8)
        for kind, image in (("he", he), ("blue", grey)):
            (root / kind).mkdir(exist_ok=True)
            Image.fromarray(image).save(root / kind / f"p{k // 2}-{k}.png")
    return root


@pytest.fixture(scope="module")
def trained(pairs, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    config = RoomConfig(windows=WindowConfig(window=32, batch=4))
    return *train(pairs / "he", pairs / "blue", out, config, steps=150), out


def test_the_room_is_short_and_stands_on_the_floor():
    text = Path(room.__file__).read_text()
    assert len(text.splitlines()) < 150
    for other in ("expression", "stain", "tissue", "layout"):
        assert f"morphogen.{other}" not in text


def test_it_learns_and_is_evaluated_on_held_out_patients(pairs, trained, tmp_path):
    model, held, _ = trained
    assert len(held) == 4 and len({name.split("-")[0] for name in held}) == 2
    ours, he = evaluate(model, pairs / "he", pairs / "blue", held, tmp_path)
    assert ours.scores.intervals["error"].value < 0.5 * he.scores.intervals["error"].value
    assert Manifest.read(tmp_path)["protocol"] == "colours-1"
    assert "minus" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_it_is_saved_and_loaded(trained):
    model, _, out = trained
    again = Colours.from_pretrained(out / "model", device="cpu")
    assert again.identity == model.identity and again.config == model.config and again.crop == 32
    for a, b in zip(again.network.parameters(), model.network.parameters(), strict=True):
        assert torch.equal(a, b)
    other = Colours(RoomConfig(width=4))
    assert other.identity != model.identity

    class Other(Colours):
        kind = "another"

    with pytest.raises(CheckpointError, match="a model of kind 'colours', not 'another'"):
        Other.from_pretrained(out / "model")


def test_it_predicts_images_folders_and_a_slide(pairs, trained, tmp_path):
    model, held, out = trained
    image = read_image(pairs / "he" / f"{held[0]}.png")
    path = tmp_path / "s.ome.tif"
    with PyramidWriter(path, 720, 640, mpp=0.5, tile=256, codec="deflate") as writer:
        writer.write(np.tile(image, (10, 10, 1)), 0)
    room, named = Pictures(out / "model", tmp_path / "out"), [pairs / "he", path]
    first, second = tasks.spread_sources(room, named, out=room.out, what="colours predict")
    assert first.whole and second.whole
    made = read_image(tmp_path / "out" / f"{held[0]}.png").astype(int)
    real = read_image(pairs / "blue" / f"{held[0]}.png")
    assert np.abs(made - real).mean() < 25
    with open_slide(second.written[0]) as slide:
        assert (slide.width, slide.height, slide.mpp) == (720, 640, 0.5)
        centre = slide.read_region(288, 256, 72, 64).astype(int)
    assert np.abs(centre - real).mean() < 25
