"""Stain models on disk: our folders, and the diffusers pipeline published with HistDiST."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from morphogen.checkpoints import load_histdist, load_model, resolve_folder, save_model
from morphogen.checkpoints.folder import NAME, ModelFolder
from morphogen.core.errors import CheckpointError, ConfigError, nearest
from morphogen.core.provenance import versions
from morphogen.nets import DetailHead, KLFirstStage, load_first_stage, load_text_encoder, load_unet
from morphogen.slides import Encoder
from morphogen.stain.config import ModelConfig
from morphogen.stain.model import PROMPT, StainTransfer, build_encoder
from morphogen.stain.recipes.network import StainNetwork

KIND = "stain"
PUBLISHED_ENCODER = "phikon"
PUBLISHED_CROP, PUBLISHED_MPP = 512, 0.4661  # HistDiST, section 3: MIST


def load(
    cls: Any,
    folder: Path | str,
    encoder: str | Path | nn.Module | Encoder | None,
    encoder_weights: Path | str | None,
    changes: dict[str, Any],
) -> Any:
    """:meth:`StainTransfer.from_pretrained`, on the CPU."""
    path = resolve_folder(folder)
    ready = None if encoder is None or isinstance(encoder, str) else encoder
    settings = dict(changes)
    if isinstance(encoder, str):
        settings["encoder"] = encoder
    if encoder_weights is not None:
        settings["encoder_weights"] = str(encoder_weights)
    if (path / NAME).is_file():
        model = _load_own(cls, path, settings)
    elif (path / "model_index.json").is_file():
        model = _load_published(cls, path, settings)
    else:
        raise CheckpointError(
            f"this is no stain model: there is neither {NAME} nor model_index.json",
            where=path,
            fix="Give a folder written by `morphogen stain train`, or the published HistDiST pipeline folder",
        )
    if ready is not None:
        model._encoder = build_encoder(ready)
    return model


def _load_own(cls: Any, path: Path, settings: dict[str, Any]) -> Any:
    model = load_model(path, KIND)
    try:
        config = model.settings(ModelConfig).replace(**settings)
    except ConfigError as error:
        raise CheckpointError(str(error), where=path) from None
    if (path / "vae").is_dir():
        first_stage = load_first_stage(path / "vae")
    else:
        first_stage = pixel_first_stage(config, model.component("first_stage"))
    text = load_text_encoder(path) if (path / "text_encoder").is_dir() else None
    facts = model.facts
    preprocessing = facts.get("preprocessing", {})
    made = {"crop": preprocessing.get("crop", PUBLISHED_CROP), "mpp": preprocessing.get("mpp")}
    mean = None
    if config.residual:
        own = config.replace(
            residual=False, residual_scale=None, regression=True, stains=tuple(facts["mean_stains"])
        )
        mean = cls(_network(model, own, "mean_").eval(), first_stage, own, **made)
    return cls(
        _network(model, config).eval(),
        first_stage,
        config,
        text=text,
        facts=facts.get("training", {}),
        mean=mean,
        **made,
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
        detail=DetailHead(config.pixel_factor, config.detail) if config.detail else None,
    )
    for name in ("projection", "detail"):
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


def _load_published(cls: Any, path: Path, settings: dict[str, Any]) -> Any:
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
    ).replace(**settings)
    network = StainNetwork(parts.network, null=parts.text([PROMPT]), learn_null=False)
    return cls(
        network.eval(),
        parts.first_stage,
        config,
        text=parts.text,
        crop=PUBLISHED_CROP,
        mpp=PUBLISHED_MPP,
        facts={"from": "published HistDiST pipeline"},
    )


def save(model: StainTransfer, folder: Path | str) -> Path:
    """:meth:`StainTransfer.save_pretrained`."""
    modules: dict[str, Any] = {
        "unet": model.network.latent.unet,
        "scheduler": diffusers_scheduler(model.config),
    }
    if isinstance(model.first_stage, KLFirstStage):
        modules["vae"] = model.first_stage.autoencoder
    else:
        modules["first_stage"] = model.first_stage
    if model.text is not None:
        modules["text_encoder"], modules["tokenizer"] = model.text.model, model.text.tokenizer
    documents = _index(modules)
    facts: dict[str, Any] = {}
    networks = {"": model.network}
    if model.mean is not None:  # a diffusers pipeline would leave the regression out and paint residuals
        networks["mean_"], modules["mean_unet"] = model.mean.network, model.mean.network.latent.unet
        documents, facts = {}, {"mean_stains": model.mean.stains}
    for prefix, network in networks.items():
        rest = _Conditioning(network)
        if rest.state_dict():
            modules[f"{prefix}conditioning"] = rest
    encoder = model._encoder  # not built only to be named
    spec = encoder.spec.to_dict() if encoder is not None else {"name": model.config.encoder}
    return save_model(
        folder,
        modules,
        model.config,
        kind=KIND,
        documents=documents,
        encoder=spec,
        preprocessing={"crop": model.crop, "mpp": model.mpp, "range": [-1, 1]},
        training=model.facts,
        versions=versions(),
        **facts,
    )


class _Conditioning(nn.Module):
    """What the network has besides the U-Net, with plain names."""

    def __init__(self, network: StainNetwork) -> None:
        super().__init__()
        if network.null is not None:
            self.register_buffer("null", network.null.detach().clone())
        self.projection, self.detail = network.projection, network.detail


def _index(modules: dict[str, Any]) -> dict[str, Any]:
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


def load_start(folder: Path | str) -> tuple[ModelFolder | None, Path]:
    """What a training can start from: ``(model folder or None for a diffusers pipeline, path)``."""
    path = resolve_folder(folder)
    if (path / NAME).is_file():
        return load_model(path, KIND), path
    if (path / "model_index.json").is_file():
        return None, path
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
