"""CompVis latent diffusion checkpoints (Lightning ``state_dict``) into diffusers' networks.

Covers the large-image models of representation-guided tissue generation and their first stages: U-Nets with
spatial transformers, VQ and KL autoencoders, SSL embedders. Sizes are read from the shapes; the renaming of
parameters is diffusers' own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from morphogen.checkpoints.folder import load_model, save_model
from morphogen.checkpoints.gene_networks import assign
from morphogen.checkpoints.keys import has, is_first_stage, is_latent_diffusion
from morphogen.core.errors import CheckpointError
from morphogen.core.weights.finding import find_network
from morphogen.core.weights.reading import read_weights
from morphogen.nets.config import UNetConfig
from morphogen.nets.embedders import RepresentationTokens
from morphogen.nets.first_stages import FirstStage, KLFirstStage, VQFirstStage, load_first_stage
from morphogen.nets.unets import LatentUNet, build_unet, load_unet

if TYPE_CHECKING:
    from morphogen.diffusion import Schedule

LDM_WIDTHS = (192, 384, 576, 960)  # of the published large-image models, whose U-Nets have one head
LDM_HEADS = 1
UNET = "model.diffusion_model."
EMA = "model_ema."
FIRST_STAGE = "first_stage_model."
EMBEDDER = "cond_stage_model."


@dataclass(frozen=True)
class ScheduleInfo:
    """The noise schedule a latent diffusion model was trained with: √β linear from start to end."""

    beta_start: Annotated[float, Field(gt=0, lt=1)] = 0.0015  # of every published large-image configuration
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.0195
    steps: Annotated[int, Field(gt=0, le=100_000)] = 1000

    def schedule(self) -> Schedule:
        """As the diffusion core takes it."""
        from morphogen.diffusion import Schedule

        return Schedule.scaled_linear(self.beta_start, self.beta_end, T=self.steps)


class LatentDiffusionCheckpoint(NamedTuple):
    """What a latent diffusion checkpoint holds. embedder: None where the file has no SSL embedder."""

    network: LatentUNet
    first_stage: FirstStage
    embedder: RepresentationTokens | None
    schedule: ScheduleInfo


def save_latent_diffusion(checkpoint: LatentDiffusionCheckpoint, out: Path | str, **facts: Any) -> Path:
    """Write a latent diffusion model as a folder of ours: ``unet/``, ``first_stage/``,
    ``embedder.safetensors``."""
    network, stage, embedder, info = checkpoint
    parts: dict[str, Any] = {"unet": network.unet, "first_stage": stage}
    if embedder is not None:
        parts["embedder"] = embedder
        facts |= {"embeddings": embedder.features}
    schedule = {"name": "scaled_linear", **asdict(info)}
    config = unet_settings(network)
    return save_model(
        out, parts, config, kind="latent-diffusion", schedule=schedule, prediction="epsilon", **facts
    )


def load_latent_diffusion(folder: Path | str) -> LatentDiffusionCheckpoint:
    """Read what :func:`save_latent_diffusion` wrote."""
    saved = load_model(folder, kind="latent-diffusion")
    embedder = None
    if "embeddings" in saved.facts:
        width = saved.settings(UNetConfig).context_dim
        sizes = dict[str, Annotated[int, Field(gt=0, le=1 << 20)]]
        embedder = RepresentationTokens(saved.fact("embeddings", sizes), width)
        saved.restore(embedder, "embedder")
    return LatentDiffusionCheckpoint(
        load_unet(saved.component("unet")),
        load_first_stage(saved.component("first_stage")),
        embedder,
        saved.fact("schedule", ScheduleInfo),
    )


def unet_settings(network: LatentUNet) -> UNetConfig:
    """The configuration that :func:`morphogen.nets.build_unet` made this network from."""
    config = network.unet.config
    attention = tuple(i for i, kind in enumerate(config.down_block_types) if "Attn" in kind)
    return UNetConfig(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        widths=tuple(config.block_out_channels),
        layers=config.layers_per_block,
        attention=attention,
        heads=config.attention_head_dim,
        context_dim=network.context_dim,
        context_vector=config.get("projection_class_embeddings_input_dim") or 0,
        scale_shift=config.resnet_time_scale_shift == "scale_shift",
        groups=config.norm_num_groups,
        dropout=config.dropout,
    )


def load_ldm(
    path: Path | str, heads: int | None = None, weights: str | None = None
) -> LatentDiffusionCheckpoint:
    """A CompVis/Lightning latent diffusion checkpoint: U-Net, first stage, SSL embedder, schedule; all in
    eval mode.

    heads: attention heads of the U-Net, which no file says; None takes the published one where the widths are the
    published ones, and is an error for others. weights: "ema", "model" or None = EMA where the file has them. Other
    keys (losses, FID networks, buffers) are left alone.
    """
    what = "latent diffusion U-Net (model.diffusion_model.*)"
    state = find_network(read_weights(path), is_latent_diffusion, what=what).state
    return LatentDiffusionCheckpoint(
        network=_unet(_unet_weights(state, weights, path), heads, path),
        first_stage=first_stage_from(state, path),
        embedder=_embedder(state, path),
        schedule=schedule_info(state, path),
    )


def load_compvis_first_stage(path: Path | str) -> FirstStage:
    """The VQ or KL autoencoder of a CompVis checkpoint: stand-alone, or inside a latent diffusion
    checkpoint."""
    file = read_weights(path)
    inside = has(f"{FIRST_STAGE}encoder.down.", f"{FIRST_STAGE}decoder.up.")
    return first_stage_from(
        find_network(file, lambda state: is_first_stage(state) or inside(state), what="first stage").state,
        path,
    )


def _unet_weights(state: Mapping[str, Tensor], weights: str | None, where: Any) -> dict[str, Tensor]:
    """U-Net parameters without prefix, from the EMA copy (whose names have lost their dots) or from the
    model."""
    plain = {key.removeprefix(UNET): value for key, value in state.items() if key.startswith(UNET)}
    flat = {key: f"{EMA}diffusion_model{key.replace('.', '')}" for key in plain}
    has_ema = all(name in state for name in flat.values())
    if weights == "ema" and not has_ema:
        raise CheckpointError("there are no EMA weights in it", where=where, fix="Use weights='model'")
    if weights == "model" or not has_ema:
        return plain
    return {key: state[name] for key, name in flat.items()}


def unet_config(unet: Mapping[str, Tensor], heads: int = 1, where: Any = None) -> UNetConfig:
    """Architecture of a CompVis U-Net (keys without prefix) from its shapes."""
    try:
        widths: list[int] = []
        layers: list[int] = []
        attention: set[int] = set()
        context_dim = 0
        level, index = 0, 1
        while any(f"input_blocks.{index}.0.{part}.weight" in unet for part in ("op", "out_layers.3")):
            block = f"input_blocks.{index}"
            if f"{block}.0.op.weight" in unet:
                level += 1
            else:
                width = unet[f"{block}.0.out_layers.3.weight"].shape[0]
                if len(widths) == level:
                    widths.append(width)
                    layers.append(0)
                layers[level] += 1
                if f"{block}.1.qkv.weight" in unet or f"{block}.1.block.in_layers.0.weight" in unet:
                    raise CheckpointError("its attention blocks are not spatial transformers", where=where)
                if f"{block}.1.proj_in.weight" in unet:
                    attention.add(level)
                    if unet[f"{block}.1.proj_in.weight"].ndim == 2:
                        raise CheckpointError(
                            "its transformers have linear projections (Stable Diffusion 2)", where=where
                        )
                    context_dim = unet[f"{block}.1.transformer_blocks.0.attn2.to_k.weight"].shape[1]
            index += 1
        if len(set(layers)) != 1 or not context_dim:
            raise CheckpointError(f"unknown U-Net layout (residual blocks per level: {layers})", where=where)
        return UNetConfig(
            in_channels=unet["input_blocks.0.0.weight"].shape[1],
            out_channels=unet["out.2.weight"].shape[0],
            widths=tuple(widths),
            layers=layers[0],
            attention=tuple(sorted(attention)),
            heads=heads,
            context_dim=context_dim,
        )
    except KeyError as error:
        raise CheckpointError(
            f"the parameter {error} is missing", where=where, fix="Download it again"
        ) from None


def _unet(unet: dict[str, Tensor], heads: int | None, where: Any) -> LatentUNet:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    config = unet_config(unet, LDM_HEADS if heads is None else heads, where)
    if heads is None and config.widths != LDM_WIDTHS:
        raise CheckpointError(
            f"the file does not say how many attention heads this U-Net of widths {config.widths} has",
            where=where,
            fix="Give the number it was trained with: heads=…, or import it with --heads",
        )
    with torch.device("meta"):
        network = build_unet(config)
    converted = convert_ldm_unet_checkpoint(
        {UNET + key: value for key, value in unet.items()}, dict(network.unet.config)
    )
    assign(network.unet, converted, where)
    return network.eval()


def first_stage_from(state: Mapping[str, Tensor], where: Any = None) -> FirstStage:
    """The VQ or KL autoencoder of a CompVis state dict, stand-alone or under ``first_stage_model.``."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    inner = {
        key.removeprefix(FIRST_STAGE): value for key, value in state.items() if key.startswith(FIRST_STAGE)
    }
    own = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
    parts = {key: value for key, value in (inner or state).items() if key.startswith(own)}
    with torch.device("meta"):
        stage = _first_stage_shape(parts, state.get("scale_factor"), where)
    converted = convert_ldm_vae_checkpoint(parts, dict(stage.autoencoder.config))
    if "quantize.embedding.weight" in parts:
        converted["quantize.embedding.weight"] = parts["quantize.embedding.weight"]
    assign(stage.autoencoder, converted, where)
    return stage.eval()


def _first_stage_shape(
    parts: Mapping[str, Tensor], scale: Tensor | None, where: Any
) -> KLFirstStage | VQFirstStage:
    from diffusers import AutoencoderKL, VQModel

    if any(".attn." in key for key in parts if ".down." in key or ".up." in key):
        raise CheckpointError(
            "autoencoders with attention outside the middle block are not read", where=where
        )
    try:
        levels = sorted({int(key.split(".")[2]) for key in parts if key.startswith("encoder.down.")})
        widths = tuple(parts[f"encoder.down.{level}.block.0.conv2.weight"].shape[0] for level in levels)
        layers = len({key.split(".")[4] for key in parts if key.startswith("encoder.down.0.block.")})
        common: dict[str, Any] = {
            "in_channels": parts["encoder.conv_in.weight"].shape[1],
            "out_channels": parts["decoder.conv_out.weight"].shape[0],
            "block_out_channels": widths,
            "layers_per_block": layers,
            "down_block_types": ("DownEncoderBlock2D",) * len(widths),
            "up_block_types": ("UpDecoderBlock2D",) * len(widths),
            "norm_num_groups": 32,
            "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in parts,
            "latent_channels": parts["post_quant_conv.weight"].shape[0],
        }
        if "quantize.embedding.weight" not in parts:
            scaling = 0.18215 if scale is None else float(scale)  # Stable Diffusion's
            return KLFirstStage(AutoencoderKL(**common, scaling_factor=scaling))
        codes, width = parts["quantize.embedding.weight"].shape
        scaling = 1.0 if scale is None else float(scale)
        return VQFirstStage(
            VQModel(**common, num_vq_embeddings=codes, vq_embed_dim=width, scaling_factor=scaling)
        )
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(f"there is no complete first stage in it ({error})", where=where) from None


def _embedder(state: Mapping[str, Tensor], where: Any) -> RepresentationTokens | None:
    """PatchEmbedder (one token) or SSLEmbedder (patch and region tokens)."""
    names = [name for name in ("patch", "region") if f"{EMBEDDER}{name}_fc.weight" in state]
    if not names:
        return None
    weights = {name: state[f"{EMBEDDER}{name}_fc.weight"] for name in names}
    embedder = RepresentationTokens(
        {name: weight.shape[1] for name, weight in weights.items()}, weights[names[0]].shape[0]
    )
    renamed = {
        f"projections.{name}.{part}": state[f"{EMBEDDER}{name}_fc.{part}"]
        for name in names
        for part in ("weight", "bias")
    }
    assign(embedder, renamed, where)
    return embedder.eval()


def schedule_info(state: Mapping[str, Tensor], where: Any = None) -> ScheduleInfo:
    """The schedule from the ``betas`` buffer; the published values where the file has none."""
    betas = state.get("betas")
    if betas is None:
        return ScheduleInfo()
    betas = betas.double()
    info = ScheduleInfo(round(float(betas[0]), 9), round(float(betas[-1]), 9), len(betas))
    expected = torch.linspace(info.beta_start**0.5, info.beta_end**0.5, info.steps, dtype=torch.float64) ** 2
    if not torch.allclose(betas, expected, rtol=1e-4, atol=1e-9):
        raise CheckpointError("its noise schedule is not the scaled-linear one", where=where)
    return info
