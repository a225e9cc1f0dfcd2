"""The published models through ``TissueDiffusion.from_pretrained``: numbers, windows, canvases."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from morphogen.core.errors import CheckpointError
from morphogen.diffusion import WindowLayout
from morphogen.tissue import TissueDiffusion, TissueSampler
from morphogen.tissue.canvases.config import CanvasConfig
from morphogen.tissue.canvases.decoding import decoded_bands
from morphogen.tissue.canvases.draw import draw_latents
from morphogen.tissue.canvases.grid import EmbeddingGrid, vectors_at
from morphogen.tissue.canvases.plan import CanvasPlan


def close(ours, reference, tolerance):
    torch.testing.assert_close(ours, reference, atol=tolerance * float(reference.abs().max()), rtol=0)


@pytest.fixture(scope="module")
def model(shared):
    read = TissueDiffusion.from_pretrained(shared / "fixtures" / "ldm_unet" / "checkpoint.ckpt", heads=1)
    read.tile_px = 16 * read.first_stage.factor  # the fixture's windows are 16 latent cells
    return read


@torch.no_grad()
def test_network_tokens_and_first_stage_are_the_published_ones(model, tensors):
    T = tensors("ldm_unet")
    close(model.network(T["x"], T["t"], context=T["context"]), T["out"], 3e-5)
    close(model.network(T["x_rect"], T["t_rect"], context=T["context_rect"]), T["out_rect"], 3e-5)
    close(model.context(T["emb_patch"]), T["learned_conditioning"], 3e-5)


@pytest.mark.parametrize("guidance", ["cfg", "nocfg"])
def test_patches_are_the_published_ones(model, tensors, guidance):
    T = tensors("ldm_sampling")
    sampler = TissueSampler.named("reference").replace(guidance_scale=3.0 if guidance == "cfg" else 1.0)
    assert sampler.times(model.schedule) == T[f"plms_{guidance}_timesteps"].tolist()
    made = model(T["emb_patch"], sampler, noise=lambda step: T["x_T"])
    close(made.latents, T[f"plms_{guidance}"], 1e-5)
    assert made.images.dtype == torch.uint8


def test_a_folder_imported_from_it_gives_the_same(model, shared, tmp_path, tensors):
    from morphogen.checkpoints import load_ldm, save_latent_diffusion

    save_latent_diffusion(
        load_ldm(shared / "fixtures" / "ldm_unet" / "checkpoint.ckpt", heads=1), tmp_path / "m"
    )
    again = TissueDiffusion.from_pretrained(tmp_path / "m")
    vectors = tensors("ldm_sampling")["emb_patch"]
    assert torch.equal(again.context(vectors), model.context(vectors))
    model.save_pretrained(tmp_path / "own")
    own = TissueDiffusion.from_pretrained(tmp_path / "own")
    assert own.identity == model.identity and own.config == model.config


def test_window_vectors_are_the_published_ones(tensors):
    T = tensors("large_image")
    grid = T["embeddings"].reshape(4, 4, -1)
    found = vectors_at(grid, [tuple(each) for each in T["window_positions"].tolist()], 16)
    torch.testing.assert_close(found, T["window_embeddings_raw"], atol=1e-5, rtol=0)
    for name in ("slerp_extra_0", "slerp_extra_1", "slerp_extra_2"):
        at = tuple(T[f"{name}_ij"].tolist())
        torch.testing.assert_close(vectors_at(grid, [at], 16), T[name], atol=1e-5, rtol=0)


def plan_of(model, T, steps):
    config = CanvasConfig.named("reference-canvas")
    config = config.replace(
        sampler=config.sampler.replace(
            steps=steps, guidance_scale=4.0, eta=0.0 if steps == 50 else "training"
        ),
        stride=8,
        batch=49,
    )
    grid = EmbeddingGrid(T["embeddings"].reshape(4, 4, -1).numpy())
    plan = CanvasPlan(model, grid, config)
    assert plan.layout.positions == [tuple(each) for each in T["window_positions"].tolist()]
    return grid, plan


@pytest.mark.parametrize("steps", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_canvases_are_the_published_ones(model, tensors, monkeypatch, steps):
    """The preset ``reference``: network told one step more, variance of single steps, uniform means over windows."""
    T = tensors("large_image")
    grid, plan = plan_of(model, T, steps)

    class Noise:
        def __init__(self, seed, shape, block):
            self.shape = shape

        def __call__(self, step):
            return T["x_init"] if step < 0 else T["z_noises_ddim1"][step]

    monkeypatch.setattr("morphogen.tissue.canvases.draw.CanvasNoise", Noise)
    made = draw_latents(model, grid, plan)
    close(made, T["final_ddim0" if steps == 50 else "final_ddim1_stride100"], 5e-5)


def test_decoding_in_bands_is_the_published_one(model, tensors):
    T = tensors("large_image")
    bands = list(decoded_bands(model.first_stage, T["latent"], window=16, stride=8, batch=7))
    assert len(bands) == len(WindowLayout((64, 64), 16, 8).starts[0])
    whole = torch.from_numpy(np.concatenate(bands)).permute(2, 0, 1)[None]
    torch.testing.assert_close(whole[:, :, 64:192, 64:192], T["vis_float_crop"], atol=1e-4, rtol=0)


def test_the_published_canvas_costs_what_the_paper_spends(shared):
    """169 windows, twice, 50 times: 1,107 network megapixels per megapixel ... of 1024² with windows of 256²."""
    model = TissueDiffusion.from_pretrained(shared / "fixtures" / "ldm_unet" / "checkpoint.ckpt", heads=1)
    grid = EmbeddingGrid(np.ones((4, 4, 48), np.float32))
    plan = CanvasPlan(model, grid, CanvasConfig.named("reference-canvas"))
    assert len(plan.layout) == 169 and plan.evaluations() == 16_900
    assert plan.cost() == pytest.approx(16_900 * 256**2 / 1024**2)
    assert 1100 < 16_900 * 256**2 / 1e6 < 1110  # in megapixels of 10⁶ for one canvas of 1024²


def test_what_is_no_tissue_model_is_named(shared, tmp_path):
    with pytest.raises(CheckpointError, match="no latent diffusion U-Net"):
        TissueDiffusion.from_pretrained(shared / "fixtures" / "hisdiff_forward" / "0000100.pt")
    with pytest.raises(CheckpointError, match="no embedder of representations"):
        TissueDiffusion.from_pretrained(_without_embedder(shared, tmp_path), heads=1)


def _without_embedder(shared, tmp_path):
    from morphogen.checkpoints import read_weights

    state = read_weights(shared / "fixtures" / "ldm_unet" / "checkpoint.ckpt").state()
    kept = {key: value.clone() for key, value in state.items() if not key.startswith("cond_stage_model.")}
    torch.save({"state_dict": kept}, tmp_path / "plain.ckpt")
    return tmp_path / "plain.ckpt"
