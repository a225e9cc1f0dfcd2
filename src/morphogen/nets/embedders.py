"""Embedders of time and of image features: the small networks in front of every denoiser."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sinusoid(t: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal features of time (Vaswani et al. 2017, section 3.5, at log-spaced frequencies).

    t: (B,) times in units of training steps (fractions allowed). Returns (B, width) float32: the cosines
    first, then the sines; an odd width ends in one zero.
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * torch.exp(-math.log(max_period) / half * steps)[None]
    features = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(features, (0, width - 2 * half))


class TimeEmbedder(nn.Module):
    """Time → sinusoid (256) → Linear → SiLU → Linear, as in DiT (Peebles & Xie 2023)."""

    def __init__(self, width: int, frequencies: int = 256) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """(B,) times → (B, width)."""
        return self.mlp(sinusoid(t, self.frequencies).to(self.mlp[0].weight.dtype))


class ImageEmbedder(nn.Module):
    """Embedding of a spot's image → Linear C→C → activation → Linear C→D (SiLU in Stem, ReLU in HisDiff)."""

    def __init__(self, features: int, width: int, activation: type[nn.Module] = nn.SiLU) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(features, features), activation(), nn.Linear(features, width))

    def forward(self, features: Tensor) -> Tensor:
        """(B, C) image features → (B, D)."""
        return self.mlp(features.to(self.mlp[0].weight.dtype))
