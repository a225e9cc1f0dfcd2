"""Immunohistochemistry of known truth: DAB as a function of what the H&E shows, times noise of known size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from morphogen.core.errors import ConfigError, nearest
from morphogen.demo.simulator.cells import Cells
from morphogen.demo.simulator.styles import Cell

Float = NDArray[np.floating]


@dataclass(frozen=True)
class Target:
    """One immunostain. A cell's expected level is ``peak · sigmoid(offset + slopes · traits)`` in optical density.

    ``slopes`` weigh the visible traits of tumour cells: pale vesicular nuclei, eosin-rich cytoplasm, coarse dark
    chromatin. ``others`` are the levels of the other cell types. Nuclear targets colour the nucleus, membranous
    ones the border between cells.
    """

    name: str
    membranous: bool
    peak: float
    offset: float
    slopes: tuple[float, float, float]
    others: dict[Cell, float]

    def level(self, cells: Cells) -> NDArray[np.float64]:
        """Expected DAB optical density of every cell at full cover."""
        logit = self.offset + cells.trait @ np.array(self.slopes)
        level = self.peak / (1 + np.exp(-logit))
        for kind in Cell:
            if kind != Cell.TUMOUR:
                level = np.where(cells.type == kind, self.others.get(kind, 0.0), level)
        return level


TARGETS: dict[str, Target] = {
    each.name: each
    for each in (
        Target("er", False, 1.05, 0.6, (3.2, 0.0, 0.0), {Cell.EPITHELIAL: 0.45}),
        Target("pr", False, 0.95, -0.4, (2.4, 0.8, 0.0), {Cell.EPITHELIAL: 0.35}),
        Target("ki67", False, 1.00, -1.4, (0.0, 0.0, 3.4), {Cell.LYMPHOCYTE: 0.06, Cell.EPITHELIAL: 0.03}),
        Target("her2", True, 0.85, 0.2, (0.0, 3.0, 0.0), {Cell.EPITHELIAL: 0.10}),
    )
}


def target_of(name: str) -> Target:
    """The target of this name; :class:`ConfigError` for an unknown one."""
    if name not in TARGETS:
        raise ConfigError(
            f"there is no immunostain {name!r}.{nearest(name, list(TARGETS))}",
            fix=f"Choose from {', '.join(TARGETS)}",
        )
    return TARGETS[name]


@dataclass(frozen=True)
class DabNoise:
    """Noise that no method can predict from the H&E: log-normal factors of mean 1 per cell and per pixel.

    Drawn optical density = expected · exp(σ_c·ε_cell − σ_c²/2) · exp(σ_p·ε_pixel − σ_p²/2) with ε ~ N(0, 1), so that
    its mean is the expected one and its variance expected²·(exp(σ_c² + σ_p²) − 1); outside cells σ_c is 0.
    """

    cell: float = 0.30
    pixel: float = 0.12

    def factor(self, normal: Float, sigma: float) -> Float:
        """exp(σ·ε − σ²/2)."""
        out = sigma * normal
        out -= 0.5 * sigma * sigma
        return np.exp(out, out=out)

    def variance(self, mean: Float, in_cell: NDArray[np.bool_]) -> Float:
        """Variance of the drawn optical density given the expected one (irreducible error, squared)."""
        power = np.where(in_cell, self.cell**2, 0.0) + self.pixel**2
        return mean * mean * np.expm1(power)
