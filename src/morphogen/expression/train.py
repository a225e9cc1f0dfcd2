"""Training: from prepared sections and a configuration to a model folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from morphogen.core.errors import InputError
from morphogen.core.files import content_hash, writable_folder
from morphogen.core.seeds import generator, numpy_generator
from morphogen.diffusion import Schedule, dpmpp_2m, network_denoiser, timesteps
from morphogen.diffusion.losses import diffusion_loss
from morphogen.expression.config import ExpressionConfig
from morphogen.expression.data import check_embeddings, facts, log
from morphogen.expression.gene_diffusion import GeneDiffusion
from morphogen.expression.model import ExpressionModel
from morphogen.expression.panels import choose_panel
from morphogen.expression.prepare import check_same_encoder, encoder_of
from morphogen.expression.spatial import Held, SpatialModel
from morphogen.expression.splits import Split
from morphogen.expression.tables import SectionTable, inner_folds, tabulate
from morphogen.expression.transforms import Transform
from morphogen.nets import gather_neighbourhood
from morphogen.training import TrainResult, fit

VALIDATION_TIMES = 8  # noise levels at which every held-out spot is scored


def train_model(
    sections: Sequence[ad.AnnData],
    config: ExpressionConfig,
    out: Path | str,
    *,
    split: Split | None = None,
    device: str = "auto",
    precision: str = "fp32",
    compile: bool = False,
) -> ExpressionModel:
    """Train on prepared sections (all of them: hand in training sections only) and save the model in ``out``.

    Everything that is chosen (panel, scales, read-out, checkpoint) comes from these sections. A run that was killed
    goes on where it was. split: kept with the model, so that an evaluation knows what was held out.
    """
    if not sections:
        raise InputError("there are no training sections")
    check_same_encoder(list(sections))
    if split is not None:
        named = {facts(s).section for s in sections}
        wrong = named.symmetric_difference(split.train)
        if wrong:
            raise InputError(
                f"section {sorted(wrong)[0]} is not in the training part of the split", where="split"
            )
    out = writable_folder(out)
    panel = choose_panel(sections, config.panel)
    transform = target_transform(sections, config)
    tables = [tabulate(s, panel, transform, training=True) for s in sections]
    for table in tables:
        check_embeddings(table.embedding, table.section)
    head: nn.Module
    if config.recipe == "spatial":
        head, result = _train_spatial(tables, config, transform, out, device, precision, compile)
    else:
        head, result = _train_diffusion(tables, config, out, device, precision, compile)
    model = ExpressionModel(
        head,
        config,
        panel,
        transform,
        encoder_of(sections[0]),
        training={
            "sections": [facts(s).section for s in sections],
            "patients": {facts(s).section: facts(s).patient for s in sections},
            "split": None if split is None else split.to_dict(),
            "spots": [len(t) for t in tables],
            "data_hash": data_hash(tables),
            "steps": 0 if result is None else result.step,
            "best_step": None if result is None else result.best_step,
            "best_value": None if result is None else result.best_value,
            "precision": precision,
            "seed": config.training.seed,
        },
        prepared={**dict(sections[0].uns["morphogen"]["prepare"]), "pitch_um": training_pitch(sections)},
    )
    model.save_pretrained(out / "model")
    return model


def target_transform(sections: Sequence[ad.AnnData], config: ExpressionConfig) -> Transform:
    """The transform of the targets; the library target is the median over the training spots."""
    target = 0.0
    if config.target.library:
        target = float(np.median(np.concatenate([s.obs["total_counts"].to_numpy() for s in sections])))
    return Transform(config.target.log, config.target.library, target)


def training_pitch(sections: Sequence[ad.AnnData]) -> float:
    """Median distance of neighbouring spots in µm."""
    return float(np.median([facts(s).pitch_px * facts(s).mpp for s in sections]))


def data_hash(tables: Sequence[SectionTable]) -> str:
    """Identity of what was trained on: names, barcodes, embeddings, targets."""
    return content_hash(*[(t.section, list(t.barcodes), t.embedding, t.y) for t in tables])[:16]


def held_out_blocks(tables: Sequence[SectionTable], share: float, seed: int) -> list[np.ndarray]:
    """(N,) bool per table: about ``share`` of the tissue blocks (4 pitches wide) of every section."""
    out = []
    for table in tables:
        parts = max(2, round(1 / share)) if share > 0 else 0
        if not parts:
            out.append(np.zeros(len(table), dtype=bool))
            continue
        folds = inner_folds([table], parts=parts)[0]
        out.append(folds == numpy_generator(seed, "validation", table.section).integers(0, parts))
    return out


# --- stem and hisdiff -------------------------------------------------------------------------------------


class _Spots(Dataset):
    """Rows of the training spots; what belongs to a row is gathered in the loss, on the device."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = torch.from_numpy(rows).long()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"row": self.rows[i]}


class DiffusionTask:
    """Stem's and HisDiff's training objective over spots of all training sections.

    The tables stay in one place on the device, and a batch is row numbers: HisDiff's gathered neighbours would be
    238 KB a spot.
    """

    def __init__(self, head: GeneDiffusion, tables: Sequence[SectionTable], config: ExpressionConfig) -> None:
        self.head, self.model, self.config = head, head.network, config
        held = held_out_blocks(tables, config.validation, config.training.seed)
        chosen = np.concatenate(held)
        self.dataset = _Spots(np.flatnonzero(~chosen))
        self.held_rows = torch.from_numpy(np.flatnonzero(chosen)).long()
        start = np.cumsum([0, *[len(t) for t in tables]])
        self.values = torch.from_numpy(np.concatenate([t.y for t in tables]))
        self.embedding = torch.from_numpy(np.concatenate([t.embedding for t in tables]))
        views = [t.views for t in tables]
        have = all(v is not None for v in views) and not head.hierarchical
        self.views = torch.from_numpy(np.concatenate([v for v in views if v is not None])) if have else None
        index = [np.where(t.neighbours >= 0, t.neighbours + s, -1) for t, s in zip(tables, start)]
        self.neighbours = torch.from_numpy(np.concatenate(index)).long()
        self.near = tables[0].near
        self.identity = {
            "network": config.network.to_dict(),
            "data": data_hash(tables),
            "recipe": config.recipe,
        }

    def to(self, device: torch.device) -> None:
        self.head.to(device)
        for name in ("values", "embedding", "views", "neighbours", "held_rows"):
            value = getattr(self, name)
            if value is not None and value.device != device:
                setattr(self, name, value.to(device))

    def loss(self, model: nn.Module, batch: dict[str, Tensor], draws: Any) -> dict[str, Tensor]:
        rows = batch["row"]
        self.to(rows.device)
        schedule = self.head.schedule
        if schedule.kind == "flow":
            t = torch.sigmoid(draws.normal())  # logit-normal times (Esser et al. 2024)
        else:
            t = draws.integers(schedule.T)
        embedding = self.embedding[rows]
        if self.views is not None:
            view = draws.integers(1 + self.views.shape[1])
            turned = self.views[rows, (view - 1).clamp_min(0)]
            embedding = torch.where((view > 0)[:, None], turned, embedding)
        x0 = self.head.scaled_target(self.values[rows])
        return self._terms(model, x0, t, draws.normal(x0.shape[1]), self._condition(rows, embedding))

    def _condition(self, rows: Tensor, embedding: Tensor) -> Any:
        head = self.head
        if not head.hierarchical:
            return head.scaled_condition(embedding)
        near, region = self.neighbours[rows, : self.near], self.neighbours[rows]
        scaled = head.scaled_condition(self.embedding)
        return gather_neighbourhood(scaled, rows, near, region)

    def _terms(
        self, model: nn.Module, x0: Tensor, t: Tensor, noise: Tensor, condition: Any
    ) -> dict[str, Tensor]:
        c = self.config.network
        return diffusion_loss(
            model,
            x0,
            t,
            noise,
            self.head.schedule,
            prediction=c.objective,
            learned_variance=c.learned_variance,
            vlb=c.likelihood,
            condition={"condition": condition},
        )

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Loss of the held-out blocks at fixed noise levels and fixed noise, so that checkpoints compare."""
        if not len(self.held_rows):
            return {}
        device = self.head.target_mean.device
        self.to(device)
        total, count = 0.0, 0
        g = generator("validation", self.config.training.seed)
        for rows in self.held_rows.split(256):
            x0 = self.head.scaled_target(self.values[rows])
            condition = self._condition(rows, self.embedding[rows])
            for level in _levels(self.head.schedule):
                noise = torch.randn(x0.shape, generator=g).to(device)
                t = torch.full((len(rows),), level, device=device)
                if self.head.schedule.kind != "flow":
                    t = t.long()
                total += float(self._terms(model, x0, t, noise, condition)["loss"].sum())
                count += len(rows)
        return {"loss": total / count}

    def preview(self, model: nn.Module, folder: Path, step: int) -> None:
        """One sample per held-out spot beside the truth, as ``samples.npz``."""
        rows = self.held_rows[:256]
        x = torch.randn((len(rows), self.head.genes), generator=generator("preview", step)).to(rows.device)
        embedded = self.model.embed_condition(self._condition(rows, self.embedding[rows]))
        drawn = self.head.draw(embedded, lambda _: x, "fast", 20)
        np.savez(folder / "samples.npz", truth=self.values[rows].cpu().numpy(), sample=drawn.cpu().numpy())


def _levels(schedule: Schedule) -> list[float]:
    if schedule.kind == "flow":
        return [(i + 0.5) / VALIDATION_TIMES for i in range(VALIDATION_TIMES)]
    return [float(int((i + 0.5) / VALIDATION_TIMES * schedule.T)) for i in range(VALIDATION_TIMES)]


def _train_diffusion(
    tables: Sequence[SectionTable],
    config: ExpressionConfig,
    out: Path,
    device: str,
    precision: str,
    compile: bool,
) -> tuple[GeneDiffusion, TrainResult]:
    seed = config.training.seed
    head = GeneDiffusion(
        config.network, tables[0].y.shape[1], tables[0].embedding.shape[1], generator("weights", seed)
    )
    head.set_scaling(tables, target=config.target.standardise, condition=config.network.standardise_condition)
    task = DiffusionTask(head, tables, config)
    training = config.training
    if not len(task.held_rows) and training.best_metric is not None:
        training = training.replace(best_metric=None, patience=None, validate_every=0)
    result = fit(task, training, out / "run", device=device, precision=precision, compile=compile)
    head.network.load_state_dict(result.best_state())
    head.cpu()
    return head.eval(), result


# --- spatial ----------------------------------------------------------------------------------------------


class ResidualTask:
    """v-prediction of the whitened residuals of held-out spots (see :mod:`morphogen.expression.residual`)."""

    def __init__(
        self, model: SpatialModel, tables: Sequence[SectionTable], held: Held, whitened: Sequence[np.ndarray],
        config: ExpressionConfig,
    ) -> None:  # fmt: skip
        self.residual = model.residual
        self.model = model.residual.network
        k = self.residual.factors
        self.factors = torch.from_numpy(np.concatenate(whitened)[:, :k]).float()
        self.conditions = self.residual.conditions(torch.from_numpy(np.concatenate(held.scores)))
        chosen = np.concatenate(held_out_blocks(tables, config.validation, config.training.seed))
        self.dataset = _Spots(np.flatnonzero(~chosen))
        self.held_rows = torch.from_numpy(np.flatnonzero(chosen)).long()
        self.seed = config.training.seed
        self.identity = {"spatial": config.spatial.to_dict(), "data": data_hash(tables)}

    def loss(self, model: nn.Module, batch: dict[str, Tensor], draws: Any) -> dict[str, Tensor]:
        rows = batch["row"].cpu()
        x0 = self.factors[rows].to(batch["row"].device)
        t = draws.integers(self.residual.schedule.T)
        return self._terms(model, x0, t, draws.normal(x0.shape[1]), self.conditions[rows].to(x0.device))

    def _terms(
        self, model: nn.Module, x0: Tensor, t: Tensor, noise: Tensor, condition: Tensor
    ) -> dict[str, Tensor]:
        return diffusion_loss(
            model, x0, t, noise, self.residual.schedule, prediction="v", condition={"condition": condition}
        )

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """v-loss on held-out blocks at fixed noise, and that of the Gaussian the network started as (v = 0)."""
        device = next(self.model.parameters()).device
        g = generator("validation", self.seed)
        x0, c = self.factors[self.held_rows], self.conditions[self.held_rows]
        loss, gaussian = [], []
        for level in _levels(self.residual.schedule):
            noise = torch.randn(x0.shape, generator=g)
            t = torch.full((len(x0),), int(level))
            loss.append(
                self._terms(model, x0.to(device), t.to(device), noise.to(device), c.to(device))["loss"].mean()
            )
            alpha, sigma = self.residual.schedule.levels_like(t, x0)
            gaussian.append(((alpha * noise - sigma * x0) ** 2).mean())
        return {"loss": float(torch.stack(loss).mean()), "gaussian": float(torch.stack(gaussian).mean())}

    def preview(self, model: nn.Module, folder: Path, step: int) -> None:
        """Sampled factors of the held-out spots beside their true ones, as ``factors.npz``."""
        device = next(self.model.parameters()).device
        noise = torch.randn(self.factors[self.held_rows].shape, generator=generator("preview", step)).to(
            device
        )
        condition = self.conditions[self.held_rows].to(device)
        times = timesteps(self.residual.schedule, 20, "trailing")
        denoiser = network_denoiser(self.model, self.residual.schedule, "v")
        drawn = dpmpp_2m(denoiser, noise, times, self.residual.schedule, condition={"condition": condition})
        truth = self.factors[self.held_rows]
        np.savez(folder / "factors.npz", truth=truth.numpy(), sample=drawn.cpu().numpy())


def _train_spatial(
    tables: Sequence[SectionTable],
    config: ExpressionConfig,
    transform: Transform,
    out: Path,
    device: str,
    precision: str,
    compile: bool,
) -> tuple[SpatialModel, TrainResult | None]:
    model, held, whitened = SpatialModel.fit(tables, config.spatial, transform)
    model.residual.network.reset_parameters(generator("weights", config.training.seed))
    result = None
    model.diffused = False
    if model.residual.factors:
        task = ResidualTask(model, tables, held, whitened, config)
        if len(task.held_rows):
            start = {k: v.clone() for k, v in model.residual.network.state_dict().items()}
            gaussian = task.validate(model.residual.network)["gaussian"]
            result = fit(
                task, config.training, out / "run", device=device, precision=precision, compile=compile
            )
            better = result.best_value is not None and result.best_value < gaussian
            model.diffused = better
            model.residual.network.load_state_dict(result.best_state() if better else start)
            model.report["residual"] = {
                "gaussian": gaussian,
                "best": result.best_value,
                "step": result.best_step,
            }
            log.info("residual: held-out v-loss %.4f, Gaussian %.4f", result.best_value or np.nan, gaussian)
    model.cpu().eval()
    model.calibrate(tables, held)
    return model, result
