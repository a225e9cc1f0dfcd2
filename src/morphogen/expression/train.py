"""Training: from prepared sections and a configuration to a model folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import torch
from torch import Tensor, nn

from morphogen.core.devices import chosen_precision, resolve_device
from morphogen.core.errors import InputError
from morphogen.core.files import writable_folder
from morphogen.core.seeds import generator
from morphogen.core.writing.locks import locks_folder
from morphogen.diffusion.losses import diffusion_loss
from morphogen.expression.config import ExpressionConfig, SamplerConfig
from morphogen.expression.data import check_embeddings, facts
from morphogen.expression.fitting.spatial import train_spatial
from morphogen.expression.fitting.spots import Spots, data_hash, held_out_blocks, noise_levels
from morphogen.expression.model import ExpressionModel
from morphogen.expression.recipes.gene_diffusion import GeneDiffusion
from morphogen.expression.sections.panels import choose_panel
from morphogen.expression.sections.prepare import check_same_encoder, encoder_of, load_sections
from morphogen.expression.sections.splits import By, Split, split_sections
from morphogen.expression.sections.tables import SectionTable, tabulate
from morphogen.expression.sections.transforms import Transform
from morphogen.nets import gather_neighbourhood
from morphogen.training import TrainResult, fit


@locks_folder()
def train_model(
    sections: Sequence[ad.AnnData],
    config: ExpressionConfig,
    out: Path | str,
    *,
    split: Split | None = None,
    device: str = "auto",
    precision: str = "fp32",
    compile: bool | None = False,
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
    out, precision = writable_folder(out), chosen_precision(precision, resolve_device(device))
    panel = choose_panel(sections, config.panel)
    transform = target_transform(sections, config)
    tables = [tabulate(s, panel, transform, training=True) for s in sections]
    for table in tables:
        check_embeddings(table.embedding, table.section)
    head: nn.Module
    if config.recipe == "spatial":
        head, result = train_spatial(tables, config, transform, out, device, precision, compile)
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


def choose_sections(
    store: Path | str, test: Sequence[str] | None, named: Sequence[str] | None = None, by: By = "patient"
) -> tuple[list[ad.AnnData], Split | None]:
    """The prepared sections of a folder to train on, and the split where ``test`` names sections to hold out.

    named: sections to train on, when not all others. Raises :class:`InputError` for a name that is not there.
    """
    everything = load_sections(store)
    split = split_sections(everything, test, named, by) if test else None
    wanted = split.train if split is not None else named
    used = [s for s in everything if wanted is None or facts(s).section in set(wanted)]
    if named is not None and len(used) < len(named):
        load_sections(store, named)  # says which name is unknown
    return used, split


def target_transform(sections: Sequence[ad.AnnData], config: ExpressionConfig) -> Transform:
    """The transform of the targets; the library target is the median over the training spots."""
    target = 0.0
    if config.target.library:
        target = float(np.median(np.concatenate([s.obs["total_counts"].to_numpy() for s in sections])))
    return Transform(config.target.log, config.target.library, target)


def training_pitch(sections: Sequence[ad.AnnData]) -> float:
    """Median distance of neighbouring spots in µm."""
    return float(np.median([facts(s).pitch_px * facts(s).mpp for s in sections]))


# --- stem and hisdiff -------------------------------------------------------------------------------------


class DiffusionTask:
    """Stem's and HisDiff's training objective over spots of all training sections.

    The tables stay in one place on the device, and a batch is row numbers: HisDiff's gathered neighbours would be
    238 KB a spot.
    """

    def __init__(self, head: GeneDiffusion, tables: Sequence[SectionTable], config: ExpressionConfig) -> None:
        self.head, self.model, self.config = head, head.network, config
        held = held_out_blocks(tables, config.validation, config.training.seed)
        chosen = np.concatenate(held)
        self.dataset = Spots(np.flatnonzero(~chosen))
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
        # The neighbours of a batch come from this table of all spots, which is scaled once.
        self.scaled = head.scaled_condition(self.embedding) if head.hierarchical else None
        self.identity = {
            "network": config.network.to_dict(),
            "data": data_hash(tables),
            "recipe": config.recipe,
        }

    def to(self, device: torch.device) -> None:
        self.head.to(device)
        for name in ("values", "embedding", "scaled", "views", "neighbours", "held_rows"):
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
        if self.scaled is None:
            return self.head.scaled_condition(embedding)
        near, region = self.neighbours[rows, : self.near], self.neighbours[rows]
        return gather_neighbourhood(self.scaled, rows, near, region)

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
            for level in noise_levels(self.head.schedule):
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
        drawn = self.head.sample(embedded, lambda _: x, SamplerConfig())
        np.savez(folder / "samples.npz", truth=self.values[rows].cpu().numpy(), sample=drawn.cpu().numpy())


def _train_diffusion(
    tables: Sequence[SectionTable],
    config: ExpressionConfig,
    out: Path,
    device: str,
    precision: str,
    compile: bool | None,
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
