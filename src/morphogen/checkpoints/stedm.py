"""STEDM's Lightning checkpoints, and the landscape model its training starts from, into our networks.

Every tensor of a STEDM file appears under several names (``model.`` and ``_model.``, and inside again with and without
an underscore); the copies are compared and one is taken. Sizes are read from the shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from morphogen.checkpoints.compvis import ScheduleInfo, first_stage_from, schedule_info
from morphogen.checkpoints.gene_networks import assign
from morphogen.core.errors import CheckpointError
from morphogen.core.weights.reading import read_weights
from morphogen.nets.first_stages import FirstStage
from morphogen.nets.layout.config import LayoutNetworkConfig, StyleConfig
from morphogen.nets.layout.network import LayoutNetwork

UNET = "model.diffusion_model."
STYLE = "agg_block."
FIRST_STAGE = "first_stage_model."
MAPPER = "cond_stage_model.channel_mapper.weight"
EMA = "model_ema."
HEADS = 8  # of the published middle attention; no file says

_BUFFERS = re.compile(r"(betas|alphas_|sqrt_|log_one_minus|posterior_|logvar|lvlb_weights|scale_factor)")
_INNER = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj"}
_INNER |= {"out_layers.0": "norm2", "out_layers.3": "conv2", "skip_connection": "conv_shortcut"}
_OUTER = {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2"}
_OUTER |= {"input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out"}


@dataclass(frozen=True)
class StedmCheckpoint:
    """What a STEDM file holds. facts: what was read, compared and left out."""

    network: LayoutNetwork
    first_stage: FirstStage
    schedule: ScheduleInfo
    facts: dict[str, Any] = field(default_factory=dict)


def load_stedm(path: Path | str, weights: str = "model", heads: int | None = None) -> StedmCheckpoint:
    """Read a STEDM checkpoint; nothing in it is run.

    weights: ``model`` as the published code samples with, or ``ema``, the averages that are in the file (of the
    U-Net alone). heads: of the middle attention, 8 in the published configuration.
    """
    file = read_weights(path)
    state, copies = own_copy(file.state(), path)
    settings = _of(published_settings(file.content), "hyper_parameters", "cfg")
    said = _of(settings, "diffusion", "unet_config", "params", "num_heads")
    config = stedm_config(
        state,
        path,
        heads=heads or (said if isinstance(said, int) and said > 0 else None),
        aggregator=_of(settings, "style_agg", "name"),
    )
    with torch.device("meta"):
        network = LayoutNetwork(config)
    assign(network, network_state(state, config, path, weights), path)
    network.eval()
    schedule = schedule_info(state, path)
    facts = {
        "weights": weights,
        "copies": copies,
        "left_out": left_out(state),
        "sampling": _of(settings, "style_sampling", "name"),
        "data_set": _of(settings, "data", "name"),
        "patch": _of(settings, "data", "patch_size"),
    }
    return StedmCheckpoint(network, first_stage_from(state, path), schedule, facts)


def own_copy(state: Mapping[str, Tensor], where: Any = None) -> tuple[dict[str, Tensor], int]:
    """The tensors under one name each (without ``model.`` or ``_model.`` and inner underscores), and how many
    copies were compared; :class:`CheckpointError` where two copies differ."""
    found: dict[str, Tensor] = {}
    copies = 0
    for key, value in state.items():
        inner = re.sub(r"^_?model\.", "", key)
        inner = re.sub(r"(?:^|(?<=\.))_(?=agg_block|embedder|linear_block)", "", inner)
        if inner not in found:
            found[inner] = value
            continue
        copies += 1
        other = found[inner]
        shared = value.data_ptr() == other.data_ptr() and not value.is_meta
        if value.shape != other.shape or not (shared or value.is_meta or torch.equal(value, other)):
            raise CheckpointError(
                f"the file holds {inner} twice and the copies differ", where=where, fix="Download it again"
            )
    if not any(key.startswith(UNET) for key in found) or MAPPER not in found:
        raise CheckpointError(
            "this is no STEDM checkpoint: its U-Net or its layout mapper is missing",
            where=where,
            fix="See `morphogen checkpoint info`",
        )
    return found, copies


def left_out(state: Mapping[str, Tensor]) -> list[str]:
    """Tensors that our networks do not use: buffers of the schedule, EMA counters, the unused time projection."""
    used = (UNET, STYLE, FIRST_STAGE, EMA)
    names = [key for key in state if not key.startswith(used) and key != MAPPER and not _BUFFERS.match(key)]
    return names + [key for key in state if "to_time_embedding" in key]


def stedm_config(
    state: Mapping[str, Tensor],
    where: Any = None,
    *,
    heads: int | None = None,
    aggregator: str | None = None,
) -> LayoutNetworkConfig:
    """Architecture from the shapes. mean and max have no weights: the file's settings tell them apart."""
    unet = {key.removeprefix(UNET): value for key, value in state.items() if key.startswith(UNET)}
    widths, layers = unet_widths(unet, where)
    latent = unet["out.2.weight"].shape[0]
    style_width = unet["middle_block.1.block.emb_layers.1.weight"].shape[1]
    stages = len({key.split(".")[3] for key in state if key.startswith(f"{FIRST_STAGE}encoder.down.")})
    return LayoutNetworkConfig(
        latent_channels=latent,
        factor=2 ** (stages - 1),
        classes=state[MAPPER].shape[1],
        widths=widths,
        layers=layers,
        heads=heads or HEADS,
        groups=32,
        style=_style_config(state, style_width, aggregator, where),
        style_in="middle",
        layout_channels=unet["input_blocks.0.0.weight"].shape[1] - latent,
        layout_by="mean",
        binarise=True,
        learned_null=False,
    )


def unet_widths(unet: Mapping[str, Tensor], where: Any = None) -> tuple[tuple[int, ...], int]:
    """Channels per level and residual blocks per level of a CompVis U-Net without attention at its levels."""
    widths: list[int] = []
    layers: list[int] = []
    level, index = 0, 1
    try:
        while any(f"input_blocks.{index}.0.{part}.weight" in unet for part in ("op", "out_layers.3")):
            if f"input_blocks.{index}.0.op.weight" in unet:
                level += 1
            else:
                if len(widths) == level:
                    widths.append(unet[f"input_blocks.{index}.0.out_layers.3.weight"].shape[0])
                    layers.append(0)
                layers[level] += 1
                if any(key.startswith(f"input_blocks.{index}.1.") for key in unet):
                    raise CheckpointError("its U-Net attends at its levels; STEDM's does not", where=where)
            index += 1
    except IndexError:
        layers = []
    if len(set(layers)) != 1:
        raise CheckpointError(f"unknown U-Net layout (blocks per level: {layers})", where=where)
    return tuple(widths), layers[0]


def _style_config(state: Mapping[str, Tensor], width: int, aggregator: str | None, where: Any) -> StyleConfig:
    shapes = {key.removeprefix(STYLE): tuple(v.shape) for key, v in state.items() if key.startswith(STYLE)}
    if "cls_token" in shapes:
        pixels, token = shapes["to_patch_embedding.to_patch_tokens.1.weight"][0], shapes["cls_token"][-1]
        patch = 8  # published; only 3·n·patch² is in the file
        depth = len({key.split(".")[2] for key in shapes if key.startswith("transformer.layers.")})
        side = patch * round((shapes["pos_embedding"][1] - 2) ** 0.5)
        return StyleConfig(
            encoder="none",
            aggregator="svit",
            width=width,
            images=pixels // (3 * patch**2),
            svit_side=side,
            svit_patch=patch,
            svit_width=token,
            svit_depth=depth,
            svit_heads=shapes["transformer.layers.0.0.fn.to_qkv.weight"][0] // (3 * 64),
            svit_mlp=shapes["transformer.layers.0.1.fn.net.0.weight"][0],
        )
    if "embedder.features.0.0.weight" not in shapes:
        return StyleConfig(encoder="none", aggregator="none", width=width)
    stages = [index for index in range(1, 12, 2) if f"embedder.features.{index}.0.norm1.weight" in shapes]
    prefix = "embedder.features"
    if "linear_block.1.weight" in shapes:
        aggregator, images = "linear", shapes["linear_block.1.weight"][1] // width
    else:
        aggregator, images = ("max" if aggregator == "max" else "mean"), 1
    return StyleConfig(
        encoder="swin",
        aggregator=aggregator,  # type: ignore[arg-type]
        width=width,
        images=images,
        swin_width=shapes[f"{prefix}.0.0.weight"][0],
        swin_depths=tuple(
            len({key.split(".")[3] for key in shapes if key.startswith(f"{prefix}.{index}.")})
            for index in stages
        ),
        swin_heads=tuple(shapes[f"{prefix}.{index}.0.attn.logit_scale"][0] for index in stages),
        swin_window=(shapes[f"{prefix}.1.0.attn.relative_coords_table"][1] + 1) // 2,
    )


def published_settings(value: Any, depth: int = 0) -> Any:
    """The settings pickled in a file as plain dicts, lists and scalars; their classes stay inert."""
    state = getattr(value, "state", None)
    if isinstance(state, Mapping):
        value = state.get("_content", state.get("_val"))
    if depth > 16 or isinstance(value, Tensor):
        return None
    if isinstance(value, Mapping):
        return {str(key): published_settings(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [published_settings(inner, depth + 1) for inner in value]
    return value if isinstance(value, (str, int, float, bool)) else None


def _of(value: Any, *keys: str) -> Any:
    """A value of nested dicts; None where a key is not there."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def network_state(
    state: Mapping[str, Tensor], config: LayoutNetworkConfig, where: Any = None, weights: str = "model"
) -> dict[str, Tensor]:
    """The parameters of :class:`~morphogen.nets.layout.LayoutNetwork` by its own names."""
    unet = {key.removeprefix(UNET): value for key, value in state.items() if key.startswith(UNET)}
    if weights == "ema":
        unet = {key: _averaged(state, key, where) for key in unet}
    named = {f"unet.{key}": value for key, value in unet_state(unet, config).items()}
    named["mapper.project.weight"] = state[MAPPER]
    for key, value in state.items():
        if key.startswith(STYLE) and "to_time_embedding" not in key:
            named[f"style.{_style_key(key.removeprefix(STYLE), config.style.aggregator)}"] = value
    return named


def _averaged(state: Mapping[str, Tensor], key: str, where: Any) -> Tensor:
    name = EMA + f"diffusion_model.{key}".replace(".", "")
    if name not in state:
        raise CheckpointError("it holds no averaged weights", where=where, fix="Take the weights 'model'")
    return state[name]


def _style_key(key: str, aggregator: str) -> str:
    if aggregator != "svit":
        key = key.replace("linear_block.", "aggregator.layers.")
        return key.replace("embedder.", "encoder.", 1)
    names = {"cls_token": "class_token", "pos_embedding": "positions"}
    names |= {
        "to_patch_embedding.to_patch_tokens.1": "patch_norm",
        "mlp_head.0": "norm",
        "mlp_head.1": "head",
    }
    names |= {"to_patch_embedding.to_patch_tokens.2": "embed"}
    for old, new in names.items():
        if key == old or key.startswith(f"{old}."):
            return f"aggregator.{key.replace(old, new, 1)}"
    _, _, block, part, rest = key.split(".", 4)
    kind = ("attention", "mlp")[int(part)]
    rest = rest.replace("fn.to_qkv", "fn.qkv").replace("fn.to_out", "fn.out").replace("fn.net", "fn")
    rest = f"{kind}_norm.{rest[5:]}" if rest.startswith("norm.") else f"{kind}.{rest.removeprefix('fn.')}"
    return f"aggregator.blocks.{block}.{rest}"


def unet_state(
    unet: Mapping[str, Tensor], config: LayoutNetworkConfig, styled: bool = True
) -> dict[str, Tensor]:
    """Parameters of :class:`~morphogen.nets.layout.network.StyledUNet` from CompVis names.

    styled: the middle is [Res, StyleRes, Attention, Res]; off for the landscape model's [Res, Attention, Res].
    """
    middle = ["unet.mid_block.resnets.0", "style_block", "unet.mid_block.attentions.0"]
    middle += ["unet.mid_block.resnets.1"]
    if not styled:
        middle.remove("style_block")
    named: dict[str, Tensor] = {}
    for key, value in unet.items():
        head, _, last = key.rpartition(".")
        if head in _OUTER:
            named[f"unet.{_OUTER[head]}.{last}"] = value
            continue
        group, index, inner = key.split(".", 2)
        if group != "middle_block":
            place, inner = _place(group, int(index), inner, config.layers)
            named[f"unet.{place}.{_inner(inner)}"] = value
            continue
        place = middle[int(index)]
        if not place.endswith("attentions.0"):
            named[f"{place}.{_inner(inner.removeprefix('block.'))}"] = value
        elif inner.startswith("qkv."):
            for name, part in zip("qkv", _heads_apart(value, config.heads), strict=True):
                named[f"{place}.to_{name}.{last}"] = part
        else:
            name = inner.replace("proj_out.", "to_out.0.").replace("norm.", "group_norm.")
            named[f"{place}.{name}"] = value.squeeze(-1) if inner == "proj_out.weight" else value
    return named


def _place(group: str, index: int, inner: str, layers: int) -> tuple[str, str]:
    """diffusers' place of an input or output block, and the rest of the name."""
    part, _, rest = inner.partition(".")
    if group == "input_blocks":
        level, number = divmod(index - 1, layers + 1)
        if number == layers:
            return f"down_blocks.{level}.downsamplers.0", rest
        return f"down_blocks.{level}.resnets.{number}", rest
    level, number = divmod(index, layers + 1)
    kind = "upsamplers.0" if part == "1" else f"resnets.{number}"
    return f"up_blocks.{level}.{kind}", rest


def _inner(name: str) -> str:
    head, _, last = name.rpartition(".")
    return f"{_INNER[head]}.{last}" if head in _INNER else name.replace("op.", "conv.")


def _heads_apart(value: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v, whose rows the file groups by head as [q, k, v]."""
    rows = value.squeeze(-1) if value.ndim == 3 else value
    grouped = rows.unflatten(0, (heads, 3, -1))
    q, k, v = (grouped[:, part].flatten(0, 1) for part in range(3))
    return q, k, v


def load_landscape(path: Path | str, network: LayoutNetwork) -> dict[str, Any]:
    """Start a network (in place) from the CompVis landscape model; what was loaded and what was not.

    The style block stands between the first residual block and the attention of the middle, so that the file's
    middle parts 1 and 2 are our parts 2 and 3: they are put there. (The published code leaves them random.) The
    layout mapper and the style encoder keep their fresh weights. First stage: :func:`first_stage_from` reads it.
    """
    state = {re.sub(r"^_?model\.(?=model\.)", "", key): v for key, v in read_weights(path).state().items()}
    unet = {key.removeprefix(UNET): value for key, value in state.items() if key.startswith(UNET)}
    if not unet:
        raise CheckpointError(
            "there is no latent diffusion U-Net (model.diffusion_model.*) in it", where=path
        )
    widths, layers = unet_widths(unet, path)
    config = network.config
    if (widths, layers) != (config.widths, config.layers):
        raise CheckpointError(
            f"its widths are {widths} with {layers} blocks, the network's {config.widths} with {config.layers}",
            where=path,
            fix="Use size paper",
        )
    named = unet_state(unet, config, styled=False)
    own = network.unet.state_dict()
    fits = {key: value for key, value in named.items() if key in own and own[key].shape == value.shape}
    network.unet.load_state_dict({key: value.float() for key, value in fits.items()}, strict=False)
    loaded = sum(value.numel() for value in fits.values())
    total = sum(value.numel() for value in own.values())
    if loaded < 0.85 * total:
        raise CheckpointError(f"only {loaded / total:.0%} of the U-Net's parameters fit", where=path)
    return {
        "loaded": len(fits),
        "share": loaded / total,
        "not loaded": sorted(set(own) - set(fits)),
        "not used": sorted(set(named) - set(fits)),
    }
