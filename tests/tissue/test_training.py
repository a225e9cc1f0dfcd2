"""Training: what is dropped, that the condition is learned, resume, starts, the model folder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from morphogen.core.errors import CheckpointError, ConfigError, InputError
from morphogen.tissue import ModelConfig, TissueDiffusion, TrainConfig, new_model, train_model
from morphogen.tissue.config import DataConfig, ObjectiveConfig
from morphogen.tissue.data import TileDataset
from morphogen.tissue.network import Standardiser
from morphogen.tissue.train import TissueTask
from morphogen.training import Draws

from .conftest import coloured_tiles


def config(steps=4, **changes):
    made = TrainConfig.recipe("tiny", steps)
    return made.replace(data=DataConfig(tile_px=32, hold_out=0.3, group="slide"), **changes)


def test_a_model_learns_the_colour_its_embedding_says(tmp_path):
    settings = config(150)
    settings = settings.replace(training=settings.training.replace(batch_size=8, lr=3e-3, ema_decay=0.9))
    table = coloured_tiles(24, groups=24)
    result = train_model(table, settings, tmp_path, device="cpu")
    assert result.tiles + result.held_out == 24 and result.held_out > 0
    held = table.split(0.3, 0)[1]
    drawn = result.model(held.features["patch"], "fast").images.float().mean((1, 2))
    real = torch.from_numpy(held.read(range(len(held)))).float().mean((1, 2))
    assert np.corrcoef(drawn.ravel(), real.ravel())[0, 1] > 0.7
    assert result.run.metrics["loss"] < 0.5
    again = TissueDiffusion.from_pretrained(result.folder)
    assert again.identity == result.model.identity and again.tile_px == 32
    assert again.facts["tiles"] == result.tiles and again.config.encoder == "texture"
    features = held.features["patch"]
    assert torch.equal(again(features, "fast").images, result.model(features, "fast").images)


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path):
    whole = train_model(coloured_tiles(), config(6), tmp_path / "whole", device="cpu")
    short = config(6)
    short = short.replace(training=short.training.replace(save_every=2, lr_schedule="constant"))
    straight = train_model(coloured_tiles(), short, tmp_path / "straight", device="cpu")

    class Killed(Exception):
        pass

    table = coloured_tiles()
    import morphogen.training.run as run

    original, count = run.save_checkpoint, []

    def once(*arguments, **options):
        original(*arguments, **options)
        count.append(1)
        if len(count) == 1:
            raise Killed

    run.save_checkpoint = once
    try:
        with pytest.raises(Killed):
            train_model(table, short, tmp_path / "killed", device="cpu")
    finally:
        run.save_checkpoint = original
    resumed = train_model(table, short, tmp_path / "killed", device="cpu")
    assert resumed.model.identity == straight.model.identity != whole.model.identity


def test_components_are_fitted_to_the_tiles_and_kept(tmp_path):
    settings = config(2)
    settings = settings.replace(model=ModelConfig.of("tiny", first_stage="components", whitening=1.0))
    table = coloured_tiles(24, groups=24)
    trained = train_model(table, settings, tmp_path / "run", device="cpu").model
    assert (trained.channels, trained.first_stage.factor, trained.network.detail) == (48, 4, None)
    again = TissueDiffusion.from_pretrained(tmp_path / "run" / "model")
    images = torch.from_numpy(table.read(range(4)))
    assert torch.equal(again.latents(images), trained.latents(images)) and again.identity == trained.identity
    assert (again.decode(again.latents(images)).float() - images.float()).abs().max() <= 1
    more = settings.replace(init=str(tmp_path / "run" / "model"), data=settings.data.replace(hold_out=0.6))
    onwards = train_model(table, more, tmp_path / "more", device="cpu").model  # its own components are kept
    assert torch.equal(onwards.first_stage.basis, trained.first_stage.basis)


def test_tokens_are_dropped_alone_and_together():
    settings = ModelConfig.of("tiny", embeddings={"patch": 3, "region": 2})
    model = new_model(settings, tile_px=32)
    for p_uncond, p_both, expected in ((0.3, 0.2, 0.2 + 0.8 * 0.09), (0.3, 0.0, 0.09)):
        train = TrainConfig(objective=ObjectiveConfig(p_uncond=p_uncond, p_both=p_both), model=settings)
        task = TissueTask(model, None, train, coloured_tiles().take([]), {})
        draws = Draws(0, torch.arange(4000))
        found = task._dropped({"patch": torch.ones(4000, 3), "region": torch.ones(4000, 2)}, draws)
        gone = {name: (value == 0).all(1) for name, value in found.items()}
        alone = 1 - (1 - p_both) * (1 - p_uncond)
        assert gone["patch"].float().mean() == pytest.approx(alone, abs=0.03)
        assert (gone["patch"] & gone["region"]).float().mean() == pytest.approx(expected, abs=0.03)
    one = new_model(ModelConfig.of("tiny", embeddings={"patch": 3}), tile_px=32)
    task = TissueTask(
        one, None, TrainConfig(objective=ObjectiveConfig(p_both=0.9)), coloured_tiles().take([]), {}
    )
    dropped = task._dropped({"patch": torch.ones(4000, 3)}, Draws(0, torch.arange(4000)))
    assert (dropped["patch"] == 0).all(1).float().mean() == pytest.approx(0.1, abs=0.03)


def test_embeddings_are_standardised_and_normalised_as_the_model_says():
    generator = np.random.default_rng(0)
    values = (generator.normal(5, [1, 10, 0], (200, 3))).astype(np.float32)
    statistics = Standardiser.of({"patch": values})
    made = {}
    for mode in ("normalise", "standardise", "standardise+normalise"):
        settings = ModelConfig.of("tiny", embeddings={"patch": 3}, features=mode)
        model = new_model(settings, tile_px=32, statistics=statistics)
        vectors = model.vectors("patch", values)
        linear = model.network.embedder.projections["patch"]
        seen = {}
        handle = linear.register_forward_pre_hook(lambda m, x, seen=seen: seen.update(x=x[0]))
        model.network.embedder(patch=vectors)
        handle.remove()
        made[mode] = seen["x"]
        assert torch.equal(model.null()[0, 0], linear.bias)
    assert torch.allclose(made["normalise"].square().mean(1), torch.ones(200), atol=1e-4)
    assert torch.allclose(made["standardise"].mean(0), torch.zeros(3), atol=1e-4)
    assert torch.allclose(
        made["standardise"].std(0, unbiased=False), torch.tensor([1.0, 1.0, 0.0]), atol=1e-4
    )
    assert torch.allclose(made["standardise+normalise"].square().mean(1), torch.ones(200), atol=1e-4)
    assert torch.allclose(
        statistics.inverse("patch", statistics("patch", torch.tensor(values))),
        torch.tensor(values),
        atol=1e-4,
    )


def test_a_column_that_hardly_varies_does_not_outweigh_the_others():
    values = np.random.default_rng(0).normal(0, [1, 1, 1e-4], (200, 3)).astype(np.float32)
    settings = ModelConfig.of("tiny", embeddings={"patch": 3})
    model = new_model(settings, tile_px=32, statistics=Standardiser.of({"patch": values}))
    assert model.vectors("patch", np.array([[0, 0, 1]], np.float32)).abs().max() == 5
    settings = settings.replace(feature_limit=None)
    model = new_model(settings, tile_px=32, statistics=Standardiser.of({"patch": values}))
    assert model.vectors("patch", np.array([[0, 0, 1]], np.float32)).abs().max() > 5000


def test_tiles_are_drawn_in_all_eight_positions():
    table = coloured_tiles()
    corner = np.zeros((32, 32, 3), np.uint8)
    corner[:4, :8] = 255
    table = replace(table.take([0]), read=lambda indices: corner[None])
    whole = TileDataset(table, flip=True, turn=True)
    seen = {whole.draw(0, torch.Generator().manual_seed(i))["image"].numpy().tobytes() for i in range(60)}
    assert len(seen) == 8
    mirrored = TileDataset(table, flip=True)
    assert (
        len(
            {mirrored.draw(0, torch.Generator().manual_seed(i))["image"].numpy().tobytes() for i in range(60)}
        )
        == 4
    )


def test_wrong_embeddings_are_named(tiny):
    with pytest.raises(InputError, match="have 4 columns, this model was trained on 5 of 'texture'"):
        tiny(np.ones((1, 4), np.float32))
    with pytest.raises(InputError, match="NaN"):
        tiny(np.full((1, 5), np.nan, np.float32))
    with pytest.raises(InputError, match="no embedding 'region'"):
        tiny(np.ones((1, 5), np.float32), region=np.ones((1, 5), np.float32))


def test_a_patch_does_not_depend_on_its_batch(tiny):
    features = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    keys = ["a", "b", "c"]
    together = tiny(features, "fast", keys=keys).latents
    alone = torch.cat([tiny(features[i : i + 1], "fast", keys=keys[i : i + 1]).latents for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-4)


def test_starts(shared, tmp_path):
    path = shared / "fixtures" / "ldm_unet" / "checkpoint.ckpt"
    source = TissueDiffusion.from_pretrained(path, heads=1)
    stage = tmp_path / "stage"
    stage.mkdir()
    source.first_stage.save_pretrained(stage)
    settings = source.config.replace(autoencoder=str(stage))
    fresh = new_model(settings, tile_px=64)
    assert not torch.equal(
        fresh.network.latent.unet.conv_in.weight, source.network.latent.unet.conv_in.weight
    )
    model = new_model(settings, tile_px=64, init=path)
    assert "100.0 % of the U-Net's" in model.facts["init"] and "tokens loaded" in model.facts["init"]
    for name, value in source.network.state_dict().items():
        assert torch.equal(model.network.state_dict()[name], value), name
    source.save_pretrained(tmp_path / "own")
    assert "100.0 %" in new_model(settings, tile_px=64, init=tmp_path / "own").facts["init"]
    unet = tmp_path / "diffusers" / "unet"
    source.network.latent.unet.save_pretrained(unet)
    assert "tokens fresh" in new_model(settings, tile_px=64, init=tmp_path / "diffusers").facts["init"]
    other = ModelConfig.of("tiny", embeddings={"patch": 48})
    with pytest.raises(CheckpointError, match=r"only \d+\.\d % of the U-Net's parameters match"):
        new_model(other, tile_px=32, init=path)
    with pytest.raises(ConfigError, match="first stage 'vq' needs trained weights"):
        new_model(settings.replace(autoencoder=None), tile_px=64)


def test_sizes():
    from morphogen.nets import build_unet
    from morphogen.tissue.network import new_embedder, unet_settings

    counts = {}
    for size, channels in (("paper", 3), ("base", 48), ("small", 12), ("tiny", 48)):
        settings = ModelConfig.of(size, embeddings={"patch": 768})
        with torch.device("meta"):
            parts = [build_unet(unet_settings(settings, channels)), new_embedder(settings)]
        counts[size] = [sum(p.numel() for p in part.parameters()) for part in parts]
    assert counts["paper"] == [400_920_579, 393_728]
    assert 60e6 < counts["base"][0] < 90e6
    assert counts["tiny"][0] < counts["small"][0] < 12e6


def test_bf16_is_far_below_what_a_seed_changes(tiny, tiles, tmp_path, monkeypatch):
    """Why networks run in it on GPUs by default; and batches are told before they are drawn."""
    from morphogen.tissue.predict import draw_patches

    told = []
    monkeypatch.setattr(TissueDiffusion, "expect", lambda self, calls: told.append(calls))
    vectors = tiles.features["patch"]
    exact, reduced, other = (
        tiny(vectors, "fast", seed=seed, precision=precision).images.float()
        for seed, precision in ((0, "fp32"), (0, "bf16"), (1, "fp32"))
    )
    assert float((reduced - exact).abs().mean()) < 0.1 * float((other - exact).abs().mean())
    draw_patches(tiny, tiles, tmp_path / "patches", "fast", batch=5)
    from morphogen.tissue.sampling import TissueSampler

    assert told == [3 * TissueSampler.of("fast").evaluations(tiny.schedule)]


def test_no_training_step_waits_for_the_device(tiles, looks):
    model = new_model(ModelConfig.of("tiny", embeddings={"patch": 5}, encoder="texture"), tile_px=32, mpp=1.0)
    dataset = TileDataset(tiles, flip=True, turn=True)
    places = [dataset.place(k, torch.Generator().manual_seed(k)) for k in range(4)]
    for part in model.components().values():
        if part is not None:
            part.to("meta")
    batch = {name: value.to("meta") for name, value in dataset.cut(places).items()}
    task = TissueTask(model, dataset, TrainConfig(), tiles, {})
    with looks() as looked:
        figures = task.loss(task.model, dataset.finish(batch), Draws(0, torch.arange(4), "meta"))
        figures["loss"].mean().backward()
    assert looked.found == [] and figures["loss"].device.type == "meta"


def test_errors_by_channel_are_in_units_of_the_linear_estimate(tmp_path, monkeypatch):
    tasks = []
    original = TissueTask.__init__

    def kept(self, *arguments, **options):
        original(self, *arguments, **options)
        tasks.append(self)

    monkeypatch.setattr(TissueTask, "__init__", kept)
    objective = ObjectiveConfig(by_channel=True, p_uncond=0.0)
    made = train_model(coloured_tiles(), config(2, objective=objective), tmp_path, device="cpu")
    (task,) = tasks
    images = torch.from_numpy(task.dataset.table.read(range(len(task.dataset))))
    expected = made.model.latents(images).var(dim=(0, 2, 3))
    torch.testing.assert_close(task.variance.flatten(), expected, rtol=1e-3, atol=1e-6)
    with pytest.raises(ConfigError, match="two weights"):
        ObjectiveConfig(by_channel=True, min_snr_gamma=5.0)


def test_the_weight_of_small_gives_way_to_what_is_chosen():
    assert TrainConfig.load().objective.by_channel and TrainConfig.recipe("small").objective.by_channel
    for chosen in ({"model": {"prediction": "v"}}, {"objective": {"min_snr_gamma": 5.0}}):
        assert not TrainConfig.load(overrides=chosen).objective.by_channel
    wrong = {"model": {"prediction": "v"}, "objective": {"by_channel": True}}
    with pytest.raises(ConfigError, match="by_channel is for networks that predict x0, not v"):
        TrainConfig.load(overrides=wrong)
