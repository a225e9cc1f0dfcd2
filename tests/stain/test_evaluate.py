"""Evaluation: folders in, tables out; a perfect prediction scores perfectly; baselines stand beside it."""

import csv
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from morphogen.core.errors import ConfigError, InputError
from morphogen.core.files import Manifest
from morphogen.core.running.spread import Spread
from morphogen.stain.config import EvaluateConfig
from morphogen.stain.data import FoundPairs, Pair, find_pairs
from morphogen.stain.evaluate import (
    as_pairs,
    evaluate_folder,
    evaluate_methods,
    paired_differences,
    write_results,
)
from morphogen.stain.pairs.geometry import read_aligned, scanned
from morphogen.stain.scoring.baselines import ColourMap, deconvolution, identity
from morphogen.stain.scoring.channels import Made, evaluate_channels, score_channels
from morphogen.stain.scoring.figures import dab_picture, density_of
from morphogen.stain.scoring.pages import report_rows, write_page
from morphogen.stain.scoring.scores import retrieval_view, score_pair

from .conftest import he_like

QUICK = EvaluateConfig(tile=16, resamples=200)


@pytest.fixture
def data(make_pairs):
    root = make_pairs(6, size=64, split="val")
    (root / "patients.csv").write_text(
        "name,patient\n" + "".join(f"p{k}.png,{'ABC'[k % 3]}\n" for k in range(6))
    )
    return root


def folder_of(root, tmp_path, side):
    out = tmp_path / f"predicted{side}"
    shutil.copytree(root / "TrainValAB" / f"val{side}", out)
    return out


def test_the_real_stain_scores_perfectly_and_the_he_does_not(data, tmp_path):
    found = find_pairs(data, "val")
    perfect, he, deconvolved = evaluate_folder(folder_of(data, tmp_path, "B"), found, tmp_path / "out", QUICK)
    figures, intervals = perfect.scores.figures, perfect.scores.intervals
    assert intervals["dab_tile_correlation"].value == pytest.approx(1)
    assert intervals["dab_tile_mae"].value == 0 and figures["dab_mean_pearson"] == pytest.approx(1)
    assert figures["mra_top1"] == 1.0 and figures["frechet"] == pytest.approx(0, abs=1e-6)
    assert intervals["ssim"].value == pytest.approx(1) and intervals["sharpness"].value == 1.0
    assert intervals["ssim"].unit == "patient" and intervals["ssim"].units == 3
    assert he.scores.intervals["dab_tile_mae"].value > 0.02
    assert he.method == "H&E as it is" and deconvolved.method == "colour deconvolution"
    assert perfect.scores.undefined == {"psnr": 6}  # infinite: counted, not averaged


def test_result_files(data, tmp_path):
    found = find_pairs(data, "val")
    predicted = folder_of(data, tmp_path, "A")
    other = folder_of(data, tmp_path, "B")
    out = tmp_path / "out"
    evaluations = evaluate_folder(predicted, found, out, QUICK, method="ours", others={"theirs": other})
    assert Manifest.read(out)["kind"] == "stain evaluation"
    results = json.loads((out / "metrics.json").read_text())
    assert list(results["methods"]) == ["ours", "theirs", "H&E as it is", "colour deconvolution"]
    assert results["protocol"] == "stain-2" and results["mra_chance"] == pytest.approx(1 / 6)
    assert results["image_codecs"] == [".png"] and "torch" in results["versions"]
    assert results["methods"]["ours"]["intervals"]["ssim"]["unit"] == "patient"
    # "ours" is the H&E: the same figures as the baseline.
    assert results["methods"]["ours"]["figures"] == results["methods"]["H&E as it is"]["figures"]
    rows = list(csv.DictReader((out / "images.csv").read_text().splitlines()))
    assert len(rows) == 24 and {row["patient"] for row in rows} == {"A", "B", "C"}
    summary = list(csv.DictReader((out / "summary.csv").read_text().splitlines()))
    assert list(summary[0])[1].startswith("dab")  # DAB first
    assert float(summary[1]["dab_tile_correlation low"]) <= float(summary[1]["dab_tile_correlation"])
    assert len(list((out / "panels").glob("*.png"))) == 6
    assert Image.open(next((out / "panels").glob("*.png"))).size == (5 * 64 + 4 * 8, 64)
    titles = [title for title, _, _ in report_rows(evaluations)]
    assert titles[0] == "DAB optical density" and len(titles) == 3


@pytest.mark.slow
def test_two_workers_score_as_one_does(data, tmp_path):
    found, predicted = find_pairs(data, "val"), folder_of(data, tmp_path, "A")
    for name, spread in (("one", None), ("two", Spread(workers=2))):
        evaluate_folder(predicted, found, tmp_path / name, QUICK, spread=spread)
    for file in ("images.csv", "summary.csv"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    assert one["methods"] == two["methods"] and one["differences"] == two["differences"]
    assert "6 items are done, 0 failed." in (tmp_path / "two" / "runs" / "summary.md").read_text()
    with pytest.raises(ConfigError, match="models of others run in this process alone"):
        evaluate_folder(predicted, found, None, QUICK, outside={"theirs": None}, spread=Spread(workers=2))


def test_differences_are_paired(data, tmp_path):
    """The same images twice differ by nothing, whatever their own intervals; the truth beats the H&E everywhere."""
    found = find_pairs(data, "val")
    predicted, truth = (folder_of(data, tmp_path, side) for side in "AB")
    out = tmp_path / "out"
    evaluations = evaluate_folder(predicted, found, out, QUICK, others={"truth": truth})
    to = json.loads((out / "metrics.json").read_text())["differences"]["to"]
    assert list(to) == ["truth", "H&E as it is", "colour deconvolution"]
    for interval in to["H&E as it is"].values():
        assert interval["value"] == interval["low"] == interval["high"] == 0
    for key in ("dab_tile_correlation", "dab_tile_correlation_pooled"):
        assert to["truth"][key]["high"] < 0 and to["truth"][key]["unit"] == "patient"
    assert to["truth"]["dab_tile_mae"]["low"] > 0
    turned = paired_differences(evaluations, QUICK, of="truth")["predicted"]
    assert turned["dab_tile_mae"].value == pytest.approx(-to["truth"]["dab_tile_mae"]["value"])
    own = {e.method: e.scores.intervals for e in evaluations}
    gap = (
        own["predicted"]["dab_tile_correlation_pooled"].value
        - own["truth"]["dab_tile_correlation_pooled"].value
    )
    assert to["truth"]["dab_tile_correlation_pooled"]["value"] == pytest.approx(gap)


def test_two_folders_of_one_name_are_not_mixed_up(data, tmp_path):
    """A cache keyed by a folder's base name would make the second equal to the first."""
    found = find_pairs(data, "val")
    first, second = (tmp_path / k / "images" for k in "xy")
    shutil.copytree(data / "TrainValAB" / "valA", first)
    shutil.copytree(data / "TrainValAB" / "valB", second)
    scores = [
        evaluate_folder(f, found, None, QUICK, baselines=False)[0].scores.figures for f in (first, second)
    ]
    assert scores[1]["mra_top1"] == 1.0 and scores[0]["frechet"] > scores[1]["frechet"] + 1e-3


def test_uncertainty_is_compared_with_the_true_error(data, tmp_path):
    found = find_pairs(data, "val")
    predicted = folder_of(data, tmp_path, "A")
    from morphogen.stain.outputs import UNCERTAINTY_UNIT
    from morphogen.tasks import save_png

    for pair in found.pairs:
        he, real = (np.array(Image.open(path)) for path in (pair.he, pair.ihc))
        error = np.abs(density_of(he) - density_of(real))
        save_png(
            predicted / "uncertainty" / f"{pair.name}.png",
            np.rint(error / UNCERTAINTY_UNIT).astype(np.uint16),
        )
    (found_scores,) = evaluate_folder(predicted, found, tmp_path / "out", QUICK, baselines=False)
    assert found_scores.scores.intervals["uncertainty_error_correlation"].value == pytest.approx(1, abs=1e-3)
    assert Image.open(next((tmp_path / "out" / "panels").glob("*.png"))).size == (6 * 64 + 5 * 8, 64)


def test_plain_folders_of_any_method(data, tmp_path):
    predicted = folder_of(data, tmp_path, "A")
    found = as_pairs(data / "TrainValAB" / "valB", None, predicted)
    (scores,) = evaluate_folder(predicted, found, None, QUICK, baselines=False)
    assert len(scores.items) == 6


def test_names_as_pix2pix_writes_them(data, tmp_path):
    """Its results hold the real images too: those it made are scored, as if they were named like the pairs."""
    named = folder_of(data, tmp_path / "named", "A")
    results = tmp_path / "results"
    results.mkdir()
    for path in named.glob("*.png"):
        shutil.copy(path, results / f"{path.stem}_fake_B.png")
        shutil.copy(data / "TrainValAB" / "valB" / path.name, results / f"{path.stem}_real_B.png")
    found = find_pairs(data, "val")
    (one,) = evaluate_folder(named, found, None, QUICK, baselines=False)
    (other,) = evaluate_folder(results, found, None, QUICK, baselines=False)
    assert len(other.items) == 6
    assert one.scores.intervals["ssim"].value == other.scores.intervals["ssim"].value
    plain = as_pairs(data / "TrainValAB" / "valB", None, results)
    assert [pair.he.stem for pair in plain.pairs] == [f"{pair.name}_fake_B" for pair in found.pairs]


def test_what_cannot_be_scored_in_memory_is_refused_first(data, tmp_path, monkeypatch):
    """The system would end the process without a word."""
    import psutil

    from morphogen.stain import evaluate

    predicted, found = folder_of(data, tmp_path, "A"), find_pairs(data, "val")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=20e9))
    monkeypatch.setattr(evaluate, "image_size", lambda path: (13_000, 14_000))
    with pytest.raises(
        InputError, match=r"p0.png: needs 29.1 GB of memory to be scored, and 20.0 GB are free. Cut"
    ):
        evaluate_folder(predicted, found, None, QUICK)


def test_missing_images_are_named(data, tmp_path):
    found = find_pairs(data, "val")
    predicted = folder_of(data, tmp_path, "A")
    (predicted / "p1.png").unlink()
    with pytest.raises(InputError, match="1 of 6 pairs have no image here \\(p1\\).*--skip-bad"):
        evaluate_folder(predicted, found, None, QUICK)
    assert len(evaluate_folder(predicted, found, None, QUICK, skip_bad=True)[0].items) == 5
    Image.open(predicted / "p2.png").resize((32, 32)).save(predicted / "p2.png")
    with pytest.raises(InputError, match="p2: the image of 'predicted' is 32 × 32 px, the real one 64 × 64"):
        evaluate_folder(predicted, found, None, QUICK, skip_bad=True)


def test_undefined_scores_are_counted(tmp_path):
    flat = np.full((64, 64, 3), 255, np.uint8)
    for k, image in enumerate([flat, he_like(np.random.default_rng(0), 64, pink=False)]):
        Image.fromarray(image).save(tmp_path / f"{k}.png")
    pairs = [Pair(str(k), tmp_path / f"{k}.png", tmp_path / f"{k}.png") for k in range(2)]
    (found,) = evaluate_methods(pairs, {"same": lambda pair, he: he}, QUICK)
    assert found.scores.undefined["dab_tile_correlation"] == 1
    assert found.scores.intervals["dab_tile_correlation"].units == 1


def test_a_page_is_written_where_a_difference_is_undefined(tmp_path):
    flat = np.full((64, 64, 3), 255, np.uint8)
    for k in range(2):
        Image.fromarray(flat).save(tmp_path / f"{k}.png")
    pairs = [Pair(str(k), tmp_path / f"{k}.png", tmp_path / f"{k}.png") for k in range(2)]
    found = evaluate_methods(pairs, {"same": lambda pair, he: he, "again": lambda pair, he: he}, QUICK)
    write_results(tmp_path / "out", found, pairs, QUICK)
    assert "again" in write_page(tmp_path / "out", found).read_text(encoding="utf-8")


def test_a_registered_pair_is_scored_where_both_images_show_the_same(tmp_path):
    scene = he_like(np.random.default_rng(1), 80, pink=False)
    Image.fromarray(scene[:64, :64]).save(tmp_path / "he.png")
    Image.fromarray(scene[6:70, 3:67]).save(tmp_path / "ihc.png")  # IHC pixel = H&E pixel + (-6, -3)
    pair = Pair("a", tmp_path / "he.png", tmp_path / "ihc.png", shift=(-6, -3))
    (found,) = evaluate_methods([pair], {"same": lambda pair, he: he}, QUICK)
    assert found.items[0].values["dab_tile_mae"] == 0


def test_colour_map_finds_a_colour_change_and_deconvolution_removes_eosin():
    rng = np.random.default_rng(3)
    pairs = [
        (he_like(np.random.default_rng(k), 64), he_like(np.random.default_rng(k), 64, False))
        for k in range(3)
    ]
    fitted = ColourMap().fit(pairs[:2])
    he, real = pairs[2]
    errors = [
        float(np.abs(make(he).astype(float) - real).mean()) for make in (fitted, identity, deconvolution)
    ]
    assert errors[0] < 0.3 * errors[1]
    eosin_only = he_like(rng, 64)
    assert deconvolution(eosin_only).mean() > eosin_only.mean() + 10
    with pytest.raises(InputError, match="not fitted"):
        ColourMap()(he)


def test_a_colour_map_of_every_stain_stands_beside(data, tmp_path):
    """Fitted to the training pairs of the stain alone; without H&E, or pairs of a stain, it is said."""
    found, predicted = find_pairs(data, "val"), folder_of(data, tmp_path, "A")
    training = FoundPairs([*found.pairs, replace(found.pairs[0], stain="other", ihc=found.pairs[0].he)], [])
    evaluations = evaluate_folder(predicted, found, config=QUICK, training=training)
    scored = {each.method: each.scores.intervals["dab_tile_mae"].value for each in evaluations}
    fitted = ColourMap().fit(read_aligned(pair) for pair in found.pairs)
    (expected,) = evaluate_methods(found.pairs, {"map": lambda pair, he: fitted(he)}, QUICK)
    assert scored["colour map"] == pytest.approx(expected.scores.intervals["dab_tile_mae"].value)
    assert scored["colour map"] < scored["H&E as it is"]
    with pytest.raises(ConfigError, match="--training: .*there are none"):
        evaluate_folder(predicted, found, config=QUICK, training=training, baselines=False)
    with pytest.raises(InputError, match="--training: no pair is of the stain IHC"):
        evaluate_folder(predicted, found, config=QUICK, training=FoundPairs(training.pairs[-1:], []))


def test_dab_picture_shows_the_density_it_is_given():
    density = np.linspace(0, 0.8, 64, dtype=np.float32).reshape(8, 8)
    np.testing.assert_allclose(density_of(dab_picture(density)), density, atol=0.02)


def test_retrieval_view_is_the_centre_at_256():
    image = np.zeros((512, 640, 3), np.uint8)
    image[144:368, 208:432] = 200
    view = retrieval_view(image)
    assert view.shape == (224, 224, 3)
    assert (view[60:160, 60:160] == 200).all() and (view[:40] == 0).all()


def test_estimated_vectors_and_quirks_change_the_figures(data):
    found = find_pairs(data, "val").pairs
    methods = {"he": lambda pair, he: he}
    (fixed,) = evaluate_methods(found, methods, QUICK)
    (estimated,) = evaluate_methods(found, methods, QUICK.replace(vectors="estimated"))
    assert fixed.scores.figures["dab_mean_mae"] != estimated.scores.figures["dab_mean_mae"]
    white = {"white": lambda pair, he: np.full_like(he, 255)}
    (against,), (quirk,) = (
        evaluate_methods(found, white, QUICK.replace(reference_quirks=q)) for q in (False, True)
    )
    assert against.scores.figures["mra_top1"] <= quirk.scores.figures["mra_top1"]


def test_phv_with_given_resnet_weights(data, tmp_path):
    import torch
    import torchvision

    torch.manual_seed(0)
    path = tmp_path / "resnet50.pth"
    torch.save(torchvision.models.resnet50(weights=None).state_dict(), path)
    found = find_pairs(data, "val").pairs[:2]
    methods = {"real": lambda pair, he: np.array(Image.open(pair.ihc)), "he": lambda pair, he: he}
    same, he = evaluate_methods(found, methods, QUICK.replace(resnet_weights=str(path)))
    assert same.scores.intervals["phv"].value == 0 < he.scores.intervals["phv"].value


@pytest.fixture
def masked(tmp_path):
    """A pair whose real stain was scanned in its left half alone, and the nuclei of it."""
    rng = np.random.default_rng(4)
    files = {"he": he_like(rng, 64), "ihc": he_like(rng, 64, pink=False)}
    files["ihc"][:, 32:] = 0  # beyond the scan
    files["mask"] = np.zeros((64, 64), np.uint8)
    files["mask"][:, :32] = 255
    files["nuclei"] = np.kron(np.arange(64, dtype=np.uint8).reshape(8, 8), np.ones((8, 8), np.uint8))
    for name, image in files.items():
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    paths = {name: tmp_path / f"{name}.png" for name in files}
    return Pair("a", **paths)


def test_what_was_not_scanned_is_not_scored(masked):
    """No figure depends on what a method paints there, and the whole is scored as its scanned half."""
    made = he_like(np.random.default_rng(5), 64, pink=False)
    elsewhere = made.copy()
    elsewhere[:, 32:] = 17
    doubt = np.random.default_rng(6).random((64, 64)).astype(np.float32)
    one, other = evaluate_methods(
        [masked],
        {"one": lambda pair, he: made, "other": lambda pair, he: elsewhere},
        QUICK,
        uncertainty={name: lambda pair: doubt for name in ("one", "other")},
    )
    a, b = (each.items[0].values for each in (one, other))
    assert a == pytest.approx(b, nan_ok=True) and "dab_risk" in a
    assert one.scores.figures == pytest.approx(other.scores.figures, nan_ok=True)
    real = np.array(Image.open(masked.ihc))
    half = score_pair(made[:, :32], real[:, :32], QUICK, uncertainty=doubt[:, :32]).values
    for key in half:
        assert a[key] == pytest.approx(half[key], rel=1e-5), key


def test_channels_are_scored_where_they_were_scanned(make_channels):
    pair = find_pairs(make_channels(2, "uint16", ".ome.tif", mask=True)).pairs[0]
    real, mask = read_aligned(pair)[1], scanned(pair)
    made = real + np.random.default_rng(0).normal(0, 2000, real.shape)
    beyond = ~mask[..., None] * np.random.default_rng(1).integers(0, 90_000, real.shape)
    a = score_channels(pair, real, Made(made), mask, 16).values
    b = score_channels(pair, real + beyond, Made(made - beyond), mask, 16).values
    assert a == pytest.approx(b, nan_ok=True) and {"ssim", "psnr", "sharpness"} <= set(a)


def test_channels_of_another_size_are_named(make_channels):
    pairs = find_pairs(make_channels(2, "uint16", ".ome.tif")).pairs
    with pytest.raises(InputError, match="p0: the image of 'small' is 60 × 64 px, the real one 64 × 64"):
        evaluate_channels(pairs, {"small": lambda pair, he: Made(np.zeros((64, 60, 2)))}, QUICK)


def test_brown_is_scored_by_nucleus(masked):
    """Of the nuclei that were scanned whole, as the page says of both kinds of targets."""
    (found,) = evaluate_methods([masked], {"he": lambda pair, he: he}, QUICK)
    maps = [density_of(np.array(Image.open(path))) for path in (masked.ihc, masked.he)]
    real, made = (each.reshape(8, 8, 8, 8).mean(axis=(1, 3))[:, :4].ravel()[1:] for each in maps)
    values = found.items[0].values
    assert values["dab_cell_correlation"] == pytest.approx(np.corrcoef(real, made)[0, 1], abs=1e-5)
    assert values["dab_cell_mae"] == pytest.approx(np.abs(real - made).mean(), abs=1e-5)
    assert "dab_cell_mae" in found.scores.intervals


def test_a_pair_of_which_nothing_was_scanned_is_named(masked):
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(masked.mask)
    with pytest.raises(InputError, match="a: nothing of the real stain was scanned"):
        evaluate_methods([masked], {"he": lambda pair, he: he}, QUICK)


def test_score_of_one_pair_has_sizes_in_the_message():
    with pytest.raises(InputError):
        score_pair(np.zeros((32, 32, 3), np.uint8), np.zeros((32, 40, 3), np.uint8), QUICK)
