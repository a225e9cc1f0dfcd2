"""What a prior draws, held against grids it was trained on and grids it was not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from morphogen.core.progress import progress
from morphogen.metrics.expression import morans_i, spatial_weights
from morphogen.metrics.images import frechet_distance
from morphogen.tissue.data import spread_rows
from morphogen.tissue.priors.grids import GridDataset
from morphogen.tissue.priors.model import TissuePrior


def check_prior(
    prior: TissuePrior, training: GridDataset, held: GridDataset, *, count: int = 64, seed: int = 0
) -> dict[str, Any]:
    """Drawn grids against held-out and training ones, in the space of the components.

    frechet: of the cells' vectors, drawn to training; frechet_floor: held out to training. moran: mean Moran's I of the
    first four components within a grid, drawn and real. nearest: mean distance to the nearest of all training grids, of
    drawn ones, of held-out ones, and of training ones: to those of other images, and to those of the same image that
    share no tile with them. What is drawn from the distribution that was learned is as near as the last; nearer ones
    are copies. Held-out grids may be far because their images are of another kind.
    """
    drawn = []
    for number in progress(range(count), total=count, what="grids"):
        vectors = torch.from_numpy(prior(seed=seed + number).patch)
        drawn.append(prior.space(vectors.to(prior.device)).permute(2, 0, 1).cpu())
    sets = {
        "drawn": torch.stack(drawn).numpy(),
        "training": _spread(training, 4 * count),
        "held_out": _spread(held, 4 * count),
    }
    cells = {name: grids.transpose(0, 2, 3, 1).reshape(-1, grids.shape[1]) for name, grids in sets.items()}
    flat = {name: grids.reshape(len(grids), -1) for name, grids in sets.items()}
    rows = spread_rows(len(training), 4 * count)
    corners = torch.tensor(training.corners)
    near = _nearest(
        {"drawn": flat["drawn"], "held_out": flat["held_out"], **dict.fromkeys(OTHERS, flat["training"])},
        training,
        {
            "other_images": lambda known: corners[rows, None, 0] != corners[None, known, 0],
            "same_image": lambda known: _beside(corners[rows, None], corners[None, known], training.side),
        },
    )
    return {
        "frechet": frechet_distance(cells["training"], cells["drawn"]),
        "frechet_floor": frechet_distance(cells["training"], cells["held_out"]),
        "moran": {name: _moran(grids) for name, grids in sets.items()},
        "nearest": near,
        "grids": {name: len(grids) for name, grids in sets.items()},
    }


OTHERS = ("other_images", "same_image")


def _beside(a: Tensor, b: Tensor, side: int) -> Tensor:
    """Whether grids of one image share no tile, by their corners (…, 3)."""
    apart = (a[..., 1:] - b[..., 1:]).abs().amax(-1) >= side
    return (a[..., 0] == b[..., 0]) & apart


def _nearest(
    sets: dict[str, np.ndarray], training: GridDataset, allowed: dict[str, Callable[[slice], Tensor]]
) -> dict[str, float]:
    """Mean distance of flat grids to the nearest training grid, for those that have one; of some sets only pairs that
    are ``allowed`` count."""
    found = {name: torch.full((len(grids),), torch.inf) for name, grids in sets.items()}
    start = 0
    for known in training.batches():
        part = slice(start, start + len(known))
        start = part.stop
        for name, grids in sets.items():
            apart = torch.cdist(torch.from_numpy(grids), known.flatten(1))
            if name in allowed:
                apart = apart.masked_fill(~allowed[name](part), torch.inf)
            found[name] = torch.minimum(found[name], apart.min(1).values)
    known_of = {name: values[values.isfinite()] for name, values in found.items()}
    return {name: float(values.mean()) for name, values in known_of.items() if len(values)}


def _moran(grids: np.ndarray) -> list[float]:
    side = grids.shape[-1]
    places = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(-1, 2)
    weights = spatial_weights(places.astype(np.float64), k=4)
    first = grids[:, :4].reshape(len(grids), -1, side * side)
    found = np.array([morans_i(each.T, weights) for each in first])
    known = np.isfinite(found)  # a component that is constant over a grid has no I
    sums = np.where(known, found, 0).sum(axis=0)
    return np.where(known.any(axis=0), sums / np.maximum(known.sum(axis=0), 1), np.nan).tolist()


def _spread(dataset: GridDataset, count: int) -> np.ndarray:
    return np.stack([dataset[int(row)]["grid"].numpy() for row in spread_rows(len(dataset), count)])


def compared(check: dict[str, Any]) -> str:
    """What :func:`check_prior` found, in a few words; empty where nothing was held out."""
    if not check:
        return ""
    return (
        f"; Fréchet distance to them: {check['frechet']:.3g} of drawn grids, {check['frechet_floor']:.3g} of "
        f"{check['grids']['held_out']} held-out ones"
    )
