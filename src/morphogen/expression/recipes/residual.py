"""What the mean leaves open: a calibrated residual diffusion over whitened gene factors.

Residuals of HELD-OUT spots r = y − mean are divided by their scale s(gene, mean), rotated to the factors of their gene
covariance and whitened: w ~ about N(0, I). For data that are exactly N(0, I) the optimal v-prediction is zero, so a
network whose last layer starts at zero starts as the exact Gaussian model with full gene covariance, and training can
only add what is not Gaussian or depends on the tissue. The leading factors are diffused; the rest, where a few hundred
spots teach nothing, stays Gaussian.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from morphogen.diffusion import SamplerConfig, Schedule, network_denoiser, sample
from morphogen.nets import TimeEmbedder

BINS = 12


class ResidualNetwork(nn.Module):
    """v-prediction of k whitened factors from their noisy values, the time and c scores of the spot."""

    def __init__(self, factors: int, scores: int, width: int, depth: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.time = TimeEmbedder(width)
        self.condition = nn.Linear(scores, width)
        self.enter = nn.Linear(factors, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, width),
                nn.SiLU(),
                nn.Dropout(dropout),
                nn.Linear(width, width),
            )
            for _ in range(depth)
        )
        self.modulations = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(depth))
        self.leave = nn.Linear(width, factors)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Xavier-uniform weights, zero biases, and a last layer of zeros: the network starts as v = 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.leave.weight)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """x (B,k), t (B,), condition (B,c) → (B,k)."""
        c = nn.functional.silu(self.time(t) + self.condition(condition))
        h = self.enter(x)
        for block, modulation in zip(self.blocks, self.modulations):
            scale, shift = modulation(c).chunk(2, dim=-1)
            h = h + block(h) * (1 + scale) + shift
        return self.leave(nn.functional.silu(h))


class ResidualScale(nn.Module):
    """Standard deviation of the residual by gene and predicted mean: s = a_gene · h(mean), h piecewise linear.

    Counts near zero vary less and high ones differently, and one factor per gene cannot say that.
    """

    gene: Tensor
    knots: Tensor
    factor: Tensor

    def __init__(self, genes: int, knots: int = BINS) -> None:
        super().__init__()
        self.register_buffer("gene", torch.ones(genes))
        self.register_buffer("knots", torch.linspace(0, 1, knots))
        self.register_buffer("factor", torch.ones(knots))

    @classmethod
    def fit(cls, mean: np.ndarray, residual: np.ndarray) -> ResidualScale:
        """mean, residual: (N, G) of held-out spots."""
        out = cls(mean.shape[1])
        square = np.maximum(residual.astype(np.float64) ** 2, 1e-12)
        edges = np.quantile(mean, np.linspace(0, 1, BINS + 1))
        bins = np.clip(np.searchsorted(edges, mean, side="right") - 1, 0, BINS - 1)
        gene, factor = np.sqrt(square.mean(axis=0)), np.ones(BINS)
        counts = np.bincount(bins.ravel(), minlength=BINS)
        for _ in range(5):  # alternate: each is the root mean square of what the other leaves
            ratio = np.bincount(bins.ravel(), (square / gene**2).ravel(), minlength=BINS)
            factor = np.sqrt(np.where(counts > 0, ratio / np.maximum(counts, 1), 1.0))
            factor = np.clip(factor, 0.2, 3.0)
            gene = np.sqrt((square / factor[bins] ** 2).mean(axis=0))
        centre = np.bincount(bins.ravel(), mean.ravel(), minlength=BINS) / np.maximum(counts, 1)
        centre = np.where(counts > 0, centre, (edges[:-1] + edges[1:]) / 2)
        out.gene.copy_(torch.from_numpy(np.maximum(gene, 1e-3)))
        out.knots.copy_(torch.from_numpy(np.maximum.accumulate(centre)))
        out.factor.copy_(torch.from_numpy(factor))
        return out

    def forward(self, mean: Tensor) -> Tensor:
        """(B,G) predicted means → (B,G) scales."""
        last = len(self.knots) - 1
        high = torch.searchsorted(self.knots, mean.contiguous()).clamp(1, last)
        a, b = self.knots[high - 1], self.knots[high]
        part = ((mean - a) / (b - a).clamp_min(1e-6)).clamp(0, 1)
        return self.gene * torch.lerp(self.factor[high - 1], self.factor[high], part)


class Residual(nn.Module):
    """Scale, factors, network, calibration: white noise (B,G) per spot and sample → residual (B,G)."""

    basis: Tensor
    correlation: Tensor
    calibration: Tensor
    condition_scale: Tensor

    def __init__(self, genes: int, scores: int, factors: int, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.factors, self.scores = min(factors, genes), scores
        self.scale = ResidualScale(genes)
        self.register_buffer("basis", torch.eye(genes))  # whitened → standardised residual, rows are factors
        self.register_buffer("correlation", torch.zeros(genes))  # of each factor's noise between close spots
        self.register_buffer("calibration", torch.ones(2))  # of sections of new patients, of seen ones
        self.register_buffer("condition_scale", torch.ones(scores))
        self.network: nn.Module = (
            ResidualNetwork(self.factors, scores, width, depth, dropout) if self.factors else nn.Identity()
        )
        self.schedule = Schedule.cosine()

    @torch.no_grad()
    def fit_gaussian(self, mean: np.ndarray, residual: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Scale and factors in closed form from held-out spots; returns their whitened residuals (N, G)."""
        from sklearn.covariance import ledoit_wolf

        self.scale = ResidualScale.fit(mean, residual)
        s = self.scale(torch.from_numpy(mean).float()).numpy()
        u = residual / s
        covariance = ledoit_wolf(u, assume_centered=True)[0]
        std = np.sqrt(np.diag(covariance))
        values, vectors = np.linalg.eigh(covariance / np.outer(std, std))
        order = np.argsort(values)[::-1]
        values, vectors = np.maximum(values[order], 1e-6), vectors[:, order]
        self.basis.copy_(torch.from_numpy((vectors * np.sqrt(values)).T * std))
        self.condition_scale.copy_(torch.from_numpy(1.0 / (scores[:, : self.scores].std(axis=0) + 1e-6)))
        return (u / std) @ vectors / np.sqrt(values)

    def conditions(self, scores: Tensor) -> Tensor:
        """(B,P) scores → (B,c), the leading ones at unit scale, clipped."""
        return (scores[:, : self.scores] * self.condition_scale).clamp(-4, 4)

    def forward(
        self,
        noise: Tensor,
        scores: Tensor,
        mean: Tensor,
        sampler: SamplerConfig | None,
        precision: str = "fp32",
        *,
        seen: bool = False,
    ) -> Tensor:
        """noise (B,G) standard normal, scores (B,P), mean (B,G) → one residual each (B,G). sampler: ``None`` for the
        Gaussian without the network. seen: whether the patient was in training."""
        leading, rest = noise[:, : self.factors], noise[:, self.factors :]
        if sampler is not None:
            if sampler.spacing == "model":
                # Whitened data are near N(0, I), where equal steps in angle lose 0.4 % of the spread at 20
                # evaluations and equal steps in log-SNR gain 1.1 %.
                sampler = sampler.replace(spacing="trailing")
            denoiser = network_denoiser(self.network, self.schedule, "v", precision=precision)
            given = {"condition": self.conditions(scores)}
            leading = sample(denoiser, leading, self.schedule, sampler, condition=given)
        u = torch.cat([leading, rest], dim=1) @ self.basis
        return self.calibration[int(seen)] * self.scale(mean) * u


def neighbour_correlation(whitened: Sequence[np.ndarray], neighbours: Sequence[np.ndarray]) -> np.ndarray:
    """(G,) mean correlation of each whitened factor between a spot and its four nearest, over sections."""
    top, bottom = 0.0, 0.0
    for w, index in zip(whitened, neighbours):
        z = w - w.mean(axis=0)
        for column in range(1, min(5, index.shape[1])):
            there = index[:, column] >= 0
            top = top + (z[there] * z[index[there, column]]).sum(axis=0)
            bottom = bottom + 0.5 * ((z[there] ** 2).sum(axis=0) + (z[index[there, column]] ** 2).sum(axis=0))
    return np.clip(top / np.maximum(bottom, 1e-9), 0.0, 1.0)


def shared_part(correlation: np.ndarray, neighbours: Sequence[np.ndarray], near: int) -> np.ndarray:
    """(G,) share of smooth noise that gives close spots this correlation.

    The smooth part of a spot's noise is the mean over its ``near`` nearest, itself included; two close spots share
    a part o of these, so their noise correlates with share · o.
    """
    overlaps = []
    for index in neighbours:
        sets = [set(row[row >= 0][:near].tolist()) for row in index]
        for i, row in enumerate(index):
            for j in row[1:5]:
                if j >= 0:
                    overlaps.append(len(sets[i] & sets[j]) / np.sqrt(len(sets[i]) * len(sets[j])))
    overlap = float(np.mean(overlaps)) if overlaps else 1.0
    return np.clip(correlation / max(overlap, 1e-6), 0.0, 0.95)
