"""Training: layout and style, with the style encoder in it; annotated crops with their layout, others without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from morphogen.core.devices import resolve_device
from morphogen.core.errors import CheckpointError, ConfigError
from morphogen.core.files import writable_folder
from morphogen.core.seeds import seed_for
from morphogen.core.writing.locks import locks_folder
from morphogen.diffusion import losses
from morphogen.layout.config import ModelConfig, TrainConfig
from morphogen.layout.data import DataSplit, check_classes
from morphogen.layout.model import LayoutDiffusion, LayoutSampler
from morphogen.layout.sampling.crops import LayoutCrops
from morphogen.nets import FirstStage
from morphogen.nets.first_stages import ComponentFirstStage, PixelFirstStage
from morphogen.nets.layout.config import LayoutNetworkConfig
from morphogen.nets.layout.network import build_layout_network
from morphogen.training import Draws, TrainResult, fit

_FITTED = 2**22  # pixels that the components of a first stage are fitted to


def build_model(
    config: TrainConfig,
    classes: Sequence[str],
    *,
    device: str | torch.device = "cpu",
    facts: dict[str, Any] | None = None,
    crops: Tensor | None = None,
) -> LayoutDiffusion:
    """A model to be trained: fresh weights, an earlier model of this room, or the CompVis landscape checkpoint.

    Size paper has a VQ first stage, which is not trained here: it needs ``start``. crops: (N, H, W, 3) uint8, what
    the components of the first stage of the other sizes are fitted to; not needed with ``start`` or for ``pixels``.
    """
    if config.size == "paper" and config.start is None:
        raise ConfigError(
            "size 'paper' starts from weights: its first stage is not trained here",
            where="start",
            fix="Give the CompVis landscape checkpoint, or take size base or small",
        )
    data = config.data
    made: dict[str, Any] = {"crop": data.crop, "mpp": data.mpp, "sampling": data.sampling}
    made["style_images"] = data.style_images
    settings = ModelConfig.sized(config.size, tuple(classes), **made)
    if config.first_stage == "components" and config.size != "paper":
        settings = settings.replace(network=settings.network.replace(detail=0))  # it reads blocks of pixels
    if config.network:
        merged = _merged(settings.network.to_dict(), config.network)
        settings = settings.replace(network=LayoutNetworkConfig(**merged))
    if config.start is not None and Path(config.start).is_dir():
        model = LayoutDiffusion.from_pretrained(config.start)
        if model.config.network.classes != len(classes):
            raise ConfigError(
                f"the model to start from has {model.config.network.classes} classes, the data {len(classes)}",
                where="start",
            )
        _check_crop(data.crop, model.config.network)
        model.config = model.config.replace(classes=tuple(classes), **made)
        model.facts = {"before": model.facts, **(facts or {})}
        return model.to(device)
    _check_crop(data.crop, settings.network)
    network = build_layout_network(settings.network, seed=seed_for(config.training.seed, "layout network"))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    stage: FirstStage
    report: dict[str, Any] = {}
    if config.size == "paper":
        assert config.start is not None
        from morphogen.checkpoints.compvis import first_stage_from
        from morphogen.checkpoints.stedm import load_landscape
        from morphogen.core.weights.reading import read_weights

        report = load_landscape(config.start, network)
        stage = first_stage_from(read_weights(config.start).state(), config.start)
        if (stage.channels, stage.factor) != (settings.network.latent_channels, settings.network.factor):
            raise CheckpointError(
                "its first stage is not the VQ-f4 that the network reads", where=config.start
            )
    else:
        if config.start is not None:
            raise ConfigError("there is no such model folder", where=f"start {config.start}")
        stage = _first_stage(config, settings.network, crops)
    return LayoutDiffusion(network, stage, settings, {**(facts or {}), "start": report}).to(device)


def _check_crop(crop: int, network: LayoutNetworkConfig) -> None:
    multiple = network.factor * 2 ** (len(network.widths) - 1)
    if crop % multiple:
        raise ConfigError(
            f"a crop of {crop} px does not fit this network",
            where="data.crop",
            fix=f"Use a multiple of {multiple}",
        )


def _first_stage(config: TrainConfig, network: LayoutNetworkConfig, crops: Tensor | None) -> FirstStage:
    """Blocks of pixels, or their principal components in these crops."""
    if config.first_stage == "pixels":
        return PixelFirstStage(network.factor)
    if network.detail:
        raise ConfigError(
            "a detail head reads blocks of pixels", where="network", fix="Set first_stage to pixels"
        )
    if crops is None:
        raise ConfigError("components are fitted to crops, and none are given", where="first_stage")
    return ComponentFirstStage.fit(
        crops.permute(0, 3, 1, 2).float() / 127.5 - 1,
        factor=network.factor,
        channels=network.latent_channels,
        whitening=config.whitening,
    )


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {
        **values,
        **{
            key: _merged(values[key], change) if isinstance(change, dict) and key in values else change
            for key, change in changes.items()
        },
    }


def fitted_crops(dataset: LayoutCrops) -> Tensor:
    """(N, H, W, 3) uint8 crops that a first stage is fitted to: 256 of 128 px, or as many pixels."""
    count = max(16, min(256, _FITTED // dataset.config.crop**2))
    return torch.stack([dataset[number]["image"] for number in range(count)])


class LayoutTask:
    """What :func:`morphogen.training.fit` needs. ``model`` holds the style encoder and the aggregator: they are
    trained, unless ``train_style`` is off. The first stage stays outside."""

    def __init__(
        self,
        layout: LayoutDiffusion,
        dataset: Dataset,
        config: TrainConfig,
        identity: dict[str, Any] | None = None,
        variance: Tensor | None = None,
    ) -> None:
        self.variance = variance
        self.layout, self.dataset, self.config = layout, dataset, config
        self.model: nn.Module = layout.network
        self.identity = identity or {}
        if not config.train_style:
            layout.network.style.requires_grad_(False)

    def loss(self, model: Any, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        """The diffusion loss per item; time, noise and what is dropped are drawn for the item alone."""
        objective, layout = self.config.objective, self.layout
        with torch.no_grad():
            x0 = layout.first_stage.latents(layout.pixels(batch["image"]))
        told = batch["told"].to(x0.device)
        told = told & ~draws.bernoulli(objective.layout_drop)
        planes = layout.planes(batch["labels"], told.float())
        styles = model.styles(batch["style"].to(x0.device).permute(0, 1, 4, 2, 3).float() / 127.5 - 1)
        null = model.null_style(len(x0), batch["style"].shape[2])
        style = torch.where(draws.bernoulli(objective.style_drop)[:, None], null.to(styles.dtype), styles)
        t = draws.integers(layout.schedule.T)
        figures = losses.diffusion_loss(
            model.unet,
            x0,
            t,
            draws.normal_like(x0),
            layout.schedule,
            prediction=layout.config.prediction,
            kind=objective.loss,
            weight=None if self.variance is None else "wiener",
            variance=self.variance,
            condition={"layout": model.mapped(planes), "style": style},
        )
        if layout.config.prediction == "x0" and self.variance is None:
            figures["loss"] = figures["loss"] * losses.v_weight(layout.schedule, t, objective.x0_weight)
        return figures

    @torch.no_grad()
    def validate(self, model: Any) -> dict[str, float]:
        """Mean square error of x0 halfway into the noise, with the style told and not told, on items that are always
        the same: their difference is what the style says."""
        items = [self.dataset[index] for index in range(16)]
        batch = {key: torch.stack([item[key] for item in items]) for key in items[0]}
        layout = self.layout
        x0 = layout.first_stage.latents(layout.pixels(batch["image"]))
        told = batch["told"].to(x0.device).float()
        planes = model.mapped(layout.planes(batch["labels"], told))
        t = torch.full((len(x0),), layout.schedule.T // 2, device=x0.device)
        noise = Draws(self.config.training.seed, torch.arange(len(x0)), x0.device).normal_like(x0)
        noisy = layout.schedule.add_noise(x0, noise, t)
        null = model.null_style(len(x0), batch["style"].shape[2])
        figures = {}
        for name, style in (("error", layout.styles(batch["style"])), ("error_without_style", null)):
            made = layout.denoiser()(noisy, t, layout=planes, style=style).x0
            figures[name] = float(((made - x0) ** 2).mean())
        return figures

    def preview(self, model: nn.Module, folder: Path, step: int) -> None:
        """Style image | layout in grey | image made, one item per row, as ``layout.png``."""
        from PIL import Image

        items = [self.dataset[index] for index in range(12)]
        labels = torch.stack([item["labels"] for item in items if bool(item["told"])][:4])
        style = torch.stack([item["style"] for item in items][: len(labels)])
        if not len(labels):
            return
        made = self.layout(labels, style, LayoutSampler.fast(), seed=self.config.training.seed).cpu()
        grey = (labels * (255 // max(1, self.layout.config.network.classes - 1))).to(torch.uint8)
        rows = [
            torch.cat([s[0], g[..., None].expand(-1, -1, 3), m], dim=1) for s, g, m in zip(style, grey, made)
        ]
        Image.fromarray(torch.cat(rows).numpy()).save(folder / "layout.png")


@dataclass(frozen=True)
class Trained:
    """A finished training: the model with its averaged weights, its folder, and the run."""

    model: LayoutDiffusion
    folder: Path
    run: TrainResult


@locks_folder()
def train_model(
    found: DataSplit,
    config: TrainConfig,
    out: Path | str,
    *,
    device: str | torch.device = "auto",
    precision: str = "fp32",
    compile: bool | None = False,
) -> Trained:
    """Train on what :func:`~morphogen.layout.data.read_sources` found; the model, with its averaged weights, is
    ``out/model``. A run found in ``out`` goes on from its newest checkpoint."""
    out = writable_folder(out)
    where = resolve_device(device)
    empty = check_classes(found)
    facts = {
        "annotated": [sheet.name for sheet in found.annotated],
        "unannotated": sorted({sheet.patient for sheet in found.unannotated}),
        "empty_classes": empty,
        "data": config.data.to_dict(),
        "steps": config.training.steps,
        "seed": config.training.seed,
    }
    dataset = LayoutCrops(found.annotated, found.unannotated, config.data, len(found.classes))
    crops = fitted_crops(dataset) if config.first_stage == "components" and config.start is None else None
    model = build_model(config, found.classes.names, device=where, facts=facts, crops=crops)
    settings = config.to_dict()
    identity = {
        key: settings[key]
        for key in (
            "size",
            "network",
            "data",
            "objective",
            "start",
            "train_style",
            "first_stage",
            "whitening",
        )
    }
    variance = None
    if config.objective.by_channel:
        images = fitted_crops(dataset) if crops is None else crops
        variance = model.first_stage.variance(model.pixels(images))
    task = LayoutTask(model, dataset, config, {**identity, "found": found.identity()}, variance)
    config.save(out / "config.yaml")
    run = fit(task, config.training, out, device=where, precision=precision, compile=compile)
    model.network.load_state_dict(run.ema_state)
    model.network.eval()
    model.facts = {**model.facts, "step": run.step, "metrics": run.metrics}
    model.save_pretrained(out / "model")
    return Trained(model, out / "model", run)
