"""Diffusion of what a regression leaves over: what it adds up to, how it is trained, kept and continued."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from morphogen.core.errors import ConfigError
from morphogen.stain import stain_image
from morphogen.stain.config import ApplyConfig, DataConfig, ModelConfig, ObjectiveConfig, TrainConfig
from morphogen.stain.data import find_pairs
from morphogen.stain.fitting.build import build_model, silenced
from morphogen.stain.fitting.residual import (
    CROPS,
    OutOfFold,
    attach,
    groups_of,
    measured_power,
    measured_residual,
    parts,
    shares_of,
    without_each,
)
from morphogen.stain.model import StainTransfer
from morphogen.stain.pairs.crops import PairDataset
from morphogen.stain.train import StainTask, train_model
from morphogen.training import Draws, TrainingConfig

from .conftest import TINY, lively

LOOP = TrainingConfig(steps=6, batch_size=2, lr=1e-3, save_every=1, log_every=1)


def config(**changes):
    base = TrainConfig(data=DataConfig(crop=32), model=TINY.replace(residual=True), training=LOOP)
    return base.replace(**changes)


def regression(stains=("IHC",), seed=5, **settings):
    """A regression that answers something of its own for every stain."""
    model = lively(build_model(TINY.replace(stains=stains, regression=True, **settings), crop=32, seed=seed))
    with torch.no_grad():
        torch.nn.init.normal_(model.network.latent.unet.class_embedding.weight)
    return model


def around(mean, stains=("IHC",), scale=0.25, seed=3):
    """A model whose samples scatter around ``mean``."""
    settings = TINY.replace(residual=True, residual_scale=scale, stains=stains)
    model = lively(build_model(settings, crop=32, seed=seed))
    model.mean = mean
    return model


@pytest.fixture
def images():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8))


@pytest.mark.parametrize("solver", ["fast", "reference", "mean"])
def test_without_a_residual_every_sample_is_the_regressions_answer(images, solver):
    mean = regression()
    model = around(mean)
    silenced(model)
    out = model(images, solver, samples=2)
    expected = mean(images, "mean").images
    apart = (out.samples.float() - expected[:, None].float()).abs()
    assert (
        apart.max() == 0 if solver != "reference" else apart.mean() < 1
    )  # it ends at the first level, with its noise
    assert not torch.equal(expected, images)


def test_samples_are_the_regression_and_the_residual_in_its_unit(images):
    """Twice the unit doubles what lies between a sample and the regression's answer."""
    mean = regression()
    models = [around(mean, scale=scale) for scale in (0.01, 0.02)]
    latents = [model(images, samples=2, seed=1).latents for model in models]
    base = models[0].base(models[0].first_stage.encode(models[0].pixels(images)).mode(), None, 1)
    torch.testing.assert_close(
        latents[1] - base[:, None], 2 * (latents[0] - base[:, None]), atol=1e-5, rtol=1e-4
    )
    assert (latents[0] - base[:, None]).abs().max() > 1e-3


def test_the_regression_is_asked_for_the_same_stain(images):
    """Labels are counted by each model for itself."""
    mean = regression(("Ki67", "HER2", "ER"))
    model = around(mean, ("ER", "Ki67"))
    silenced(model)
    for stain in ("ER", "Ki67"):
        assert torch.equal(model(images, stain=stain).images, mean(images, "mean", stain=stain).images)
    latents = model.first_stage.encode(model.pixels(images)).mode()
    both = model.base(latents, None, torch.tensor([1, 2]))
    for index, stain in enumerate(("ER", "Ki67")):
        torch.testing.assert_close(both[index], mean.expected(latents, None, mean.label(stain))[index])


def test_what_is_learned_is_the_residual_in_its_unit(make_pairs):
    """A network that answers zero has the mean square of (stain − regression) / unit for a loss at pure noise, and of
    the H&E itself where that is generated."""
    root = make_pairs(2)
    model = around(regression(), scale=0.3)
    silenced(model)
    dataset = PairDataset(find_pairs(root).pairs, model.stains, crop=32)
    items = [dataset[k % 2] for k in range(16)]
    batch = {key: torch.stack([item[key] for item in items]) for key in items[0]}
    objective = ObjectiveConfig(bias_he_ihc=0.5, last_step_share=1.0)
    task = StainTask(model, dataset, config(objective=objective))
    draws = Draws(0, torch.arange(16))
    generate = Draws(0, torch.arange(16)).bernoulli(1.0) & False
    figures = task.loss(model.network, batch, draws)
    he, ihc = (model.first_stage.encode(model.pixels(batch[name])).mode() for name in ("he", "ihc"))
    rest = (ihc - model.base(he, None, 1)) / 0.3
    choices = torch.stack([(x**2).flatten(1).mean(1) for x in (rest, he)])
    assert not generate.any()
    near = (figures["mse"][None] - choices).abs() < 1e-4 * choices
    assert near.any(0).all() and near[0].any() and near[1].any()


def test_the_unit_is_the_spread_of_what_is_left_over(make_pairs, tmp_path):
    root = make_pairs(3)
    model = build_model(TINY.replace(residual=True), crop=32)
    dataset = PairDataset(find_pairs(root).pairs, model.stains, crop=32)
    mean = build_model(TINY.replace(regression=True), crop=32)  # new networks answer mid-grey, zero
    kept, plain = tmp_path / "residual.json", ObjectiveConfig()
    attach(model, mean, dataset, 0, "fp32", kept, plain)
    from morphogen.core.seeds import generator

    drawn = [dataset.draw(k % 3, generator(0, "residual scale", k))["ihc"] for k in range(CROPS)]
    pixels = torch.stack(drawn).double() / 127.5 - 1
    assert model.residual_scale == pytest.approx(float((pixels**2).mean().sqrt()) / 0.5, rel=1e-3)
    assert measured_residual(model, dataset, 0, "fp32", plain) == {"residual_scale": model.residual_scale}
    assert not any(p.requires_grad for p in mean.network.parameters())
    given = build_model(TINY.replace(residual=True, residual_scale=0.7), crop=32)
    attach(given, mean, dataset, 0, "fp32", tmp_path / "none.json", plain)
    assert given.residual_scale == 0.7 and not (tmp_path / "none.json").exists()
    # A run that goes on keeps the unit it began with, unless the regression is another.
    measured = model.residual_scale
    kept.write_text(kept.read_text().replace(str(measured), "0.9"))
    for other, expected in (
        (mean, 0.9),
        (build_model(TINY.replace(regression=True), crop=32, seed=9), measured),
    ):
        again = build_model(TINY.replace(residual=True), crop=32)
        attach(again, other, dataset, 0, "fp32", kept, plain)
        assert again.residual_scale == expected


def test_saved_models_bring_their_regression(images, tmp_path):
    model = around(regression(("ER", "IHC")), ("IHC",))
    back = StainTransfer.from_pretrained(model.save_pretrained(tmp_path / "model"))
    assert back.mean.stains == ("ER", "IHC") and back.residual_scale == 0.25
    assert torch.equal(back(images, samples=2).samples, model(images, samples=2).samples)
    assert back.identity == model.identity != around(regression(("ER", "IHC"), seed=6), ("IHC",)).identity
    assert sum(p.numel() for p in back.mean.network.parameters()) > 0


def test_windows_of_a_large_image_scatter_around_the_regression_too():
    image = np.random.default_rng(2).integers(0, 256, (72, 56, 3), dtype=np.uint8)
    mean = regression()
    model = around(mean)
    silenced(model)
    ours = stain_image(model, image, ApplyConfig(samples=2))
    assert np.array_equal(ours.mean, stain_image(mean, image, ApplyConfig()).sample)


def test_the_regression_is_trained_first_and_a_killed_run_resumes(make_pairs, tmp_path, monkeypatch):
    root = make_pairs(3)
    whole = train_model(find_pairs(root), config(), tmp_path / "whole", device="cpu")
    mean = StainTransfer.from_pretrained(tmp_path / "whole/mean/model")
    assert (mean.config.regression, mean.facts["step"], whole.run.step) == (True, 3, 3)
    for key, value in mean.network.state_dict().items():
        assert torch.equal(value, whole.model.mean.network.state_dict()[key]), key

    def stopping(after):
        seen, real = [0], StainTask.loss

        def loss(*args):
            seen[0] += 1
            if seen[0] > after:
                raise KeyboardInterrupt
            return real(*args)

        return loss

    for after in (
        2,
        4,
    ):  # steps: in the regression, in the diffusion; both times from where the kill before left it
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(StainTask, "loss", stopping(after // 2 + 1))
            train_model(find_pairs(root), config(), tmp_path / "part", device="cpu")
    part = train_model(find_pairs(root), config(), tmp_path / "part", device="cpu")
    assert part.model.identity == whole.model.identity


def test_steps_are_shared_out():
    first, second = parts(config(training=LOOP.replace(steps=100, warmup_steps=10), mean_share=0.3))
    assert (first.training.steps, second.training.steps) == (30, 70)
    assert (first.training.warmup_steps, second.training.warmup_steps) == (3, 7)
    assert first.model.regression and not first.model.residual and second.model.residual
    few, rest = parts(config(training=LOOP.replace(steps=2, warmup_steps=0), mean_share=0.01))
    assert few.training.steps == rest.training.steps == 1
    with pytest.raises(
        ConfigError, match=r"one step cannot be shared out.*training.steps|training.steps.*shared out"
    ):
        parts(config(training=LOOP.replace(steps=1)))


def test_a_regression_trained_before_is_taken_as_it_is(make_pairs, tmp_path):
    root = make_pairs(2)
    mean = regression(("ER", "IHC"))
    folder = mean.save_pretrained(tmp_path / "mean")
    short = LOOP.replace(steps=2)
    made = train_model(
        find_pairs(root), config(model=TINY, mean=str(folder), training=short), tmp_path / "run", device="cpu"
    )
    assert made.model.config.residual and made.run.step == 2 and not (tmp_path / "run/mean").exists()
    for key, value in mean.network.state_dict().items():
        assert torch.equal(value, made.model.mean.network.state_dict()[key]), key


def test_regressions_that_cannot_serve_are_refused(make_pairs, tmp_path):
    root = make_pairs(2)

    def train(mean, **model):
        folder = mean.save_pretrained(tmp_path / "mean")
        settings = config(model=TINY.replace(**model), mean=str(folder))
        train_model(find_pairs(root), settings, tmp_path / "run", device="cpu")

    with pytest.raises(ConfigError, match="this is no regression.*--model.regression true"):
        train(build_model(TINY, crop=32))
    with pytest.raises(ConfigError, match="does not know the stain IHC"):
        train(regression(("ER",)))
    with pytest.raises(ConfigError, match="the regression has pixel_factor 8, the model 4"):
        train(regression(pixel_factor=8))
    with pytest.raises(ConfigError, match="a regression has no mean"):
        train(regression(), regression=True)
    with pytest.raises(ConfigError, match="set one of the two"):
        TINY.replace(regression=True, residual=True)


def test_starting_from_any_model_it_begins_as_the_regression(make_pairs, images, tmp_path):
    """A plain model lends its features to both; what it knows of the mean, to the regression."""
    plain = lively(build_model(TINY, crop=32, seed=3)).save_pretrained(tmp_path / "plain")
    first = build_model(TINY.replace(regression=True), start=plain, crop=32)
    assert torch.equal(
        first(images, "mean").images, StainTransfer.from_pretrained(plain)(images, "mean").images
    )
    model = build_model(TINY.replace(residual=True, residual_scale=0.5), start=plain, crop=32)
    model.mean = first
    assert torch.equal(model(images).images, first(images, "mean").images)
    # Trained on from a model of residuals, settings or none, it stays one, and its regression goes on too.
    before = around(regression(), scale=0.4)
    folder = before.save_pretrained(tmp_path / "residual")
    still = LOOP.replace(steps=2, lr=1e-12, warmup_steps=0, ema_decay=0.0)
    made = train_model(
        find_pairs(make_pairs(2)),
        config(model=TINY, start=str(folder), training=still),
        tmp_path / "run",
        device="cpu",
    ).model
    assert made.config.residual
    for ours, theirs in ((made, before), (made.mean, before.mean)):
        for key, value in theirs.network.state_dict().items():
            torch.testing.assert_close(ours.network.state_dict()[key], value, atol=1e-6, rtol=0)
    # The regression of a model of residuals is a start for a regression, and stays one.
    alone = TINY.replace(regression=True)
    assert torch.equal(
        build_model(alone, start=folder, crop=32)(images, "mean").images, before.mean(images, "mean").images
    )
    own = before.mean.save_pretrained(tmp_path / "regression")
    made = train_model(
        find_pairs(make_pairs(2)),
        config(model=TINY, start=str(own), training=still),
        tmp_path / "on",
        device="cpu",
    ).model
    assert made.config.regression and made.mean is None


def test_cached_crops_serve_both_trainings(make_pairs, tmp_path):
    settings = config(data=DataConfig(crop=32, cache_crops=2), training=LOOP.replace(steps=2))
    made = train_model(find_pairs(make_pairs(2)), settings, tmp_path / "run", device="cpu")
    assert made.model.mean is not None
    assert [path.parent.name for path in (tmp_path / "run").rglob("cache/crops-*")] == ["cache"]
    assert (tmp_path / "run/cache").is_dir() and not (tmp_path / "run/mean/cache").exists()


def test_a_new_stain_joins_both(make_pairs, tmp_path):
    folder = around(regression(("IHC",)), ("IHC",)).save_pretrained(tmp_path / "before")
    root = make_pairs(2, stain="ER")
    made = train_model(
        find_pairs(root), config(model=ModelConfig(), start=str(folder), training=LOOP.replace(steps=2)),
        tmp_path / "run", device="cpu",
    ).model  # fmt: skip
    assert made.stains == ("IHC", "ER") and set(made.mean.stains) == {"IHC", "ER"}


def test_noise_has_the_power_of_what_is_left_over_at_every_scale():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(64, 3, 8, 8, generator=generator).repeat_interleave(4, -1).repeat_interleave(4, -2)
    power = measured_power(coarse, torch.ones(64, 1, 32, 32), 4)
    shares = shares_of(power)
    assert shares[:2] == pytest.approx([0, 0], abs=1e-6)  # nothing is smaller than four cells
    assert shares[2] == pytest.approx(0.75, abs=0.02) and shares[3] == pytest.approx(0.25, abs=0.02)


def test_a_regression_never_answers_for_the_pairs_it_has_seen(make_pairs, images):
    pairs = find_pairs(make_pairs(4)).pairs
    groups = groups_of(pairs, 2)
    for number, seen in enumerate(without_each(pairs, groups)):
        assert {pair.name for pair in seen}.isdisjoint(
            pair.name for pair, group in zip(pairs, groups, strict=True) if group == number
        )
    with pytest.raises(ConfigError, match="4 patients or images cannot be parted into 9. Use 4"):
        groups_of(pairs, 9)
    arrays = [replace(pair, group=group) for pair, group in zip(pairs, "xyxy", strict=True)]
    assert groups_of(arrays, 2) == [0, 1, 0, 1]  # whole arrays
    with pytest.raises(
        ConfigError, match=r"2 groups \(arrays, slides or scanners\) cannot be parted into 4. Use 2"
    ):
        groups_of(arrays, 4)
    both = [replace(pair, patient=patient) for pair, patient in zip(arrays, "abbc", strict=True)]
    assert groups_of(both, 3) == [0, 1, 1, 2]  # a patient on both arrays leaves no array to hold out
    assert groups_of([replace(pair, group="x") for pair in pairs], 4) == [0, 1, 2, 3]
    model = around(regression())
    first, second = regression(seed=8), regression(seed=9)
    crossed = OutOfFold([first, second], torch.tensor(groups))
    he = model.first_stage.encode(model.pixels(images)).mode()
    index = torch.tensor([groups.index(1), groups.index(0)])  # out of order
    found = crossed.base(model, he, None, torch.ones(2, dtype=torch.long), index, "fp32")
    expected = [model.base(he[:1], None, 1, mean=second), model.base(he[1:], None, 1, mean=first)]
    assert torch.allclose(found, torch.cat(expected), atol=1e-5)


def test_cross_fitted_training_with_noise_at_scales_is_kept_and_goes_on(make_pairs, tmp_path, images):
    objective = ObjectiveConfig(bias_he_ihc=0.1, cross_fit=2, noise_scales=3, residual_knots=4)
    given = config(objective=objective, mean_lr=2e-3)
    made = train_model(find_pairs(make_pairs(3)), given, tmp_path / "run")
    shares = made.model.config.noise_shares
    assert len(shares) == 3 and 0 < sum(shares) <= 1
    assert len(made.model.config.residual_knots) == 3
    again = StainTransfer.from_pretrained(made.folder)
    assert again.config.noise_shares == shares
    assert torch.equal(again(images, samples=2).samples, made.model(images, samples=2).samples)
    for name in ("mean", "mean-1", "mean-2"):
        assert (tmp_path / "run" / name / "model" / "morphogen.json").is_file()
    twice = train_model(find_pairs(make_pairs(3)), given, tmp_path / "run")
    assert twice.model.identity == made.model.identity
    with pytest.raises(ConfigError, match="cross-fitting trains the regression itself"):
        train_model(
            find_pairs(make_pairs(3)),
            given.replace(mean=str(tmp_path / "run" / "mean" / "model")),
            tmp_path / "other",
        )


def test_samples_can_be_drawn_apart_around_the_regression(images):
    model = around(regression(), scale=0.1)
    base = model.base(model.first_stage.encode(model.pixels(images)).mode(), None, 1)
    plain, wide = (
        model(images, samples=2, sample_spread=factor).latents - base[:, None] for factor in (1.0, 2.0)
    )
    assert plain.std() > 1e-3
    assert torch.allclose(wide, 2 * plain, atol=1e-5)


def test_whose_scale_a_model_keeps_is_said_once(make_pairs, tmp_path, caplog):
    """Not for its regression, those of the cross-fitting and its diffusion each."""
    build_model(TINY, crop=32, mpp=0.5).save_pretrained(tmp_path / "first")
    settings = config(start=str(tmp_path / "first"), training=LOOP.replace(steps=2))
    settings = settings.replace(objective=settings.objective.replace(cross_fit=2))
    model = train_model(find_pairs(make_pairs(2)), settings, tmp_path / "run", device="cpu").model
    assert model.mpp == 0.5 and caplog.text.count("the model keeps the 0.5 of the one it starts from") == 1
