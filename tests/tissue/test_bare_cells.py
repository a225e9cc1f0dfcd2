"""Bare glass: known from the slide, filled with its colour, and nothing is asked for it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from morphogen.core.errors import InputError
from morphogen.diffusion import PerWindow
from morphogen.slides import get_encoder
from morphogen.tissue import EmbeddingGrid, ModelConfig, grid_of_region, new_model
from morphogen.tissue.canvases.bare import BareCells
from morphogen.tissue.canvases.config import CanvasConfig
from morphogen.tissue.canvases.draw import draw_canvas
from morphogen.tissue.canvases.edits import changed_part, edit_image
from morphogen.tissue.canvases.plan import CanvasPlan
from morphogen.tissue.sampling import TissueSampler

from .conftest import watched

COLOUR = np.array([243.0, 241.0, 244.0])


def quick(**changes):
    return CanvasConfig(sampler=TissueSampler(steps=3), overlapped_steps=1, codec="deflate", **changes)


def half_bare(rows=2, columns=6, **changes):
    """Tissue on the left third, glass on the rest."""
    patch = np.random.default_rng(0).normal(size=(rows, columns, 5)).astype(np.float32)
    bare = np.zeros((rows, columns), bool)
    bare[:, columns // 3 :] = True
    return EmbeddingGrid(patch, bare=bare, glass=COLOUR, **changes)


def drawn(model, grid, out, config):
    result = draw_canvas(model, grid, out, config)
    return tifffile.imread(result.image), result


def test_glass_has_its_colour_and_costs_nothing(tiny, tmp_path):
    grid = half_bare()
    for blend in ("shifted", "feather"):
        config = quick(blend=blend, batch=1)
        with watched(tiny) as seen:
            image, result = drawn(tiny, grid, tmp_path / blend, config)
        # A quarter of a cell goes over from the cells that are drawn, beyond that all is glass.
        assert np.abs(image[:, 2 * 32 + 9 :] - COLOUR).max() <= 1, blend
        assert image[:, : 2 * 32].std() > 5
        assert (image <= COLOUR).all()
        plain = CanvasPlan(tiny, grid, config.replace(glass="draw"))
        assert sum(seen) == result.evaluations < 0.75 * plain.evaluations(), blend


def test_glass_on_a_disk_and_after_a_kill_is_the_same(tiny, tmp_path):
    grid = half_bare()
    whole, _ = drawn(tiny, grid, tmp_path / "memory", quick())
    disk, _ = drawn(tiny, grid, tmp_path / "disk", quick(memory_gib=0.0))
    assert np.array_equal(whole, disk)
    with watched(tiny, dies_at=2), pytest.raises(KeyboardInterrupt):
        draw_canvas(tiny, grid, tmp_path / "killed", quick())
    again, _ = drawn(tiny, EmbeddingGrid.load(tmp_path / "killed" / "grid.npz"), tmp_path / "killed", quick())
    assert np.array_equal(whole, again)


def test_canvases_of_glass_alone_and_of_any_size(tiny, tmp_path):
    grid = half_bare(2, 3)
    everything = EmbeddingGrid(grid.patch, bare=np.ones((2, 3), bool), glass=COLOUR)
    image, result = drawn(tiny, everything, tmp_path / "all", quick())
    assert result.evaluations == 0 and np.abs(image - COLOUR).max() <= 1
    for height, width in ((20, 90), (50, 20), (33, 70)):
        config = quick()
        made = draw_canvas(tiny, half_bare(2, 3), tmp_path / f"{height}", config, width=width, height=height)
        assert tifffile.imread(made.image).shape == (height, width, 3)


def test_encoder_guidance_pulls_no_glass(tiny):
    """Neither where nothing is asked nor in a bare cell beside tissue, which is drawn in part."""
    grid = half_bare(1, 6)
    plan = CanvasPlan(tiny, grid, quick())
    x0 = plan.glass.latent.repeat(1, 1, 1, 6)
    wanted = PerWindow(lambda positions: torch.zeros(len(positions), 1))
    moved = plan.pulled(lambda items, wanted: items + 1, x0, wanted) - x0
    assert torch.allclose(moved[..., : 2 * plan.window], torch.ones(1), atol=1e-5)
    assert not moved[..., 2 * plan.window :].any()


def test_the_fill_is_soft_beside_tissue_alone(tiny):
    bare = np.array([[False, True, True]])
    glass = BareCells(bare, COLOUR, tiny.first_stage, cell=16)
    kept = glass.kept([(0, 0), (0, 16), (0, 32), (0, 24)])[:, 0, 0]
    assert not kept[0].any()
    assert 0 < kept[1][0] < kept[1][1] < kept[1][3] == 1 and bool((kept[1][4:] == 1).all())
    assert bool((kept[2:] == 1).all())
    assert glass.settled((0, 16)) is None and glass.settled((0, 24)) is not None
    assert glass.inside([(0, 0), (0, 16), (0, 8)]).flatten().tolist() == [False, True, False]
    assert torch.allclose(
        tiny.first_stage.images(glass.latent)[0, :, 3, 3] * 127.5 + 127.5,
        torch.tensor(COLOUR).float(),
        atol=1e-3,
    )


def test_a_slide_shows_which_cells_are_glass(tmp_path, monkeypatch):
    model = new_model(
        ModelConfig.of("tiny", embeddings={"patch": 280}, encoder="texture"), tile_px=32, mpp=1.0
    )
    image = np.full((64, 96, 3), COLOUR, np.float64)
    image[:, :32] = (200, 120, 170)
    image[:20, 32:64] = (180, 100, 160)
    noise = np.random.default_rng(0).normal(0, 1, image.shape)
    Image.fromarray(np.clip(image + noise, 0, 255).astype(np.uint8)).save(tmp_path / "a.png")
    grid = grid_of_region(model, tmp_path / "a.png", get_encoder("texture"), mpp=1.0)
    assert grid.bare.tolist() == [[False, False, True], [False, True, True]]
    monkeypatch.setattr("morphogen.tissue.canvases.sources._BATCH", 1)  # most batches without glass
    assert np.array_equal(
        grid_of_region(model, tmp_path / "a.png", get_encoder("texture"), mpp=1.0).bare, grid.bare
    )
    assert np.abs(grid.glass - COLOUR).max() <= 1
    saved = EmbeddingGrid.load(grid.save(tmp_path / "grid.npz"))
    assert saved.identity() == grid.identity() != EmbeddingGrid(grid.patch).identity()
    assert np.array_equal(saved.part(slice(0, 1), slice(1, 3)).bare, [[False, True]])
    pasted = EmbeddingGrid(grid.patch).pasted(saved, 0, 0)
    assert np.array_equal(pasted.bare, grid.bare) and np.array_equal(pasted.glass, grid.glass)


def test_glass_that_is_no_glass_is_refused():
    patch = np.zeros((2, 3, 5), np.float32)
    for bare, colour in (
        (np.ones((2, 2), bool), COLOUR),
        (np.ones((2, 3)), COLOUR),
        (np.ones((2, 3), bool), None),
        (np.ones((2, 3), bool), np.array([300.0, 0, 0])),
    ):
        with pytest.raises(InputError, match="glass"):
            EmbeddingGrid(patch, bare=bare, glass=colour)
    with pytest.raises(InputError, match="rows, columns, D"):
        EmbeddingGrid(patch[0, 0], bare=np.ones((2, 3), bool), glass=COLOUR)


def test_a_cell_that_becomes_tissue_is_drawn_anew(tiny):
    before = half_bare(1, 6)
    image = np.full((32, 6 * 32, 3), COLOUR, np.uint8)
    after = dataclasses.replace(before, bare=np.array([[False, False, True, True, True, False]]))
    assert changed_part(before, after).tolist() == [[False] * 5 + [True]]
    edited = edit_image(tiny, image, before, after, quick())
    assert np.array_equal(edited[:, : 3 * 32], image[:, : 3 * 32]) and edited[:, 5 * 32 + 9 :].std() > 5
