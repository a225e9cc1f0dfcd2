"""How a patient is stained, and an image in the stain colours of another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from morphogen.core.errors import MorphogenError
from morphogen.layout.sources.sheets import Sheet
from morphogen.slides.colour import deconvolve, estimate_stains, reconstruct

FAINT = 0.1  # amount of stain, as optical density, below which pixels are glass
MOST = 2.5  # factor between amounts of stain; beyond it an estimate has failed
SHEETS, CELLS = 4, 6  # sheets of a patient, and tissue cells of each, that its stains are estimated from


@dataclass(frozen=True)
class Stains:
    """How an image is stained: Macenko's matrix and the 99th percentile of the amounts of its two stains."""

    matrix: np.ndarray
    amounts: np.ndarray

    @classmethod
    def of(cls, images: np.ndarray) -> Stains:
        """Of images (N, H, W, 3) uint8 together."""
        matrix = estimate_stains(images)
        amounts = deconvolve(images, matrix)[:, :2].permute(1, 0, 2, 3).flatten(1)
        high = np.quantile(amounts.numpy(), 0.99, axis=1)
        return cls(matrix.numpy(), np.maximum(high, 1e-3))

    @classmethod
    def of_sheets(cls, sheets: Sequence[Sheet], crop: int) -> Stains:
        """Of some tissue cells of some sheets."""
        return cls.of(
            np.stack(
                [
                    sheet.image(int(row), int(column), crop)
                    for sheet in sheets[:SHEETS]
                    for row, column in sheet.tissue(crop)[:CELLS]
                ]
            )
        )


def recolour(image: np.ndarray, source: Stains, target: Stains) -> np.ndarray:
    """An image (H, W, 3) with its amounts of stain laid out in another's colours (Macenko et al. 2009); amounts change
    by a factor of at most 2.5."""
    amounts = deconvolve(image[None], source.matrix)
    factors = np.clip(target.amounts / source.amounts, 1 / MOST, MOST)
    ratio = torch.tensor([*factors, 1.0], dtype=amounts.dtype)
    made = reconstruct(amounts * ratio[None, :, None, None], target.matrix, dtype="uint8")
    return made[0].permute(1, 2, 0).numpy()


class Recolouring:
    """``recolouring(image, sheet, stains)``: a crop of a sheet in other stain colours; the stains of a sheet are
    estimated once. A crop whose sheet shows no stain stays as it is."""

    def __init__(self, crop: int) -> None:
        self.crop = crop
        self._known: dict[str, Stains | None] = {}

    def __call__(self, image: np.ndarray, sheet: Sheet, target: Stains | None) -> np.ndarray:
        source = self.stains(sheet.name, [sheet])
        if source is None or target is None:
            return np.ascontiguousarray(image)
        return recolour(np.ascontiguousarray(image), source, target)

    def stains(self, key: str, sheets: Sequence[Sheet]) -> Stains | None:
        """The stains of some sheets, known by ``key``; None where they show none."""
        if key not in self._known:
            self._known[key] = estimated(lambda: Stains.of_sheets(sheets, self.crop))
        return self._known[key]


def estimated(estimate: Callable[[], Stains]) -> Stains | None:
    """What an estimate says; None where the pixels show no stain."""
    try:
        found = estimate()
    except MorphogenError:
        return None
    return found if found.amounts.max() >= FAINT else None
