"""The published networks of spatial expression: Stem's and HisDiff's checkpoints as gene transformers.

Sizes are read from the shapes of the tensors. The number of heads is in no file: it is the published one
where the width is the published 384, and has to be given otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from morphogen.checkpoints.keys import HISDIFF, STEM, Rules, is_hisdiff, is_stem, rename
from morphogen.core.errors import CheckpointError
from morphogen.core.weights.finding import find_network
from morphogen.core.weights.reading import read_weights
from morphogen.nets.config import GeneTransformerConfig
from morphogen.nets.gene_transformer import GeneTransformer

PUBLISHED_WIDTH = 384
STEM_HEADS = 6
HISDIFF_HEADS = 12
HISDIFF_CONDITION_HEADS = 8  # fixed in the released code, whatever the denoiser has


def stem_config(
    state: Mapping[str, Tensor], heads: int | None = None, where: Any = None
) -> GeneTransformerConfig:
    """Architecture of a Stem state dict (published names)."""
    return _config(state, "gene_joint_embed.gene_name_ebd", "label_embed", STEM_HEADS, heads, where)


def hisdiff_config(
    state: Mapping[str, Tensor], heads: int | None = None, where: Any = None
) -> GeneTransformerConfig:
    """Architecture of a HisDiff state dict (published names)."""
    config = _config(state, "inputEmbedder.ebd_layer_1", "img_ebd", HISDIFF_HEADS, heads, where)
    return config.replace(conditioner="hierarchical", condition_heads=HISDIFF_CONDITION_HEADS)


def _config(
    state: Mapping[str, Tensor], vectors: str, image: str, published: int, heads: int | None, where: Any
) -> GeneTransformerConfig:
    try:
        genes, width = state[vectors].shape
        condition_dim = state[f"{image}.0.weight"].shape[1]
        hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
        channels = state["final_layer.linear.weight"].shape[0]
    except KeyError as error:
        raise CheckpointError(
            f"the parameter {error} is missing", where=where, fix="Download it again"
        ) from None
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    if heads is None:
        if width != PUBLISHED_WIDTH:
            raise CheckpointError(
                f"the file does not say how many attention heads this network of width {width} has",
                where=where,
                fix="Give the number it was trained with (heads=…, --heads)",
            )
        heads = published
    return GeneTransformerConfig(
        genes=genes,
        condition_dim=condition_dim,
        width=width,
        depth=depth,
        heads=heads,
        mlp_ratio=hidden / width,
        channels=channels,
    )


def load_stem(path: Path | str, heads: int | None = None, weights: str | None = None) -> GeneTransformer:
    """A Stem checkpoint ``{model, ema, opt}`` as a network in eval mode.

    heads: see the module. weights: "ema" or "model"; None takes the EMA weights where there are any, as the
    published sampler does. Input of the network: log2(count + 1) values that follow the linear schedule.
    """
    state = find_network(read_weights(path), is_stem, weights, "Stem network").state
    return _network(state, STEM, stem_config(state, heads, where=path), path)


def load_hisdiff(path: Path | str, heads: int | None = None) -> GeneTransformer:
    """A HisDiff checkpoint ``{model, opt, epoch}`` as a network in eval mode (no EMA is published; it is taken where
    there is one)."""
    state = find_network(read_weights(path), is_hisdiff, what="HisDiff network").state
    return _network(state, HISDIFF, hisdiff_config(state, heads, where=path), path)


def _network(
    state: dict[str, Tensor], rules: Rules, config: GeneTransformerConfig, where: Path | str
) -> GeneTransformer:
    renamed, unknown = rename(state, rules)
    if unknown:
        raise CheckpointError(f"{len(unknown)} parameters are unknown (the first: {unknown[0]})", where=where)
    with torch.device("meta"):
        network = GeneTransformer(config)
    assign(network, renamed, where)
    return network.eval()


def assign(module: nn.Module, state: Mapping[str, Tensor], where: Path | str) -> None:
    """Give a module (on the meta device, or not) float32 copies of weights; every name and shape must fit."""
    expected = module.state_dict()
    missing = [key for key in expected if key not in state]
    surplus = [key for key in state if key not in expected]
    for what, keys in (("missing", missing), ("unknown", surplus)):
        if keys:
            raise CheckpointError(f"{len(keys)} parameters are {what} (the first: {keys[0]})", where=where)
    for key, value in state.items():
        if value.shape != expected[key].shape:
            raise CheckpointError(
                f"parameter {key} has shape {tuple(value.shape)}, but the network needs {tuple(expected[key].shape)}",
                where=where,
            )
    copies = {
        key: value.detach().float().clone() if value.is_floating_point() else value.clone()
        for key, value in state.items()
    }
    module.load_state_dict(copies, assign=True)
    for key, value in module.named_parameters():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"parameter {key} holds NaN or infinite values", where=where)
