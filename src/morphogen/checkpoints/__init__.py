"""Reading published checkpoints into our networks, and model folders.

Nothing that a file names is ever imported or run. Readers that need diffusers import it when they are asked
for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from morphogen.checkpoints.folder import ModelFolder, load_model, resolve_folder, save_model
from morphogen.core.weights.reading import WeightFile, read_weights

if TYPE_CHECKING:
    from morphogen.checkpoints.compvis import (
        LatentDiffusionCheckpoint,
        ScheduleInfo,
        load_compvis_first_stage,
        load_latent_diffusion,
        load_ldm,
        save_latent_diffusion,
    )
    from morphogen.checkpoints.gene_networks import load_hisdiff, load_stem
    from morphogen.checkpoints.identification import describe, identify
    from morphogen.checkpoints.importing import import_first_stage, import_latent_diffusion
    from morphogen.checkpoints.info import CheckpointInfo
    from morphogen.checkpoints.pipelines import PipelineComponents, load_histdist, load_pipeline
    from morphogen.checkpoints.zoomldm import ZoomCheckpoint, load_zoomldm

_LATER = {
    "LatentDiffusionCheckpoint": "compvis",
    "ScheduleInfo": "compvis",
    "load_compvis_first_stage": "compvis",
    "load_latent_diffusion": "compvis",
    "load_ldm": "compvis",
    "save_latent_diffusion": "compvis",
    "import_first_stage": "importing",
    "import_latent_diffusion": "importing",
    "load_hisdiff": "gene_networks",
    "load_stem": "gene_networks",
    "CheckpointInfo": "info",
    "describe": "identification",
    "identify": "identification",
    "PipelineComponents": "pipelines",
    "load_histdist": "pipelines",
    "load_pipeline": "pipelines",
    "ZoomCheckpoint": "zoomldm",
    "load_zoomldm": "zoomldm",
}

__all__ = [
    "CheckpointInfo",
    "LatentDiffusionCheckpoint",
    "ModelFolder",
    "PipelineComponents",
    "ScheduleInfo",
    "WeightFile",
    "ZoomCheckpoint",
    "describe",
    "identify",
    "import_first_stage",
    "import_latent_diffusion",
    "load_compvis_first_stage",
    "load_hisdiff",
    "load_histdist",
    "load_latent_diffusion",
    "load_ldm",
    "load_model",
    "load_pipeline",
    "load_zoomldm",
    "load_stem",
    "read_weights",
    "resolve_folder",
    "save_latent_diffusion",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
