"""What the colour of a pixel alone tells of the target: a quadratic map of optical density, by least squares."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from morphogen.core.errors import InputError
from morphogen.slides.colour import optical_density

TERMS = 10  # 1, three densities, their squares and products


def quadratic_terms(density: Tensor) -> Tensor:
    """Optical densities (B, 3, H, W) → (B, 10, H, W): 1, themselves, their squares and products."""
    products = [density[:, i] * density[:, j] for i in range(3) for j in range(i, 3)]
    return torch.stack([torch.ones_like(density[:, 0]), *density.unbind(1), *products], dim=1)


class QuadraticMap:
    """The best map of a pixel's colour to C values: quadratic least squares from the optical density of the H&E.

    It sees no neighbourhood, so what it reaches is what colour alone tells.
    """

    def __init__(self, outputs: int = 3) -> None:
        self._gram, self._moment = np.zeros((TERMS, TERMS)), np.zeros((TERMS, outputs))
        self._weights: np.ndarray | None = None

    def add(
        self, he: np.ndarray, values: np.ndarray, mask: np.ndarray | None = None, stride: int = 2
    ) -> None:
        """One more H&E (H, W, 3) uint8 with its values (H, W, C), every ``stride``-th pixel of both axes."""
        x, y = _terms(he[::stride, ::stride]), values[::stride, ::stride].reshape(-1, values.shape[2])
        if mask is not None:
            keep = mask[::stride, ::stride].ravel()
            x, y = x[keep], y[keep]
        self._gram += x.T @ x
        self._moment += x.T @ y
        self._weights = None

    @property
    def weights(self) -> np.ndarray:
        """(10, C)."""
        if not self._gram.any():
            raise InputError("the colour map was not fitted", fix="Call fit with training pairs first")
        if self._weights is None:
            ridge = 1e-6 * np.trace(self._gram) / TERMS * np.eye(TERMS)
            self._weights = np.linalg.solve(self._gram + ridge, self._moment)
        return self._weights

    def values(self, he: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 → (H, W, C)."""
        return (_terms(he) @ self.weights).reshape(*he.shape[:2], -1)


def fitted(pairs: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray | None]], outputs: int) -> QuadraticMap:
    """The map of H&E (H, W, 3) to values (H, W, C) where a mask says so."""
    found = QuadraticMap(outputs)
    for he, values, mask in pairs:
        found.add(he, values, mask)
    return found


def _terms(image: np.ndarray) -> np.ndarray:
    """(pixels, 10)."""
    density = optical_density(np.array(image), layout="nhwc").to(torch.float64)
    return quadratic_terms(density)[0].permute(1, 2, 0).reshape(-1, TERMS).numpy()


class ColourSkip(nn.Module):
    """A fitted :class:`QuadraticMap` as a path around a network whose channels are blocks of pixels.

    image: (B, 3·factor² or more, h, w) in −1…1, of which the first are the H&E. Returns (B, C·factor², h, w).

    factor: side of a block. outputs: C. scaling: of what is diffused.
    """

    weights: Tensor

    def __init__(self, factor: int, outputs: int, scaling: float = 1.0) -> None:
        super().__init__()
        self.factor, self.scaling = factor, scaling
        self.register_buffer("weights", torch.zeros(TERMS, outputs))

    def forward(self, image: Tensor) -> Tensor:
        pixels = F.pixel_shuffle(image[:, : 3 * self.factor**2].float(), self.factor) / 2 + 0.5
        terms = quadratic_terms(optical_density(pixels, layout="nchw"))
        values = torch.einsum("btyx,tc->bcyx", terms, self.weights)
        return self.scaling * F.pixel_unshuffle(values, self.factor).to(image.dtype)
