"""The published formats: numbers, architecture from shapes, full-size parameter names."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from morphogen.checkpoints import (
    load_hisdiff,
    load_histdist,
    load_ldm,
    load_pipeline,
    load_stem,
    read_weights,
)
from morphogen.checkpoints.compvis import UNET, first_stage_from, unet_config
from morphogen.checkpoints.gene_networks import hisdiff_config, stem_config
from morphogen.checkpoints.keys import HISDIFF, STEM, rename
from morphogen.core.errors import CheckpointError
from morphogen.nets import GeneTransformer, KLFirstStage, UNetConfig, build_unet


def close(ours, reference, atol=3e-5, rtol=1e-4):
    torch.testing.assert_close(ours, reference, atol=atol * float(reference.abs().max()), rtol=rtol)


def manifest(shared: Path, name: str) -> dict[str, torch.Tensor]:
    """Keys and shapes of a published full-size state dict, as tensors without data."""
    state = {}
    for line in (shared / "manifests" / f"{name}.tsv").read_text().splitlines():
        key, shape = line.split("\t")
        size = () if shape == "scalar" else tuple(int(side) for side in shape.split("x"))
        state[key] = torch.empty(size, device="meta")
    return state


def shapes(state) -> dict[str, tuple]:
    return {key: tuple(value.shape) for key, value in state.items()}


@pytest.mark.parametrize("name", ["stem", "hisdiff"])
def test_full_size_gene_networks_have_the_published_parameters(shared, name):
    state = manifest(shared, name)
    config = (stem_config if name == "stem" else hisdiff_config)(state)
    assert (config.genes, config.width, config.depth) == (200, 384, 12)
    assert (config.heads, config.condition_dim) == ((6, 1536) if name == "stem" else (12, 1024))
    renamed, unknown = rename(state, STEM if name == "stem" else HISDIFF)
    assert not unknown
    with torch.device("meta"):
        assert shapes(GeneTransformer(config).state_dict()) == shapes(renamed)


@pytest.mark.parametrize("name", ["large_image_crc_20x", "large_image_brca_only_ssl"])
def test_full_size_latent_diffusion_has_the_published_parameters(shared, name):
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    state = manifest(shared, name)
    unet = {key.removeprefix(UNET): value for key, value in state.items() if key.startswith(UNET)}
    config = unet_config(unet)
    assert config == UNetConfig.representation()
    with torch.device("meta"):
        network = build_unet(config).unet
    converted = convert_ldm_unet_checkpoint(state, dict(network.config))
    assert shapes(network.state_dict()) == shapes(converted)


def test_full_size_histdist_components_have_the_published_parameters(shared):
    with torch.device("meta"):
        unet = build_unet(UNetConfig.stable_diffusion(in_channels=8)).unet
    assert shapes(unet.state_dict()) == shapes(manifest(shared, "histdist_unet"))
    from diffusers import AutoencoderKL

    levels = 4
    with torch.device("meta"):
        autoencoder = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
        )
    assert shapes(autoencoder.state_dict()) == shapes(manifest(shared, "histdist_vae"))
    stage = KLFirstStage(autoencoder)
    assert (stage.factor, stage.channels, stage.scaling) == (8, 4, 0.18215)


@torch.no_grad()
def test_latent_diffusion_gives_the_published_numbers(shared, tensors):
    T = tensors("ldm_unet")
    network, _, embedder, info = load_ldm(shared / "fixtures" / "ldm_unet" / "checkpoint.ckpt", heads=1)
    close(network(T["x"], T["t"], T["context"]), T["out"])
    close(network(T["x_rect"], T["t_rect"], T["context_rect"]), T["out_rect"])
    close(network(T["x"], T["t_float"], T["context"]), T["out_tfloat"])
    close(embedder(patch=T["emb_patch"]), T["learned_conditioning"])
    close(info.schedule().betas.float(), T["sched_betas"], atol=0, rtol=1e-4)
    close(info.schedule().alpha_bar.float(), T["sched_alphas_cumprod"], atol=0, rtol=1e-5)


@torch.no_grad()
def test_latent_diffusion_loss_is_the_published_one(shared, tensors):
    from morphogen.diffusion import losses

    T = tensors("ldm_unet")
    network, _, _, info = load_ldm(shared / "fixtures" / "ldm_unet" / "checkpoint.ckpt", heads=1)
    result = losses.diffusion_loss(
        network,
        T["pl_x0"],
        T["pl_t"],
        T["pl_noise"],
        info.schedule(),
        condition={"context": T["context"]},
    )
    assert result["loss"].mean().item() == pytest.approx(float(T["p_losses_simple"]), rel=1e-5)


def test_ema_weights_of_latent_diffusion_are_found_without_their_dots(shared, tmp_path):
    file = read_weights(shared / "fixtures" / "ldm_unet" / "checkpoint.ckpt")
    state = {key: value.clone() for key, value in file.state().items()}
    flat = {
        "model_ema." + key.removeprefix("model.").replace(".", ""): value + 1
        for key, value in state.items()
        if key.startswith(UNET)
    }
    path = tmp_path / "ema.ckpt"
    torch.save({"state_dict": state | flat | {"model_ema.decay": torch.tensor(0.9999)}}, path)
    bias = state[f"{UNET}input_blocks.0.0.bias"]
    assert torch.equal(load_ldm(path, heads=1).network.unet.conv_in.bias, bias + 1)
    assert torch.equal(load_ldm(path, weights="model", heads=1).network.unet.conv_in.bias, bias)
    with pytest.raises(CheckpointError, match="no EMA weights"):
        load_ldm(shared / "fixtures" / "ldm_unet" / "checkpoint.ckpt", weights="ema", heads=1)


def test_keys_of_the_fid_network_are_left_alone(shared, tmp_path):
    source = read_weights(shared / "fixtures" / "ldm_unet" / "checkpoint.ckpt").state()
    extra = {
        key: torch.zeros(value.shape, dtype=torch.long if key.endswith("tracked") else torch.float32)
        for key, value in manifest(shared, "large_image_track_fid_extra").items()
        if ".blocks.0." in key
    }
    assert extra
    torch.save({"state_dict": source | extra}, tmp_path / "fid.ckpt")
    one, two = (
        load_ldm(tmp_path / "fid.ckpt", heads=1),
        load_ldm(shared / "fixtures" / "ldm_unet" / "checkpoint.ckpt", heads=1),
    )
    assert torch.equal(one.network.unet.conv_out.weight, two.network.unet.conv_out.weight)


@torch.no_grad()
def test_kl_first_stage_of_a_compvis_checkpoint(shared):
    """CompVis names for a diffusers autoencoder: the reverse of the conversion, so the same numbers come back."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    reference = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 64),
        layers_per_block=1,
        latent_channels=4,
    ).eval()
    state = {compvis_name(key): value for key, value in reference.state_dict().items()}
    state = {
        k: v[:, :, None, None] if k.split(".")[-2] in "qkv" and v.ndim == 2 else v for k, v in state.items()
    }
    state = {k: v[:, :, None, None] if "attn_1.proj_out.w" in k else v for k, v in state.items()}
    stage = first_stage_from({f"first_stage_model.{key}": value for key, value in state.items()})
    assert isinstance(stage, KLFirstStage) and stage.factor == 2 and stage.scaling == 0.18215
    images = torch.rand(1, 3, 16, 16)
    close(stage.encode(images).mean, reference.encode(images).latent_dist.mean)
    scaled = first_stage_from(state | {"scale_factor": torch.tensor(0.3)})
    assert scaled.scaling == pytest.approx(0.3)


def compvis_name(key: str) -> str:
    import re

    key = key.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = re.sub(r"encoder\.down_blocks\.(\d)\.resnets\.(\d)", r"encoder.down.\1.block.\2", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{1 - int(m[1])}.block.{m[2]}", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{1 - int(m[1])}.upsample", key)
    key = key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    return re.sub(r"to_([qkv])\.", r"\1.", key).replace("to_out.0.", "proj_out.")


@torch.no_grad()
def test_histdist_folder_gives_the_published_numbers(shared, tensors):
    T = tensors("histdist_inference")
    network, stage, text, *_ = components = load_histdist(
        shared / "fixtures" / "histdist_inference" / "pipeline"
    )
    close(network(T["unet_x"], T["unet_t"], T["unet_ctx"]), T["unet_out"], atol=1e-5)
    close(stage.encode(T["image_uint8"].float() / 127.5 - 1).mode(), T["he_image_embeds"], atol=1e-5)
    close(text(["H&E"]), T["text_he"], atol=1e-5)
    schedule = components.schedule()
    close(schedule.alpha_bar.float(), T["alphas_cumprod_zero_snr"], atol=1e-6)
    assert float(schedule.alpha_bar[-1]) == 0
    close(components.schedule(zero_terminal_snr=False).alpha_bar.float(), T["alphas_cumprod_sd15"], atol=1e-6)


def test_a_stable_diffusion_folder_is_not_taken_for_histdist(shared, tmp_path):
    folder = tmp_path / "sd"
    shutil.copytree(shared / "fixtures" / "histdist_inference" / "pipeline", folder)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    small = UNetConfig(
        in_channels=4, out_channels=4, widths=(8, 8), attention=(), heads=2, groups=4, context_dim=32
    )
    build_unet(small, seed=0).unet.save_pretrained(folder / "unet")
    assert load_pipeline(folder).network.in_channels == 4
    with pytest.raises(CheckpointError, match="takes 4 channels, HistDiST's takes 8"):
        load_histdist(folder)
    shutil.rmtree(folder / "vae")
    with pytest.raises(CheckpointError, match="the component 'vae' is missing"):
        load_pipeline(folder)


def test_heads_have_to_be_given_at_unpublished_widths(shared):
    with pytest.raises(
        CheckpointError, match=r"does not say how many attention heads this network of width 48 has"
    ):
        load_stem(shared / "fixtures" / "stem_forward" / "0000003.pt")
    with pytest.raises(CheckpointError, match="heads"):
        load_hisdiff(shared / "fixtures" / "hisdiff_forward" / "0000100.pt")


def test_foreign_and_partial_states_are_named(shared, tmp_path):
    path = shared / "fixtures" / "hisdiff_forward" / "0000100.pt"
    with pytest.raises(CheckpointError, match="no Stem network in it"):
        load_stem(path, heads=4)
    with pytest.raises(CheckpointError, match="no latent diffusion U-Net"):
        load_ldm(path, heads=1)
    state = {k: v.clone() for k, v in read_weights(path).section("model").items()}
    state.pop("blocks.1.mlp.fc2.bias")
    torch.save({"model": state}, tmp_path / "part.pt")
    with pytest.raises(CheckpointError, match="1 parameters are missing .*blocks.1.fc2.bias"):
        load_hisdiff(tmp_path / "part.pt", heads=4)
    state["blocks.1.mlp.fc2.bias"] = torch.full((48,), float("nan"))
    torch.save({"model": state}, tmp_path / "nan.pt")
    with pytest.raises(CheckpointError, match="blocks.1.fc2.bias holds NaN"):
        load_hisdiff(tmp_path / "nan.pt", heads=4)
    state["blocks.1.mlp.fc2.bias"] = torch.zeros(7)
    torch.save({"model": state}, tmp_path / "shape.pt")
    with pytest.raises(CheckpointError, match=r"fc2.bias has shape \(7,\), but the network needs \(48,\)"):
        load_hisdiff(tmp_path / "shape.pt", heads=4)


@torch.no_grad()
def test_states_saved_by_data_parallel_or_on_their_own_load_too(shared, tmp_path, tensors):
    T = tensors("stem_forward")
    ema = read_weights(shared / "fixtures" / "stem_forward" / "0000003.pt").section("ema")
    torch.save({f"module.{key}": value.clone() for key, value in ema.items()}, tmp_path / "ddp.pt")
    close(load_stem(tmp_path / "ddp.pt", heads=4)(T["x"][:, 0], T["t"], T["y"]), T["out"])
