"""What is known of a grid before any network: how much each component varies at each spatial frequency.

A Gaussian field of that spectrum has the cells' variances and the neighbours' correlations of the training grids, and
its denoiser is a closed form (Wiener 1949): every coefficient of the noisy grid's cosine transform is shrunk by the
share of it that is signal. The network of a prior learns what this estimate leaves over.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from morphogen.core.errors import InputError

_LEAST = 1e-6  # power of a frequency in which nothing varies, of a mean of one


class GridField(nn.Module):
    """Mean squares of the coefficients of grids in the orthonormal two-dimensional DCT-II, (K, g, g).

    Fresh ones are white: no component is correlated between cells.
    """

    power: Tensor
    basis: Tensor

    def __init__(self, components: int, side: int) -> None:
        super().__init__()
        from scipy.fft import dct

        basis = dct(np.eye(side), axis=0, norm="ortho")  # row = frequency
        self.register_buffer("power", torch.ones(components, side, side))
        self.register_buffer("basis", torch.from_numpy(basis).float(), persistent=False)

    @classmethod
    def of(cls, batches: Iterable[Tensor]) -> GridField:
        """Of grids in batches (n, K, g, g). Both axes share one spectrum, as grids are learned in all orientations."""
        made, power, count = None, 0.0, 0
        for grids in batches:
            made = made or cls(grids.shape[1], grids.shape[-1])
            power = power + (made._forward(grids).double() ** 2).sum(0)
            count += len(grids)
        if made is None or not isinstance(power, Tensor):
            raise InputError("a field needs at least one grid", where="prior")
        made.power.copy_((power + power.transpose(1, 2)) / (2 * count)).clamp_(min=_LEAST)
        return made

    @property
    def variance(self) -> Tensor:
        """(K, 1, 1): mean square of each component over the cells."""
        return self.power.mean((1, 2), keepdim=True)

    def forward(self, x: Tensor, alpha: Any, sigma: Any) -> tuple[Tensor, Tensor]:
        """The best linear estimate of x0 (B, K, g, g) from ``x = alpha·x0 + sigma·noise``, and the root mean square of
        what it leaves over: (K, 1, 1), or (B, K, 1, 1) where ``alpha`` and ``sigma`` are (B, 1, 1, 1) and not numbers.
        """
        total = alpha**2 * self.power + sigma**2
        estimate = self._inverse(alpha * self.power / total * self._forward(x))
        left = (sigma**2 * self.power / total).mean((-2, -1), keepdim=True)
        return estimate, left.sqrt()

    def _forward(self, x: Tensor) -> Tensor:
        return self.basis @ x @ self.basis.T

    def _inverse(self, coefficients: Tensor) -> Tensor:
        return self.basis.T @ coefficients @ self.basis
