"""The effects of training images: offset and slope of every image on the answer of a regression."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from morphogen.core.seeds import generator
from morphogen.stain.model import StainTransfer
from morphogen.stain.pairs.crops import PairDataset, cells_seen
from morphogen.stain.recipes.sampling import pixels_of_cell

CROPS = 8  # of every image
BLOCK = 4  # side in cells of the blocks whose means are compared
_EVEN = 1e-6  # variance of answers below which they show no slope

Answer = Callable[[Tensor, Tensor | None, Tensor, Tensor], Tensor]
"""H&E latents (N, C, h, w), tokens, labels (N,), numbers of items (N,) → the regression's answers."""


@torch.no_grad()
def measured_effects(
    model: StainTransfer, dataset: PairDataset, answer: Answer, seed: int
) -> list[list[tuple[float, float]]]:
    """Offset and slope of every pair and channel, by least squares over the blocks of random crops that were scanned
    whole; a slope is never below 0. A pair that shows nothing of the target has those of no effect, (0, 1)."""
    items = {pair: item for item, pair in reversed(list(enumerate(dataset.numbers)))}
    return [_of_pair(model, dataset, answer, seed, items[pair]) for pair in range(len(dataset.pairs))]


def _of_pair(
    model: StainTransfer, dataset: PairDataset, answer: Answer, seed: int, item: int
) -> list[tuple[float, float]]:
    places = [dataset.place(item, generator(seed, "image effect", item, k)) for k in range(CROPS)]
    crops = dataset.finish(dataset.cut([replace(place, jitter=None) for place in places]))
    image = model.first_stage.encode(model.pixels(crops["he"])).mode()
    target = model.target_stage.encode(model.target_pixels(crops["ihc"])).mode()
    label = 1 + crops["label"].to(image.device)
    found = answer(image, model.tokens(crops["he"]), label, crops["index"])
    seen = torch.ones_like(found[:, :1])
    if "mask" in crops:
        seen = cells_seen(crops["mask"], model.factor).to(found)
    side = min(BLOCK, *found.shape[2:])
    whole = torch.nn.functional.avg_pool2d(seen, side).flatten() > 1 - 1e-6
    scaling = model.target_stage.scaling
    x, y = (_blocks(each / scaling, side, model)[whole].double() for each in (found, scaling * target))
    if not len(x):
        return [(0.0, 1.0)] * model.config.target.width
    return [_line(x[:, k], y[:, k]) for k in range(x.shape[1])]


def _blocks(latents: Tensor, side: int, model: StainTransfer) -> Tensor:
    """(N, C, h, w) → (blocks, channels of the target), 0 for dark and 1 for full."""
    cells = latents.unflatten(1, (-1, pixels_of_cell(model.config))).mean(dim=2) / 2 + 0.5
    return torch.nn.functional.avg_pool2d(cells, side).permute(0, 2, 3, 1).flatten(0, 2).cpu()


def _line(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Offset and slope of y on x."""
    spread = float(x.var(unbiased=False))
    slope = 1.0
    if spread > _EVEN:
        slope = max(0.0, float(((x - x.mean()) * (y - y.mean())).mean()) / spread)
    return round(float(y.mean()) - slope * float(x.mean()), 5), round(slope, 5)
