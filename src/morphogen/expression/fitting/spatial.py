"""Training of the recipe spatial: closed forms first, then the residual network where it earns its place.

The network is judged like everything else in the recipe, on training sections it did not see (tissue blocks when there
is one section): one fit per fold gives the number of steps, and whether it beats the Gaussian it starts from at all.
Only then is it fitted on all training spots. Where there are too few spots for it to have a chance, it is not tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from morphogen.core.seeds import generator
from morphogen.diffusion import SamplerConfig, network_denoiser, sample
from morphogen.diffusion.losses import diffusion_loss
from morphogen.expression.config import ExpressionConfig
from morphogen.expression.data import log
from morphogen.expression.fitting.spots import Spots, data_hash, noise_levels
from morphogen.expression.recipes.spatial import HeldOut, SpatialModel
from morphogen.expression.sections.tables import SectionTable, fold_numbers, inner_folds
from morphogen.expression.sections.transforms import Transform
from morphogen.training import TrainResult, fit, read_metrics

MAX_FOLDS = 5


class ResidualTask:
    """v-prediction of the whitened residuals of held-out spots (see :mod:`morphogen.expression.recipes.residual`)."""

    def __init__(
        self,
        model: SpatialModel,
        tables: Sequence[SectionTable],
        held: HeldOut,
        whitened: Sequence[np.ndarray],
        config: ExpressionConfig,
        held_out: np.ndarray | None = None,
    ) -> None:
        """held_out: (N,) bool over all spots, those kept for validation; None trains on all."""
        self.residual = model.residual
        self.model = model.residual.network
        k = self.residual.factors
        self.factors = torch.from_numpy(np.concatenate(whitened)[:, :k]).float()
        self.conditions = self.residual.conditions(torch.from_numpy(np.concatenate(held.scores)))
        chosen = np.zeros(len(self.factors), dtype=bool) if held_out is None else held_out
        self.dataset = Spots(np.flatnonzero(~chosen))
        self.held_rows = torch.from_numpy(np.flatnonzero(chosen)).long()
        self.seed = config.training.seed
        self.identity = {"spatial": config.spatial.to_dict(), "data": data_hash(tables)}

    def loss(self, model: nn.Module, batch: dict[str, Tensor], draws: Any) -> dict[str, Tensor]:
        rows = batch["row"]
        self.to(rows.device)
        x0 = self.factors[rows]
        t = draws.integers(self.residual.schedule.T)
        return self._terms(model, x0, t, draws.normal(x0.shape[1]), self.conditions[rows])

    def to(self, device: torch.device) -> None:
        """The factors and conditions of all spots lie beside the network, so that no step waits for the host."""
        for name in ("factors", "conditions", "held_rows"):
            value = getattr(self, name)
            if value.device != device:
                setattr(self, name, value.to(device))

    def _terms(
        self, model: nn.Module, x0: Tensor, t: Tensor, noise: Tensor, condition: Tensor
    ) -> dict[str, Tensor]:
        return diffusion_loss(
            model, x0, t, noise, self.residual.schedule, prediction="v", condition={"condition": condition}
        )

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """v-loss on held-out spots at fixed noise, and that of the Gaussian the network started as (v = 0)."""
        device = next(self.model.parameters()).device
        self.to(device)
        g = generator("validation", self.seed)
        x0, c = self.factors[self.held_rows].cpu(), self.conditions[self.held_rows]
        loss, gaussian = [], []
        for level in noise_levels(self.residual.schedule):
            noise = torch.randn(x0.shape, generator=g)
            t = torch.full((len(x0),), int(level))
            terms = self._terms(model, x0.to(device), t.to(device), noise.to(device), c)
            loss.append(terms["loss"].mean())
            alpha, sigma = self.residual.schedule.levels_like(t, x0)
            gaussian.append(((alpha * noise - sigma * x0) ** 2).mean())
        return {"loss": float(torch.stack(loss).mean()), "gaussian": float(torch.stack(gaussian).mean())}

    def preview(self, model: nn.Module, folder: Path, step: int) -> None:
        """Sampled factors of 256 spots beside their true ones, as ``factors.npz``."""
        device = next(self.model.parameters()).device
        truth = self.factors[:256]
        noise = torch.randn(truth.shape, generator=generator("preview", step)).to(device)
        denoiser = network_denoiser(self.model, self.residual.schedule, "v")
        given = {"condition": self.conditions[:256].to(device)}
        drawn = sample(denoiser, noise, self.residual.schedule, SamplerConfig(), condition=given)
        np.savez(folder / "factors.npz", truth=truth.cpu().numpy(), sample=drawn.cpu().numpy())


def train_spatial(
    tables: Sequence[SectionTable],
    config: ExpressionConfig,
    transform: Transform,
    out: Path,
    device: str,
    precision: str,
    compile: bool | None,
) -> tuple[SpatialModel, TrainResult | None]:
    """The whole recipe on training tables."""
    model, held, whitened = SpatialModel.fit(tables, config.spatial, transform)
    result, model.diffused = None, False
    spots = sum(len(table) for table in tables)
    if model.residual.factors and spots < config.spatial.diffuse_from:
        # Never chosen on real sections of this number: a training per fold would only be rejected again.
        model.report["residual"] = {"spots": spots, "tried_from": config.spatial.diffuse_from}
        _restart(model, config)
    elif model.residual.factors:
        how = {"device": device, "precision": precision, "compile": compile}
        steps, found = _steps(model, tables, held, whitened, config, out, how)
        model.report["residual"] = found
        _restart(model, config)
        if steps:
            training = config.training.replace(
                steps=steps, warmup_steps=min(config.training.warmup_steps, steps),
                best_metric=None, patience=None, validate_every=0,
            )  # fmt: skip
            task = ResidualTask(model, tables, held, whitened, config)
            result = fit(task, training, out / "run", **how)  # type: ignore[arg-type]
            model.residual.network.load_state_dict(result.ema_state)
            model.diffused = True
    model.cpu().eval()
    model.calibrate(tables, held)
    return model, result


def _restart(model: SpatialModel, config: ExpressionConfig) -> None:
    model.residual.network.cpu().reset_parameters(generator("weights", config.training.seed))


def _steps(
    model: SpatialModel,
    tables: Sequence[SectionTable],
    held: HeldOut,
    whitened: Sequence[np.ndarray],
    config: ExpressionConfig,
    out: Path,
    how: dict[str, Any],
) -> tuple[int, dict[str, Any]]:
    """Steps at which the network does best on held-out folds, 0 where it does not beat the Gaussian; and the figures.

    The learning rate is constant here, so that every validation of one run is an honest shorter run.
    """
    folds = inner_folds(tables)
    groups = fold_numbers(folds)
    count = min(len(groups), MAX_FOLDS)
    number = np.concatenate(folds) % count
    every = config.training.validate_every or max(1, config.training.steps // 10)
    training = config.training.replace(
        best_metric=None, patience=None, lr_schedule="constant", validate_every=every
    )
    curves = []
    for k in range(count):
        _restart(model, config)
        task = ResidualTask(model, tables, held, whitened, config, held_out=number == k)
        fit(task, training, out / f"fold-{k}", **how)  # type: ignore[arg-type]
        lines = [line for line in read_metrics(out / f"fold-{k}") if "validate/loss" in line]
        curves.append({int(v["step"]): (v["validate/loss"], v["validate/gaussian"]) for v in lines})
    steps = sorted(set.intersection(*(set(c) for c in curves)))
    loss = {s: float(np.mean([c[s][0] for c in curves])) for s in steps}
    gaussian = float(np.mean([c[steps[0]][1] for c in curves]))
    best = min(loss, key=lambda s: loss[s])
    log.info("residual: held-out v-loss %.4f at step %d, Gaussian %.4f", loss[best], best, gaussian)
    found = {"gaussian": gaussian, "best": loss[best], "step": best, "folds": count}
    return (best if loss[best] < gaussian else 0), found
