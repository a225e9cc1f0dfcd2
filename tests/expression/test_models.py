"""Recipes train, predict, save and resume; predictions do not depend on how they are batched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zarr

from morphogen.core.errors import ConfigError, InputError
from morphogen.expression import ExpressionConfig, ExpressionModel, train_model
from morphogen.expression.config import SamplerConfig, SpatialConfig
from morphogen.expression.recipes.levels import OffsetScale
from morphogen.expression.recipes.plan import LAYERS, Plan
from morphogen.expression.recipes.residual import Residual, shared_part
from morphogen.expression.recipes.spatial import SpatialModel
from morphogen.expression.sections.panels import Panel
from morphogen.expression.sections.tables import tabulate
from morphogen.expression.sections.transforms import Transform
from morphogen.metrics.expression import macro, pearson
from morphogen.metrics.probabilistic import coverage
from morphogen.tasks.shards import Shards

from .conftest import TINY, config


def test_a_residual_network_without_a_chance_is_not_trained(world, models, tmp_path):
    """Few spots: no training per fold, and the same numbers as those of a network that was tried and rejected."""
    few = train_model(world[:3], config("spatial", spatial={}), tmp_path / "few", device="cpu")
    assert not few.head.diffused and not list((tmp_path / "few").glob("fold-*"))
    assert few.head.report["residual"]["tried_from"] == 20_000 > few.head.report["residual"]["spots"]
    if not models["spatial"].head.diffused:
        tried = models["spatial"](world[3], samples=4, device="cpu")
        np.testing.assert_array_equal(
            few(world[3], samples=4, device="cpu").layers["pred_std"], tried.layers["pred_std"]
        )


def test_presets_fill_in_what_is_not_given():
    paper = ExpressionConfig(recipe="stem", size="paper")
    assert (paper.network.width, paper.network.depth, paper.network.objective) == (384, 12, "epsilon")
    assert paper.target.log == "log2p1" and not paper.target.standardise and paper.network.learned_variance
    assert ExpressionConfig(recipe="hisdiff", size="paper").network.heads == 12
    assert ExpressionConfig(recipe="stem", training={"steps": 3}).training.warmup_steps == 3
    small = ExpressionConfig(recipe="stem", network={"depth": 2})
    assert small.network.depth == 2 and small.network.objective == "v"
    with pytest.raises(ConfigError, match="Did you mean 'depth'"):
        ExpressionConfig(recipe="stem", network={"deph": 2})


@pytest.mark.parametrize("recipe", ["spatial", "stem", "hisdiff"])
def test_saved_model_gives_the_same_numbers(models, world, tmp_path, recipe):
    model = models[recipe]
    again = ExpressionModel.from_pretrained(model.save_pretrained(tmp_path / "m"))
    assert again.identity == model.identity and again.panel == model.panel
    a, b = (m(world[3], samples=3, steps=4, keep_samples="obsm", device="cpu") for m in (model, again))
    np.testing.assert_array_equal(a.obsm["pred_samples"], b.obsm["pred_samples"])
    np.testing.assert_array_equal(a.layers["pred_mean"], b.layers["pred_mean"])
    about = a.uns["morphogen"]["prediction"]
    assert about["trained_on"] == ["A1", "A2", "B1"] and not about["patient_in_training"]
    assert about["panel_hash"] == model.panel.hash
    drawn = recipe != "spatial" or model.head.diffused
    assert about["evaluations"] == (4 if drawn else 0)


@pytest.mark.parametrize("recipe", ["spatial", "stem", "hisdiff"])
def test_batches_and_shards_do_not_move_a_number(models, world, recipe):
    given = {"samples": 3, "steps": 4, "keep_samples": "obsm", "device": "cpu"}
    whole = models[recipe](world[3], **given)
    parts = models[recipe](world[3], batch_size=7, shard_spots=31, **given)
    span = np.ptp(whole.obsm["pred_samples"].astype(float))
    np.testing.assert_allclose(
        whole.obsm["pred_samples"].astype(float), parts.obsm["pred_samples"].astype(float), atol=1e-3 * span
    )
    np.testing.assert_allclose(whole.layers["pred_mean"], parts.layers["pred_mean"], atol=1e-4 * span)
    other = models[recipe](world[3], **{**given, "seed": 1})
    assert np.abs(other.obsm["pred_samples"].astype(float) - whole.obsm["pred_samples"]).max() > 0.01 * span


@pytest.mark.parametrize("recipe", ["spatial", "stem"])
def test_a_killed_prediction_goes_on(models, world, tmp_path, monkeypatch, recipe):
    given = {"samples": 20, "steps": 3, "shard_spots": 40, "device": "cpu", "keep_samples": "zarr"}
    whole = models[recipe](world[3], out=tmp_path / "whole.h5ad", **given)
    computed = []
    original = Plan.shard

    def counted(self, rows, **keys):
        if len(computed) == 2 and not computed.count("killed"):
            computed.append("killed")
            raise KeyboardInterrupt
        computed.append(len(rows))
        return original(self, rows, **keys)

    monkeypatch.setattr(Plan, "shard", counted)
    with pytest.raises(KeyboardInterrupt):
        models[recipe](world[3], out=tmp_path / "cut.h5ad", **given)
    assert not (tmp_path / "cut.h5ad").exists() and not (tmp_path / "cut.samples.zarr").exists()
    resumed = models[recipe](world[3], out=tmp_path / "cut.h5ad", **given)
    assert computed == [40, 40, "killed", 40, 24]  # the first two shards are not computed again
    for name in LAYERS:
        np.testing.assert_array_equal(resumed.layers[name], whole.layers[name])
    drawn = [zarr.open_array(tmp_path / f"{name}.samples.zarr", mode="r")[:] for name in ("whole", "cut")]
    np.testing.assert_array_equal(*drawn)
    assert drawn[0].shape[:2] == (len(resumed), 20) and np.isfinite(drawn[0]).all() and drawn[0].any()
    assert not (tmp_path / "cut.h5ad.shards").exists()


def test_shards_of_other_settings_are_not_read(models, world, tmp_path):
    shards = Shards(tmp_path / "r.h5ad", "one")
    shards.write(0, {"pred_mean": np.zeros((1, 1))})
    assert Shards(tmp_path / "r.h5ad", "other").read(0) is None
    assert shards.read(0) is not None


def test_a_killed_training_goes_on_to_the_same_weights(world, tmp_path, monkeypatch):
    from morphogen.expression import train as train_module

    whole = train_model(world[:2], config("stem"), tmp_path / "whole", device="cpu")
    original, calls = train_module.DiffusionTask.loss, []

    def loss(self, *args):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(train_module.DiffusionTask, "loss", loss)
    with pytest.raises(KeyboardInterrupt):
        train_model(world[:2], config("stem"), tmp_path / "cut", device="cpu")
    resumed = train_model(world[:2], config("stem"), tmp_path / "cut", device="cpu")
    assert len(calls) == 5 + 3  # from the checkpoint at step 3
    for (k, a), (_, b) in zip(
        whole.head.state_dict().items(), resumed.head.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), k


def test_mean_without_samples(models, world, monkeypatch):
    for recipe in ("spatial", "stem"):
        result = models[recipe](world[3], samples=0, device="cpu")
        assert list(result.layers) == ["pred_mean"]
        assert np.isfinite(result.layers["pred_mean"]).all()
    calls = []
    network = models["stem"].head.network
    network.register_forward_hook(lambda *a: calls.append(len(a[1][0])))
    models["stem"](world[3], samples=0, device="cpu", batch_size=100)
    assert calls == [100, 44]  # one forward per spot
    network._forward_hooks.clear()


def test_an_epsilon_model_has_no_mean_from_one_forward(world, tmp_path):
    published = {"objective": "epsilon", "learned_variance": True, "schedule": "linear"}
    model = train_model(
        world[:1], config("stem", network={**TINY["network"], **published}), tmp_path / "e", device="cpu"
    )
    with pytest.raises(ConfigError, match="--samples 20"):
        model(world[3], samples=0, device="cpu")
    result = model(world[3][:9].copy(), samples=2, solver="reference", device="cpu")
    assert result.uns["morphogen"]["prediction"]["evaluations"] == 1000
    with pytest.raises(ConfigError, match="belongs to epsilon"):
        train_model(
            world[:1],
            config("stem", network={**TINY["network"], "learned_variance": True}),
            tmp_path / "v",
            device="cpu",
        )


def test_flow_objective_trains_and_samples(world, tmp_path):
    model = train_model(
        world[:1],
        config("stem", network={**TINY["network"], "objective": "flow"}),
        tmp_path / "f",
        device="cpu",
    )
    assert np.isfinite(model(world[3], samples=2, steps=4, device="cpu").layers["pred_mean"]).all()
    with pytest.raises(ConfigError, match="no ancestral sampler"):
        model(world[3], samples=2, solver="reference", device="cpu")


# --- the recipe spatial ---


def test_spatial_predicts_a_new_patient(models, world):
    model = models["spatial"]
    panel = model.panel
    truth = tabulate(world[3], panel).y
    result = model(world[3], samples=39, keep_samples="obsm", device="cpu")
    assert macro(pearson(truth, result.layers["pred_mean"])).value > 0.5
    found = coverage(truth, result.obsm["pred_samples"], 0.9)
    assert 0.82 < found.observed <= 1.0
    assert (result.layers["pred_q05"] <= result.layers["pred_q95"]).all()
    assert (result.layers["pred_mean"] >= 0).all() and (result.obsm["pred_samples"] >= 0).all()
    assert result.uns["morphogen"]["prediction"]["X"] == "measured counts"


def test_samples_are_whole_counts_with_the_right_mean(models, world):
    head: SpatialModel = models["spatial"].head
    result = models["spatial"](world[3], samples=20, keep_samples="obsm", device="cpu")
    counts = np.expm1(result.obsm["pred_samples"].astype(np.float64))
    assert np.abs(counts - np.round(counts)).max() < 0.02 * counts.max()  # half precision
    value = torch.log1p(torch.full((20000, 1), 0.3))
    drawn = head.observed(value, torch.log(torch.tensor(0.5)), torch.rand(20000, 1))
    assert set(drawn.expm1().round().unique().tolist()) == {0.0, 1.0}
    assert float(drawn.expm1().mean()) == pytest.approx(0.15, abs=0.01)


def test_calibration_covers_held_out_training_spots(world):
    panel = Panel(tuple(f"G{i:02d}" for i in range(12)), "listed")
    tables = [tabulate(s, panel, training=True) for s in world]
    model, held, _ = SpatialModel.fit(tables, SpatialConfig(factors=0), Transform())
    model.diffused = False
    model.calibrate(tables, held)
    report = model.report["calibration"]
    assert report["from"] == ["new", "seen"]  # A1 and A2 have each other; B1 and D1 have nobody
    rng, covered = torch.Generator().manual_seed(5), []
    for t, p, x in zip(tables, held.pattern, held.scores, strict=True):
        mean = torch.from_numpy(t.y.mean(axis=0) + p).float()
        noise = torch.randn((39, 2, *mean.shape), generator=rng)
        offset, seen = torch.zeros(1, 12), t.patient == "A"
        drawn = [model.sample(n, torch.from_numpy(x), mean, offset, None, seen=seen).numpy() for n in noise]
        covered.append(coverage(t.y, np.stack(drawn, axis=1), 0.9).split)
    assert np.mean(covered[:2]) == pytest.approx(0.9, abs=0.02)
    assert np.mean(covered[2:]) == pytest.approx(0.9, abs=0.02)
    assert model.report["inner_pcc"] == max(t["inner_pcc"] for t in model.report["tried"])


def test_a_seen_patient_is_less_uncertain_than_a_new_one(models, world):
    levels = models["spatial"].head.levels
    assert levels.is_seen("A") and not levels.is_seen("D") and not levels.is_seen("")
    assert levels.seen.depth < levels.new.depth and levels.seen.held_out == 2 and levels.new.held_out == 2
    np.testing.assert_allclose(
        levels.predict(world[0].obsm["embedding"], "A"),
        np.mean([tabulate(s, models["spatial"].panel).y.mean(axis=0) for s in world[:2]], axis=0),
        rtol=1e-5,
    )


def test_offsets_learn_from_what_was_held_out():
    prior = OffsetScale.learn([], 1.0, 0.5, 3.0)
    assert (prior.depth, prior.gene, prior.freedom) == (1.0, 0.5, 3.0)
    off = [np.full(20, 0.1) + 0.01 * np.arange(20)] * 30
    learned = OffsetScale.learn(off, 1.0, 0.5, 3.0)
    assert learned.depth < 0.45 and learned.gene < 0.25 and learned.freedom == 33
    drawn = learned.draw(20, 200, np.random.default_rng(0))
    depth = np.median(drawn, axis=1)
    assert np.abs(depth.mean()) < 0.02 and depth.std() == pytest.approx(learned.depth, rel=0.15)
    assert (drawn - depth[:, None]).std() == pytest.approx(learned.gene, rel=0.15)


def test_the_residual_starts_as_the_exact_gaussian():
    rng = np.random.default_rng(0)
    mean = rng.uniform(0, 3, size=(4000, 6)).astype(np.float32)
    mix = rng.normal(size=(6, 6))
    residual = (0.3 + 0.3 * mean) * (rng.normal(size=(4000, 6)) @ mix)
    scores = rng.normal(size=(4000, 3)).astype(np.float32)
    r = Residual(6, 3, 4, 16, 1, 0.0)
    white = r.fit_gaussian(mean, residual, scores)
    np.testing.assert_allclose(np.cov(white.T), np.eye(6), atol=0.1)  # the covariance is shrunk a little
    noise = torch.from_numpy(rng.normal(size=(4000, 6)).astype(np.float32))
    m, s = torch.from_numpy(mean), torch.from_numpy(scores)
    with_network = r(noise, s, m, SamplerConfig()).detach()
    closed_form = r(noise, s, m, None)
    np.testing.assert_allclose(
        with_network.std(0), closed_form.std(0), rtol=6e-3
    )  # v = 0: the ODE is the identity
    assert float((with_network - closed_form).abs().max()) < 0.01 * float(closed_form.abs().max())
    for low, high in ((0.0, 1.0), (2.0, 3.0)):  # the scale follows the mean
        keep = (mean[:, 0] > low) & (mean[:, 0] <= high)
        ratio = closed_form.numpy()[keep, 0].std() / residual[keep, 0].std()
        assert ratio == pytest.approx(1.0, abs=0.15)
    np.testing.assert_allclose(np.corrcoef(closed_form.numpy().T), np.corrcoef(residual.T), atol=0.08)


def test_smooth_noise_is_standard_normal_and_correlates_as_asked(models, world):
    head: SpatialModel = models["spatial"].head
    table = tabulate(world[3], models["spatial"].panel)
    before = head.residual.correlation.clone()
    try:
        wanted = np.full(len(before), 0.3)
        share = shared_part(wanted, [table.neighbours], table.near)
        head.residual.correlation.copy_(torch.from_numpy(share))
        rows = np.arange(len(table))
        z = np.stack([head.noise(0, table, rows, k)[0] for k in range(60)])
        assert z.std() == pytest.approx(1.0, abs=0.02) and z.mean() == pytest.approx(0.0, abs=0.02)
        inner = (table.coords > 150).all(axis=1) & (table.coords < 1050).all(axis=1)
        pairs = [(i, table.neighbours[i, 1]) for i in np.flatnonzero(inner)]
        found = np.mean([(z[:, i] * z[:, j]).mean() for i, j in pairs])
        assert found == pytest.approx(0.3, abs=0.05)
        some = np.array([5, 77, 3])
        np.testing.assert_array_equal(head.noise(0, table, some, 7)[0], z[7][some])
    finally:
        head.residual.correlation.copy_(before)


# --- bad input ---


def test_a_section_of_another_encoder_or_with_nan(models, world):
    section = world[3].copy()
    section.uns["morphogen"]["prepare"]["encoder_identity"] = "another"
    with pytest.raises(InputError, match="another encoder.*Prepare it with the model's encoder"):
        models["stem"](section, samples=1, device="cpu")
    section = world[3].copy()
    section.obsm["embedding"] = section.obsm["embedding"][:, :5]
    with pytest.raises(InputError, match="width 5.*the model takes 16"):
        models["stem"](section, samples=1, device="cpu")
    section = world[0].copy()
    section.obsm["embedding"][3] = np.nan
    with pytest.raises(InputError, match="embeddings of 1 of 144 spots hold NaN"):
        train_model([section], config("stem"), "/nonexistent", device="cpu")


def test_panel_mismatch(models, world):
    section = world[3].copy()
    section.var_names = [f"ENSG{i}" for i in range(section.n_vars)]
    with pytest.raises(InputError, match="measures none of the model's 10 panel genes"):
        models["stem"](section, samples=1, device="cpu")
    fewer = world[3][:, [g for g in world[3].var_names if g != models["stem"].panel.genes[2]]].copy()
    result = models["stem"](fewer, samples=1, steps=2, device="cpu")
    assert list(result.var["measured"]).count(False) == 1  # predicted all the same, and said
    panel = Panel(("G00", "NOPE"), "listed")
    with pytest.raises(InputError, match="1 of 2 panel genes are not measured: NOPE"):
        tabulate(world[3], panel)
