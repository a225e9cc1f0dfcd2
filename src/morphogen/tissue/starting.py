"""New tissue models: fresh, or with a U-Net that was trained before."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from morphogen.checkpoints import load_compvis_first_stage, load_ldm
from morphogen.core.errors import CheckpointError, ConfigError
from morphogen.nets import ComponentFirstStage, FirstStage, PixelFirstStage, load_first_stage, load_unet
from morphogen.tissue.config import ModelConfig
from morphogen.tissue.model import TissueDiffusion
from morphogen.tissue.network import Standardiser, TissueNetwork, new_network

log = logging.getLogger("morphogen.tissue")

LEAST = 0.95
"""Share of the U-Net's parameters that a start must give."""


def new_model(
    config: ModelConfig,
    *,
    tile_px: int = 256,
    mpp: float | None = None,
    statistics: Standardiser | None = None,
    init: Path | str | None = None,
    seed: int = 0,
    facts: dict[str, Any] | None = None,
    tiles: np.ndarray | None = None,
) -> TissueDiffusion:
    """A model to be trained, on the CPU; ``init`` as in :class:`~morphogen.tissue.TrainConfig`.

    tiles: (N, px, px, 3) uint8, what the components of a first stage ``components`` are fitted to; without them its
    components are the pixels of a block. A start that is a tissue model of ours gives its own.

    Raises :class:`ConfigError` for a first stage without weights and tiles that do not fit the network,
    :class:`CheckpointError` when the start matches less than 95 % of the parameters.
    """
    if not config.embeddings:
        raise ConfigError("the widths of the embeddings are not known", where="model.embeddings")
    stage = new_first_stage(config, tiles, init)
    network = new_network(config, stage.channels, seed)
    notes = dict(facts or {})
    if init is not None:
        notes["init"] = start_from(network, init)
    model = TissueDiffusion(
        network, stage, config, statistics=statistics, tile_px=tile_px, mpp=mpp, facts=notes
    )
    if tile_px % model.multiple:
        raise ConfigError(
            f"tiles of {tile_px} px do not fit this network",
            where="data.tile_px",
            fix=f"Use a multiple of {model.multiple}",
        )
    return model


def new_first_stage(
    config: ModelConfig, tiles: np.ndarray | None = None, init: Path | str | None = None
) -> FirstStage:
    """Components or blocks of pixels, or the autoencoder of ``config.autoencoder``; see :func:`new_model`."""
    if config.first_stage == "components":
        own = Path(init) / "first_stage" if init is not None else None
        if (
            own is not None
            and own.is_dir()
            and isinstance(stage := load_first_stage(own), ComponentFirstStage)
        ):
            return stage
        size = 3 * config.pixel_factor**2
        count = config.components or size
        if tiles is None:
            return ComponentFirstStage(
                config.pixel_factor, torch.zeros(size), torch.eye(size)[:count], torch.ones(min(count, size))
            )
        images = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 127.5 - 1
        return ComponentFirstStage.fit(
            images, factor=config.pixel_factor, channels=count, whitening=config.whitening
        )
    if config.first_stage == "pixels":
        stage = PixelFirstStage(config.pixel_factor)
        stage.scaling = config.pixel_scale
        return stage
    if config.autoencoder is None:
        raise ConfigError(
            f"first stage '{config.first_stage}' needs trained weights",
            where="model.autoencoder",
            fix="Give CompVis' vq-f4 file or a diffusers folder, or take model.first_stage pixels",
        )
    path = Path(config.autoencoder)
    return load_first_stage(path) if path.is_dir() else load_compvis_first_stage(path)


def start_from(network: TissueNetwork, init: Path | str) -> str:
    """Copy the parameters that fit (in place) and say in one sentence what was loaded."""
    path = Path(init)
    embedder = detail = None
    if path.is_file():
        read = load_ldm(path, heads=1)  # tensors are the same for any number
        given, embedder = read.network.unet.state_dict(), read.embedder
    elif (path / "network").is_dir():
        own = TissueDiffusion.from_pretrained(path)
        given, embedder = own.network.latent.unet.state_dict(), own.network.embedder
        detail = own.network.detail
    else:
        folder = path / "unet" if (path / "unet").is_dir() else path
        given = load_unet(folder).unet.state_dict()
    unet = network.latent.unet
    wanted = unet.state_dict()
    fitting = {
        key: value for key, value in given.items() if key in wanted and wanted[key].shape == value.shape
    }
    share = _count(fitting) / _count(wanted)
    differing = [key for key in wanted if key not in fitting]
    if share < LEAST:
        raise CheckpointError(
            f"only {100 * share:.1f} % of the U-Net's parameters match (first that does not: {differing[0]})",
            where=init,
            fix="Take a start of the same architecture; size 'paper' is that of cin256-v2",
        )
    unet.load_state_dict(fitting, strict=False)
    tokens = "fresh"
    if embedder is not None and embedder.features == network.embedder.features:
        own_tokens = network.embedder.state_dict()
        theirs = embedder.state_dict()
        if all(own_tokens[key].shape == value.shape for key, value in theirs.items()):
            network.embedder.load_state_dict(theirs)
            tokens = "loaded"
    if detail is not None and network.detail is not None and detail.width == network.detail.width:
        network.detail.load_state_dict(detail.state_dict())
    text = (
        f"{100 * share:.1f} % of the U-Net's {_count(wanted):,} parameters from {path.name}; tokens {tokens}"
    )
    log.info("%s", text)
    return text


def _count(state: dict[str, Tensor]) -> int:
    return sum(value.numel() for value in state.values())
