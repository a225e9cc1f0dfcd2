"""New stain models: from scratch, or from Stable Diffusion, HistDiST or an earlier stain model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from morphogen.checkpoints import load_pipeline
from morphogen.core.errors import ConfigError
from morphogen.core.seeds import seed_for
from morphogen.nets import UNetConfig, build_unet, widen_input
from morphogen.stain.config import ModelConfig, TrainConfig
from morphogen.stain.model import StainTransfer
from morphogen.stain.recipes.folder import Start, load_start, pixel_first_stage, text_context
from morphogen.stain.recipes.network import (
    StainNetwork,
    add_labels,
    change_labels,
    colour_skip,
    detail_head,
    shown_images,
    token_encoder,
)

# Of a model that a training starts from, and not to be changed; where a recipe sets them they may be no one's wish.
_SAID = (
    *("size", "encoder", "texture_grid", "prediction", "balance", "normalise"),
    *("colour_start", "colour_degree", "see_mean"),
)
_NETWORK = (
    *("widths", "layers", "attention", "heads", "groups", "detail", "pixel_factor", "pixel_scale"),
    *("null_context", "beta_start", "beta_end"),
)


def build_model(
    config: ModelConfig,
    *,
    start: Start | Path | str | None = None,
    crop: int = 256,
    mpp: float | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    facts: dict[str, Any] | None = None,
) -> StainTransfer:
    """A model to be trained.

    ``small`` is a pixel-space network with fresh weights. ``paper`` needs ``start``: a Stable Diffusion 1.5
    folder (its U-Net's first convolution grows from 4 to 8 channels, the new ones zero), or the published
    HistDiST folder. A stain model of ours as ``start`` is trained on, whatever its size; it may
    get other stains.
    """
    if config.size == "paper" and start is None:
        raise ConfigError(
            "size 'paper' starts from weights: its autoencoder and text encoder are not trained here",
            where="--size",
            fix="Give --start with a Stable Diffusion 1.5 folder or hub id, or take --size small",
        )
    made = {"crop": crop, "mpp": mpp, "facts": facts}
    if start is not None:
        start = start if isinstance(start, Start) else load_start(start)
        if start.own is not None:
            return _continued(start.path, config, made).to(device)
        if config.size != "paper":
            raise ConfigError(
                "a diffusers pipeline is the start of size 'paper', not of 'small'",
                where="--start",
                fix="Add --size paper",
            )
        encoder = token_encoder(config, device)
        return _from_pipeline(start.path, config, encoder, seed, made).to(device)
    return _small(config, token_encoder(config, device), seed, made).to(device)


def _small(config: ModelConfig, encoder: Any, seed: int, made: dict[str, Any]) -> StainTransfer:
    first_stage = pixel_first_stage(config)
    tokens = encoder.spec.width if encoder is not None else 0
    latent = build_unet(
        UNetConfig(
            in_channels=(config.target.width + shown_images(config)) * config.pixel_factor**2,
            out_channels=config.target.width * config.pixel_factor**2,
            widths=config.widths,
            layers=config.layers,
            attention=config.attention if encoder is not None else (),
            heads=config.heads,
            context_dim=tokens,
            groups=config.groups,
        ),
        seed=seed_for(seed, "stain network"),
    )
    for parameter in latent.unet.conv_out.parameters():
        torch.nn.init.zeros_(parameter)  # the first prediction is mid-grey everywhere, not noise
    add_labels(latent, config.stains)
    detail = None
    if config.detail:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(seed, "stain detail"))
            detail = detail_head(config)
    network = StainNetwork(latent, detail=detail, colours=colour_skip(config))
    return StainTransfer(network, first_stage, config, encoder=encoder, **made)


def _from_pipeline(
    path: Path, config: ModelConfig, encoder: Any, seed: int, made: dict[str, Any]
) -> StainTransfer:
    parts = load_pipeline(path)
    channels = parts.first_stage.channels
    if parts.network.in_channels == channels:
        widen_input(parts.network.unet, 2 * channels)
    if parts.network.in_channels != 2 * channels:
        raise ConfigError(
            f"its U-Net takes {parts.network.in_channels} channels; {channels} or {2 * channels} are needed",
            where=path,
        )
    if len(config.stains) > 1:
        add_labels(parts.network, config.stains)
    null = None
    if config.null_context == "text":
        if parts.text is None:
            raise ConfigError(
                "this folder has no text encoder", where=path, fix="Use --model.null_context learned"
            )
        null = text_context(parts.text)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "stain projection"))
        network = StainNetwork(
            parts.network,
            null=null,
            token_width=encoder.spec.width if encoder is not None else 0,
            learn_null=null is None,
        )
    config = config.replace(beta_start=parts.beta_start, beta_end=parts.beta_end)
    return StainTransfer(network, parts.first_stage, config, encoder=encoder, text=parts.text, **made)


def _continued(path: Path, config: ModelConfig, made: dict[str, Any]) -> StainTransfer:
    """An earlier stain model, to be trained further: what the network is cannot change, its stains can.

    A regression goes on from the regression of a model of residuals, or from any model, which knows the expected
    stain at pure noise. A diffusion of residuals goes on from one, or from any other; where the network's output is
    x0 its last layers are zeroed, and it begins as the regression alone.
    """
    model = StainTransfer.from_pretrained(path, encoder_weights=config.encoder_weights)
    # The answer of a model that is no diffusion of residuals was never shown to it.
    seen = model.config.see_mean and model.config.residual
    if config.regression:
        if model.mean is not None:
            model.mean._encoder, model.mean.facts = model._encoder, model.facts
            model = model.mean
        model.config = model.config.replace(regression=True)
    elif config.residual:
        if not model.config.residual and model.config.output == "x0":
            silenced(model)
        # The unit is measured again: what is left over of other pairs may be more.
        model.config = model.config.replace(
            regression=False,
            residual=True,
            residual_scale=config.residual_scale,
            # What its network has learned, unless others are given.
            noise_shares=config.noise_shares or model.config.noise_shares,
            residual_knots=config.residual_knots or model.config.residual_knots,
            image_effects=config.image_effects,  # those of other images are none of these
            effect_spread=config.effect_spread,
            see_mean=seen,
        )
        model.network.colours = None  # the regression's answer holds what colour tells
        model.mean = None
    if config.target.channels != model.config.target.channels:
        has, wanted = (
            ", ".join(each.target.channels) or "pictures in colour" for each in (model.config, config)
        )
        raise ConfigError(f"the model to start from makes {has}, the pairs show {wanted}", where="start")
    defaults = ModelConfig()
    recipe = TrainConfig.recipe(config.size, residual=config.residual).model
    for name in (*_SAID, *_NETWORK):
        wanted, has = getattr(config, name), getattr(model.config, name)
        usual = [getattr(each, name) for each in ((defaults, recipe) if name in _NETWORK else (defaults,))]
        if wanted != has and wanted not in usual:
            raise ConfigError(
                f"the model to start from has {name} {has}, not {wanted}", where=f"model.{name}"
            )
    if config.stains not in (model.stains, defaults.stains):
        change_labels(model.network.latent, model.stains, config.stains)
        model.config = model.config.replace(stains=config.stains)
    model.crop = made["crop"]
    model.mpp = made["mpp"] or model.mpp
    model.facts = {"before": model.facts, **(made["facts"] or {})}
    return model


def silenced(model: StainTransfer) -> None:
    """Zero the last layers (in place), so that the first prediction is zero everywhere."""
    network = model.network
    layers = [network.latent.unet.conv_out, *([network.detail.last] if network.detail is not None else [])]
    for layer in layers:
        for parameter in layer.parameters():
            torch.nn.init.zeros_(parameter)
