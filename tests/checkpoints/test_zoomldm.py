"""ZoomLDM's checkpoints, by the names and shapes of its published configuration and random weights."""

from __future__ import annotations

import pytest
import torch

from morphogen.checkpoints import load_zoomldm, read_weights
from morphogen.core.errors import CheckpointError, InputError
from morphogen.nets.summariser import GridSummariser, prepared_grid


@pytest.fixture(scope="module")
def file(shared, tmp_path_factory):
    """The U-Net and autoencoder of the large-image fixture beside a small summariser, as the published file is."""
    state = read_weights(shared / "fixtures" / "ldm_unet" / "checkpoint.ckpt").state()
    kept = {key: value.clone() for key, value in state.items() if not key.startswith("cond_stage_model.")}
    torch.manual_seed(0)
    small = GridSummariser(12, 16, depth=2, heads=8, mlp=20, out=64)
    torch.nn.init.normal_(small.pad_token)
    kept |= {f"cond_stage_model.{key}": value for key, value in small.state_dict().items()}
    path = tmp_path_factory.mktemp("zoom") / "weights.ckpt"
    torch.save(kept, path)  # a flat state dict
    return path, small.eval()


@torch.no_grad()
def test_all_parts_are_read(file):
    path, small = file
    read = load_zoomldm(path, unet_heads=1)
    grid, level = torch.randn(2, 12, 4, 4), torch.tensor([2, 5])
    tokens = read.summariser(grid, level)
    assert tokens.shape == (2, 65, 64) and torch.equal(tokens, small(grid, level))
    x = torch.randn(2, 3, 16, 16)
    assert read.network(x, torch.tensor([5, 5]), tokens).shape == x.shape
    assert not read.summariser.null(3).any() and read.summariser.null(3).shape == (3, 65, 64)


def test_the_published_sizes():
    """512 wide, 12 layers, 65 places: names as in the published state dict."""
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in GridSummariser().state_dict().items()}
    assert shapes["mag_embedding.weight"] == (8, 512) and shapes["dim_reduce.weight"] == (512, 1024)
    assert shapes["pad_token"] == (1, 1, 512) and shapes["encoder.pos_embedding"] == (1, 65, 512)
    assert shapes["encoder.layers.encoder_layer_11.self_attention.in_proj_weight"] == (1536, 512)
    assert shapes["encoder.layers.encoder_layer_0.mlp.3.weight"] == (512, 2048)
    assert shapes["final_proj.weight"] == (512, 512) and shapes["layer_norm.bias"] == (512,)
    assert len([key for key in shapes if key.endswith("ln_1.weight")]) == 12


@torch.no_grad()
def test_small_grids_lie_in_the_middle():
    torch.manual_seed(0)
    net = GridSummariser(4, 8, depth=1, heads=8, mlp=8, out=8).eval()
    torch.nn.init.normal_(net.pad_token)
    seen = {}
    net.encoder.register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0]))
    for side, places in ((1, [32]), (2, list(range(30, 34))), (4, list(range(24, 40))), (8, list(range(64)))):
        grid = torch.randn(1, 4, side, side)
        net(grid, torch.tensor([3]))
        cells = seen["x"][0, 1:]
        assert torch.equal(cells[places], net.dim_reduce(grid[0].flatten(1).T))
        others = [i for i in range(64) if i not in places]
        assert (cells[others] == net.pad_token[0]).all()
        assert torch.equal(seen["x"][0, 0], net.mag_embedding.weight[3])
    with pytest.raises(InputError, match="does not fit"):
        net(torch.randn(1, 4, 3, 3), torch.tensor([0]))


def test_grids_are_prepared_as_published():
    grid = prepared_grid(torch.randn(2, 1024, 16, 16) * 3 + 5)
    assert grid.shape == (2, 1024, 8, 8)
    assert torch.allclose(grid.mean(1), torch.zeros(2, 8, 8), atol=1e-5)
    assert torch.allclose(grid.std(1), torch.ones(2, 8, 8), atol=1e-5)
    assert prepared_grid(torch.randn(1, 9, 2, 2)).shape == (1, 9, 2, 2)


def test_what_is_missing_is_named(shared, file, tmp_path):
    with pytest.raises(CheckpointError, match="no summariser of grids in it .cond_stage_model.dim_reduce"):
        load_zoomldm(shared / "fixtures" / "ldm_unet" / "checkpoint.ckpt", unet_heads=1)
    state = read_weights(file[0]).state()
    state = {key: value.clone() for key, value in state.items() if not key.endswith("layer_norm.bias")}
    torch.save(state, tmp_path / "part.ckpt")
    with pytest.raises(CheckpointError, match="1 parameters are missing .*layer_norm.bias"):
        load_zoomldm(tmp_path / "part.ckpt", unet_heads=1)
