"""What the colour of a pixel alone tells of the target: a polynomial of optical density, by least squares."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations_with_replacement

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from morphogen.core.errors import InputError
from morphogen.slides.colour import optical_density


def terms(degree: int) -> list[tuple[int, ...]]:
    """The monomials of three variables up to ``degree``, as the variables that each multiplies.

    >>> len(terms(2)), len(terms(3))
    (10, 20)
    """
    return [each for n in range(degree + 1) for each in combinations_with_replacement(range(3), n)]


def polynomial_terms(density: Tensor, degree: int) -> Tensor:
    """Optical densities (B, 3, H, W) → (B, T, H, W): 1, themselves, their products up to ``degree``."""
    one = torch.ones_like(density[:, 0])
    found: dict[tuple[int, ...], Tensor] = {(): one}
    for each in terms(degree)[1:]:
        found[each] = found[each[:-1]] * density[:, each[-1]] if each[:-1] else density[:, each[0]]
    return torch.stack(list(found.values()), dim=1)


class ColourPolynomial:
    """The best map of a pixel's colour to C values: least squares from the optical density of the H&E.

    It sees no neighbourhood, so what it reaches is what colour alone tells.
    """

    def __init__(self, outputs: int = 3, degree: int = 2) -> None:
        self.degree, size = degree, len(terms(degree))
        self._gram, self._moment = np.zeros((size, size)), np.zeros((size, outputs))
        self._weights: np.ndarray | None = None

    def add(
        self, he: np.ndarray, values: np.ndarray, mask: np.ndarray | None = None, stride: int = 2
    ) -> None:
        """One more H&E (H, W, 3) uint8 with its values (H, W, C), every ``stride``-th pixel of both axes."""
        x, y = (
            _terms(he[::stride, ::stride], self.degree),
            values[::stride, ::stride].reshape(-1, values.shape[2]),
        )
        if mask is not None:
            keep = mask[::stride, ::stride].ravel()
            x, y = x[keep], y[keep]
        self._gram += x.T @ x
        self._moment += x.T @ y
        self._weights = None

    @property
    def weights(self) -> np.ndarray:
        """(T, C)."""
        if not self._gram.any():
            raise InputError("the colour map was not fitted", fix="Call fit with training pairs first")
        if self._weights is None:
            size = len(self._gram)
            ridge = 1e-6 * np.trace(self._gram) / size * np.eye(size)
            self._weights = np.linalg.solve(self._gram + ridge, self._moment)
        return self._weights

    def values(self, he: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 → (H, W, C)."""
        return (_terms(he, self.degree) @ self.weights).reshape(*he.shape[:2], -1)


def fitted(
    pairs: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray | None]], outputs: int, degree: int
) -> ColourPolynomial:
    """The map of H&E (H, W, 3) to values (H, W, C) where a mask says so."""
    found = ColourPolynomial(outputs, degree)
    for he, values, mask in pairs:
        found.add(he, values, mask)
    return found


def _terms(image: np.ndarray, degree: int) -> np.ndarray:
    """(pixels, T)."""
    density = optical_density(np.array(image), layout="nhwc").to(torch.float64)
    found = polynomial_terms(density, degree)[0]
    return found.flatten(1).T.numpy()


class ColourSkip(nn.Module):
    """A fitted :class:`ColourPolynomial` as a path around a network whose channels are blocks of pixels.

    image: (B, 3·factor² or more, h, w) in −1…1, of which the first are the H&E. Returns (B, C·factor², h, w).

    factor: side of a block. outputs: C. scaling: of what is diffused. degree: of the polynomial.
    """

    weights: Tensor

    def __init__(self, factor: int, outputs: int, scaling: float = 1.0, degree: int = 2) -> None:
        super().__init__()
        self.factor, self.scaling, self.degree = factor, scaling, degree
        self.register_buffer("weights", torch.zeros(len(terms(degree)), outputs))

    def forward(self, image: Tensor) -> Tensor:
        pixels = F.pixel_shuffle(image[:, : 3 * self.factor**2].float(), self.factor) / 2 + 0.5
        found = polynomial_terms(optical_density(pixels, layout="nchw"), self.degree)
        values = torch.einsum("btyx,tc->bcyx", found, self.weights)
        return self.scaling * F.pixel_unshuffle(values, self.factor).to(image.dtype)
