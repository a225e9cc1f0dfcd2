"""ZoomLDM's checkpoints (``brca/weights.ckpt``, ``naip/weights.ckpt``): the U-Net and VQ autoencoder of the large-image
models, and a summariser of grids of embeddings at eight magnifications."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from morphogen.checkpoints.compvis import EMBEDDER, ScheduleInfo, load_ldm
from morphogen.checkpoints.gene_networks import assign
from morphogen.core.errors import CheckpointError
from morphogen.core.weights.reading import read_weights
from morphogen.nets.first_stages import FirstStage
from morphogen.nets.summariser import GridSummariser
from morphogen.nets.unets import LatentUNet


class ZoomCheckpoint(NamedTuple):
    """What a ZoomLDM checkpoint holds. network: takes the summariser's tokens as context."""

    network: LatentUNet
    first_stage: FirstStage
    summariser: GridSummariser
    schedule: ScheduleInfo


def load_zoomldm(
    path: Path | str, weights: str | None = None, *, unet_heads: int | None = None
) -> ZoomCheckpoint:
    """Read a published ZoomLDM checkpoint; all in eval mode.

    weights: "ema", "model" or None = EMA where the file has them (of the U-Net). unet_heads: of a
    U-Net of other widths than the published. Raises :class:`CheckpointError` when
    there is no summariser in it, or a parameter is missing or of another shape.
    """
    read = load_ldm(path, unet_heads, weights)
    state = read_weights(path).state()
    parts = {key.removeprefix(EMBEDDER): value for key, value in state.items() if key.startswith(EMBEDDER)}
    with torch.device("meta"):
        summariser = GridSummariser(**summariser_sizes(parts, path))
    assign(summariser, parts, path)
    return ZoomCheckpoint(read.network, read.first_stage, summariser.eval(), read.schedule)


def summariser_sizes(parts: Mapping[str, Tensor], where: Any = None, heads: int = 8) -> dict[str, int]:
    """Arguments of :class:`GridSummariser` from the shapes of its parameters; no shape says the heads, which are 8."""
    try:
        layers = {key.split(".")[2] for key in parts if key.startswith("encoder.layers.")}
        return {
            "features": parts["dim_reduce.weight"].shape[1],
            "width": parts["dim_reduce.weight"].shape[0],
            "levels": parts["mag_embedding.weight"].shape[0],
            "depth": len(layers),
            "heads": heads,
            "mlp": parts["encoder.layers.encoder_layer_0.mlp.0.weight"].shape[0],
            "out": parts["final_proj.weight"].shape[0],
        }
    except KeyError as error:
        raise CheckpointError(
            f"there is no summariser of grids in it (cond_stage_model.{error.args[0]} is missing)",
            where=where,
            fix="See `morphogen checkpoint info`",
        ) from None
