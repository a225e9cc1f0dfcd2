"""Latents and tokens of crops of pairs, computed once: training then costs the U-Net alone."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from morphogen.core.files import content_hash
from morphogen.stain.model import StainTransfer
from morphogen.stain.pairs.crops import PairDataset
from morphogen.tasks.latents import cache_items

_NOT_OF_LATENTS = (
    "encoder_weights",
    "regression",
    "residual",
    "residual_scale",
    "noise_shares",
    "residual_knots",
    "image_effects",
    "effect_spread",
    "colour_start",
    "colour_degree",
    "see_mean",
)


def cache_crops(
    model: StainTransfer, dataset: PairDataset, folder: Path | str, *, crops: int, seed: int, batch: int = 8
) -> Path:
    """Encode ``crops`` random crops of every pair and keep them in ``folder`` (:func:`morphogen.tasks.cache_items`).

    An item holds ``he_mean, he_std, ihc_mean, ihc_std`` (C, h, w), mean and SD of the latents of both images, the
    encoder's ``tokens`` (T, d), in float16, ``label`` and ``index``.
    """
    settings = {key: value for key, value in model.config.identity().items() if key not in _NOT_OF_LATENTS}
    if model.config.size == "small":  # a regression and the diffusion around it may differ in it
        settings["prediction"] = "auto"
    encoder = model.encoder.identity() if model.encoder is not None else "none"
    pairs = [pair.identity() for pair in dataset.pairs]
    facts = {
        "model": settings,
        "encoder": encoder,
        "pairs": content_hash(pairs),
        "crop": dataset.crop,
        "orient": dataset.orient,
        **({"stain_jitter": dataset.stain_jitter} if dataset.stain_jitter else {}),
    }
    former = content_hash(settings, encoder, pairs, [dataset.crop, dataset.orient, crops, seed, len(dataset)])
    return cache_items(
        dataset,
        lambda items: _encode(model, items),
        folder,
        facts,
        draws=crops,
        seed=seed,
        batch=batch,
        former=former,
    )


def _encode(model: StainTransfer, items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    out = {key: torch.stack([item[key] for item in items]) for key in ("label", "index")}
    for name in ("he", "ihc"):
        images = torch.stack([item[name] for item in items])
        encoded = (
            model.first_stage.encode(model.pixels(images))
            if name == "he"
            else model.target_stage.encode(model.target_pixels(images))
        )
        spread = encoded.std if encoded.std is not None else torch.zeros_like(encoded.mean)
        out[f"{name}_mean"], out[f"{name}_std"] = encoded.mean.half().cpu(), spread.half().cpu()
    if "mask" in items[0]:
        out["mask"] = torch.stack([item["mask"] for item in items])
    tokens = model.tokens(torch.stack([item["he"] for item in items]))
    if tokens is not None:
        out["tokens"] = tokens.half().cpu()
    return out
