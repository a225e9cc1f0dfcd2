"""Published tissue models through :class:`~morphogen.tissue.TissueDiffusion`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from morphogen.checkpoints import load_latent_diffusion, load_ldm
from morphogen.checkpoints.compvis import LatentDiffusionCheckpoint
from morphogen.checkpoints.folder import NAME
from morphogen.core.errors import CheckpointError
from morphogen.core.files import read_json
from morphogen.nets import VQFirstStage
from morphogen.tissue.config import ModelConfig
from morphogen.tissue.network import Standardiser, TissueNetwork


def is_published(folder: Path | str) -> bool:
    """Whether this is a checkpoint file, or a folder imported from one."""
    path = Path(folder)
    if path.is_file():
        return True
    if not (path / NAME).is_file():
        return False
    found = read_json(path / NAME)
    return isinstance(found, dict) and found.get("kind") == "latent-diffusion"


def load_published(path: Path | str, heads: int | None = None) -> dict[str, Any]:
    """The arguments of :class:`~morphogen.tissue.TissueDiffusion` for a published checkpoint. heads: of a file whose
    widths are not the published ones."""
    path = Path(path)
    return parts_of(load_ldm(path, heads) if path.is_file() else load_latent_diffusion(path), path)


def parts_of(read: LatentDiffusionCheckpoint, where: Path | str) -> dict[str, Any]:
    """The same of a checkpoint that was read."""
    network, stage, embedder, schedule = read
    if embedder is None:
        raise CheckpointError(
            "this latent diffusion model has no embedder of representations (cond_stage_model.patch_fc)",
            where=where,
            fix="As a start for training, give it to 'tissue train' with --init",
        )
    unet = network.unet.config
    config = ModelConfig(
        size="paper",
        first_stage="vq" if isinstance(stage, VQFirstStage) else "kl",
        detail=0,
        widths=tuple(unet.block_out_channels),
        layers=unet.layers_per_block,
        attention=tuple(i for i, kind in enumerate(unet.down_block_types) if "Attn" in kind),
        heads=unet.attention_head_dim,
        groups=unet.norm_num_groups,
        token_width=embedder.width,
        film=False,
        embeddings=embedder.features,
        features="normalise",
        unit_features=False,
        prediction="epsilon",
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        zero_snr=False,
    )
    return {
        "network": TissueNetwork(network, embedder).eval(),
        "first_stage": stage,
        "config": config,
        "statistics": Standardiser(embedder.features),
        "tile_px": 256,
        "facts": {"from": "published latent diffusion checkpoint"},
    }
