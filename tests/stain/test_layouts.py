"""Layouts of published sets that are not two folders: HER2match, DeepLIIF."""

import numpy as np
import pytest
import yaml
from PIL import Image

from morphogen.cli.main import main
from morphogen.core.errors import InputError
from morphogen.slides.formats.channels import read_channels
from morphogen.stain.config import DataConfig, TrainConfig
from morphogen.stain.data import find_pairs, splits_of
from morphogen.stain.pairs.checks import check_pairs
from morphogen.stain.pairs.panels import PANELS, as_pairs, find_panels
from morphogen.stain.pairs.slides import read_pairs
from morphogen.stain.targets.config import TargetConfig
from morphogen.stain.train import train_model
from morphogen.training import TrainingConfig

from .conftest import TINY, he_like

SIDE = 64


def panels(seed):
    """Six panels by name; Lap2 is green, as in the published images."""
    random = np.random.default_rng(seed)
    grey = {name: random.integers(0, 200, (SIDE, SIDE), dtype=np.uint8) for name in PANELS[1:]}
    made = {name: np.repeat(plane[..., None], 3, axis=2) for name, plane in grey.items()}
    made["Lap2"][..., 0] //= 4
    made["Lap2"][..., 2] //= 2
    return {"IHC": he_like(random, SIDE), **made}


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def stitched(root, split="train", n=2):
    for k in range(n):
        made = panels(k)
        save(root / split / f"a{k}.png", np.concatenate([made[name] for name in PANELS], axis=1))


def loose(root, split="train", n=2):
    for k in range(n):
        for name, image in panels(k).items():
            save(root / split / f"a{k}_{name}.png", image)


def folders(root, split="train", n=2):
    for k in range(n):
        for name, image in panels(k).items():
            save(root / f"a{k}" / f"{name}.png", image)


def test_the_layout_of_her2match(tmp_path):
    for kind in ("HE", "IHC"):
        for split in ("train", "test"):
            save(tmp_path / f"{kind}_20x" / split / "s1_0.png", he_like(np.random.default_rng(0), SIDE))
    assert splits_of(tmp_path) == ("train", "test")
    (pair,) = find_pairs(tmp_path, "test").pairs
    assert (pair.he.parent.parent.name, pair.ihc.parent.parent.name) == ("HE_20x", "IHC_20x")
    save(tmp_path / "HE_40x" / "train" / "s1_0.png", he_like(np.random.default_rng(0), SIDE))
    with pytest.raises(InputError, match="at 20x and at 40x"):
        find_pairs(tmp_path, "train")


@pytest.mark.parametrize("layout", [stitched, loose, folders])
def test_panels_become_pairs_of_named_channels(layout, tmp_path):
    layout(tmp_path / "data")
    assert [each.name for each in find_panels(tmp_path / "data", "train")] == ["a0", "a1"]
    found = read_pairs(tmp_path / "data", "train", tmp_path / "run", tile=SIDE, mpp=None)
    assert len(found.pairs) == 2 and not check_pairs(found, crop=32).bad
    pair, made = found.pairs[1], panels(1)
    assert pair.target.channels == ("DAPI", "Lap2", "Marker")
    np.testing.assert_array_equal(np.array(Image.open(pair.he)), made["IHC"])
    wanted = np.stack([made["DAPI"][..., 0], made["Lap2"][..., 1], made["Marker"][..., 0]], axis=-1)
    np.testing.assert_array_equal(read_channels(pair.ihc), wanted)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.*")}
    assert read_pairs(tmp_path / "data", "train", tmp_path / "run", tile=SIDE, mpp=None) == found
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.*")}


def test_some_of_the_panels_and_a_training_on_them(tmp_path):
    stitched(tmp_path / "data")
    target = TargetConfig(channels=("Marker", "Hematoxylin"))
    table = as_pairs(tmp_path / "data", "train", tmp_path / "cut", target)
    assert yaml.safe_load((table.parent / "target.yaml").read_text())["channels"] == ["Marker", "Hematoxylin"]
    loop = TrainingConfig(steps=1, batch_size=2, save_every=1)
    settings = TrainConfig(data=DataConfig(crop=32), model=TINY.replace(regression=True), training=loop)
    trained = train_model(find_pairs(table), settings, tmp_path / "run")
    assert trained.model.config.target.channels == ("Marker", "Hematoxylin")
    with pytest.raises(InputError, match="no panel 'Merker'.*Marker"):
        as_pairs(tmp_path / "data", "train", tmp_path / "other", TargetConfig(channels=("Merker",)))


def test_bad_panels_are_named(tmp_path):
    stitched(tmp_path / "mixed")
    save(tmp_path / "mixed" / "train" / "b.png", np.zeros((SIDE, 5 * SIDE, 3), np.uint8))
    with pytest.raises(InputError, match="1 of 3 images are not six.*b.png"):
        find_panels(tmp_path / "mixed", "train")
    loose(tmp_path / "gone")
    (tmp_path / "gone" / "train" / "a1_Lap2.png").unlink()
    with pytest.raises(InputError, match="'a1' has no panel Lap2"):
        find_panels(tmp_path / "gone", "train")
    loose(tmp_path / "size")
    save(tmp_path / "size" / "train" / "a1_DAPI.png", np.zeros((SIDE, SIDE // 2, 3), np.uint8))
    with pytest.raises(InputError, match="the panel DAPI is 32 × 64 px, IHC 64 × 64"):
        as_pairs(tmp_path / "size", "train", tmp_path / "cut")
    assert not (tmp_path / "cut" / "pairs.csv").exists()


def test_what_is_no_panels_is_left_to_others(tmp_path):
    save(tmp_path / "train" / "both.png", np.zeros((SIDE, 2 * SIDE, 3), np.uint8))
    assert as_pairs(tmp_path, "train", tmp_path / "cut") == tmp_path
    with pytest.raises(InputError, match="in one folder, not in two"):
        find_pairs(tmp_path, "train")


def test_published_panels_from_the_command_line(shared, tmp_path, capsys):
    """Two sections of DeepLIIF: trained for a step, predicted, scored, every channel by name."""
    data = shared / "data/pairs/ihc_mif_deepliif"
    if not data.is_dir():
        pytest.skip("no ihc_mif_deepliif in the shared data")
    run, made = tmp_path / "run", tmp_path / "made"

    def command(*words):
        with pytest.raises(SystemExit) as stop:
            main(["stain", *map(str, words)])
        assert stop.value.code == 0

    small = ["--model.encoder", "none", "--model.attention", "[]", "--model.widths", "[8, 8]"]
    small += ["--model.groups", "4", "--training.batch_size", "1", "--model.regression", "true"]
    command("train", data, "--out", run, "--steps", "1", "--crop", "64", *small)
    command("predict", run / "pairs" / "train" / "he", "--model", run / "model", "--out", made)
    scores = tmp_path / "scores"
    command(
        *("evaluate", made, data, "--split", "train", "--training", data),
        *("--out", scores, "--resamples", "100"),
    )
    assert "tile r" in capsys.readouterr().out
    table = (scores / "images.csv").read_text()
    assert all(f"{name} tile_correlation" in table for name in ("DAPI", "Lap2", "Marker"))
