"""Diffusion of what a regression leaves over: CorrDiff (Mardani et al., arXiv 2309.15214) for stains.

A regression of the same network gives the expected stain; the diffusion learns the rest, in units of about its
spread. Samples then scatter around the regression's answer, and their mean does not have to be learned again on every
noise level.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from morphogen.core.errors import ConfigError
from morphogen.core.files import read_json, write_json
from morphogen.core.seeds import generator
from morphogen.stain.config import TrainConfig
from morphogen.stain.model import StainTransfer
from morphogen.stain.pairs.crops import PairDataset, cells_seen
from morphogen.stain.recipes.folder import Start

log = logging.getLogger("morphogen.stain")

CROPS = 64  # from which the spread of the residual is measured


def resolved(config: TrainConfig, start: Start | None) -> TrainConfig:
    """``config`` with ``model.residual`` where a mean is named, or with that or ``model.regression`` as the model that
    the training starts from has it."""
    model = config.model
    if config.mean is not None and model.regression:
        raise ConfigError("a regression has no mean to scatter around", where="mean")
    if model.residual or model.regression:
        return config
    if config.mean is not None:
        return config.replace(model=model.replace(residual=True))
    if start is None or start.own is None:
        return config
    same = {name: bool(start.own.config.get(name)) for name in ("residual", "regression")}
    return config.replace(model=model.replace(**same))


def parts(config: TrainConfig) -> tuple[TrainConfig, TrainConfig]:
    """The trainings of the regression and of the diffusion: ``mean_share`` of the steps and the rest."""
    total = config.training.steps
    if total < 2:
        raise ConfigError(
            "one step cannot be shared out between a regression and a diffusion", where="training.steps"
        )
    first = min(max(1, round(config.mean_share * total)), total - 1)
    regression = config.model.replace(residual=False, residual_scale=None, regression=True)
    return (
        config.replace(model=regression, training=_shorter(config, first)),
        config.replace(training=_shorter(config, total - first)),
    )


def _shorter(config: TrainConfig, steps: int) -> Any:
    training = config.training
    share = steps / training.steps
    return training.replace(steps=steps, warmup_steps=round(training.warmup_steps * share))


def read_mean(config: TrainConfig, device: torch.device) -> StainTransfer:
    """The regression that ``config.mean`` names; :class:`ConfigError` where it cannot serve."""
    folder = Path(str(config.mean))
    mean = StainTransfer.from_pretrained(folder, encoder_weights=config.model.encoder_weights, device=device)
    if not mean.config.regression:
        raise ConfigError(
            "this is no regression",
            where=folder,
            fix="Train one with --model.regression true, or leave --mean out",
        )
    missing = sorted(set(config.model.stains) - set(mean.stains))
    if missing:
        raise ConfigError(f"this regression does not know the stain {', '.join(missing)}", where=folder)
    return mean


def attach(
    model: StainTransfer,
    mean: StainTransfer,
    dataset: PairDataset,
    seed: int,
    precision: str,
    kept: Path,
    spread: float = 0.5,
) -> None:
    """Let ``model`` scatter around ``mean``, in the unit that its configuration names or that is measured here, in
    which what is left over has the standard deviation ``spread``.

    A measured unit is kept in the JSON file ``kept`` and taken from there again, so that a run that goes on does not
    depend on a GPU summing to the same digit.
    """
    for name in ("encoder", "texture_grid", "pixel_factor", "pixel_scale", "size", "target", "balance"):
        has, needed = getattr(mean.config, name), getattr(model.config, name)
        if has != needed:
            raise ConfigError(f"the regression has {name} {has}, the model {needed}", where="mean")
    mean.network.requires_grad_(False).eval()
    model.mean = mean
    scale = model.config.residual_scale
    if scale is None:
        before = read_json(kept) if kept.is_file() else {}
        if before.get("mean") == mean.identity:
            scale = float(before["residual_scale"])
        else:
            scale = measured_scale(model, dataset, seed, precision, spread)
            write_json(kept, {"mean": mean.identity, "residual_scale": scale})
    model.config = model.config.replace(residual=True, residual_scale=scale)
    log.info("what the regression leaves over is diffused in units of %.3g.", scale)


@torch.no_grad()
def measured_scale(
    model: StainTransfer, dataset: PairDataset, seed: int, precision: str = "fp32", spread: float = 0.5
) -> float:
    """Standard deviation of the residual on random crops, over ``spread``."""
    total, squares = 0, 0.0
    for at in range(0, CROPS, 8):
        drawn = [
            dataset.draw(number % len(dataset), generator(seed, "residual scale", number))
            for number in range(at, at + 8)
        ]
        he, ihc = (torch.stack([item[name] for item in drawn]) for name in ("he", "ihc"))
        label = 1 + torch.stack([item["label"] for item in drawn])
        image = model.first_stage.encode(model.pixels(he)).mode()
        stain = model.target_stage.encode(model.target_pixels(ihc)).mode()
        base = model.base(image, model.tokens(he), label, precision)
        assert base is not None
        rest = (model.target_stage.scaling * stain - base).double()
        if "mask" in drawn[0]:
            seen = cells_seen(torch.stack([item["mask"] for item in drawn]), model.factor).to(rest)
            rest = rest * seen
            total += int(seen.sum()) * rest.shape[1]
        else:
            total += rest.numel()
        squares += float((rest**2).sum())
    return max(round((squares / max(total, 1)) ** 0.5 / spread, 4), 1e-4)
