"""Encoder guidance: what is drawn comes nearer to its embedding, patch by patch and window by window."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from morphogen.core.errors import ConfigError
from morphogen.slides import get_encoder
from morphogen.tissue import CanvasConfig, EmbeddingGrid, ModelConfig, TissueSampler, draw_canvas, new_model
from morphogen.tissue.config import EvaluateConfig, PatchesConfig
from morphogen.tissue.network import Standardiser


@pytest.fixture(scope="module")
def guidable():
    """A model of ``texture`` embeddings with fresh weights, and real embeddings of noise in several colours."""
    generator = np.random.default_rng(0)
    colours = generator.integers(60, 240, (8, 1, 1, 3)).astype(float)
    images = np.clip(colours + generator.normal(0, 15, (8, 32, 32, 3)), 0, 255).astype(np.uint8)
    features = get_encoder("texture", device="cpu")(images).numpy()
    config = ModelConfig.of("tiny", embeddings={"patch": 280}, encoder="texture")
    model = new_model(config, tile_px=32, mpp=1.0, statistics=Standardiser.of({"patch": features}))
    return model, features


SAMPLER = TissueSampler.named("fast").replace(guidance_scale=1.0, encoder_guidance_interval=(0.0, 1000.0))


def distance(model, wanted, images) -> float:
    encoder = get_encoder("texture", device="cpu")
    a, b = (model.statistics("patch", torch.as_tensor(v)).clamp(-5, 5) for v in (wanted, encoder(images)))
    return float((a - b).abs().mean())


def test_guided_patches_lie_nearer_to_their_embeddings(guidable):
    model, features = guidable
    plain = model(features[:3], SAMPLER).images
    pulled = model(features[:3], SAMPLER.replace(encoder_guidance=1.0)).images
    own = distance(model, features[:3], pulled)
    assert own < distance(model, features[:3], plain) - 0.2
    assert own < distance(model, features[[1, 2, 0]], pulled)


def test_a_guided_canvas_shows_the_vector_of_each_cell(guidable, tmp_path):
    model, features = guidable
    grid = EmbeddingGrid(features[:4].reshape(2, 2, -1))
    cells = {}
    for rate in (0.0, 1.0):
        config = CanvasConfig(
            sampler=SAMPLER.replace(encoder_guidance=rate),
            codec="deflate",
            overlapped_steps=1,
        )
        for batch in (1, 8):
            made = draw_canvas(model, grid, tmp_path / f"{rate}-{batch}", config.replace(batch=batch))
            import tifffile

            image = tifffile.imread(made.image)
            assert np.array_equal(cells.setdefault(rate, image), image)
    away = []
    for image in cells.values():
        tiles = image.reshape(2, 32, 2, 32, 3).swapaxes(1, 2).reshape(4, 32, 32, 3)
        away.append(distance(model, features[:4], torch.from_numpy(np.ascontiguousarray(tiles))))
    assert away[1] < away[0] - 0.2


def test_cells_are_pulled_where_they_lie_to_their_own_vectors(guidable, tmp_path, monkeypatch):
    """Not the windows, which move and lie between the cells, where no vector is known exactly."""
    from morphogen.tissue.guidance import EncoderGuide

    model, features = guidable
    seen = []
    measure = EncoderGuide.distance
    monkeypatch.setattr(EncoderGuide, "distance", lambda *given: seen.append(given[2]) or measure(*given))
    sampler = SAMPLER.replace(encoder_guidance=1.0, encoder_guidance_steps=2)
    config = CanvasConfig(sampler=sampler, overlapped_steps=1, batch=3)
    draw_canvas(model, EmbeddingGrid(features[:6].reshape(2, 3, -1)), tmp_path, config)
    wanted = model.guide(sampler).wanted(features[:6])
    pulls = torch.cat(seen).reshape(-1, 6, wanted.shape[1])
    assert len(pulls) == 2 * len(sampler.times(model.schedule))
    assert all(torch.equal(each, wanted) for each in pulls)


@pytest.mark.parametrize("memory_gib", [1.0, 0.0], ids=["memory", "disk"])
def test_a_guided_canvas_goes_on_to_the_same_bytes(guidable, tmp_path, memory_gib, monkeypatch):
    from morphogen.tissue.guidance import EncoderGuide

    model, features = guidable
    grid = EmbeddingGrid(features[:6].reshape(2, 3, -1))
    sampler = SAMPLER.replace(encoder_guidance=1.0, encoder_guidance_steps=2)
    config = CanvasConfig(sampler=sampler, overlapped_steps=1, memory_gib=memory_gib)
    size = {"width": 90, "height": 50}  # cells of the last row and column are cut
    in_memory = config.replace(memory_gib=1.0)
    whole = draw_canvas(model, grid, tmp_path / "whole", in_memory, **size).image.read_bytes()
    calls, measure = [], EncoderGuide.distance

    def dies(*given):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return measure(*given)

    with monkeypatch.context() as patched:
        patched.setattr(EncoderGuide, "distance", dies)
        with pytest.raises(KeyboardInterrupt):
            draw_canvas(model, grid, tmp_path / "killed", config, **size)
    assert (tmp_path / "killed" / ".canvas" / "state.pt").exists()
    assert (tmp_path / "killed" / ".canvas" / "arrays").exists() == (memory_gib == 0)
    assert draw_canvas(model, grid, tmp_path / "killed", config, **size).image.read_bytes() == whole


def test_an_edit_is_guided_and_keeps_what_its_cells_do_not_reach(guidable):
    from morphogen.tissue.canvases.edits import edit_image

    model, features = guidable
    before = EmbeddingGrid(features[[0] * 9].reshape(1, 9, -1))
    changed = before.pasted(EmbeddingGrid(features[1:2].reshape(1, 1, -1)), 0, 7)
    image = np.random.default_rng(0).integers(0, 255, (32, 288, 3)).astype(np.uint8)
    away = []
    for rate in (0.0, 1.0):
        sampler = SAMPLER.replace(encoder_guidance=rate, encoder_guidance_steps=3)
        after = edit_image(model, image, before, changed, CanvasConfig(sampler=sampler, overlapped_steps=1))
        assert (after[:, : 5 * 32] == image[:, : 5 * 32]).all()
        cell = np.ascontiguousarray(after[None, :, 7 * 32 : 8 * 32])
        away.append(distance(model, features[1:2], torch.from_numpy(cell)))
    assert away[1] < away[0] - 0.1


def test_a_model_that_names_no_encoder_cannot_be_guided(guidable):
    model, features = guidable
    nameless = new_model(ModelConfig.of("tiny", embeddings={"patch": 280}), tile_px=32)
    with pytest.raises(ConfigError, match="which encoder"):
        nameless(features[:1], SAMPLER.replace(encoder_guidance=1.0))


@pytest.mark.parametrize("kind", [PatchesConfig, EvaluateConfig, CanvasConfig])
def test_the_short_name_of_the_setting(kind):
    assert kind.load(overrides={"encoder_guidance": "0.5"}).sampler.encoder_guidance == 0.5
