"""Latent U-Nets: sizes, the shared contract, the 4 → 8 channel surgery."""

from __future__ import annotations

import json

import pytest
import torch

from morphogen.core.errors import CheckpointError, ConfigError, InputError
from morphogen.nets import UNetConfig, build_unet, load_unet, optimise_for_inference, widen_input


def tiny(context_dim: int = 8, in_channels: int = 4, **changes) -> UNetConfig:
    settings = {"widths": (8, 16), "layers": 1, "attention": (1,), "heads": 2, "groups": 4} | changes
    return UNetConfig(in_channels=in_channels, out_channels=4, context_dim=context_dim, **settings)


def parameters(config: UNetConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build_unet(config).parameters())


def test_published_sizes():
    assert parameters(UNetConfig.stable_diffusion(in_channels=8)) == 859_532_484
    assert parameters(UNetConfig.stable_diffusion(in_channels=4)) == 859_520_964
    assert 400e6 < parameters(UNetConfig.representation()) < 402e6
    assert parameters(UNetConfig.small(3, 3)) < 5e6


@torch.no_grad()
@pytest.mark.parametrize("context_dim", [0, 8])
def test_the_contract_of_every_network(context_dim):
    network = build_unet(tiny(context_dim), seed=0).eval()
    x = torch.randn(3, 4, 10, 12)
    context = torch.randn(3, 5, 8) if context_dim else None
    t = torch.tensor([0.0, 10.5, 999.0])
    whole = network(x, t, context)
    assert whole.shape == x.shape
    for i in range(3):  # times and tokens belong to their item; a number serves as well as a tensor
        one = network(x[i : i + 1], float(t[i]), None if context is None else context[i : i + 1])
        torch.testing.assert_close(one, whole[i : i + 1], atol=1e-5, rtol=1e-4)
    moved = network(x, t + 100, context)
    assert (moved - whole).abs().amax((1, 2, 3)).min() > 0


@torch.no_grad()
def test_context_and_image_are_read_and_one_serves_all():
    network = build_unet(tiny(in_channels=7), seed=0).eval()
    x, image, context = torch.randn(2, 4, 8, 8), torch.randn(1, 3, 8, 8), torch.randn(1, 5, 8)
    out = network(x, 5, context, image)
    torch.testing.assert_close(out, network(x, 5, context.expand(2, -1, -1), image.expand(2, -1, -1, -1)))
    assert (network(x, 5, context + 1, image) - out).abs().max() > 0
    assert (network(x, 5, context, image + 1) - out).abs().max() > 0
    with pytest.raises(InputError, match="takes 7 channels, but latent and image have 4"):
        network(x, 5, context)
    with pytest.raises(InputError, match="needs context tokens"):
        network(x, 5, None, image)
    with pytest.raises(InputError, match="takes no context"):
        build_unet(tiny(0), seed=0)(x, 5, context)


def test_weights_follow_the_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, two, other = (build_unet(tiny(), seed=seed) for seed in (5, 5, 6))
    assert torch.equal(torch.rand(1), expected)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one.unet.conv_in.weight, other.unet.conv_in.weight)


@torch.no_grad()
def test_widened_input_gives_what_it_gave_whatever_the_new_channels_hold():
    network = build_unet(tiny(), seed=0).eval()
    x, context = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 8)
    before = network(x, 9, context)
    widen_input(network.unet, 8)
    assert network.in_channels == 8 and network.unet.config.in_channels == 8
    torch.testing.assert_close(network(x, 9, context, image=torch.randn(2, 4, 8, 8)), before)
    assert network.unet.conv_in.weight[:, 4:].abs().max() == 0
    with pytest.raises(InputError, match="8 input channels already; 4 is fewer"):
        widen_input(network.unet, 4)


@torch.no_grad()
def test_folder_round_trip(tmp_path):
    for context_dim in (0, 8):
        network = build_unet(tiny(context_dim), seed=1).eval()
        folder = tmp_path / str(context_dim)
        network.unet.save_pretrained(folder)
        again = load_unet(folder)
        x, context = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 8) if context_dim else None
        assert torch.equal(network(x, 3, context), again(x, 3, context))
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(CheckpointError, match="the weights do not load"):
        load_unet(folder)
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="no safetensors here, only diffusion_pytorch_model.bin"):
        load_unet(folder)
    with pytest.raises(CheckpointError, match="no component can be read here"):
        load_unet(tmp_path)


def test_gradient_checkpointing_changes_no_gradient():
    network = build_unet(tiny(), seed=0).train()
    x, context = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 8)
    network(x, 3, context).square().sum().backward()
    plain = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    network.enable_gradient_checkpointing()
    network(x, 3, context).square().sum().backward()
    for a, p in zip(plain, network.parameters(), strict=True):
        torch.testing.assert_close(p.grad, a, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_bfloat16_inference_keeps_the_answer_and_the_type():
    network = build_unet(tiny(), seed=0).eval()
    x, context = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 8)
    exact = network(x, 300, context)
    got = optimise_for_inference(network, "bf16")(x, 300, context)
    assert got.dtype == torch.float32 and network.unet.dtype == torch.bfloat16
    assert (got - exact).pow(2).mean().sqrt() < 0.05 * exact.std()


def test_sizes_that_cannot_be_are_named():
    with pytest.raises(ConfigError, match="width 8 is no multiple of groups 5"):
        tiny(groups=5)
    with pytest.raises(ConfigError, match="attention level 2 does not exist with 2 widths"):
        tiny(attention=(2,))
    with pytest.raises(ConfigError, match="width 16 is no multiple of heads 3"):
        tiny(heads=3)


def test_a_config_whose_values_are_of_another_kind_is_refused(tmp_path):
    folder = tmp_path / "unet"
    build_unet(tiny()).unet.save_pretrained(folder)
    path = folder / "config.json"
    good = json.loads(path.read_text())
    for name, value in {
        "norm_eps": "1e-5",
        "flip_sin_to_cos": 1,
        "freq_shift": True,
        "act_fn": ["silu"],
    }.items():
        path.write_text(json.dumps({**good, name: value}))
        with pytest.raises(CheckpointError, match=f"config.json says {name}"):
            load_unet(folder)
    path.write_text(json.dumps(good))
    load_unet(folder)
