"""How a patient is stained, and an image in the stain colours of another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from morphogen.slides.colour import deconvolve, estimate_stains, reconstruct

MOST = 2.5  # factor between amounts of stain; beyond it an estimate has failed


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


def recolour(image: np.ndarray, source: Stains, target: Stains) -> np.ndarray:
    """An image (H, W, 3) with its amounts of stain laid out in another's colours (Macenko et al. 2009); amounts change
    by a factor of at most 2.5."""
    amounts = deconvolve(image[None], source.matrix)
    factors = np.clip(target.amounts / source.amounts, 1 / MOST, MOST)
    ratio = torch.tensor([*factors, 1.0], dtype=amounts.dtype)
    made = reconstruct(amounts * ratio[None, :, None, None], target.matrix, dtype="uint8")
    return made[0].permute(1, 2, 0).numpy()
