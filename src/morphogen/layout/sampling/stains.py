"""An image in the stain colours of another."""

from __future__ import annotations

import numpy as np
import torch

from morphogen.slides.colour import deconvolve, reconstruct
from morphogen.slides.recolouring import Stains


def recolour(image: np.ndarray, source: Stains, target: Stains) -> np.ndarray:
    """An image (H, W, 3) with its amounts of stain laid out in another's colours (Macenko et al. 2009); amounts change
    by a factor of at most 2.5."""
    amounts = deconvolve(image[None], source.matrix)
    ratio = torch.tensor([*source.factors(target), 1.0], dtype=amounts.dtype)
    made = reconstruct(amounts * ratio[None, :, None, None], target.matrix, dtype="uint8")
    return made[0].permute(1, 2, 0).numpy()
