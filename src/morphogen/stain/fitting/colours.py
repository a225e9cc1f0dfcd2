"""The start of a network that knows what colour alone tells: fitted once, in closed form."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from morphogen.stain.model import StainTransfer
from morphogen.stain.pairs.crops import PairDataset
from morphogen.stain.recipes.colours import fitted


@torch.no_grad()
def fit_colours(model: StainTransfer, dataset: PairDataset) -> None:
    """Fit the colour path of a model's network (in place) to all pairs of a data set, as the network sees them."""
    assert model.network.colours is not None

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
        for index in range(len(dataset.pairs)):
            he, target, mask = dataset.images(index)
            values = model.target_pixels(target[None])[0].permute(1, 2, 0).double().cpu().numpy()
            yield he.numpy(), values, None if mask is None else mask.numpy()

    weights = fitted(pairs(), model.config.target.width, model.config.colour_degree).weights
    model.network.colours.weights.copy_(torch.from_numpy(weights))
