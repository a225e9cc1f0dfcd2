"""What needs no learning, or hardly any: every table of a stain model shows these beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.slides.colour import deconvolve, optical_density, reconstruct

Baseline = Callable[[np.ndarray], np.ndarray]
"""H&E (H, W, 3) uint8 → an image of the same size."""


def identity(he: np.ndarray) -> np.ndarray:
    """The H&E itself."""
    return he


def deconvolution(he: np.ndarray) -> np.ndarray:
    """Colour deconvolution only: haematoxylin stays, what looks like DAB in the H&E is drawn as DAB, eosin
    goes.

    The three-stain vectors of Ruifrok and Johnston (2001).
    """
    amounts = deconvolve(np.array(he), "hed", layout="nhwc")
    amounts[:, 1] = 0
    return reconstruct(amounts, "hed", dtype="uint8")[0].permute(1, 2, 0).contiguous().numpy()


class ColourMap:
    """The best colour change per pixel: quadratic least squares from H&E optical density to that of the
    stain.

    It sees no neighbourhood, so what it reaches is what colour alone tells.
    """

    def __init__(self) -> None:
        self._gram = np.zeros((10, 10))
        self._moment = np.zeros((10, 3))
        self._weights: np.ndarray | None = None

    def fit(self, pairs: Iterable[tuple[np.ndarray, np.ndarray]], stride: int = 2) -> ColourMap:
        """Pairs of H&E and IHC (H, W, 3) uint8, every ``stride``-th pixel of both axes."""
        for he, ihc in pairs:
            x = _terms(he[::stride, ::stride])
            y = _densities(ihc[::stride, ::stride])
            self._gram += x.T @ x
            self._moment += x.T @ y
        ridge = 1e-6 * np.trace(self._gram) / len(self._gram) * np.eye(len(self._gram))
        self._weights = np.linalg.solve(self._gram + ridge, self._moment)
        return self

    def __call__(self, he: np.ndarray) -> np.ndarray:
        if self._weights is None:
            raise InputError("the colour map was not fitted", fix="Call fit with training pairs first")
        density = (_terms(he) @ self._weights).clip(0, None).reshape(he.shape)
        return np.rint(255 * 10.0**-density).clip(0, 255).astype(np.uint8)


def _densities(image: np.ndarray) -> np.ndarray:
    density: Tensor = optical_density(np.array(image), layout="nhwc")[0]
    return density.permute(1, 2, 0).reshape(-1, 3).to(torch.float64).numpy()


def _terms(image: np.ndarray) -> np.ndarray:
    """(pixels, 10): 1, the three densities, their squares and products."""
    d = _densities(image)
    products = [d[:, i] * d[:, j] for i in range(3) for j in range(i, 3)]
    return np.column_stack([np.ones(len(d)), d, *products])
