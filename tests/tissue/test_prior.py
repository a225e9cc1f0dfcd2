"""Priors over grids: their space, the field they begin from, what they learn, and how that is checked."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from morphogen.core.errors import CheckpointError, InputError
from morphogen.metrics.expression import morans_i, spatial_weights
from morphogen.tissue import EmbeddingGrid, TileTable
from morphogen.tissue.canvases.sources import grid_from, grid_of_table
from morphogen.tissue.priors.check import check_prior
from morphogen.tissue.priors.config import PriorConfig
from morphogen.tissue.priors.field import GridField
from morphogen.tissue.priors.grids import GridDataset, full_grids
from morphogen.tissue.priors.model import Components, TissuePrior
from morphogen.tissue.priors.train import train_prior

from .conftest import coloured_tiles


def gridded(count=2, side=6, width=4):
    """Tiles side by side whose embeddings vary smoothly over the image."""
    parts = []
    for image in range(count):
        y, x = np.meshgrid(np.linspace(0, 3, side), np.linspace(0, 3, side), indexing="ij")
        waves = [np.sin(x + image), np.cos(y), np.sin(x + y), 0.3 * x]
        parts.append(np.stack(waves[:width], -1).reshape(side * side, width))
    table = coloured_tiles(count * side * side)
    places = [(i, r, c) for i in range(count) for r in range(side) for c in range(side)]
    return type(table)(
        [f"t{i}" for i in range(len(table))],
        [f"s{i}" for i, _, _ in places],
        {"patch": np.concatenate(parts).astype(np.float32)},
        table.read,
        32,
        labels=[f"class{i % 2}" for i, _, _ in places],
        places=np.array(places),
    )


def test_components_keep_the_variance():
    features = (
        np.random.default_rng(0).normal(size=(400, 6)) @ np.random.default_rng(0).normal(size=(6, 20)) + 5
    )
    space = Components.of(features.astype(np.float32))
    assert space.kept <= 6
    values = torch.from_numpy(features.astype(np.float32))
    back = space.inverse(space(values)).numpy()
    assert ((back - features) ** 2).sum() / ((features - features.mean(0)) ** 2).sum() < 0.06
    assert float(space(values).var(0).mean()) == pytest.approx(1, rel=0.02)


def test_full_grids_and_their_largest_rectangle():
    table = gridded(2, 6)
    assert len(full_grids(table, 4)) == 2 * 9
    holed = table.take([i for i in range(len(table)) if tuple(table.places[i]) != (0, 0, 0)])
    assert len(full_grids(holed, 4)) == 2 * 9 - 1
    assert grid_of_table(table, 1).shape == (6, 6)
    assert min(grid_of_table(holed, 0).shape) == 5
    with pytest.raises(InputError, match="no image holds 9 × 9 tiles"):
        GridDataset(table, 9, Components.of(table.features["patch"]), [])


def test_a_prior_learns_smooth_grids(tmp_path):
    table = gridded(4, 6)
    config = PriorConfig(side=4, width=32, depth=2, heads=2)
    training = config.training.replace(steps=60, batch_size=16, lr=3e-3, warmup_steps=5, ema_decay=0.9)
    config = config.replace(training=training, data=config.data.replace(hold_out=0.25))
    prior = train_prior(table, config, tmp_path, device="cpu")
    again = TissuePrior.from_pretrained(tmp_path / "model")
    assert again.identity == prior.identity and again.labels == ["class0", "class1"]
    grid = again(seed=1)
    assert grid.shape == (4, 4) and (grid.patch == prior(seed=1).patch).all()
    assert (grid.patch != again(seed=2).patch).any()
    assert again((7, 9), label="class1", guidance=2.0).shape == (7, 9)
    with pytest.raises(InputError, match="0 × 3 has no cells"):
        grid_from(SimpleNamespace(device="cpu"), prior=tmp_path / "model", shape=(0, 3))
    check = json.loads((tmp_path / "check.json").read_text())
    assert set(check["moran"]) == {"drawn", "training", "held_out"}
    blank = TissuePrior.fresh(config, prior.space, prior.labels)
    dataset = GridDataset(table, 4, prior.space, prior.labels)
    assert check["frechet"] < 0.7 * check_prior(blank, dataset, dataset, count=4)["frechet"]


def test_the_check_of_a_prior_tells_a_good_one_from_noise():
    table = gridded(4, 6)
    config = PriorConfig(side=4, width=32, depth=1, heads=2)
    space = Components.of(table.features["patch"])
    grids = GridDataset(table, 4, space, ["class0", "class1"])

    class Copies(TissuePrior):
        def __call__(self, shape=None, **options):
            rows = grids.grids[options["seed"] * 7 % len(grids)]
            return EmbeddingGrid(table.features["patch"][rows.numpy()])

    fresh = TissuePrior.fresh(config, space, ["class0", "class1"])
    fresh.network.field.power.fill_(0.01)  # it draws hardly more than the mean
    copies = Copies(fresh.network, space, config, fresh.labels)
    good, noise = (check_prior(each, grids, grids, count=36) for each in (copies, fresh))
    assert good["frechet"] < 0.05 < 0.5 < noise["frechet"] and good["nearest"]["drawn"] < 0.01
    assert np.allclose(good["moran"]["drawn"], good["moran"]["training"], atol=0.1)
    flat = torch.stack([grids[k]["grid"].flatten() for k in range(len(grids))])
    corners = np.array(grids.corners)
    images = corners[:, 0]
    assert np.unique(images).size == 4
    apart = [
        float((flat[images != image] - grid).norm(dim=1).min())
        for grid, image in zip(flat, images, strict=True)
    ]
    assert good["nearest"]["other_images"] == pytest.approx(np.mean(apart), rel=1e-3)
    assert "same_image" not in good["nearest"]  # 6 × 6 cells hold no two grids of 4 × 4 that share no tile


def test_grids_of_one_image_that_share_no_tile_are_its_own_neighbours():
    table = gridded(2, 9)
    space = Components.of(table.features["patch"])
    grids = GridDataset(table, 4, space, [])
    prior = TissuePrior.fresh(PriorConfig(side=4, width=8, depth=1, heads=2), space, [])
    found = check_prior(prior, grids, grids, count=len(grids))["nearest"]["same_image"]
    flat = torch.stack([grids[k]["grid"].flatten() for k in range(len(grids))]).numpy()
    expected = []
    for (image, row, column), grid in zip(grids.corners, flat, strict=True):
        others = [
            float(np.linalg.norm(other - grid))
            for (number, r, c), other in zip(grids.corners, flat, strict=True)
            if number == image and (abs(r - row) >= 4 or abs(c - column) >= 4)
        ]
        expected += [min(others)] if others else []  # one in the middle leaves room for no other
    assert found == pytest.approx(np.mean(expected), rel=1e-3)


def places(side: int) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(-1, 2)


def fields(count: int, side: int, reach: float, width: int, seed: int) -> np.ndarray:
    """(count, side, side, width): Gaussian fields whose correlation is exp(−distance / reach) cells; 0 = none."""
    at = places(side).astype(float)
    apart = np.linalg.norm(at[:, None] - at[None], axis=-1)
    covariance = np.exp(-apart / reach) if reach else np.eye(side * side)
    root = np.linalg.cholesky(covariance + 1e-9 * np.eye(side * side))
    drawn = np.random.default_rng(seed).normal(size=(count, width, side * side)) @ root.T
    return drawn.transpose(0, 2, 1).reshape(count, side, side, width)


def moran(grids: np.ndarray) -> float:
    """Mean Moran's I of (N, g, g, D) over grids and columns."""
    weights = spatial_weights(places(grids.shape[1]), k=4)
    return float(np.mean([morans_i(grid.reshape(-1, grid.shape[-1]), weights) for grid in grids]))


def drawn(prior: TissuePrior, count: int, **options) -> np.ndarray:
    return np.stack([prior(seed=seed, **options).patch for seed in range(count)])


def table_of(grids: np.ndarray, labels: list[str]) -> TileTable:
    """A table with one image per grid."""
    count, side, _, width = grids.shape
    at = [(image, row, column) for image in range(count) for row in range(side) for column in range(side)]
    return TileTable(
        names=[f"t{number}" for number in range(len(at))],
        groups=[f"s{image}" for image, _, _ in at],
        features={"patch": grids.reshape(-1, width).astype(np.float32)},
        read=lambda rows: np.zeros((len(rows), 32, 32, 3), np.uint8),
        tile_px=32,
        labels=[labels[image] for image, _, _ in at],
        places=np.array(at),
    )


def test_a_field_estimates_as_the_matrices_of_its_covariance_do():
    field = GridField(2, 3)
    field.power.copy_(torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(0)) * 4)
    x = torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    alpha, sigma = 0.6, 0.8
    estimate, left = field(x, alpha, sigma)
    waves = torch.kron(field.basis, field.basis).double()
    for component in range(2):
        covariance = waves.T @ torch.diag(field.power[component].flatten().double()) @ waves
        gain = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(9))
        wanted = x[:, component].flatten(1).double() @ gain.T
        assert torch.allclose(estimate[:, component].flatten(1).double(), wanted, atol=1e-5)
        rest = (covariance - alpha * gain @ covariance).diag().mean().sqrt()
        assert float(left[component]) == pytest.approx(float(rest), rel=1e-4)
    grids = torch.randn(4, 2, 3, 3)
    whole, parts = GridField.of([grids]), GridField.of([grids[:1], grids[1:]])
    assert torch.allclose(whole.power, parts.power) and torch.equal(whole.power, whole.power.transpose(1, 2))
    assert torch.allclose(whole.variance[:, 0, 0], (grids**2).mean((0, 2, 3)), rtol=1e-5)
    with pytest.raises(InputError, match="at least one grid"):
        GridField.of([])


@pytest.mark.parametrize("reach", [0.0, 1.0, 4.0])
def test_neighbours_agree_as_in_the_training_grids_before_any_step(reach):
    """A field of known correlation, drawn by a prior whose network says nothing yet."""
    grids = fields(800, 4, reach, 6, seed=0)
    space = Components.of(grids.reshape(-1, 6).astype(np.float32), share=1.0)
    dataset = GridDataset(table_of(grids, ["a"] * len(grids)), 4, space, ["a"])
    config = PriorConfig(side=4, width=8, depth=1, heads=2)
    prior = TissuePrior.fresh(config, space, ["a"], GridField.of(dataset.batches()))
    made = drawn(prior, 48)
    assert moran(made) == pytest.approx(moran(fields(2000, 4, reach, 6, seed=1)), abs=0.06)
    assert made.std() == pytest.approx(1, abs=0.15)


def test_training_itself_drops_no_label():
    """Labels are dropped for all blocks together, by the draws of an item; diffusers would drop more in each block."""
    space = Components.of(np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32))
    prior = TissuePrior.fresh(PriorConfig(side=2, width=8, depth=3, heads=2), space, ["a", "b"])
    torch.nn.init.normal_(prior.network.transformer.proj_out_2.weight)
    x, t, label = (
        torch.randn(256, space.kept, 2, 2),
        torch.full((256,), 500),
        torch.zeros(1, dtype=torch.long),
    )
    prior.network.train()
    once, again = (prior.network(x, t, label=label) for _ in range(2))
    assert torch.equal(once, again)


def test_a_prior_without_its_field_is_refused(tmp_path):
    space = Components.of(np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32))
    prior = TissuePrior.fresh(PriorConfig(side=2, width=8, depth=1, heads=2), space, ["a"])
    prior.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "field.safetensors").unlink()
    with pytest.raises(CheckpointError, match="field.safetensors is missing"):
        TissuePrior.from_pretrained(tmp_path / "model")
    manifest = tmp_path / "model" / "manifest.json"  # as a version without fields wrote it
    listed = json.loads(manifest.read_text())
    del listed["files"]["field.safetensors"]
    manifest.write_text(json.dumps(listed))
    with pytest.raises(CheckpointError, match="train it again with morphogen tissue prior"):
        TissuePrior.from_pretrained(tmp_path / "model")


@pytest.mark.slow
def test_a_prior_learns_which_class_is_smooth(tmp_path):
    """No linear estimate tells a smooth class from one without any correlation: this the network must learn."""
    reaches, each = {"rough": 0.0, "smooth": 4.0}, 300
    grids = np.concatenate([fields(each, 4, reach, 4, seed) for seed, reach in enumerate(reaches.values())])
    table = table_of(grids, [name for name in reaches for _ in range(each)])
    config = PriorConfig(side=4, width=48, depth=3, heads=4, variance=1.0)
    training = config.training.replace(steps=900, batch_size=32, lr=2e-3, warmup_steps=20, ema_decay=0.98)
    prior = train_prior(
        table,
        config.replace(training=training, data=config.data.replace(hold_out=0.05)),
        tmp_path,
        device="cpu",
    )
    for seed, (name, reach) in enumerate(reaches.items()):
        truth = moran(fields(2000, 4, reach, 4, seed=10 + seed))
        assert moran(drawn(prior, 150, label=name)) == pytest.approx(truth, abs=0.06), name
