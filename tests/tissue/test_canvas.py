"""Grids and canvases: which cell conditions what, any size, seams, resume to the same bytes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tifffile
import torch

from morphogen.core.errors import ConfigError, InputError, OutputError
from morphogen.metrics.seams import seam_score
from morphogen.tissue.canvases.config import CanvasConfig
from morphogen.tissue.canvases.draw import draw_canvas
from morphogen.tissue.canvases.edits import edit_image, outpaint_image
from morphogen.tissue.canvases.grid import EmbeddingGrid, conditions, interpolated, slerp, vectors_at
from morphogen.tissue.canvases.plan import CanvasPlan
from morphogen.tissue.sampling import TissueSampler

from .conftest import watched


def quick(**changes):
    return CanvasConfig(sampler=TissueSampler(steps=4), overlapped_steps=1, codec="deflate", **changes)


def random_grid(rows, columns, seed=0):
    return EmbeddingGrid(np.random.default_rng(seed).normal(size=(rows, columns, 5)).astype(np.float32))


@pytest.mark.parametrize("shape", [(4, 4), (2, 5), (3, 1)])
def test_every_cell_has_its_own_vector(shape):
    grid = torch.from_numpy(random_grid(*shape).patch)
    for row, column in itertools.product(*map(range, shape)):
        assert torch.equal(vectors_at(grid, [(row * 16, column * 16)], 16)[0], grid[row, column])
    between = vectors_at(grid, [(8, 0)], 16)[0]
    if shape[0] > 1:
        expected = slerp(grid[:1, 0], grid[1:2, 0], torch.tensor([0.5]))[0]
        assert torch.allclose(between, expected)
    assert torch.equal(vectors_at(grid, [(16 * shape[0] - 1, 16 * shape[1] - 1)], 16)[0], grid[-1, -1])


def test_slerp_of_vectors_without_an_arc():
    a = torch.tensor([[1.0, 0, 0]])
    half = torch.tensor([0.5])
    cases = {
        "zero": (torch.zeros(1, 3), [0.5, 0, 0]),
        "antipodal": (-a, [0, 0, 0]),
        "same": (a, [1, 0, 0]),
        "nearly equal": (a + torch.tensor([[0, 1e-4, 0]]), [1, 5e-5, 0]),
        "right angle": (torch.tensor([[0, 2.0, 0]]), [0.5**0.5, 2 * 0.5**0.5, 0]),
    }
    for name, (b, expected) in cases.items():
        assert np.allclose(slerp(a, b, half)[0].numpy(), expected, atol=1e-6), name
    assert torch.equal(slerp(torch.zeros(1, 3), torch.zeros(1, 3), half), torch.zeros(1, 3))
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 500, 3, generator=generator)
    y[::2] = -x[::2] * (1 + 1e-4 * torch.randn(250, 1, generator=generator))
    assert torch.isfinite(slerp(x, y, torch.rand(500, generator=generator))).all()


def test_a_condition_reaches_the_place_of_its_cell(tiny):
    """One cell differs: the canvas differs there, and not beyond the reach of its vector."""
    grid = random_grid(1, 6)
    other = grid.patch.copy()
    other[0, 4] += 3
    tokens = [
        conditions(g, tiny.window, tiny.network.embedder, tiny.vectors) for g in (grid, EmbeddingGrid(other))
    ]
    positions = [(0, c) for c in range(0, 6 * tiny.window, tiny.window // 2)]
    with torch.no_grad():
        differs = (tokens[0](positions) != tokens[1](positions)).flatten(1).any(1)
    assert [p[1] / tiny.window for p, d in zip(positions, differs, strict=True) if d] == [3.5, 4.0, 4.5]


@pytest.mark.parametrize("blend", ["shifted", "feather", "uniform"])
@pytest.mark.parametrize("size", [(64, 96), (50, 70), (20, 90)])
def test_canvases_of_any_size(tiny, tmp_path, blend, size):
    height, width = size
    result = draw_canvas(tiny, random_grid(2, 3), tmp_path, quick(blend=blend), width=width, height=height)
    with tifffile.TiffFile(result.image) as file:
        image = file.asarray()
        assert 'PhysicalSizeX="1.0"' in file.ome_metadata
    assert image.shape == (height, width, 3) and image.std() > 0
    assert result.evaluations > 0 and (tmp_path / "grid.npz").is_file()


def test_evaluations_are_counted_as_they_are_made(tiny, tmp_path):
    config = quick(batch=1)
    for each in (
        config,
        config.replace(blend="feather"),
        config.replace(sampler=TissueSampler(steps=3, solver="ddim", guidance_scale=1.0)),
    ):
        plan = CanvasPlan(tiny, random_grid(3, 3), each)
        with watched(tiny) as seen:
            draw_canvas(tiny, random_grid(3, 3), tmp_path / each.blend / each.sampler.solver, each)
        assert sum(seen) == plan.evaluations()


def image_of(folder):
    return (folder / "canvas.ome.tif").read_bytes()


@pytest.mark.parametrize("memory_gib", [1.0, 0.0], ids=["memory", "disk"])
def test_a_killed_canvas_goes_on_to_the_same_bytes(tiny, tmp_path, memory_gib):
    grid, config = random_grid(2, 3), quick(memory_gib=memory_gib)
    draw_canvas(tiny, grid, tmp_path / "whole", config)
    with watched(tiny, dies_at=5), pytest.raises(KeyboardInterrupt):
        draw_canvas(tiny, grid, tmp_path / "killed", config)
    assert not (tmp_path / "killed" / "canvas.ome.tif").exists()
    draw_canvas(tiny, grid, tmp_path / "killed", config)
    assert image_of(tmp_path / "killed") == image_of(tmp_path / "whole")
    assert not (tmp_path / "killed" / ".canvas").exists()
    kept = draw_canvas(tiny, grid, tmp_path / "killed", config)  # finished: nothing is drawn again
    assert kept.width == 96 and image_of(tmp_path / "killed") == image_of(tmp_path / "whole")
    with pytest.raises(OutputError, match="holds a canvas of another run"):
        draw_canvas(tiny, grid, tmp_path / "killed", config.replace(seed=1))


@pytest.mark.parametrize("begun", [1.0, 0.0], ids=["in memory", "on disk"])
def test_a_canvas_goes_on_with_more_or_less_memory(tiny, tmp_path, begun):
    grid, config = random_grid(2, 3), quick()
    draw_canvas(tiny, grid, tmp_path / "whole", config)
    with watched(tiny, dies_at=5), pytest.raises(KeyboardInterrupt):
        draw_canvas(tiny, grid, tmp_path / "killed", config.replace(memory_gib=begun))
    assert (tmp_path / "killed" / ".canvas" / "state.pt").exists()
    draw_canvas(tiny, grid, tmp_path / "killed", config.replace(memory_gib=1 - begun))
    assert image_of(tmp_path / "killed") == image_of(tmp_path / "whole")


def test_a_canvas_that_was_begun_with_eps_on_disk_goes_on(tiny, tmp_path, monkeypatch):
    """Arrays of a run by a version that wrote eps, too: its state names x and x0 alone, and those are read."""
    grid, config = random_grid(2, 3), quick(memory_gib=0)
    draw_canvas(tiny, grid, tmp_path / "whole", config)
    plan = CanvasPlan.__init__

    def as_before(self, *given, **named):
        plan(self, *given, **named)
        self.schedule = None

    with monkeypatch.context() as patched:
        patched.setattr(CanvasPlan, "__init__", as_before)
        with watched(tiny, dies_at=5), pytest.raises(KeyboardInterrupt):
            draw_canvas(tiny, grid, tmp_path / "killed", config)
    begun = len(list((tmp_path / "killed" / ".canvas" / "arrays").glob("*.npy")))
    assert begun > 0 and (tmp_path / "killed" / ".canvas" / "state.pt").exists()
    draw_canvas(tiny, grid, tmp_path / "killed", config)
    assert image_of(tmp_path / "killed") == image_of(tmp_path / "whole")


def test_memory_and_disk_and_any_batch_give_one_image(tiny, tmp_path):
    grid = random_grid(2, 2)
    images = []
    for name, config in {
        "memory": quick(batch=8),
        "disk": quick(batch=8, memory_gib=0),
        "one": quick(batch=1),
        "many": quick(batch=32),
    }.items():
        result = draw_canvas(tiny, grid, tmp_path / name, config)
        images.append(tifffile.imread(result.image).astype(int))
    assert (images[0] == images[1]).all()
    # Another batch size may round another way in the last bit of a convolution, a byte at most.
    assert max(np.abs(image - images[0]).max() for image in images[2:]) <= 1


def test_full_disk_leaves_nothing_half_written(tiny, tmp_path, monkeypatch):
    import errno

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("morphogen.diffusion.state.torch.save", full)
    with pytest.raises((OutputError, OSError), match="disk is full|No space"):
        draw_canvas(tiny, random_grid(1, 2), tmp_path, quick())
    assert not (tmp_path / "canvas.ome.tif").exists()


def test_an_edit_keeps_what_its_cells_do_not_reach(tiny):
    before = random_grid(3, 9)
    changed = before.pasted(EmbeddingGrid(np.full((1, 1, 5), 4, np.float32)), 1, 7)
    image = np.random.default_rng(0).integers(0, 255, (96, 288, 3)).astype(np.uint8)
    after = edit_image(tiny, image, before, changed, quick())
    differs = (after != image).any(2)
    assert differs[40:56, 232:248].mean() > 0.9  # the cell itself
    assert not differs[:, : 5 * 32].any()
    assert (edit_image(tiny, image, before, before, quick()) == image).all()


def test_outpainting_keeps_the_image(tiny):
    image = np.random.default_rng(0).integers(0, 255, (32, 64, 3)).astype(np.uint8)
    made = outpaint_image(tiny, image, random_grid(2, 4), 1, 1, quick())
    assert made.shape == (64, 128, 3)
    inner = (slice(32 + 12, 64), slice(32 + 12, 96 - 12))
    assert (made[inner] == image[12:, 12:-12]).all()
    assert made[:32].std() > 0
    with pytest.raises(InputError, match="not whole cells"):
        outpaint_image(tiny, image[:30], random_grid(2, 4), 0, 0, quick())
    with pytest.raises(InputError, match="not within the grid"):
        outpaint_image(tiny, image, random_grid(2, 4), 2, 0, quick())


def test_grids_are_checked(tiny, tmp_path):
    bad = random_grid(2, 2).patch
    bad[1, 0, 3] = np.nan
    with pytest.raises(InputError, match="not all numbers in 1 of . cells .first: row 1, column 0"):
        EmbeddingGrid(bad)
    with pytest.raises(InputError, match=r"is .rows, columns, D., not \(3, 5\)"):
        EmbeddingGrid(np.zeros((3, 5), np.float32))
    with pytest.raises(InputError, match="have 6 columns, this model was trained on 5 of 'texture'"):
        draw_canvas(tiny, EmbeddingGrid(np.ones((1, 1, 6), np.float32)), tmp_path / "a", quick())
    with pytest.raises(InputError, match="needs 4 cells of 32 px, the grid has 2"):
        draw_canvas(tiny, random_grid(2, 2), tmp_path / "b", quick(), width=100)
    with pytest.raises(ConfigError, match="smaller than"):
        draw_canvas(tiny, random_grid(2, 2), tmp_path / "b", quick(), width=1)
    grid = random_grid(2, 3)
    assert (EmbeddingGrid.load(grid.save(tmp_path / "g.npz")).patch == grid.patch).all()
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="is not a grid of embeddings"):
        EmbeddingGrid.load(tmp_path / "o.npy")


def test_interpolation_runs_from_end_to_end():
    a, b = np.eye(5, dtype=np.float32)[:2]
    grid = interpolated(np.stack([a, b]), (2, 5))
    assert np.allclose(grid.patch[:, 0], a, atol=1e-6) and np.allclose(grid.patch[1, -1], b, atol=1e-6)
    assert np.allclose(np.linalg.norm(grid.patch, axis=2), 1, atol=1e-6)  # on the arc, not on the chord
    with pytest.raises(InputError, match="between 2 embeddings or 4 corners"):
        interpolated(np.ones((3, 5)), (2, 2))


def test_canvases_cost_a_small_part_of_the_published_recipe():
    """A canvas of 1024² from windows of 256²: network megapixels per megapixel."""
    from morphogen.tissue import ModelConfig, new_model

    model = new_model(ModelConfig.of("tiny", embeddings={"patch": 5}), tile_px=256)
    costs = {
        name: CanvasPlan(model, random_grid(4, 4), CanvasConfig.named(name)).cost()
        for name in ("standard", "fast", "reference-canvas")
    }
    assert costs["standard"] <= 40 and costs["fast"] <= 16 and costs["reference-canvas"] > 1000, costs


def test_seams_are_those_of_the_picture_before_compression(tiny, tmp_path):
    grid = random_grid(3, 3)
    made = [
        draw_canvas(tiny, grid, tmp_path / codec, quick().replace(codec=codec, quality=30))
        for codec in ("deflate", "jpeg")
    ]
    assert made[0].seams == made[1].seams and made[0].seams_plain == made[1].seams_plain
    pixels = tifffile.imread(made[0].image)
    borders = [16, 32, 48, 64]
    assert made[0].seams_plain == pytest.approx(seam_score(pixels, borders, borders).worst, rel=1e-6)
    kept = draw_canvas(tiny, grid, tmp_path / "jpeg", quick().replace(codec="jpeg", quality=30))
    assert kept.seams_plain == made[1].seams_plain
