"""STEDM's published format and numbers: names, shapes, blocks, aggregators, losses, guidance, samples."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from morphogen.checkpoints.compvis import first_stage_from
from morphogen.checkpoints.stedm import (
    STYLE,
    load_landscape,
    load_stedm,
    network_state,
    own_copy,
    stedm_config,
    unet_state,
)
from morphogen.core.errors import CheckpointError
from morphogen.core.weights.reading import read_weights
from morphogen.diffusion import Schedule, losses
from morphogen.nets.layout.config import LayoutNetworkConfig, StyleConfig
from morphogen.nets.layout.encoders import StyleEncoder, null_images
from morphogen.nets.layout.network import LayoutNetwork, build_layout_network

MANIFESTS = {
    "stedm_mean_nearby": ("mean", 1),
    "stedm_linear_nearby": ("linear", 1),
    "stedm_linear_mp": ("linear", 10),
    "stedm_svit_nearby": ("svit", 1),
    "stedm_svit_mp": ("svit", 10),
}


def close(ours, reference, bound=2e-5):
    torch.testing.assert_close(ours, reference, atol=bound * float(reference.abs().max()), rtol=0)


def manifest(shared: Path, name: str) -> dict[str, torch.Tensor]:
    state = {}
    for line in (shared / "manifests" / f"{name}.tsv").read_text().splitlines():
        key, shape = line.split("\t")
        size = () if shape == "scalar" else tuple(int(side) for side in shape.split("x"))
        state[key] = torch.empty(size, device="meta")
    return state


@pytest.fixture(scope="module")
def checkpoint(shared):
    return load_stedm(shared / "fixtures" / "stedm_unet" / "checkpoint.ckpt")


@pytest.mark.parametrize("name", MANIFESTS)
def test_full_size_checkpoints_by_name_and_shape(shared, name):
    everything = manifest(shared, name)
    state, copies = own_copy(everything)
    assert copies == len(everything) - len(state) > len(state)
    config = stedm_config(state)
    assert (config.style.aggregator, config.style.images) == MANIFESTS[name]
    assert (config.widths, config.layers, config.heads) == ((128, 512, 1024), 2, 8)
    with torch.device("meta"):
        expected = {key: tuple(value.shape) for key, value in LayoutNetwork(config).state_dict().items()}
    for weights in ("model", "ema"):
        named = network_state(state, config, weights=weights)
        assert {key: tuple(value.shape) for key, value in named.items()} == expected
    counted = sum(int(torch.tensor(shape).prod()) for key, shape in expected.items() if key[:5] == "unet.")
    assert counted == 234_635_139


def test_what_the_file_says_of_itself_is_read(checkpoint):
    assert checkpoint.network.config.heads == 4  # the published settings in the file, not the default
    assert (checkpoint.facts["sampling"], checkpoint.facts["data_set"]) == ("mp", "her2")
    assert checkpoint.facts["left_out"] == []


def test_full_size_sizes_are_the_published_ones():
    style = StyleConfig(encoder="swin", aggregator="linear", width=512, images=10)
    with torch.device("meta"):
        encoder = StyleEncoder(style)
    swin = [*encoder.encoder.parameters(), *encoder.encoder.buffers()]
    assert sum(value.numel() for value in swin) == 28_030_850
    assert sum(value.numel() for value in encoder.aggregator.parameters()) == 2_884_608


def test_blocks_and_output(checkpoint, tensors):
    numbers = tensors("stedm_unet")
    network = checkpoint.network.unet
    seen = {}
    parts = {"input_block0": network.unet.conv_in, "middle_block_1": network.style_block}
    parts |= {"middle_block_0": network.unet.mid_block.resnets[0]}
    parts |= {"middle_block_2": network.unet.mid_block.attentions[0]}
    parts |= {"middle_block_3": network.unet.mid_block.resnets[1]}
    parts |= {"input_block1": network.unet.down_blocks[0].resnets[0]}
    parts |= {"input_block2": network.unet.down_blocks[0].downsamplers[0]}
    parts |= {"input_block3": network.unet.down_blocks[1].resnets[0]}
    parts |= {"output_block0": network.unet.up_blocks[0].resnets[0]}
    parts |= {"output_block1": network.unet.up_blocks[0].upsamplers[0]}
    parts |= {"output_block2": network.unet.up_blocks[1].resnets[0]}
    parts |= {"output_block3": network.unet.up_blocks[1].resnets[1]}
    parts |= {"time_embed": network.unet.time_embedding}
    hooks = [
        part.register_forward_hook(lambda module, given, out, name=name: seen.update({name: out}))
        for name, part in parts.items()
    ]
    with torch.no_grad():
        out = network(numbers["x"], numbers["t"], layout=numbers["c_concat"], style=numbers["style"])
    for hook in hooks:
        hook.remove()
    assert len(seen) == 13
    for name, value in seen.items():
        close(value, numbers[name])
    close(out, numbers["out"])


def test_the_middle_attention_has_its_rows_by_head(shared, checkpoint, tensors):
    """Read with another number of heads the numbers are off by far."""
    numbers = tensors("stedm_unet")
    other = load_stedm(shared / "fixtures" / "stedm_unet" / "checkpoint.ckpt", heads=2).network.unet
    with torch.no_grad():
        out = other(numbers["x"], numbers["t"], layout=numbers["c_concat"], style=numbers["style"])
    assert float((out - numbers["out"]).abs().max()) > 0.01


def test_layout_mean_and_mapper(checkpoint, tensors):
    numbers = tensors("stedm_unet")
    mapper = LayoutNetwork(checkpoint.network.config.replace(classes=5)).mapper
    mapper.project.weight.data.copy_(checkpoint.network.mapper.project.weight)
    onehot = numbers["seg_onehot"]
    binary = torch.cat([onehot[:, :1], onehot[:, 1:].sum(1, keepdim=True)], 1)
    assert torch.equal(binary.permute(0, 2, 3, 1), numbers["layout_binarised_bhwc"])
    with torch.no_grad():
        close(mapper.on_latent_grid(onehot), numbers["spatial_rescaler_before_mapper"])
        close(mapper(onehot), numbers["spatial_rescaler_out"])


@pytest.mark.parametrize("kind", ["mean", "max", "linear", "svit"])
def test_aggregators(tensors, kind):
    numbers = tensors("stedm_unet")
    prefix = f"agg_{kind}."
    state = {STYLE + key.removeprefix(prefix): v for key, v in numbers.items() if key.startswith(prefix)}
    from morphogen.checkpoints.stedm import _style_config, _style_key

    config = _style_config(state, 128, kind, None)
    assert config.aggregator == kind
    with torch.device("meta"):
        encoder = StyleEncoder(config)
    named = {
        _style_key(key.removeprefix(STYLE), kind): value
        for key, value in state.items()
        if "to_time_embedding" not in key
    }
    encoder.load_state_dict(named, assign=True)
    encoder.eval()
    with torch.no_grad():
        if kind != "svit":
            close(encoder.features(numbers["style_imgs"]).flatten(0, 1), numbers[f"aggfeat_{kind}"])
        close(encoder(numbers["style_imgs"]), numbers[f"aggout_{kind}"])


def test_first_stage_layout_style_and_null(checkpoint, tensors):
    numbers = tensors("stedm_unet")
    network = checkpoint.network
    with torch.no_grad():
        close(checkpoint.first_stage.latents(numbers["image"]), numbers["get_input_z"])
        close(network.styles(numbers["style_imgs"]), numbers["get_input_style"])
        assert float(null_images(1, 3, 32).max()) == -2
        null = network.styles(null_images(2, 3, 32))
        close(null, numbers["uncond_style"])
        close(network.null_style(2, 32), numbers["uncond_style"])


def test_training_loss(checkpoint, tensors):
    numbers = tensors("stedm_unet")
    schedule = Schedule.scaled_linear(0.0015, 0.0205)
    condition = {"layout": numbers["c_concat"], "style": numbers["style"]}
    with torch.no_grad():
        figures = losses.diffusion_loss(
            checkpoint.network.unet,
            numbers["x"],
            numbers["t"],
            numbers["noise"],
            schedule,
            kind="l1",
            condition=condition,
        )
    close(figures["loss"].mean(), numbers["p_losses"])


def test_copies_that_differ_are_refused(shared):
    state = dict(read_weights(shared / "fixtures" / "stedm_unet" / "checkpoint.ckpt").state())
    key = "_model.model.diffusion_model.out.2.bias"
    state[key] = state[key] + 1
    with pytest.raises(CheckpointError, match="out.2.bias twice and the copies differ"):
        own_copy(state, "there.ckpt")


def test_averaged_weights_are_found_without_their_dots(shared, checkpoint):
    averaged = load_stedm(shared / "fixtures" / "stedm_unet" / "checkpoint.ckpt", "ema")
    own = dict(checkpoint.network.named_parameters())
    changed = {n for n, v in averaged.network.named_parameters() if not torch.equal(v, own[n])}
    assert changed and all(name.startswith("unet.") for name in changed)


def test_the_landscape_start_fills_both_shifted_parts_of_the_middle(tmp_path):
    """The file's middle is [Res, Attention, Res]; ours has the style block between the first two."""
    config = LayoutNetworkConfig(
        latent_channels=3, factor=4, widths=(32, 64), layers=1, heads=4, groups=32, layout_channels=3,
        layout_by="mean", style_in="middle", style=StyleConfig(width=128, channels=(8, 16)),
    )  # fmt: skip
    network = build_layout_network(config, seed=0)
    state = compvis(build_layout_network(config, seed=1), config)
    torch.save({"state_dict": state}, tmp_path / "landscape.ckpt")
    report = load_landscape(tmp_path / "landscape.ckpt", network)
    assert report["share"] > 0.85
    assert all(re.match(r"style_block|style_to_time", name) for name in report["not loaded"])
    named = unet_state({k.removeprefix("model.diffusion_model."): v for k, v in state.items()}, config, False)
    for part in ("unet.mid_block.attentions.0.to_q.weight", "unet.mid_block.resnets.1.conv1.weight"):
        assert torch.equal(network.unet.state_dict()[part], named[part])


def compvis(network: LayoutNetwork, config: LayoutNetworkConfig) -> dict[str, torch.Tensor]:
    """A small state dict in CompVis names without a style block, values of their own."""
    blocks = {
        "time_embed.0": (128, 32), "time_embed.2": (128, 128), "input_blocks.0.0": (32, 6, 3, 3),
        "out.0": (32,), "out.2": (3, 32, 3, 3), "input_blocks.2.0.op": (32, 32, 3, 3),
        "output_blocks.1.1.conv": (64, 64, 3, 3), "middle_block.1.norm": (64,),
        "middle_block.1.qkv": (192, 64, 1), "middle_block.1.proj_out": (64, 64, 1),
    }  # fmt: skip
    residual = {"input_blocks.1.0": (32, 32), "input_blocks.3.0": (32, 64), "middle_block.0": (64, 64)}
    residual |= {"middle_block.2": (64, 64), "output_blocks.0.0": (128, 64), "output_blocks.1.0": (96, 64)}
    residual |= {"output_blocks.2.0": (96, 32), "output_blocks.3.0": (64, 32)}
    for name, (given, made) in residual.items():
        blocks |= {f"{name}.in_layers.0": (given,), f"{name}.in_layers.2": (made, given, 3, 3)}
        blocks |= {f"{name}.emb_layers.1": (made, 128), f"{name}.out_layers.0": (made,)}
        blocks |= {f"{name}.out_layers.3": (made, made, 3, 3)}
        if given != made:
            blocks[f"{name}.skip_connection"] = (made, given, 1, 1)
    random = torch.Generator().manual_seed(3)
    state = {}
    for name, shape in blocks.items():
        state[f"model.diffusion_model.{name}.weight"] = torch.randn(shape, generator=random)
        state[f"model.diffusion_model.{name}.bias"] = torch.randn(shape[0], generator=random)
    return state


def test_the_first_stage_of_the_file_is_read(shared, tensors):
    state, _ = own_copy(read_weights(shared / "fixtures" / "stedm_unet" / "checkpoint.ckpt").state())
    stage = first_stage_from(state)
    assert (stage.channels, stage.factor, stage.scaling) == (3, 4, 1.0)
