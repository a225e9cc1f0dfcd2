"""Embedders of time and of image features: the small networks in front of every denoiser."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from morphogen.core.errors import InputError, nearest


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


class RepresentationTokens(nn.Module):
    """Embeddings of a self-supervised encoder → context tokens: L2-normalise → Linear, one token per
    embedding (Graikos et al., CVPR 2024).

    features: name → width of each embedding, in token order: ``{"patch": 768}``, or ``{"patch": 384,
    "region": 768}`` for the two-token model. A missing embedding is the zero vector before the Linear, and so is the
    null condition of guidance: its token is the Linear's bias. normalise: whether a vector's length is divided out.
    unit: the root mean square of a normalised vector's entries; None leaves its length at 1, as published, which
    makes the first tokens of a wide embedding very small.
    """

    def __init__(
        self, features: Mapping[str, int], width: int, *, normalise: bool = True, unit: float | None = None
    ) -> None:
        super().__init__()
        self.normalise, self.unit = normalise, unit
        self.features = dict(features)
        self.width = width
        self.projections = nn.ModuleDict(
            {name: nn.Linear(size, width) for name, size in self.features.items()}
        )

    @property
    def tokens(self) -> int:
        """Number of context tokens."""
        return len(self.features)

    def forward(self, **embeddings: Tensor | None) -> Tensor:
        """Embeddings by name, each (B, its width) of any length; None or absent = missing. → (B, tokens,
        width)."""
        unknown = [name for name in embeddings if name not in self.features]
        if unknown:
            raise InputError(f"unknown embedding '{unknown[0]}'.{nearest(unknown[0], self.features)}")
        given = {name: vector for name, vector in embeddings.items() if vector is not None}
        if not given:
            raise InputError("give at least one embedding; the null condition is null(batch)")
        batch = len(next(iter(given.values())))
        out = []
        for name, linear in self.projections.items():
            vector = given.get(name)
            if vector is None:
                vector = linear.weight.new_zeros(batch, self.features[name])
            if vector.shape != (batch, self.features[name]):
                raise InputError(
                    f"embedding '{name}' must be {(batch, self.features[name])}, but is {tuple(vector.shape)}"
                )
            vector = vector.to(linear.weight.dtype)
            if self.normalise:
                vector = F.normalize(vector, dim=-1)
                if self.unit is not None:
                    vector = vector * (self.unit * math.sqrt(vector.shape[-1]))
            out.append(linear(vector))
        return torch.stack(out, dim=1)

    def null(self, batch: int = 1) -> Tensor:
        """The null condition (batch, tokens, width): every token its Linear's bias."""
        return torch.stack([linear.bias for linear in self.projections.values()]).expand(batch, -1, -1)
