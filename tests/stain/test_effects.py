"""How bright an image is as a whole: measured on training images, taken by samples; and H&E set beside each other."""

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from morphogen.core.errors import ConfigError
from morphogen.slides.pyramid.writer import PyramidWriter
from morphogen.slides.recolouring import (
    Stains,
    glass_colour,
    normalised,
    normaliser,
    on_white_glass,
    recoloured,
)
from morphogen.stain import StainTransfer, stain_image, stain_slide
from morphogen.stain.config import ApplyConfig, DataConfig, ObjectiveConfig, TrainConfig, WindowConfig
from morphogen.stain.data import find_pairs
from morphogen.stain.fitting import effects as fitting
from morphogen.stain.fitting.build import build_model, silenced
from morphogen.stain.fitting.residual import Centre, measured_residual
from morphogen.stain.pairs.crops import PairDataset
from morphogen.stain.targets.config import TargetConfig
from morphogen.stain.train import train_model
from morphogen.tasks.streams.noise import image_draw
from morphogen.training import TrainingConfig

from .conftest import TINY, he_like, lively

TARGET = TargetConfig(channels=("SHG",), dtype="uint8", full=(255.0,), threshold=(50.0,), transform="linear")
EFFECTS = (((0.0, 0.5),), ((0.0, 1.0),), ((0.1, 1.5),))


def around(effects=EFFECTS, level=-0.5, **settings):
    """A model without a residual, around a regression that answers ``level`` (−1 dark, 1 full) everywhere."""
    made = TINY.replace(target=TARGET, residual=True, residual_scale=0.1, image_effects=effects, **settings)
    model = build_model(made, crop=32)
    silenced(model)
    model.mean = build_model(TINY.replace(target=TARGET, regression=True), crop=32)
    silenced(model.mean)
    with torch.no_grad():
        model.mean.network.latent.unet.conv_out.bias.fill_(level)
    return model


def of_samples(model, image, **settings):
    """One number of every sample, which is as bright everywhere."""
    made = stain_image(model, image, ApplyConfig(**settings), name="a").samples
    assert np.ptp(made, axis=(1, 2, 3)).max() < 1e-3
    return made[:, 0, 0, 0].round(2).tolist()


def test_every_sample_is_as_bright_as_one_of_the_images():
    """A quarter of full, halved, as it is, and a tenth of full and 1.5 times as much; the same in all windows."""
    image = np.random.default_rng(0).integers(0, 256, (96, 72, 3), dtype=np.uint8)
    expected = {255 / 8: 0, 255 / 4: 1, 255 * (0.1 + 1.5 / 4): 2}
    for windows in (WindowConfig(), WindowConfig(window=64, overlap=16, batch=2)):
        found = of_samples(around(), image, samples=30, antithetic=False, windows=windows)
        counts = [sum(abs(value - level) < 0.01 for value in found) for level in expected]
        assert sum(counts) == 30 and min(counts) >= 9  # drawn evenly
    assert of_samples(around(), image, samples=4, antithetic=False, windows=windows) == found[:4]
    pairs = np.array(of_samples(around(), image, samples=10)).reshape(5, 2)
    order = sorted(expected)
    for a, b in np.searchsorted(order, pairs - 0.1):
        assert a + b == 2  # the darkest beside the brightest
    alike = of_samples(around(), image, samples=4, effect_spread=0.0)
    assert alike == pytest.approx([255 * (0.1 / 3 + 0.25)] * 4, abs=0.02)
    far = of_samples(around(), image, samples=30, antithetic=False, effect_spread=3.0)
    assert sorted(set(far)) == pytest.approx([0, 255 * (0.25 - 0.2 / 3), 255 * (0.7 / 3 + 2.5 / 4)], abs=0.02)
    own = of_samples(around(effect_spread=2.0), image, samples=30, antithetic=False, effect_spread=1.5)
    assert own == far  # the model's own factor and that of the call
    middle = around()(torch.from_numpy(image[None, :64, :64]), "mean", samples=2)
    assert middle.samples.unique().tolist() == pytest.approx([255 / 4])


def test_draws_are_even_and_come_in_pairs():
    draws = [image_draw(k, True, 3, "x") for k in range(40)]
    assert np.allclose(np.add(draws[::2], draws[1::2]), 1)
    assert np.histogram(draws, bins=4, range=(0, 1))[0].min() >= 8
    assert image_draw(0, True, 3, "y") != draws[0] == image_draw(0, True, 3, "x")


def test_the_network_sees_the_answer_with_the_effect():
    model, seen = around(see_mean=True), []
    forward = model.network.forward
    model.network.forward = lambda x, t, image, **more: (
        seen.append(image),
        forward(x, t, image=image, **more),
    )[1]
    made = model(torch.zeros(2, 32, 32, 3, dtype=torch.uint8), samples=3, seed=1)
    shown = seen[0][:, -16:].mean(dim=(1, 2, 3))
    brightness = made.samples.mean(dim=(2, 3, 4)).flatten() / 255 * 2 - 1
    torch.testing.assert_close(shown, brightness, atol=1e-4, rtol=0)
    assert len(shown.unique()) == 3


def test_offset_and_slope_are_found(make_channels):
    """A regression that answers (target − offset) / slope; behind the mask it answers rubbish."""
    table = make_channels(1, n=3, mask=True)
    pairs = find_pairs(table, target=TARGET).pairs
    model = build_model(TINY.replace(target=TARGET, residual=True), crop=32)
    dataset = PairDataset(pairs, model.stains, crop=32)
    truth = [(0.1, 0.5), (-0.05, 2.0), (0.0, 1.0)]
    crops = {}
    real = dataset.finish

    def finish(batch):
        crops.update(real(batch))
        return dict(crops)

    dataset.finish = finish

    def answer(image, tokens, label, index):
        offset, slope = torch.tensor(truth)[index].T[..., None, None, None]
        amount = model.target_stage.encode(model.target_pixels(crops["ihc"])).mode() / 2 + 0.5
        hidden = torch.nn.functional.max_pool2d(1 - crops["mask"][:, None].float(), model.factor)
        return 2 * ((amount - offset) / slope) - 1 + 9 * hidden

    found = fitting.measured_effects(model, dataset, answer, 0)
    np.testing.assert_allclose(np.array(found)[:, 0], truth, atol=2e-3)
    dark = fitting.measured_effects(model, dataset, lambda *known: torch.zeros_like(answer(*known)), 0)
    assert all(slope == 1 for ((_, slope),) in dark)  # an even answer shows none


def test_what_is_diffused_is_what_the_effects_leave_over(make_channels):
    """Images twice and half as bright as the regression says: with their effects the unit is far smaller."""
    table = make_channels(1, n=3)
    pairs = find_pairs(table, target=TARGET).pairs
    units = []
    for wanted in (False, True):
        model = around(None, level=0.8)
        dataset = PairDataset(pairs, model.stains, crop=32)
        centre = Centre(numbers=torch.tensor(dataset.numbers)) if wanted else Centre()
        objective = ObjectiveConfig(image_effects=wanted)
        found = measured_residual(model, dataset, 0, "fp32", objective, centre)
        assert ("image_effects" in found) == wanted
        units.append(found["residual_scale"])
    assert units[1] < 0.6 * units[0]


def config(**objective):
    return TrainConfig(
        data=DataConfig(crop=32),
        model=TINY.replace(residual=True, see_mean=True, normalise="strength"),
        objective=ObjectiveConfig(bias_he_ihc=0.1, **objective),
        training=TrainingConfig(steps=6, batch_size=2, lr=1e-3, save_every=6, log_every=1),
    )


def test_effects_are_kept_with_the_model(make_channels, tmp_path):
    table = make_channels(2, suffix=".ome.tif", n=4)
    given = config(image_effects=True, cross_fit=2, residual_knots=3)
    made = train_model(find_pairs(table), given, tmp_path / "run", where=table).model
    assert np.array(made.config.image_effects).shape == (4, 2, 2)
    assert (made.config.effect_spread, made.mean.config.effect_spread) == (1.5, 1.0)
    assert made.mean.config.image_effects is None and made.mean.config.normalise == "strength"
    again = StainTransfer.from_pretrained(tmp_path / "run" / "model")
    assert again.identity == made.identity
    crops = torch.from_numpy(he_like(np.random.default_rng(0), 64))[None]
    assert torch.equal(again(crops, samples=4).samples, made(crops, samples=4).samples)
    twice = train_model(find_pairs(table), given, tmp_path / "run", where=table).model
    assert twice.identity == made.identity
    # Trained on with other images, those of before are no longer its own.
    fewer = find_pairs(make_channels(2, suffix=".ome.tif", n=2, root=tmp_path / "fewer"))
    on = config(image_effects=True).replace(start=str(tmp_path / "run" / "model"))
    further = train_model(fewer, on, tmp_path / "on", where=table).model
    assert len(further.config.image_effects) == 2 and further.config.normalise == "strength"


def test_effects_hold_from_one_array_to_the_other(make_channels, tmp_path):
    """Two arrays, one three times as bright. A regression that has not seen an array is off by that factor; one that
    has seen two cores of one and one of the other lies between."""
    table = make_channels(1, n=4)
    lines = table.read_text().splitlines()
    for k in (1, 3):
        path = table.parent / "target" / f"p{k}.png"
        Image.fromarray(np.asarray(Image.open(path)) // 3).save(path)

    def slopes(name, column, values, parts=2):
        head, *rows = lines
        text = [f"{head},{column}", *(f"{row},{value}" for row, value in zip(rows, values, strict=True))]
        table.write_text("\n".join(text) + "\n")
        (table.parent / "target.yaml").write_text("channels: [SHG]\ntransform: linear\n")
        given = config(image_effects=True, cross_fit=parts)
        model = given.model.replace(colour_start=True, colour_degree=2)
        given = given.replace(model=model, training=given.training.replace(steps=2), mean_lr=1e-9)
        made = train_model(find_pairs(table), given, tmp_path / name, where=table).model
        return np.array(made.config.image_effects)[:, 0, 1]

    held = slopes("held", "group", ["bright", "dim"] * 2)
    np.testing.assert_allclose(held, [3, 1 / 3, 3, 1 / 3], rtol=0.25)
    apart = slopes("apart", "patient", ["a", "b", "c", "d"], parts=4)
    np.testing.assert_allclose(apart, [9 / 5, 3 / 7, 9 / 5, 3 / 7], rtol=0.25)


def test_effects_that_cannot_be(make_pairs, make_channels, tmp_path):
    with pytest.raises(ConfigError, match="effects of images are of channels"):
        train_model(find_pairs(make_pairs(2)), config(image_effects=True), tmp_path / "run")
    with pytest.raises(ConfigError, match="image_effects need residual"):
        TINY.replace(target=TARGET, image_effects=EFFECTS)
    with pytest.raises(ConfigError, match="1 channels"):
        TINY.replace(target=TARGET, residual=True, image_effects=[[(0, 1), (0, 1)]])
    table = make_channels(1, root=tmp_path / "channels")
    both = config(image_effects=True)
    both = both.replace(model=both.model.replace(target=TARGET, image_effects=EFFECTS))
    with pytest.raises(ConfigError, match="given or measured"):
        train_model(find_pairs(table), both, tmp_path / "both", where=table)


# -- the same amount of stain in every image


def stained(strength=1.0, light=(1.0, 1.0, 1.0)):
    """One tissue, thicker or thinner, under a light."""
    he = he_like(np.random.default_rng(0), 128)
    he[:40] = 248
    thicker = np.concatenate([strength * np.eye(3), np.zeros((3, 1))], axis=1)
    return np.rint((recoloured(he, thicker) + 0.0) * np.array(light)).astype(np.uint8)


@pytest.mark.parametrize("how", ["strength", "macenko"])
def test_thickness_and_light_are_taken_out(how):
    pictures = [stained(), stained(0.6), stained(1.0, (0.55, 0.6, 0.7))]
    plain, thin, dim = (normalised(each, how).astype(float)[40:] for each in pictures)
    before = np.abs(pictures[0].astype(float) - pictures[1])[40:].mean()
    assert before > 15 and np.abs(plain - thin).mean() < 0.25 * before
    assert np.abs(plain - dim).mean() < 3
    assert np.array_equal(
        normalised(pictures[2], "white"), on_white_glass(pictures[2], glass_colour(pictures[2]))
    )
    assert normalised(pictures[2], "none") is pictures[2] and normaliser(pictures[2], "none") is None


def test_macenko_lays_other_dyes_out_in_the_usual_colours():
    other = np.array([[0.95, 0.1, 0.0, 0], [0.05, 0.9, 0.1, 0], [0.0, 0.1, 1.1, 0]])
    found = Stains.of(normalised(recoloured(stained(), other), "macenko")[None])
    usual = Stains.usual()
    np.testing.assert_allclose(found.matrix[:2], usual.matrix[:2], atol=0.08)
    np.testing.assert_allclose(found.amounts, usual.amounts, rtol=0.15)


def test_glass_alone_keeps_its_colour():
    empty = np.full((64, 64, 3), 200, np.uint8)
    for how in ("strength", "macenko"):
        assert np.array_equal(normalised(empty, how), normalised(empty, "white"))


def test_models_look_at_normalised_images_and_slides(tmp_path):
    """A thinner section of the same tissue gets nearly the same stain; a window is normalised by its slide."""
    apart = {}
    for how in ("none", "strength"):
        settings = TINY.replace(target=TARGET, normalise=how, regression=True)
        model = lively(build_model(settings, crop=64, mpp=0.5))
        images, slides = [], []
        for strength in (1.0, 0.6):
            images.append(stain_image(model, stained(strength), name="a").sample)
            path = tmp_path / f"{strength}" / "slide.ome.tif"
            path.parent.mkdir(exist_ok=True)
            if not path.exists():
                with PyramidWriter(path, 128, 128, mpp=0.5, tile=64, codec="deflate") as writer:
                    writer.write(stained(strength), 0)
            whole = ApplyConfig(windows=WindowConfig(tissue_only=False))
            made = stain_slide(model, path, tmp_path / f"{how}{strength}", whole)
            slides.append(tifffile.imread(made.image).astype(float))
        apart[how] = [np.abs(a.astype(float) - b).mean() for a, b in (images, slides)]
    for plain, ours in zip(*apart.values(), strict=True):
        assert ours < 0.5 * plain
