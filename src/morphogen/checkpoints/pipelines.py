"""Diffusers pipeline folders: the form in which HistDiST is published, and Stable Diffusion to start from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field

from morphogen.checkpoints.folder import NAME, load_model, resolve_folder
from morphogen.checkpoints.info import CheckpointInfo
from morphogen.core.errors import CheckpointError
from morphogen.core.reading.documents import read_document, shown
from morphogen.nets.first_stages import FirstStage, load_first_stage
from morphogen.nets.folders import class_name, component_file
from morphogen.nets.text import TextEncoder, load_text_encoder
from morphogen.nets.unets import LatentUNet, load_unet

if TYPE_CHECKING:
    from morphogen.diffusion import Schedule

HISTDIST_CHANNELS = 8  # latent and H&E latent; a Stable Diffusion U-Net has 4


class PipelineComponents(NamedTuple):
    """A Stable Diffusion shaped pipeline. text: None where the folder has no text encoder."""

    network: LatentUNet
    first_stage: FirstStage
    text: TextEncoder | None
    beta_start: float
    beta_end: float

    def schedule(self, zero_terminal_snr: bool = True) -> Schedule:
        """The scaled-linear schedule of the pipeline; HistDiST needs it with zero terminal SNR (and trailing
        timesteps and v-prediction), although its folder still carries Stable Diffusion's scheduler."""
        from morphogen.diffusion import Schedule

        schedule = Schedule.scaled_linear(self.beta_start, self.beta_end)
        return schedule.zero_terminal_snr() if zero_terminal_snr else schedule


def load_pipeline(folder: Path | str, dtype: torch.dtype = torch.float32) -> PipelineComponents:
    """Read U-Net, autoencoder, text encoder and schedule of a pipeline folder or hub id; safetensors only."""
    folder = resolve_folder(folder)
    _index(folder)
    scheduler = _scheduler(folder)
    text = load_text_encoder(folder, dtype) if (folder / "text_encoder").is_dir() else None
    return PipelineComponents(
        load_unet(folder / "unet", dtype),
        load_first_stage(folder / "vae", dtype),
        text,
        scheduler.beta_start,
        scheduler.beta_end,
    )


def load_histdist(folder: Path | str, dtype: torch.dtype = torch.float32) -> PipelineComponents:
    """The published HistDiST pipeline folder; :class:`CheckpointError` where its U-Net is not an 8-channel
    one."""
    components = load_pipeline(folder, dtype)
    if components.network.in_channels != HISTDIST_CHANNELS:
        raise CheckpointError(
            f"this pipeline's U-Net takes {components.network.in_channels} channels, HistDiST's takes 8",
            where=folder,
            fix="Stable Diffusion weights are a start for training, not a stain model",
        )
    return components


class SchedulerFile(BaseModel):
    """What is read of a pipeline's scheduler_config.json; Stable Diffusion's values where it says nothing."""

    model_config = ConfigDict(extra="allow")
    beta_schedule: str = "scaled_linear"
    beta_start: Annotated[float, Field(gt=0, lt=1)] = 0.00085
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 0.012
    prediction_type: str = "epsilon"
    rescale_betas_zero_snr: bool | None = False


def _index(folder: Path) -> dict[str, Any]:
    path = folder / "model_index.json"
    if not path.is_file():
        raise CheckpointError(
            "this is not a diffusers pipeline folder: there is no model_index.json", where=folder
        )
    index = read_document(path, dict[str, Any], error=CheckpointError)
    missing = [name for name in ("unet", "vae") if not (folder / name).is_dir()]
    if missing:
        raise CheckpointError(
            f"the component '{missing[0]}' is missing", where=folder, fix="Copy the whole folder"
        )
    return index


def _scheduler(folder: Path) -> SchedulerFile:
    """β range of the scheduler; Stable Diffusion's where the folder has none."""
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return SchedulerFile()
    config = read_document(path, SchedulerFile, error=CheckpointError)
    if config.beta_schedule != "scaled_linear":
        raise CheckpointError(
            f"its β schedule is {shown(config.beta_schedule)}, not scaled_linear", where=path
        )
    return config


def identify_folder(folder: Path) -> CheckpointInfo:
    """Recognise a model folder, a diffusers pipeline, or one component."""
    if (folder / NAME).is_file():
        model = load_model(folder)
        return CheckpointInfo(
            folder,
            "morphogen",
            f"model folder of morphogen, kind {model.kind}",
            sizes={key: value for key, value in model.config.items() if not isinstance(value, (dict, list))},
            parameters=_parameters(folder),
            advice="Ready for use",
        )
    if (folder / "model_index.json").is_file():
        return _pipeline(folder)
    if (folder / "config.json").is_file():
        return CheckpointInfo(
            folder, "component", f"one component: {class_name(folder)[:80]}", parameters=_parameters(folder)
        )
    files = [
        path.name for path in folder.iterdir() if path.suffix in (".pt", ".ckpt", ".pth", ".safetensors")
    ]
    hint = f"Give one of its files, such as {sorted(files)[0]}" if files else "Give a file or a model folder"
    raise CheckpointError(
        "this folder holds no model: no morphogen.json, model_index.json or config.json",
        where=folder,
        fix=hint,
    )


def _pipeline(folder: Path) -> CheckpointInfo:
    index = _index(folder)
    unet = component_file(folder / "unet")
    scheduler = _scheduler(folder)
    histdist = unet.in_channels == HISTDIST_CHANNELS
    components = [name for name in index if not name.startswith("_") and (folder / name).is_dir()]
    info = CheckpointInfo(
        folder,
        "histdist" if histdist else "diffusers",
        "HistDiST: virtual staining (diffusers pipeline)" if histdist else "diffusers pipeline",
        {
            "class": str(index.get("_class_name"))[:80],
            "components": components,
            "U-Net channels": unet.in_channels,
            "widths": unet.block_out_channels,
            "context width": unet.cross_attention_dim,
            "schedule": f"scaled-linear {scheduler.beta_start} → {scheduler.beta_end}",
        },
        _parameters(folder),
    )
    stated = (scheduler.prediction_type, scheduler.rescale_betas_zero_snr)
    if histdist:
        if stated != ("v_prediction", True):
            info.sizes["schedule"] += (
                " (its scheduler file says stock Stable Diffusion; read as zero-SNR, trailing, v)"
            )
        info.encoder = "phikon"
        info.sizes["token encoder"] = "phikon (published; --encoder for another)"
        info.advice = f"morphogen checkpoint import {folder} --out FOLDER"
    else:
        info.advice = (
            "A start for training: `morphogen stain train` widens its first convolution from 4 to 8 channels"
        )
    return info


def _parameters(folder: Path) -> int:
    """Elements in the safetensors of a folder, from their headers."""
    from safetensors import safe_open

    total = 0
    for path in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (no iterator)
                    size = 1
                    for side in file.get_slice(key).get_shape():
                        size *= side
                    total += size
        except Exception as error:
            raise CheckpointError(
                "the file is damaged or cut short", where=path, fix="Copy it again"
            ) from error
    return total
