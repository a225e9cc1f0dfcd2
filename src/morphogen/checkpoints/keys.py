"""Names of parameters: from the published state dicts to ours.

A map is a list of (pattern, replacement) on whole keys; the first that matches is taken.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

Value = TypeVar("Value")
Rules = Sequence[tuple[str, str]]

# Blocks, time embedder and last layer of Stem and HisDiff are named alike.
_DENOISER: Rules = [
    (r"time_embed\.mlp\.(.+)", r"time.mlp.\1"),
    (r"blocks\.(\d+)\.attn\.qkv\.(.+)", r"blocks.\1.qkv.\2"),
    (r"blocks\.(\d+)\.attn\.proj\.(.+)", r"blocks.\1.project.\2"),
    (r"blocks\.(\d+)\.mlp\.(fc[12]\..+)", r"blocks.\1.\2"),
    (r"blocks\.(\d+)\.adaLN_modulation\.1\.(.+)", r"blocks.\1.modulation.\2"),
    (r"final_layer\.linear\.(.+)", r"head.linear.\1"),
    (r"final_layer\.adaLN_modulation\.1\.(.+)", r"head.modulation.\1"),
]

STEM: Rules = [
    (r"gene_joint_embed\.gene_name_ebd", "embedder.gene_vectors"),
    (r"gene_joint_embed\.gene_count_ebd\.0\.(.+)", r"embedder.first.\1"),
    (r"gene_joint_embed\.gene_count_ebd\.2\.(.+)", r"embedder.second.\1"),
    (r"label_embed\.([02]\..+)", r"conditioner.mlp.\1"),
    *_DENOISER,
]

HISDIFF: Rules = [
    (r"inputEmbedder\.ebd_layer_1", "embedder.gene_vectors"),
    (r"inputEmbedder\.ebd_layer_2\.0\.(.+)", r"embedder.first.\1"),
    (r"inputEmbedder\.ebd_layer_2\.2\.(.+)", r"embedder.second.\1"),
    (r"crossAttention_ln\.in_proj_(.+)", r"conditioner.near.in_proj.\1"),
    (r"crossAttention_ln\.(out_proj\..+)", r"conditioner.near.\1"),
    (r"crossAttention_gn\.in_proj_(.+)", r"conditioner.far.in_proj.\1"),
    (r"crossAttention_gn\.(out_proj\..+)", r"conditioner.far.\1"),
    (r"img_ebd\.([02]\..+)", r"conditioner.mlp.\1"),
    *_DENOISER,
]


def rename(state: Mapping[str, Value], rules: Rules) -> tuple[dict[str, Value], list[str]]:
    """State dict under our names, and the keys that no rule knows."""
    known: dict[str, Value] = {}
    unknown: list[str] = []
    for key, value in state.items():
        for pattern, replacement in rules:
            match = re.fullmatch(pattern, key)
            if match:
                known[match.expand(replacement)] = value
                break
        else:
            unknown.append(key)
    return known, unknown


def has(*prefixes: str) -> Callable[[Mapping[str, object]], bool]:
    """Whether a state dict has names that begin with each of ``prefixes``: what makes out a kind of network."""
    return lambda state: all(any(key.startswith(prefix) for key in state) for prefix in prefixes)


is_stem = has("gene_joint_embed.", "final_layer.")
is_hisdiff = has("inputEmbedder.", "crossAttention_ln.")
is_stedm = has("_model.model.diffusion_model.", "_model._agg_block.")
is_latent_diffusion = has("model.diffusion_model.")
is_first_stage = has("encoder.down.", "decoder.up.")
