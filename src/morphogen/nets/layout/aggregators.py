"""From the vectors of several style images to one style vector."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from morphogen.core.errors import InputError
from morphogen.nets.layout.config import StyleConfig


class Pool(nn.Module):
    """(B,n,W) → (B,W): the mean or the maximum over the images."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, features: Tensor) -> Tensor:
        return features.mean(1) if self.kind == "mean" else features.amax(1)


class LinearAggregator(nn.Module):
    """(B,n,W) → (B,W): all vectors in a row through ReLU, Linear, ReLU, Linear, ReLU (STEDM). n is fixed."""

    def __init__(self, images: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(), nn.Linear(images * width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features.flatten(1))


class AttentionAggregator(nn.Module):
    """(B,n,W) → (B,W): one learned query attends over the images; any n, in any order."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.randn(width) / math.sqrt(width))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, features: Tensor) -> Tensor:
        query = self.query.to(features.dtype).expand(len(features), 1, -1)
        keys = self.norm(features)
        # The mean stays beside what is attended: with one image nothing is lost, with many nothing is missed.
        return features.mean(1) + self.attention(query, keys, features, need_weights=False)[0][:, 0]


class SetAttention(nn.Module):
    """Self-attention with a learned temperature in which no token sees itself (Lee et al. 2021)."""

    def __init__(self, width: int, heads: int, dropout: float, head: int = 64) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.log(torch.tensor(head**-0.5)))
        self.qkv = nn.Linear(width, 3 * heads * head, bias=False)
        self.out = nn.Sequential(nn.Linear(heads * head, width), nn.Dropout(dropout))

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, _ = tokens.shape
        q, k, v = self.qkv(tokens).view(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        itself = torch.zeros(count, count, dtype=q.dtype, device=q.device)
        itself.fill_diagonal_(-torch.inf)
        # The kernel scales by 1; the learned temperature goes into the queries.
        mixed = nn.functional.scaled_dot_product_attention(
            q * self.temperature.exp(), k, v, attn_mask=itself, scale=1.0
        )
        return self.out(mixed.transpose(1, 2).flatten(2))


class SetBlock(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SetAttention(width, heads, dropout)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, width),
            nn.Dropout(dropout),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention(self.attention_norm(tokens))
        return tokens + self.mlp(self.mlp_norm(tokens))


class SetTransformer(nn.Module):
    """A transformer over the patches of all style images at once (STEDM's sViT). n and the side are fixed.

    The set is stacked in channels, so a token is one place of all images. A second token, for time in the
    published network, is always zero there and here; it takes part with its position. Images (B,n,3,S,S) in
    −1…1 → (B, style width).
    """

    def __init__(self, config: StyleConfig, dropout: float = 0.1) -> None:
        super().__init__()
        self.patch, self.side = config.svit_patch, config.svit_side
        width, pixels = config.svit_width, 3 * config.images * config.svit_patch**2
        count = (config.svit_side // config.svit_patch) ** 2
        self.patch_norm = nn.LayerNorm(pixels)
        self.embed = nn.Linear(pixels, width)
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, count + 2, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            SetBlock(width, config.svit_heads, config.svit_mlp, dropout) for _ in range(config.svit_depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.width)

    def forward(self, images: Tensor) -> Tensor:
        batch, _, _, height, width = images.shape
        if (height, width) != (self.side, self.side):
            raise InputError(
                f"the aggregator svit was built for style images of {self.side} px, not {width} × {height}"
            )
        stacked = images.transpose(1, 2).flatten(1, 2)  # channel by channel, then image by image
        grid = stacked.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))
        patches = grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (row, column, channel) in a patch
        tokens = self.embed(self.patch_norm(patches))
        time = torch.zeros_like(tokens[:, :1])
        tokens = torch.cat([self.class_token.expand(batch, -1, -1), time, tokens], dim=1)
        tokens = self.dropout(tokens + self.positions)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens.mean(1)))


def build_aggregator(config: StyleConfig) -> nn.Module:
    """The aggregator of a configuration, with fresh weights from torch's generator."""
    if config.aggregator == "linear":
        return LinearAggregator(config.images, config.width)
    if config.aggregator == "svit":
        return SetTransformer(config)
    if config.aggregator == "attention":
        return AttentionAggregator(config.width)
    return Pool("max" if config.aggregator == "max" else "mean")
