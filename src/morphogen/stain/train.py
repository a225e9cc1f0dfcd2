"""Training: the two tasks of HistDiST, H&E generation and H&E → IHC translation, drawn per sample."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from morphogen.core.devices import resolve_device
from morphogen.core.errors import ConfigError
from morphogen.core.files import content_hash, writable_folder
from morphogen.core.writing.locks import locks_folder
from morphogen.diffusion import losses, network_denoiser
from morphogen.metrics.stain import correlation, tile_means
from morphogen.slides.colour import dab_density
from morphogen.stain.config import SamplerConfig, TrainConfig, known_before
from morphogen.stain.data import FoundPairs, Pair
from morphogen.stain.fitting import residual
from morphogen.stain.fitting.build import build_model
from morphogen.stain.fitting.cache import cache_crops
from morphogen.stain.fitting.chosen import check_stains, measured_target, prepared, tell_scale, with_stains
from morphogen.stain.fitting.colours import fit_colours
from morphogen.stain.model import StainTransfer
from morphogen.stain.pairs.crops import PairDataset, cells_seen
from morphogen.stain.recipes.folder import Start, load_start
from morphogen.stain.recipes.network import HE
from morphogen.stain.recipes.sampling import noise_scales
from morphogen.stain.targets.config import TargetConfig
from morphogen.stain.targets.values import as_picture
from morphogen.tasks.latents import Cached
from morphogen.training import Draws, TrainResult, fit

log = logging.getLogger("morphogen.stain")


class StainTask:
    """What :func:`morphogen.training.fit` needs: network, crops, loss, validation, preview.

    The first stage and the token encoder are frozen and stay outside ``model``.
    """

    def __init__(
        self,
        stain: StainTransfer,
        dataset: Dataset,
        config: TrainConfig,
        validation: Sequence[Pair] = (),
        identity: dict[str, Any] | None = None,
        precision: str = "fp32",
        centre: residual.Centre | None = None,
    ) -> None:
        self.centre = centre or residual.Centre()
        self.stain, self.dataset, self.config = stain, dataset, config
        self.precision = precision  # of the regression, which no gradient passes
        self.model: nn.Module = stain.network
        self.identity = identity or {}
        self.validation = list(validation)[: config.preview_pairs]
        stain.first_stage.requires_grad_(False)

    def loss(self, model: nn.Module, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        """v (or epsilon) loss per item; task, time and noise of an item are drawn for it alone."""
        crops = self.latents(batch, draws)
        objective, schedule = self.config.objective, self.stain.schedule
        generate = draws.bernoulli(objective.bias_he_ihc)
        translate = HE + 1 + batch["label"].to(generate.device)
        x0, image = crops["ihc"], crops["image"]
        known = (image, crops.get("tokens"), translate)
        base = self.centre.base(self.stain, *known, batch["index"], self.precision)
        if base is not None:
            x0 = (x0 - base) / self.stain.unit(base)
            if self.stain.config.see_mean:
                image = torch.cat([image, base], dim=1)
        if self.stain.config.target.colour:  # channels are not what H&E is made of
            pick = generate[:, None, None, None]
            x0, image = torch.where(pick, crops["he"], x0), torch.where(pick, torch.zeros_like(image), image)
        context, mask = model.contexts(crops.get("tokens"), generate)
        label = torch.where(generate, HE, translate)
        condition = {"image": image, "context": context, "mask": mask, "label": label}
        seen = cells_seen(batch["mask"], self.stain.factor).to(x0) if "mask" in batch else None
        if self.stain.config.regression:
            denoiser = network_denoiser(model, schedule, self.stain.config.output)
            return regression_loss(denoiser, x0, schedule.last, condition, seen)
        t = draws.integers(schedule.T)
        t = torch.where(draws.bernoulli(objective.last_step_share), schedule.T - 1, t)
        scales = noise_scales(self.stain.config)
        weight = "min_snr" if objective.min_snr_gamma is not None else None
        figures = losses.diffusion_loss(
            model,
            x0,
            t,
            draws.normal_like(x0) if scales is None else scales.drawn(draws.normal, x0.shape[1:]),
            schedule,
            prediction=self.stain.config.output,
            weight=weight,  # type: ignore[arg-type]
            gamma=objective.min_snr_gamma or 5.0,
            condition=condition,
            seen=seen,
        )
        if self.stain.config.output == "x0" and weight is None:
            figures["loss"] = figures["loss"] * losses.v_weight(schedule, t, objective.x0_weight)
        figures["translation"] = _mean_where(figures["mse"], ~generate)
        return figures

    @torch.no_grad()
    def latents(self, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        """Of a batch of crops or of cached ones: scaled samples ``he`` and ``ihc`` (B, C, h, w), the
        unscaled mode ``image`` of the H&E, and encoder ``tokens`` (B, T, d)."""
        if "he_mean" in batch:
            scaling = {"he": self.stain.first_stage.scaling, "ihc": self.stain.target_stage.scaling}
            found = {
                name: scaling[name]
                * (batch[f"{name}_mean"] + batch[f"{name}_std"] * draws.normal_like(batch[f"{name}_mean"]))
                for name in ("he", "ihc")
            }
            found["image"] = batch["he_mean"]
            if "tokens" in batch:
                found["tokens"] = batch["tokens"]
            return {name: value.float() for name, value in found.items()}
        he = self.stain.first_stage.encode(self.stain.pixels(batch["he"]))
        ihc = self.stain.target_stage.encode(self.stain.target_pixels(batch["ihc"]))
        found = {
            "he": self.stain.first_stage.scaling * he.sample(draws.normal_like(he.mean)),
            "ihc": self.stain.target_stage.scaling * ihc.sample(draws.normal_like(ihc.mean)),
            "image": he.mode(),
        }
        tokens = self.stain.tokens(batch["he"])
        return found if tokens is None else {**found, "tokens": tokens}

    def validate(self, model: nn.Module) -> dict[str, float]:
        """On the middle crops of the validation pairs: correlation and error of the expected stain's DAB, or of the
        channels' intensities."""
        if not self.validation:
            return {}
        he, ihc, made = self._stained(SamplerConfig.mean())
        tile = max(8, self.stain.crop // 8)
        if not self.stain.config.target.colour:
            return channel_agreement(self.stain.config.target, made.numpy(), ihc.numpy(), tile)
        real, found = (dab_density(images, layout="nhwc").numpy() for images in (ihc, made))
        tiles = [np.stack([tile_means(density, tile) for density in maps]) for maps in (found, real)]
        return {
            "dab_correlation": correlation(*tiles),
            "dab_error": float(np.abs(tiles[0] - tiles[1]).mean()),
            "colour_error": float((made.float() - ihc.float()).abs().mean()),
        }

    def preview(self, model: nn.Module, folder: Path, step: int) -> None:
        """H&E | one sample | real, one pair per row, as ``stain.png``."""
        if not self.validation:
            return
        from PIL import Image

        he, ihc, made = self._stained(SamplerConfig.fast())
        target = self.stain.config.target
        rows = [
            np.concatenate([a.numpy(), *(as_picture(each.numpy(), target) for each in (b, c))], axis=1)
            for a, b, c in zip(he, made, ihc, strict=True)
        ]
        Image.fromarray(np.concatenate(rows)).save(folder / "stain.png")

    def _stained(self, sampler: SamplerConfig) -> tuple[Tensor, Tensor, Tensor]:
        dataset = PairDataset(
            self.validation,
            self.stain.stains,
            crop=self.stain.crop,
            normalise=self.stain.config.seen,
        )
        items = [dataset[i] for i in range(len(dataset))]
        made = [
            self.stain(item["he"][None], sampler, stain=pair.stain, seed=self.config.training.seed)
            .images[0]
            .cpu()
            for item, pair in zip(items, self.validation, strict=True)
        ]
        he, ihc = (torch.stack([item[name] for item in items]) for name in ("he", "ihc"))
        return he, ihc, torch.stack(made)


def channel_agreement(
    target: TargetConfig, made: np.ndarray, real: np.ndarray, tile: int
) -> dict[str, float]:
    """Correlation and error of tile means of every channel (N, H, W, C), the mean over channels first."""
    figures: dict[str, float] = {}
    for number, name in enumerate(target.channels):
        a, b = (np.stack([tile_means(each[..., number], tile) for each in maps]) for maps in (made, real))
        figures |= {f"correlation_{name}": correlation(a, b), f"error_{name}": float(np.abs(a - b).mean())}
    known = [v for k, v in figures.items() if k.startswith("correlation") and np.isfinite(v)]
    return {"correlation": float(np.mean(known)) if known else float("nan"), **figures}


def regression_loss(
    denoiser: Any, x0: Tensor, last: float, condition: dict[str, Any], seen: Tensor | None = None
) -> dict[str, Tensor]:
    """Mean square error of one evaluation from a blank start: what a plain image-to-image network
    minimises. ``seen`` (B, 1, h, w) is 1 where the target is known.
    """
    out = denoiser(torch.zeros_like(x0), torch.full((len(x0),), last, device=x0.device), **condition).x0
    error = losses.item_means((out.float() - x0.float()) ** 2, seen)
    return {"loss": error, "mse": error.detach()}


def _mean_where(values: Tensor, keep: Tensor) -> Tensor:
    return (values * keep).sum() / keep.sum().clamp(min=1)


@dataclass(frozen=True)
class Trained:
    """A finished training: the model with its averaged weights, its folder, and the run."""

    model: StainTransfer
    folder: Path
    run: TrainResult


@locks_folder()
def train_model(
    found: FoundPairs,
    config: TrainConfig,
    out: Path | str,
    *,
    validation: FoundPairs | None = None,
    where: object = None,
    device: str | torch.device = "auto",
    precision: str = "fp32",
    compile: bool | None = False,
) -> Trained:
    """Check pairs, train, and write the model to ``out/model`` (averaged weights; the best ones where they
    are chosen).

    With ``config.model.residual`` the regression is trained first, into ``out/mean``
    (:mod:`morphogen.stain.fitting.residual`). A run found in ``out`` goes on from its newest checkpoint. Raises
    :class:`~morphogen.core.errors.InputError` with one report when pairs cannot be used.
    """
    out = writable_folder(out)
    device = resolve_device(device)
    pairs, skipped = prepared(found, config, where)
    held = prepared(validation, config, where, learned=False)[0] if validation is not None else []
    target = measured_target(pairs)
    pairs, held = ([replace(pair, target=target) for pair in each] for each in (pairs, held))
    config = config.replace(model=config.model.replace(target=target))
    start = load_start(config.start) if config.start is not None else None
    tell_scale(config, start)
    config = residual.resolved(with_stains(config, pairs, start), start)
    check_stains([pair.stain for pair in (*pairs, *held)], config.model)
    options: dict[str, Any] = {
        "start": start,
        "cache": out / "cache",  # one for the regression and the diffusion
        "skipped": skipped,
        "device": device,
        "precision": precision,
        "compile": compile,
    }
    if not config.model.residual:
        return _trained(pairs, held, config, out, **options)
    crossed = None
    if config.mean is not None:
        mean = residual.read_mean(config, device)
        if config.objective.cross_fit:
            raise ConfigError("cross-fitting trains the regression itself", where="mean", fix="Leave it out")
    else:
        first, config = residual.parts(config)
        log.info("training the regression (%d steps), then the diffusion around it.", first.training.steps)
        mean = _trained(pairs, held, first, out / "mean", **options).model
        if config.objective.cross_fit:
            groups = residual.groups_of(pairs, config.objective.cross_fit)
            models = [
                _trained(seen, [], first, out / f"mean-{number + 1}", **options).model
                for number, seen in enumerate(residual.without_each(pairs, groups))
            ]
            crossed = residual.OutOfFold(models, torch.tensor(groups))
    return _trained(pairs, held, config, out, mean=mean, crossed=crossed, **options)


def _trained(
    pairs: list[Pair],
    held: list[Pair],
    config: TrainConfig,
    out: Path,
    *,
    start: Start | None,
    cache: Path,
    skipped: int,
    device: torch.device,
    precision: str,
    compile: bool | None,
    mean: StainTransfer | None = None,
    crossed: residual.OutOfFold | None = None,
) -> Trained:
    """One training on checked pairs; around ``mean`` where one is given."""
    objective = config.objective
    if objective.bias_he_ihc and (config.model.regression or not config.model.target.colour):
        # Nothing to generate from a blank start, nor of channels.
        config = config.replace(objective=objective.replace(bias_he_ihc=0.0))
    facts = {
        "pairs": len(pairs),
        "skipped": skipped,
        "steps": config.training.steps,
        "objective": config.objective.to_dict(),
        "data": config.data.to_dict(),
        "seed": config.training.seed,
    }
    model = build_model(
        config.model,
        start=start,
        crop=config.data.crop,
        mpp=config.data.mpp,
        seed=config.training.seed,
        device=device,
        facts=facts,
    )
    if config.data.crop % model.multiple:
        raise ConfigError(
            f"a crop of {config.data.crop} px does not fit this network",
            where="data.crop",
            fix=f"Use a multiple of {model.multiple}",
        )
    writable_folder(out)
    if main_process():
        config.save(out / "config.yaml")
    crops = PairDataset(
        pairs,
        model.stains,
        crop=config.data.crop,
        orient=config.data.orient,
        memory_gib=config.data.memory_gib,
        balance=config.data.balance_stains,
        normalise=model.config.seen,
        stain_jitter=config.data.stain_jitter,
    )
    if model.network.colours is not None and not model.network.colours.weights.any():
        fit_colours(model, crops)
    if crossed is not None:
        crossed = replace(crossed, groups=crossed.groups[torch.tensor(crops.numbers)])
    centre = None
    if mean is not None:
        centre = residual.attach(
            model,
            mean,
            crops,
            config.training.seed,
            precision,
            out / "residual.json",
            config.objective,
            crossed,
        )
    dataset: Dataset = crops
    if config.data.cache_crops:
        folder = cache_crops(model, crops, cache, crops=config.data.cache_crops, seed=config.training.seed)
        dataset = Cached(folder)
    identity: dict[str, Any] = {
        "model": config.model.identity(),
        "objective": known_before(
            config.objective,
            *(
                "residual_spread",
                "cross_fit",
                "noise_scales",
                "residual_knots",
                "image_effects",
                "effect_spread",
            ),
        ),
        "data": known_before(config.data, "target", "stain_jitter"),
        "pairs": content_hash([pair.identity() for pair in pairs]),
    }
    if mean is not None:
        identity |= {"mean": mean.identity, "residual_scale": model.residual_scale}
        for name in ("noise_shares", "residual_knots", "image_effects"):
            if getattr(model.config, name) is not None:
                identity[name] = getattr(model.config, name)
    if crossed is not None:
        identity["crossed"] = [each.identity for each in crossed.models]
    task = StainTask(model, dataset, config, held, identity, precision, centre)
    run = fit(task, config.training, out, device=device, precision=precision, compile=compile)
    model.network.load_state_dict(run.best_state())
    model.network.eval()
    model.facts = {**model.facts, "step": run.best_step or run.step, "metrics": run.metrics}
    if main_process():
        model.save_pretrained(out / "model")
    return Trained(model, out / "model", run)


def main_process() -> bool:
    """Whether this process writes files: the first of a torchrun job, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0
