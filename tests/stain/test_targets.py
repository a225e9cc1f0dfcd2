"""Targets of any kind: named channels of 8, 16 bits or floats, through reading, training, images, slides and scores."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from morphogen.core.errors import ConfigError, InputError
from morphogen.slides.formats.channels import channel_facts, read_channels, save_channels
from morphogen.slides.formats.regions import ChannelRegions
from morphogen.slides.pyramid import PyramidWriter
from morphogen.stain import StainTransfer, stain_folder, stain_image, stain_slide
from morphogen.stain.config import (
    ApplyConfig,
    DataConfig,
    EvaluateConfig,
    SamplerConfig,
    TrainConfig,
    WindowConfig,
)
from morphogen.stain.data import find_pairs
from morphogen.stain.evaluate import evaluate_folder
from morphogen.stain.fitting.build import build_model
from morphogen.stain.fitting.chosen import measured_target
from morphogen.stain.pairs.checks import check_pairs
from morphogen.stain.pairs.crops import cells_seen
from morphogen.stain.pairs.geometry import cells_of, read_aligned
from morphogen.stain.scoring.baselines import ChannelBaselines
from morphogen.stain.scoring.channels import Made, evaluate_channels
from morphogen.stain.scoring.figures import channel_panel
from morphogen.stain.targets.config import TargetConfig
from morphogen.stain.targets.files import read_target
from morphogen.stain.targets.values import intensities, levels, spread
from morphogen.stain.train import train_model
from morphogen.training import TrainingConfig

from .conftest import NAMES, TINY, channels_of, he_like, lively

LOOP = TrainingConfig(steps=4, batch_size=2, lr=1e-3, save_every=4, log_every=1)
QUICK = WindowConfig(window=64, overlap=16, batch=4)


def config(**model):
    return TrainConfig(data=DataConfig(crop=32), model=TINY.replace(**model), training=LOOP)


@pytest.mark.parametrize("transform", ["linear", "sqrt", "asinh"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_what_is_spread_comes_back(transform, dtype):
    target = TargetConfig(channels=("a", "b"), dtype=dtype, transform=transform, full=(100.0, 3.0))
    values = torch.rand(1, 2, 8, 8) * torch.tensor([120.0, 3.5])[:, None, None]
    seen = spread(values, target)
    assert float(spread(torch.zeros(1, 2, 1, 1), target).max()) == -1
    full = torch.tensor(target.full)[None, :, None, None]
    torch.testing.assert_close(spread(full, target), torch.ones(1, 2, 1, 1))
    torch.testing.assert_close(intensities(seen, target), values, rtol=1e-4, atol=1e-4)
    made = levels(intensities(seen, target).numpy(), target)
    assert made.dtype == target.kept
    np.testing.assert_allclose(made * target.step, values.numpy(), atol=target.step)
    assert intensities(torch.full((1, 2, 1, 1), 9e9), target).max() <= (target.most or np.inf)


@pytest.mark.parametrize(
    ("dtype", "suffix"), [("uint8", ".npy"), ("uint16", ".ome.tif"), ("float32", ".npy")]
)
def test_channels_are_read_as_they_are(make_channels, dtype, suffix):
    table = make_channels(3, dtype, suffix)
    found = find_pairs(table)
    pair = found.pairs[1]
    assert pair.target.channels == NAMES[:3] and channel_facts(pair.ihc).dtype == dtype
    he = np.array(Image.open(pair.he))
    np.testing.assert_array_equal(
        read_target(pair.ihc, pair.target),
        channels_of(he, 3, {"uint8": 255, "uint16": 40_000}.get(dtype, 3.0)).astype(dtype),
    )
    report = check_pairs(found)
    assert len(report.good) == 3 and not report.bad and not report.warnings
    target = measured_target(found.pairs)
    pixels = np.concatenate([read_channels(each.ihc).reshape(-1, 3) for each in found.pairs])
    assert target.dtype == dtype and np.allclose(target.full, np.percentile(pixels, 99.9, axis=0), rtol=0.05)
    assert all(
        low < value < high
        for low, value, high in zip(pixels.min(0), target.threshold, pixels.max(0), strict=True)
    )


def test_the_layout_of_hemit(tmp_path):
    for side in ("input", "label"):
        (tmp_path / "val" / side).mkdir(parents=True)
        tifffile.imwrite(tmp_path / "val" / side / "[1,2]_patch_0_0.tif", np.full((64, 64, 3), 90, np.uint8))
    tifffile.imwrite(tmp_path / "val" / "label" / "[1,2]_patch_0_0.tif", np.full((64, 64, 3), 20, np.uint8))
    (warning,) = check_pairs(find_pairs(tmp_path, "val")).warnings  # nobody said that it is no picture
    assert "1 of 1 targets lie on black" in warning and "target.yaml" in warning
    (tmp_path / "target.yaml").write_text("channels: [DAPI, panCK, CD3]\n")
    (pair,) = find_pairs(tmp_path, "val").pairs
    assert pair.he.parent.name == "input" and pair.target.channels == ("DAPI", "panCK", "CD3")
    assert read_target(pair.ihc, pair.target).shape == (64, 64, 3)


def test_bad_targets_are_named_in_one_sentence(make_channels, tmp_path):
    def sentence(change, **how):
        table = make_channels(root=tmp_path / f"bad{len(list(tmp_path.iterdir()))}", **how)
        change(table.parent / "target")
        with pytest.raises(InputError) as error:
            train_model(find_pairs(table), config(regression=True), tmp_path / "run", where=table)
        assert len(str(error.value)) <= 300
        return error.value.what

    def other_count(folder):
        np.save(folder / "p1.npy", np.zeros((64, 64, 2), np.uint8))

    def other_bits(folder):
        Image.fromarray(np.full((64, 64), 900, np.uint16)).save(folder / "p1.png")

    def other_size(folder):
        Image.fromarray(np.zeros((40, 64), np.uint8)).save(folder / "p2.png")

    def not_finite(folder):
        values = np.load(folder / "p0.npy")
        values[3, 4, 1] = np.nan
        np.save(folder / "p0.npy", values)

    def nothing(folder):
        for path in folder.iterdir():
            values = read_channels(path)
            values[..., 1] = 0
            np.save(path, values)

    assert "2 channels, not 3" in sentence(other_count, count=3, suffix=".npy")
    assert "of uint16 beside uint8" in sentence(other_bits)
    assert "of two sizes" in sentence(other_size) and "p2" in sentence(other_size)
    assert "NaN" in sentence(not_finite, count=2, dtype="float32", suffix=".npy")

    def below(folder):
        for path in folder.iterdir():
            np.save(path, read_channels(path) * np.array([1, -1], np.float32))

    def unnamed(folder):
        (folder.parent / "target.yaml").unlink()

    told = "3 of 3 pairs cannot be used: 3 whose channel 'membrane' shows the same everywhere in all of them (p0,"
    assert told in sentence(nothing, count=2, suffix=".npy")
    assert told in sentence(below, count=2, dtype="float32", suffix=".npy")
    wanted = "that no target.yaml names"
    assert f"3 where the image holds 2 channels (DNA, membrane) {wanted}" in sentence(
        unnamed, count=2, suffix=".ome.tif"
    )
    assert f"3 where the image holds 3 channels {wanted}" in sentence(unnamed, count=3, suffix=".npy")
    assert f"3 where the image holds one channel {wanted}" in sentence(unnamed, dtype="uint16")


def test_channels_are_taken_by_the_names_that_files_give_them(make_channels):
    """One file of three has its channels in another order and two more: its values go where the names say."""
    table = make_channels(2, "uint16", ".ome.tif")
    path, target = table.parent / "target" / "p1.ome.tif", find_pairs(table).pairs[0].target
    plain = read_channels(path)
    wide = np.concatenate([plain + 9, plain[..., ::-1], plain[..., :1] + 3], axis=2)
    save_channels(path, wide, ("CD3", "CD8", "Membrane", "dna", "blank"))
    assert not check_pairs(find_pairs(table)).bad
    np.testing.assert_array_equal(read_target(path, target), plain)
    with ChannelRegions(path, target.channels) as slide:
        np.testing.assert_array_equal(slide.read_box(3, 5, 20, 30, 20, 30), plain[5:35, 3:23])
    save_channels(path, plain, ("first", "second"))  # as they stand, which is said
    report = check_pairs(find_pairs(table))
    np.testing.assert_array_equal(read_target(path, target), plain)
    assert not report.bad and "1 of 3 targets have other names" in report.warnings[0]
    assert "p1 with first, second: they are taken in their order as DNA, membrane" in report.warnings[0]
    save_channels(path, plain, ("membrane", "CD8"))
    with pytest.raises(InputError, match="has 'membrane' as channel 1, not 2; it calls them membrane, CD8"):
        read_target(path, target)
    save_channels(path, wide, ("a", "b", "c", "DNA", "DNA"))
    with pytest.raises(
        InputError, match="has 5 channels, not 2 .DNA, membrane.; it calls them a, b, c, DNA, DNA"
    ):
        read_target(path, target)


def test_saturated_and_empty_channels_are_warned_about(make_channels):
    table = make_channels(2, "uint16", ".npy")
    values = np.load(table.parent / "target" / "p0.npy")
    values[:20, :, 0], values[..., 1] = 65535, 7
    np.save(table.parent / "target" / "p0.npy", values)
    warnings = check_pairs(find_pairs(table)).warnings
    assert len(warnings) == 2
    assert any("'DNA' has saturated pixels in 1 of 3 images: p0" in each for each in warnings)
    assert any("'membrane' has the same value everywhere" in each for each in warnings)
    signed = make_channels(2, "float32", ".npy", root=table.parent / "signed")
    dark = np.load(signed.parent / "target" / "p2.npy")
    dark[:32, :, 1] -= 9
    np.save(signed.parent / "target" / "p2.npy", dark)
    (warning,) = check_pairs(find_pairs(signed)).warnings
    assert "'membrane' has values below 0, which count as 0, in 1 of 3 images: p2" in warning
    values[..., 1] = np.random.default_rng(0).integers(0, 3000, (64, 64))
    for top, said in ((4095, "'DNA'"), (4000, None)):  # a camera of 12 bits, and the brightest of a picture
        values[..., 0] = np.minimum(values[..., 0], 300)
        values[:20, :, 0] = top
        np.save(table.parent / "target" / "p0.npy", values)
        warnings = check_pairs(find_pairs(table)).warnings
        assert [said in each for each in warnings] == ([True] if said else [])


def test_targets_that_cannot_be():
    for wrong, words in (
        ({"channels": ("a", "a")}, "named once"),
        ({"channels": ("a/b",)}, "channel"),
        ({"channels": ("a",), "full": (1.0, 2.0)}, "2 values, but there are 1"),
        ({"channels": ("a",), "colours": ("red",)}, "#rrggbb"),
        ({"channels": ("a",), "vector": (0.1, 0.2, 0.3)}, "pictures in colour"),
    ):
        with pytest.raises(ConfigError, match=words):
            TargetConfig(**wrong)
    with pytest.raises(ConfigError, match="size 'small'"):
        TINY.replace(size="paper", target=TargetConfig(channels=("a",)))


def test_nuclei_of_the_pair_table_are_scored_one_by_one(make_channels, tmp_path):
    table = make_channels(1, n=2)
    labels = np.zeros((64, 64), np.uint16)
    for k in range(16):
        y, x = divmod(k, 4)
        labels[16 * y : 16 * y + 9, 16 * x : 16 * x + 7] = 300 + k
    Image.fromarray(labels).save(table.parent / "nuclei.png")
    rows = table.read_text().splitlines()
    table.write_text("\n".join([f"{rows[0]},nuclei", *(f"{row},nuclei.png" for row in rows[1:])]))
    pairs = find_pairs(table).pairs
    pairs = [replace(pair, target=measured_target([pair])) for pair in pairs]
    reals = {pair.name: read_aligned(pair)[1] for pair in pairs}
    methods = {
        "half": lambda pair, he: Made(reals[pair.name] / 2),
        "elsewhere": lambda pair, he: Made(np.where((labels > 0)[..., None], reals[pair.name], 0)),
    }
    half, elsewhere = evaluate_channels(pairs, methods, EvaluateConfig(tile=16, resamples=200))
    real = reals[pairs[0].name][..., 0]
    means = [real[labels == k].mean() for k in range(300, 316)]
    assert half.items[0].values["cell_correlation"] == pytest.approx(1)
    assert half.items[0].values["cell_mae"] == pytest.approx(np.mean(means) / 2)
    assert elsewhere.items[0].values["cell_mae"] == 0 and elsewhere.items[0].values["tile_mae"] > 0
    assert elsewhere.scores.values["cell_dice"].value == 1
    unknown = replace(pairs[0], target=pairs[0].target.replace(full=None))
    panel = channel_panel(
        np.zeros((64, 64, 3), np.uint8), reals[unknown.name], Made(reals[unknown.name]), unknown.target
    )
    assert panel[:, 64:].max() == 255
    labels[:, :40] = 0
    for wrong, words in ((labels[:, :60], "another size"), (np.dstack([labels % 256] * 3), "one channel")):
        Image.fromarray(wrong.astype(np.uint8)).save(table.parent / "nuclei.png")
        with pytest.raises(InputError, match=words):
            cells_of(pairs[0])


@pytest.mark.parametrize("residual", [False, True])
def test_five_channels_from_training_to_slides(make_channels, tmp_path, residual):
    """uint16 OME-TIFF pairs → a model → images with samples and a pyramid of five named channels → scores."""
    table = make_channels(5, "uint16", ".ome.tif", n=4, mask=True)
    settings = config(residual=residual, balance=True, colour_start=True, see_mean=residual)
    trained = train_model(find_pairs(table), settings, tmp_path / "run", where=table)
    target = trained.model.config.target
    assert target.channels == NAMES and target.dtype == "uint16" and len(target.full) == 5
    model = StainTransfer.from_pretrained(trained.folder)
    assert model.identity == trained.model.identity

    apply = ApplyConfig(samples=3, windows=QUICK, sampler=SamplerConfig(steps=2))
    out = stain_folder(model, table.parent / "he", tmp_path / "made", apply, keep_samples=True)
    again = stain_image(model, np.array(Image.open(table.parent / "he/p1.png")), apply, name="p1")
    made = read_channels(out / "p1.ome.tif")
    assert made.dtype == np.uint16 and made.shape == (64, 64, 5)
    assert np.abs(made.astype(int) - levels(again.sample, target)).max() <= 1  # of 65535
    np.testing.assert_allclose(again.mean, again.samples.mean(axis=0), rtol=1e-3, atol=2)
    np.testing.assert_allclose(again.uncertainty, again.samples.std(axis=0, ddof=1), rtol=1e-3, atol=2)
    with tifffile.TiffFile(out / "mean" / "p1.ome.tif") as file:
        assert channel_facts(out / "mean" / "p1.ome.tif").names == NAMES
        assert (file.series[0].axes, file.series[0].shape) == ("CYX", (5, 64, 64))
        about = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
        assert [int(each["Color"]) % 2**32 >> 8 for each in about["Channel"]] == [
            int(colour[1:], 16) for colour in target.shown
        ]
    sized = apply.replace(mpp=0.25)
    for folder in ("sized", "twice"):
        stain_folder(model, table.parent / "he", tmp_path / folder, sized)
    files = [tmp_path / folder / "p1.ome.tif" for folder in ("sized", "twice")]
    assert files[0].read_bytes() == files[1].read_bytes()
    with tifffile.TiffFile(files[0]) as file:
        about = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
        assert (about["PhysicalSizeX"], about["PhysicalSizeYUnit"]) == (0.25, "µm")
    settings = EvaluateConfig(tile=16, resamples=200)
    found, *rest = evaluate_folder(
        out, find_pairs(table), tmp_path / "scores", settings, training=find_pairs(table), where=table
    )
    assert {"crps", "coverage50", "DNA tile_correlation", "dice", "risk"} <= set(found.scores.values)
    some = find_pairs(table, target=TargetConfig(channels=("CD8", "DNA")))
    part, *_ = evaluate_folder(out, some, None, settings, where=table)
    for name in ("CD8", "DNA"):
        for key in ("tile_correlation", "tile_mae", "dice"):
            whole = found.scores.values[f"{name} {key}"].value
            assert part.scores.values[f"{name} {key}"].value == pytest.approx(whole, nan_ok=True)
    by_name = {each.method: each.scores.values for each in rest}
    assert by_name["colour map"]["tile_correlation"].value > 0.95  # the channels follow the colours
    assert len(list((tmp_path / "scores" / "panels").iterdir())) == 4
    he = read_aligned(find_pairs(table).pairs[0])[0]
    for method in ChannelBaselines(find_pairs(table).pairs).methods().values():
        elsewhere = pickle.loads(pickle.dumps(method))  # as other processes have it
        assert np.array_equal(elsewhere(he), method(he))

    path = tmp_path / "slide.ome.tif"
    image = np.full((150, 130, 3), 245, np.uint8)
    image[20:140, 10:120] = he_like(np.random.default_rng(0), 120)[:, :110]
    with PyramidWriter(path, 130, 150, mpp=0.5, tile=64, codec="deflate") as writer:
        writer.write(image, 0)
    model.mpp = 0.5
    slide = stain_slide(model, path, tmp_path / "slides", apply.replace(samples=2))
    for file in (slide.image, slide.uncertainty):
        with tifffile.TiffFile(file) as opened:
            series = opened.series[0]
            assert series.axes == "CYX" and series.shape == (5, 150, 130) and series.dtype == np.uint16
            assert [f'Name="{name}"' in opened.ome_metadata for name in NAMES] == [True] * 5


def test_one_channel_is_a_grey_png_and_a_float_one_says_its_unit(make_channels, tmp_path):
    for dtype, suffix in (("uint8", ".png"), ("float32", ".npy")):
        table = make_channels(1, dtype, suffix, root=tmp_path / dtype)
        trained = train_model(find_pairs(table), config(), tmp_path / f"run-{dtype}", where=table)
        out = stain_folder(
            trained.model,
            table.parent / "he",
            tmp_path / f"made-{dtype}",
            ApplyConfig(samples=2, windows=QUICK),
        )
        made = np.array(Image.open(out / "p0.png"))
        target = trained.model.config.target
        assert made.dtype == target.kept and made.shape == (64, 64)
        assert json.loads((out / "manifest.json").read_text())["uncertainty_unit"] == target.step
        assert (target.step == 1) == (dtype == "uint8")


def test_the_solver_that_inverts_is_refused(tmp_path):
    target = TargetConfig(channels=("a",), dtype="uint8", full=(255.0,), threshold=(50.0,))
    model = lively(build_model(TINY.replace(target=target), crop=32))
    with pytest.raises(ConfigError, match="cannot generate H&E"):
        model(torch.zeros(1, 32, 32, 3, dtype=torch.uint8), "reference")


def test_what_was_not_scanned_does_not_train(make_channels, tmp_path):
    """Rubbish behind the mask changes no weight, nor what is drawn at full and counts as positive."""
    states, targets = [], []
    for rubbish in (False, True):
        table = make_channels(1, root=tmp_path / str(rubbish), mask=True)
        if rubbish:
            for path in (table.parent / "target").iterdir():
                values = np.array(Image.open(path))
                values[:, :16] = 255
                Image.fromarray(values).save(path)
        settings = config(regression=True, colour_start=True)
        trained = train_model(find_pairs(table), settings, tmp_path / f"run{rubbish}", where=table)
        states.append(trained.model.network.state_dict())
        targets.append(trained.model.config.target)
    assert targets[0] == targets[1]
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key], rtol=1e-5, atol=1e-6)
    mask = torch.ones(1, 8, 8, dtype=torch.bool)
    mask[0, 0, 0] = False
    assert cells_seen(mask, 4)[0, 0].tolist() == [[0, 1], [1, 1]]
