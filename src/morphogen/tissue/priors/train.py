"""Training a prior, and checking what it draws against held-out grids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from morphogen.core.devices import resolve_device
from morphogen.core.errors import InputError
from morphogen.core.files import content_hash, writable_folder, write_json
from morphogen.core.progress import progress
from morphogen.core.writing.locks import locks_folder
from morphogen.diffusion import losses
from morphogen.metrics.expression import morans_i, spatial_weights
from morphogen.metrics.images import frechet_distance
from morphogen.tissue.data import TileTable
from morphogen.tissue.priors.config import PriorConfig
from morphogen.tissue.priors.model import Components, TissuePrior
from morphogen.training import Draws, fit


class GridDataset(Dataset):
    """Square grids of embeddings of tiles that lie side by side, wherever a full one begins.

    An item has ``grid`` (K, g, g) float32, components, and ``label`` (), the number of its tiles' class.

    Raises :class:`InputError` when no image holds a full grid.
    """

    def __init__(self, table: TileTable, side: int, space: Components, labels: Sequence[str]) -> None:
        self.side = side
        self.components = space(torch.from_numpy(table.features["patch"]))
        known = {name: number for number, name in enumerate(labels)}
        self.grids: list[Tensor] = []
        self.labels: list[int] = []
        self.images: list[int] = []  # the number of the image that each lies in
        for rows in full_grids(table, side):
            self.grids.append(torch.from_numpy(rows))
            name = table.labels[int(rows[0, 0])] if table.labels else ""
            self.labels.append(known.get(name, len(labels)))
            self.images.append(int(table.places[rows[0, 0], 0]))
        if not self.grids:
            raise InputError(
                f"no image holds {side} × {side} tiles side by side",
                where="prior",
                fix="Give larger regions without overlapping tiles (no data.stride), or a smaller --side",
            )

    def __len__(self) -> int:
        return len(self.grids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        grid = self.components[self.grids[index]].permute(2, 0, 1).contiguous()
        return {"grid": grid, "label": torch.tensor(self.labels[index])}

    def draw(self, index: int, generator: torch.Generator) -> dict[str, Tensor]:
        """An item in one of its 8 orientations."""
        item = self[index]
        turn = int(torch.randint(8, (), generator=generator))
        grid = torch.rot90(item["grid"], turn % 4, (1, 2))
        return {**item, "grid": (grid.flip(2) if turn >= 4 else grid).contiguous()}


def full_grids(table: TileTable, side: int) -> list[np.ndarray]:
    """(side, side) rows of the table for every place where so many tiles lie side by side."""
    if not len(table.places):
        raise InputError("these tiles do not say where they lie", where="prior")
    found = []
    for image in np.unique(table.places[:, 0]):
        here = np.flatnonzero(table.places[:, 0] == image)
        rows, columns = table.places[here, 1], table.places[here, 2]
        filled = np.full((rows.max() + 1, columns.max() + 1), -1, np.int64)
        filled[rows, columns] = here
        for top in range(filled.shape[0] - side + 1):
            for left in range(filled.shape[1] - side + 1):
                window = filled[top : top + side, left : left + side]
                if (window >= 0).all():
                    found.append(window.copy())
    return found


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
    prior = TissuePrior.fresh(config, space, labels, **facts).to(device)
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


def check_prior(
    prior: TissuePrior, training: GridDataset, held: GridDataset, *, count: int = 64, seed: int = 0
) -> dict[str, Any]:
    """Drawn grids against held-out and training ones, in the space of the components.

    frechet: of the cells' vectors, drawn to training; frechet_floor: held out to training. moran: mean Moran's I of the
    first four components within a grid, drawn and real. nearest: mean distance to the nearest of all training grids, of
    drawn ones, of held-out ones, and of training ones to those of other images; drawn ones that are clearly nearer
    than both would be copies (held-out grids alone may be far because their images are of another kind).
    """
    drawn = []
    for number in progress(range(count), total=count, what="grids"):
        vectors = torch.from_numpy(prior(seed=seed + number).patch)
        drawn.append(prior.space(vectors.to(prior.device)).permute(2, 0, 1).cpu())
    sets = {
        "drawn": torch.stack(drawn).numpy(),
        "training": _spread(training, 4 * count),
        "held_out": _spread(held, count),
    }
    cells = {name: grids.transpose(0, 2, 3, 1).reshape(-1, grids.shape[1]) for name, grids in sets.items()}
    flat = {name: grids.reshape(len(grids), -1) for name, grids in sets.items()}
    known = torch.from_numpy(_spread(training, len(training)).reshape(len(training), -1))
    near = {
        name: float(torch.cdist(torch.from_numpy(flat[name]), known).min(1).values.mean())
        for name in ("drawn", "held_out")
    }
    images = torch.tensor(training.images)
    if len(images.unique()) > 1:
        rows = torch.from_numpy(_rows(len(training), 4 * count))
        apart = torch.cdist(known[rows], known).masked_fill(images[rows, None] == images, torch.inf)
        near["other_images"] = float(apart.min(1).values.mean())
    return {
        "frechet": frechet_distance(cells["training"], cells["drawn"]),
        "frechet_floor": frechet_distance(cells["training"], cells["held_out"]),
        "moran": {name: _moran(grids) for name, grids in sets.items()},
        "nearest": near,
        "grids": {name: len(grids) for name, grids in sets.items()},
    }


def _moran(grids: np.ndarray) -> list[float]:
    side = grids.shape[-1]
    places = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(-1, 2)
    weights = spatial_weights(places.astype(np.float64), k=4)
    first = grids[:, :4].reshape(len(grids), -1, side * side)
    found = np.array([morans_i(each.T, weights) for each in first])
    known = np.isfinite(found)  # a component that is constant over a grid has no I
    sums = np.where(known, found, 0).sum(axis=0)
    return np.where(known.any(axis=0), sums / np.maximum(known.sum(axis=0), 1), np.nan).tolist()


def _rows(length: int, count: int) -> np.ndarray:
    return np.unique(np.linspace(0, length - 1, min(count, length)).astype(np.int64))


def _spread(dataset: GridDataset, count: int) -> np.ndarray:
    return np.stack([dataset[int(row)]["grid"].numpy() for row in _rows(len(dataset), count)])


def compared(check: dict[str, Any]) -> str:
    """What :func:`check_prior` found, in a few words; empty where nothing was held out."""
    if not check:
        return ""
    ratio = check["frechet"] / max(check["frechet_floor"], 1e-12)
    return f"; drawn grids are {ratio:.2f} × as far from the training ones as held-out ones are"
