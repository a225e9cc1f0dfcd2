"""Encoder guidance: what is drawn comes nearer to its embedding, patch by patch and window by window."""

from __future__ import annotations

import itertools

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
            encoder_guidance_until=0.0,
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


def test_windows_are_not_pulled_apart_in_the_last_steps(guidable, tmp_path, monkeypatch):
    """Between two windows that want different things, the guided steps end before the picture is made one."""
    from morphogen.tissue.guidance import EncoderGuide

    model, features = guidable
    calls = []
    measure = EncoderGuide.distance
    monkeypatch.setattr(
        EncoderGuide, "distance", lambda *given: calls.append(len(given[1])) or measure(*given)
    )
    sampler = SAMPLER.replace(encoder_guidance=1.0, encoder_guidance_steps=1)
    grid = EmbeddingGrid(features[:1].reshape(1, 1, -1))
    for until in (0.0, 500.0, 1001.0):
        calls.append(0)
        draw_canvas(
            model, grid, tmp_path / f"{until}", CanvasConfig(sampler=sampler, encoder_guidance_until=until)
        )
    ends = [k for k, size in enumerate(calls) if size == 0] + [len(calls)]
    asked = [end - start - 1 for start, end in itertools.pairwise(ends)]
    assert asked[2] == 0 < asked[1] < asked[0]


def test_a_model_that_names_no_encoder_cannot_be_guided(guidable):
    model, features = guidable
    nameless = new_model(ModelConfig.of("tiny", embeddings={"patch": 280}), tile_px=32)
    with pytest.raises(ConfigError, match="which encoder"):
        nameless(features[:1], SAMPLER.replace(encoder_guidance=1.0))


@pytest.mark.parametrize("kind", [PatchesConfig, EvaluateConfig, CanvasConfig])
def test_the_short_name_of_the_setting(kind):
    assert kind.load(overrides={"encoder_guidance": "0.5"}).sampler.encoder_guidance == 0.5
