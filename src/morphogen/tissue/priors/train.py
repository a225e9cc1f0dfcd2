"""Training a prior over grids of embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from morphogen.core.devices import resolve_device
from morphogen.core.files import content_hash, writable_folder, write_json
from morphogen.core.writing.locks import locks_folder
from morphogen.diffusion import losses
from morphogen.tissue.data import TileTable
from morphogen.tissue.priors.check import check_prior
from morphogen.tissue.priors.config import PriorConfig
from morphogen.tissue.priors.field import GridField
from morphogen.tissue.priors.grids import GridDataset, full_grids
from morphogen.tissue.priors.model import Components, TissuePrior
from morphogen.training import Draws, fit


class PriorTask:
    """What the training loop needs: see :class:`morphogen.training.Task`."""

    def __init__(
        self, prior: TissuePrior, dataset: GridDataset, held: GridDataset | None, identity: dict[str, Any]
    ) -> None:
        self.prior, self.dataset, self.held, self.identity = prior, dataset, held, identity
        self.model: nn.Module = prior.network

    def loss(self, model: nn.Module, batch: dict[str, Any], draws: Draws) -> dict[str, Tensor]:
        """Error in x0, weighted as in v up to 5; labels are dropped with the probability of the configuration."""
        schedule, x0 = self.prior.schedule, batch["grid"]
        drop = draws.bernoulli(self.prior.config.p_uncond)
        label = torch.where(drop, len(self.prior.labels), batch["label"].to(drop.device))
        t = draws.integers(schedule.T)
        figures = losses.diffusion_loss(
            model, x0, t, draws.normal_like(x0), schedule, prediction="x0", condition={"label": label}
        )
        figures["loss"] = figures["loss"] * losses.v_weight(schedule, t, 5.0)
        return figures

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Loss on held-out grids."""
        if self.held is None:
            return {}
        found = []
        for index in range(0, len(self.held), max(1, len(self.held) // 32)):
            item = self.held[index]
            draws = Draws(self.prior.config.training.seed, torch.tensor([index]), self.prior.device)
            batch = {
                "grid": item["grid"][None].to(self.prior.device),
                "label": torch.tensor([len(self.prior.labels)]),
            }
            found.append(self.loss(model, batch, draws)["loss"])
        return {"loss": float(torch.cat(found).mean())}

    def preview(self, model: nn.Module, folder: Path, step: int) -> None:
        """``grids.png``: four drawn grids, their first three components as colours."""
        from PIL import Image

        drawn = [
            self.prior.space(torch.from_numpy(self.prior(seed=seed).patch).to(self.prior.device))[..., :3]
            for seed in range(4)
        ]
        colours = torch.cat(drawn, dim=1).cpu().numpy()
        low, high = colours.min((0, 1)), colours.max((0, 1))
        image = (255 * (colours - low) / np.maximum(high - low, 1e-9)).astype(np.uint8)
        Image.fromarray(image).resize((image.shape[1] * 16, image.shape[0] * 16), 0).save(
            folder / "grids.png"
        )


@locks_folder()
def train_prior(
    table: TileTable, config: PriorConfig, out: Path | str, *, device: str | torch.device = "auto"
) -> TissuePrior:
    """Train a prior on the grids of a table and write it to ``out/model``; a run found in ``out`` goes on.

    Whole groups are held out where there are several (``config.data.hold_out``); ``out/check.json`` says how grids that
    the prior draws compare with them.
    """
    out, device = writable_folder(out), resolve_device(device)
    share = config.data.hold_out if len(set(table.groups)) > 1 else 0.0
    train, held = table.split(share, config.training.seed, config.data.hold_out_groups)
    labels = sorted(set(train.labels)) or ["tissue"]
    space = Components.of(train.features["patch"], config.variance, config.most_components)
    dataset = GridDataset(train, config.side, space, labels)
    held_grids = GridDataset(held, config.side, space, labels) if full_or_none(held, config.side) else None
    facts = {
        "grids": len(dataset),
        "held_out": 0 if held_grids is None else len(held_grids),
        **train.facts,
    }
    field = GridField.of(dataset.batches())
    prior = TissuePrior.fresh(config, space, labels, field, **facts).to(device)
    config.save(out / "config.yaml")
    identity = {
        "prior": config.model_dump(mode="json", exclude={"training", "data"}),
        "tiles": content_hash(train.identity(), config.side),
    }
    run = fit(PriorTask(prior, dataset, held_grids, identity), config.training, out, device=device)
    prior.network.load_state_dict(run.best_state())
    prior.network.eval()
    prior.__dict__.pop("identity", None)
    prior.facts |= {"step": run.step, "metrics": run.metrics}
    prior.save_pretrained(out / "model")
    if held_grids is not None:
        write_json(out / "check.json", check_prior(prior, dataset, held_grids))
    return prior


def full_or_none(table: TileTable, side: int) -> bool:
    """Whether a table holds a full grid."""
    return bool(len(table)) and bool(full_grids(table, side))
