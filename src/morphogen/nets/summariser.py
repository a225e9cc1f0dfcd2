"""A grid of embeddings at one of several magnifications, as tokens for cross-attention (ZoomLDM, CVPR 2025)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from morphogen.core.errors import InputError

SIDE = 8
"""Grids have at most so many rows and columns; larger ones are averaged down to them."""


class GridSummariser(nn.Module):
    """Grid of embeddings and its magnification → (B, 65, width) tokens (Yellapragada et al., CVPR 2025).

    One token for the magnification and 64 for the grid go through a vision transformer, a Linear and a LayerNorm. A
    grid of fewer than 64 cells lies in the middle of the 64 places, the others hold a learned pad token.

    features: width of an embedding. width: of a token. levels: magnifications, 0 the finest.
    """

    def __init__(
        self,
        features: int = 1024,
        width: int = 512,
        *,
        levels: int = 8,
        depth: int = 12,
        heads: int = 8,
        mlp: int = 2048,
        out: int = 512,
    ) -> None:
        super().__init__()
        from torchvision.models.vision_transformer import Encoder

        self.width = out
        self.mag_embedding = nn.Embedding(levels, width)
        self.dim_reduce = nn.Linear(features, width)
        self.pad_token = nn.Parameter(torch.zeros(1, 1, width))
        self.encoder = Encoder(SIDE * SIDE + 1, depth, heads, width, mlp, 0.0, 0.0)
        self.final_proj = nn.Linear(width, out)
        self.layer_norm = nn.LayerNorm(out)

    @property
    def tokens(self) -> int:
        """Number of tokens: one for the magnification, 64 for the grid."""
        return SIDE * SIDE + 1

    def forward(self, grid: Tensor, level: Tensor) -> Tensor:
        """grid: (B, features, h, w), h and w at most 8 after :func:`prepared_grid`. level: (B,) int64."""
        count = grid.shape[2] * grid.shape[3]
        full = SIDE * SIDE
        if count > full or (count > 1 and count % 2):
            raise InputError(
                f"a grid of {grid.shape[2]} × {grid.shape[3]} cells does not fit the 8 × 8 places",
                where="summariser",
                fix="Use 1, an even number of cells, or 8 × 8",
            )
        cells = self.dim_reduce(grid.flatten(2).transpose(1, 2))
        before = full // 2 - count // 2
        pad = self.pad_token.expand(len(cells), full, -1)
        cells = torch.cat([pad[:, :before], cells, pad[:, before + count :]], dim=1)
        magnification = self.mag_embedding(level)[:, None]
        encoded = self.encoder(torch.cat([magnification, cells], dim=1))
        return self.layer_norm(self.final_proj(encoded))

    def null(self, batch: int = 1) -> Tensor:
        """(batch, 65, width): the null condition of guidance is zero behind the summariser."""
        return self.final_proj.weight.new_zeros(batch, self.tokens, self.width)


def prepared_grid(features: Tensor) -> Tensor:
    """(B, C, h, w) embeddings as the published model takes them: averaged to at most 8 × 8 cells, and every cell's
    vector with mean 0 and (unbiased) SD 1 over its numbers."""
    if max(features.shape[2:]) > SIDE:
        features = F.adaptive_avg_pool2d(
            features, (min(SIDE, features.shape[2]), min(SIDE, features.shape[3]))
        )
    mean, sd = features.mean(1, keepdim=True), features.std(1, keepdim=True)
    return (features - mean) / sd.clamp(min=1e-8)
