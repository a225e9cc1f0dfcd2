"""HisDiff's hierarchical conditioner: a spot looks at its neighbours and at its region.

Two multi-head attentions with the spot's embedding as the only query: one over the 9 nearest spots, one
over the 49 nearest, both including the spot itself. Their sum goes through an MLP to the width of the
denoiser.

Spots are kept as ONE table of embeddings (N,C) and neighbour indices: the gathered tensors of every spot
would be 58 times as large. An index below 0 means "no such spot" (slides with fewer spots than asked for).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SpotAttention(nn.Module):
    """Multi-head attention with one query token per spot (Vaswani et al. 2017), torch's parametrisation."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        if features % heads:
            raise ValueError(f"features {features} is not a multiple of heads {heads}")
        self.heads = heads
        self.in_proj = nn.Linear(features, 3 * features)  # query, key and value stacked
        self.out_proj = nn.Linear(features, features)

    def query(self, spots: Tensor) -> Tensor:
        """(B,C) → (B,H,1,C/H)."""
        width = self.out_proj.in_features
        projected = F.linear(spots, self.in_proj.weight[:width], self.in_proj.bias[:width])
        return projected.unflatten(-1, (self.heads, -1))[..., None, :]

    def keys_values(self, others: Tensor) -> Tensor:
        """(…,k,C) → (…,k,2C): keys, then values."""
        width = self.out_proj.in_features
        return F.linear(others, self.in_proj.weight[width:], self.in_proj.bias[width:])

    def _split(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = projected.chunk(2, dim=-1)
        return tuple(part.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for part in (keys, values))  # type: ignore[return-value]

    def forward(self, spots: Tensor, projected: Tensor, present: Tensor | None = None) -> Tensor:
        """spots (B,C); projected (B,k,2C), or (k,2C) shared by all spots; present (B,k) bool, True = attend
        to it."""
        query = self.query(spots)
        keys, values = self._split(projected)
        if projected.ndim == 2:  # one set of keys for all: the spots become the query tokens of one attention
            mixed = F.scaled_dot_product_attention(
                query[:, :, 0].transpose(0, 1)[None], keys[None], values[None]
            )
            mixed = mixed[0].transpose(0, 1)
        else:
            mask = None if present is None else present[:, None, None]
            mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)[:, :, 0]
        return self.out_proj(mixed.flatten(1))

    def weights(self, spots: Tensor, projected: Tensor, present: Tensor | None = None) -> Tensor:
        """Attention weights averaged over heads: (B,k), each row summing to 1."""
        query, keys = self.query(spots), self._split(projected)[0]
        scores = (query @ keys.transpose(-1, -2))[:, :, 0] * query.shape[-1] ** -0.5
        if present is not None:
            scores = scores.masked_fill(~present[:, None], float("-inf"))
        return scores.softmax(-1).mean(1)


def _branch(features: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, features))


class HierarchicalConditioner(nn.Module):
    """Spot, neighbours and region → one condition vector (HisDiff).

    features: C, the width of one embedding. width: D, the width of the denoiser. branch_mlp: False is the
    released code (attention on the embeddings as they are); True puts an MLP in front of each of the three
    branches, as the paper draws it. The region may be any set of spots, the whole slide included (give it
    once, as (k,C)).
    """

    def __init__(self, features: int, width: int, heads: int = 8, *, branch_mlp: bool = False) -> None:
        super().__init__()
        self.near = SpotAttention(features, heads)
        self.far = SpotAttention(features, heads)
        self.branches = nn.ModuleList(_branch(features) for _ in range(3)) if branch_mlp else None
        self.mlp = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, width))

    def _branches(self, spot: Tensor, neighbours: Tensor, region: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = tuple(part.to(self.near.in_proj.weight.dtype) for part in (spot, neighbours, region))
        if self.branches is not None:
            parts = tuple(branch(part) for branch, part in zip(self.branches, parts, strict=True))
        return parts  # type: ignore[return-value]

    def forward(
        self,
        spot: Tensor,
        neighbours: Tensor,
        region: Tensor,
        neighbours_present: Tensor | None = None,
        region_present: Tensor | None = None,
    ) -> Tensor:
        """spot (B,C); neighbours (B,9,C); region (B,49,C) or (k,C) for one region shared by all spots;
        masks (B,9) and (B,49) bool, True where there is such a spot (None: everywhere). Any number of
        neighbours works; at least one must be present for every spot. Returns (B,D)."""
        spot, neighbours, region = self._branches(spot, neighbours, region)
        near = self.near(spot, self.near.keys_values(neighbours), neighbours_present)
        far = self.far(spot, self.far.keys_values(region), region_present)
        return self.mlp(near + far)

    def attention_weights(
        self,
        spot: Tensor,
        neighbours: Tensor,
        region: Tensor,
        neighbours_present: Tensor | None = None,
        region_present: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Where a spot looks: head-averaged weights over neighbours (B,9) and region (B,49)."""
        spot, neighbours, region = self._branches(spot, neighbours, region)
        return (
            self.near.weights(spot, self.near.keys_values(neighbours), neighbours_present),
            self.far.weights(spot, self.far.keys_values(region), region_present),
        )

    @torch.no_grad()
    def embed_slide(self, embeddings: Tensor, near: Tensor, region: Tensor, batch: int = 128) -> Tensor:
        """Condition vectors of every spot of a slide at once: (N,D).

        embeddings (N,C); near (N,9) and region (N,49) indices into them, below 0 = none. Equal to
        :meth:`forward` on the gathered tensors, but each spot is projected to key and value once, not once
        per neighbour it is of.
        """
        spots, neighbours, regions = self._branches(embeddings, embeddings, embeddings)
        near_table, far_table = self.near.keys_values(neighbours), self.far.keys_values(regions)
        out = []
        for rows in torch.arange(len(embeddings), device=embeddings.device).split(batch):
            one, many = near[rows], region[rows]
            y = self.near(spots[rows], near_table[one.clamp_min(0)], one >= 0)
            y = y + self.far(spots[rows], far_table[many.clamp_min(0)], many >= 0)
            out.append(self.mlp(y))
        return torch.cat(out) if out else embeddings.new_zeros(0, self.mlp[-1].out_features)


def gather_neighbourhood(
    embeddings: Tensor, spots: Tensor, near: Tensor, region: Tensor
) -> dict[str, Tensor]:
    """The hierarchical condition of some spots of a table, ready for ``network(x, t, condition)``.

    embeddings (N,C); spots (B,) row of each spot; near (B,9) and region (B,49) rows of its neighbours,
    below 0 = none.
    """
    return {
        "spot": embeddings[spots],
        "neighbours": embeddings[near.clamp_min(0)],
        "region": embeddings[region.clamp_min(0)],
        "neighbours_present": near >= 0,
        "region_present": region >= 0,
    }
