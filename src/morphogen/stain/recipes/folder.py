"""Stain models on disk: our folders, and the diffusers pipeline published with HistDiST."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from morphogen.checkpoints import load_histdist, load_model, resolve_folder
from morphogen.checkpoints.folder import NAME, ModelFolder
from morphogen.core.errors import CheckpointError, ConfigError, nearest
from morphogen.core.provenance import versions
from morphogen.nets import (
    KLFirstStage,
    TextEncoder,
    load_first_stage,
    load_text_encoder,
    load_unet,
)
from morphogen.stain.config import ModelConfig
from morphogen.stain.recipes.network import PROMPT, StainNetwork, colour_skip, detail_head

if TYPE_CHECKING:
    from diffusers import DDIMScheduler

KIND = "stain"
PUBLISHED_ENCODER = "phikon"
PUBLISHED_CROP, PUBLISHED_MPP = 512, 0.4661  # HistDiST, section 3: MIST


@dataclass(frozen=True)
class Parts:
    """What a stain model is put together from. mean: network and configuration of the regression that it scatters
    around."""

    network: StainNetwork
    first_stage: Any
    config: ModelConfig
    text: TextEncoder | None = None
    crop: int = PUBLISHED_CROP
    mpp: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    mean: tuple[StainNetwork, ModelConfig] | None = None


def read(folder: Path | str, changes: dict[str, Any]) -> Parts:
    """The parts of a stain model's folder, or of the published pipeline, on the CPU; ``changes`` are settings that
    override the saved ones."""
    path = resolve_folder(folder)
    if (path / NAME).is_file():
        return _own(path, changes)
    if (path / "model_index.json").is_file():
        return _published(path, changes)
    raise CheckpointError(
        f"this is no stain model: there is neither {NAME} nor model_index.json",
        where=path,
        fix="Give a folder written by `morphogen stain train`, or the published HistDiST pipeline folder",
    )


class Preprocessing(BaseModel):
    """How the images of a stain model were prepared: crop in px, µm/px (None: not known)."""

    crop: Annotated[int, Field(gt=0, le=1 << 16)] = PUBLISHED_CROP
    mpp: Annotated[float, Field(gt=0, lt=1000)] | None = None


def _own(path: Path, changes: dict[str, Any]) -> Parts:
    model = load_model(path, KIND)
    try:
        config = model.settings(ModelConfig).replace(**changes)
    except ConfigError as error:
        raise CheckpointError(str(error), where=path) from None
    if (path / "vae").is_dir():
        first_stage = load_first_stage(path / "vae")
    else:
        first_stage = pixel_first_stage(config, model.component("first_stage"))
    made = model.fact("preprocessing", Preprocessing, Preprocessing())
    mean = None
    if config.residual:
        own = config.replace(
            residual=False,
            residual_scale=None,
            image_effects=None,
            effect_spread=1.0,
            regression=True,
            stains=tuple(model.fact("mean_stains", list[str])),
        )
        mean = _network(model, own, "mean_").eval(), own
    return Parts(
        _network(model, config).eval(),
        first_stage,
        config,
        text=load_text_encoder(path) if (path / "text_encoder").is_dir() else None,
        crop=made.crop,
        mpp=made.mpp,
        facts=model.fact("training", dict[str, Any], {}),
        mean=mean,
    )


def _network(model: ModelFolder, config: ModelConfig, prefix: str = "") -> StainNetwork:
    """The network of a folder, or the regression that is kept beside it under ``prefix``."""
    latent = load_unet(model.component(f"{prefix}unet"))
    rest = f"{prefix}conditioning"
    conditioning = model.state(rest) if (model.path / f"{rest}.safetensors").is_file() else {}
    null = conditioning.get("null")
    width = conditioning["projection.weight"].shape[1] if "projection.weight" in conditioning else 0
    network = StainNetwork(
        latent,
        null=null,
        token_width=width,
        learn_null=config.null_context == "learned",
        detail=detail_head(config),
        colours=colour_skip(config),
    )
    for name in ("projection", "detail", "colours"):
        module = getattr(network, name)
        if module is not None:
            state = {
                k.removeprefix(f"{name}."): v for k, v in conditioning.items() if k.startswith(f"{name}.")
            }
            try:
                module.load_state_dict(state)
            except RuntimeError as error:
                raise CheckpointError(
                    f"the weights of its {name} do not fit ({error})",
                    where=model.path / f"{rest}.safetensors",
                ) from None
    return network


def _published(path: Path, changes: dict[str, Any]) -> Parts:
    parts = load_histdist(path)
    if parts.text is None:
        raise CheckpointError(
            "the text encoder is missing, which inversion needs", where=path, fix="Copy the whole folder"
        )
    config = ModelConfig(
        size="paper",
        encoder=PUBLISHED_ENCODER,
        null_context="text",
        beta_start=parts.beta_start,
        beta_end=parts.beta_end,
    ).replace(**changes)
    network = StainNetwork(parts.network, null=parts.text([PROMPT]), learn_null=False)
    return Parts(
        network.eval(),
        parts.first_stage,
        config,
        text=parts.text,
        mpp=PUBLISHED_MPP,
        facts={"from": "published HistDiST pipeline"},
    )


def modules(
    network: StainNetwork,
    first_stage: Any,
    config: ModelConfig,
    text: TextEncoder | None = None,
    mean: StainNetwork | None = None,
) -> dict[str, Any]:
    """What a folder holds, by name: as a diffusers pipeline names it, and the conditioning that is ours."""
    out: dict[str, Any] = {"unet": network.latent.unet, "scheduler": diffusers_scheduler(config)}
    if isinstance(first_stage, KLFirstStage):
        out["vae"] = first_stage.autoencoder
    else:
        out["first_stage"] = first_stage
    if text is not None:
        out["text_encoder"], out["tokenizer"] = text.model, text.tokenizer
    networks = {"": network}
    if mean is not None:
        networks["mean_"], out["mean_unet"] = mean, mean.latent.unet
    for prefix, each in networks.items():
        rest = _Conditioning(each)
        if rest.state_dict():
            out[f"{prefix}conditioning"] = rest
    return out


class _Conditioning(nn.Module):
    """What the network has besides the U-Net, with plain names."""

    def __init__(self, network: StainNetwork) -> None:
        super().__init__()
        if network.null is not None:
            self.register_buffer("null", network.null.detach().clone())
        self.projection, self.detail, self.colours = network.projection, network.detail, network.colours


def index(modules: dict[str, Any]) -> dict[str, Any]:
    """``model_index.json`` of the diffusers pipeline, where all its components are there."""
    needed = {"unet", "scheduler", "vae", "text_encoder", "tokenizer"}
    if not needed <= set(modules):
        return {}
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionInstructPix2PixPipeline",
        "_diffusers_version": versions()["diffusers"],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
    }
    for name in sorted(needed):
        kind = type(modules[name])
        index[name] = [kind.__module__.split(".")[0], kind.__name__]
    return {"model_index.json": index}


def diffusers_scheduler(config: ModelConfig) -> DDIMScheduler:
    """The scheduler that agrees with the model: zero terminal SNR and trailing steps, except for epsilon."""
    from diffusers import DDIMScheduler

    own = config.output != "epsilon"
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=0 if own else 1,
        prediction_type={"v": "v_prediction", "x0": "sample", "epsilon": "epsilon"}[config.output],
        timestep_spacing="trailing" if own else "leading",
        rescale_betas_zero_snr=own,
    )


def pixel_first_stage(config: ModelConfig, folder: Path | None = None) -> Any:
    """The pixel-space first stage of ``config``, scaled; read from ``folder`` when given."""
    from morphogen.nets import PixelFirstStage

    stage = load_first_stage(folder) if folder is not None else PixelFirstStage(config.pixel_factor)
    stage.scaling = config.pixel_scale
    return stage


@dataclass(frozen=True)
class Start:
    """A folder that a training starts from; ``own`` is ``None`` for a diffusers pipeline."""

    path: Path
    own: ModelFolder | None


def load_start(folder: Path | str) -> Start:
    """What a training can start from; :class:`CheckpointError` for anything else."""
    path = resolve_folder(folder)
    if (path / NAME).is_file():
        return Start(path, load_model(path, KIND))
    if (path / "model_index.json").is_file():
        return Start(path, None)
    hint = nearest("model_index.json", [p.name for p in path.iterdir()])
    raise CheckpointError(
        f"nothing to start from here: no {NAME} and no model_index.json.{hint}",
        where=path,
        fix="Give a Stable Diffusion folder, the HistDiST pipeline, or a stain model",
    )


def text_context(text: Any) -> Tensor:
    """(1, 77, width): the states of the generation prompt."""
    with torch.no_grad():
        return text([PROMPT])
