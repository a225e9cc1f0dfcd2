"""Whether variations help a classifier: arms of equal numbers, pairing by seed, what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from morphogen.core.errors import ConfigError, InputError
from morphogen.tissue import UseConfig, evaluate_use
from morphogen.tissue.predict import Patches, save_png
from morphogen.tissue.use import _lead

from .conftest import coloured_tiles

CONFIG = UseConfig(shares=(0.1, 1.0), copies=2, seeds=3, resamples=200)


def tile(label: str, seed: int) -> np.ndarray:
    """Two classes of one mean colour, told apart by grain; every tile has a stain of its own."""
    generator = np.random.default_rng(seed)
    grain = generator.normal(0, 14, (32, 32) if label == "fine" else (8, 8))
    if label == "coarse":
        grain = grain.repeat(4, 0).repeat(4, 1)
    colour = np.array([190, 130, 170]) + generator.normal(0, 12, 3)
    return np.clip(colour + grain[..., None], 0, 255).astype(np.uint8)


def labelled(count: int, first: int):
    labels = ["fine" if i % 2 else "coarse" for i in range(count)]
    images = np.stack([tile(label, first + i) for i, label in enumerate(labels)])
    table = coloured_tiles(count, groups=2)
    return replace(table, labels=labels, read=lambda rows: images[np.asarray(rows, int)])


def drawing(same_class: bool):
    """In place of a model: tiles of the labelled tile's class, or of the other one."""

    def draw(model, tiles, out, sampler, *, samples, seed, precision):
        files = []
        out.mkdir(parents=True, exist_ok=True)
        for row, label in enumerate(tiles.labels):
            other = {"fine": "coarse", "coarse": "fine"}[label]
            for k in range(samples):
                files.append(out / f"{row}-{k}.png")
                save_png(tile(label if same_class else other, 10_000 + 10 * row + k), files[-1])
        return Patches(out, files, out / "manifest.csv")

    return draw


def test_good_variations_help_and_wrong_ones_harm(tiny, tmp_path, monkeypatch):
    real, test = labelled(40, 0), labelled(40, 1000)
    scores = {}
    for same in (True, False):
        monkeypatch.setattr("morphogen.tissue.use.draw_patches", drawing(same))
        scores[same] = evaluate_use(tiny, real, test, tmp_path / str(same), CONFIG)
    good, bad = (np.mean(scores[same].accuracy["texture"]["0.1"]["variations"]) for same in (True, False))
    assert good > 0.8 > 0.5 > bad  # two of three tiles of a class are of the other
    assert "do not help" in scores[False].lead
    gain = scores[True].gains["texture"]["0.1"]["both over stain"]
    helps = gain["value"] >= 0.03 and gain["low"] > 0 and not gain["caution"]
    assert ("do not help" in scores[True].lead) == (not helps)
    assert f"they add {100 * gain['value']:+.1f} (" in scores[True].lead
    shares = scores[True].accuracy["texture"]
    assert (
        np.mean(shares["1"]["real"]) > 0.9 and len(set(shares["1"]["real"])) == 1
    )  # all labels: no choice to make
    gains = scores[True].gains["texture"]["0.1"]
    expected = np.mean(np.subtract(shares["0.1"]["both"], shares["0.1"]["stain"]))
    assert gains["both over stain"]["value"] == pytest.approx(expected)
    assert gains["stain"]["low"] <= gains["stain"]["value"] <= gains["stain"]["high"]
    again = evaluate_use(tiny, real, test, tmp_path / "again", CONFIG)
    assert again.accuracy == scores[False].accuracy


def test_the_answer_says_in_which_encoder_variations_help():
    def gains(both: float, low: float):
        arms = {"variations": 0.05, "stain": 0.04, "both over stain": both}
        return {
            "0.01": {arm: {"value": value, "low": low, "high": value + 0.02} for arm, value in arms.items()},
            "0.1": {arm: {"value": 0.2, "low": 0.1, "high": 0.3} for arm in arms},
        }

    assert _lead({"a": gains(0.04, 0.01)}).startswith("Variations help beside stain augmentation: at 1 % of")
    assert _lead({"a": gains(0.04, -0.01)}).startswith("Variations do not help as much as 3 points")
    assert _lead({"a": gains(0.02, 0.01)}).startswith("Variations do not help as much as 3 points")
    few = gains(0.04, 0.01)
    few["0.01"]["both over stain"]["caution"] = "3 seeds agree by chance in 25 % of cases"
    assert _lead({"a": few}).startswith("Variations do not help as much as 3 points")
    mixed = _lead({"a": gains(0.01, -0.02), "b": gains(0.04, 0.01)})
    assert mixed.startswith(
        "Variations help in b, and do not help in a, beside stain augmentation: at 1 % of"
    )
    assert "+1.0 (-2.0 to +3.0) points of balanced accuracy in a, +4.0 (+1.0 to +6.0)" in mixed


def test_copies_of_the_tiles_themselves_gain_nothing(tiny, tmp_path, monkeypatch):
    """More rows of the same are no help: arms differ in what the copies show, never in their number."""
    real, test = labelled(40, 0), labelled(40, 1000)

    def themselves(model, tiles, out, sampler, *, samples, seed, precision):
        files = []
        out.mkdir(parents=True, exist_ok=True)
        for row, image in enumerate(tiles.read(range(len(tiles)))):
            for k in range(samples):
                files.append(out / f"{row}-{k}.png")
                save_png(image, files[-1])
        return Patches(out, files, out / "manifest.csv")

    monkeypatch.setattr("morphogen.tissue.use.draw_patches", themselves)
    found = evaluate_use(tiny, real, test, tmp_path, CONFIG)
    for values in found.accuracy["texture"].values():
        assert values["variations"] == values["real"]


def test_variations_are_drawn_by_the_model(tiny, tmp_path):
    config = UseConfig(shares=(0.1,), copies=2, seeds=2, resamples=100)
    found = evaluate_use(tiny, labelled(12, 0), labelled(12, 500), tmp_path, config)
    assert found.lead.startswith("Variations ") and (tmp_path / "use.json").is_file()
    assert len(list((tmp_path / "variations" / "images").iterdir())) % 2 == 0
    assert all(len(values) == 2 for values in found.accuracy["texture"]["0.1"].values())


def test_what_cannot_be_asked(tiny, tmp_path):
    real = labelled(12, 0)
    with pytest.raises(InputError, match="have no labels"):
        evaluate_use(tiny, replace(real, labels=[]), real, tmp_path / "a", CONFIG)
    with pytest.raises(InputError, match="one class alone, 'fine'"):
        evaluate_use(tiny, replace(real, labels=["fine"] * 12), real, tmp_path / "b", CONFIG)
    with pytest.raises(InputError, match="the class 'other'"):
        evaluate_use(tiny, real, replace(real, labels=["other"] * 12), tmp_path / "c", CONFIG)
    with pytest.raises(ConfigError, match=r"each must lie in \(0, 1\]"):
        UseConfig.load(overrides={"shares": [1.5]})
