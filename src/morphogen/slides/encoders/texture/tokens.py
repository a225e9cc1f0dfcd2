"""Texture tokens: the statistics of each cell of a grid over the tile, for cross-attention.

Rotating or mirroring a tile moves its cells and leaves their statistics as they are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from morphogen.slides.encoders.texture.nuclei import SIZES, blobs
from morphogen.slides.encoders.texture.planes import CHANNELS, Planes, block_means, detailed, gradient, ratio
from morphogen.slides.encoders.texture.statistics import local_patterns

_SHARES = ((3, 0.05), (3, 0.20), (0, 0.20), (0, 0.35), (1, 0.20), (2, 0.15))
_FREQUENCIES = (1, 2, 4)


def tokens(p: Planes, grid: tuple[int, int]) -> tuple[list[str], Tensor]:
    """``(N, 1 + rows·columns, D)``: a token of the whole tile, then the cells row by row.

    The last channels of a cell are sines and cosines of its row and column, zero for the whole tile, so
    that a network that sees tokens as a set still knows where each lies.
    """
    names, whole = cells(p, (1, 1))
    _, each = cells(p, grid)
    where = positions(grid).to(each)
    n, count = len(each), grid[0] * grid[1]
    whole = torch.cat([whole, whole.new_zeros(n, 1, where.shape[1])], dim=2)
    each = torch.cat([each, where.expand(n, count, -1)], dim=2)
    names = names + [
        f"position/{a}/{f}/{k}" for a in ("row", "column") for f in _FREQUENCIES for k in ("sin", "cos")
    ]
    return names, torch.cat([whole, each], dim=1)


def positions(grid: tuple[int, int]) -> Tensor:
    """Sines and cosines of cell centres, ``(rows·columns, 12)`` float32; half a turn to two turns across
    the tile."""
    row, column = (math.pi * (torch.arange(size, dtype=torch.float64) + 0.5) / size for size in grid)
    angles = torch.stack(
        [
            torch.stack([f * row for f in _FREQUENCIES], 1)[:, None].expand(-1, grid[1], -1),
            torch.stack([f * column for f in _FREQUENCIES], 1)[None].expand(grid[0], -1, -1),
        ],
        dim=2,
    )
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(2).flatten(0, 1).float()


def cells(p: Planes, grid: tuple[int, int]) -> tuple[list[str], Tensor]:
    """Statistics of every cell, ``(N, rows·columns, D)``, scaled by constants so that tissue spans about
    0–1."""
    names: list[str] = []
    maps: list[Tensor] = []

    def mean(x: Tensor) -> Tensor:
        return block_means(x, grid)

    def add(labels: list[str], x: Tensor, scale: float = 1.0) -> None:
        names.extend(labels)
        maps.append(x * scale)

    plane = p.amounts[1]
    amount = mean(plane)
    spread = (mean(plane * plane) - amount * amount).clamp(min=0).sqrt()
    add([f"amount/{c}/mean" for c in CHANNELS], amount, 3.0)
    add([f"amount/{c}/sd" for c in CHANNELS], spread, 6.0)
    for level in range(4):
        channels = detailed(level)
        power = mean(p.detail(level).square())
        add([f"band/rms/{CHANNELS[c]}/{level}" for c in channels], power.sqrt(), 15.0)
    member = torch.stack([plane[:, c] > least for c, least in _SHARES], dim=1).float()
    add([f"share/{CHANNELS[c]}>{least:.2f}" for c, least in _SHARES], mean(member))

    gx, gy = gradient(plane[:, [0, 3]])
    energy, twist, cross = mean(gx * gx + gy * gy), mean(gx * gx - gy * gy), mean(2.0 * gx * gy)
    add([f"edge/rms/{CHANNELS[c]}" for c in (0, 3)], energy.sqrt(), 10.0)
    coherence = ratio((twist.square() + cross.square()).sqrt(), energy, 1e-9)
    add([f"edge/coherence/{CHANNELS[c]}" for c in (0, 3)], coherence)

    code = local_patterns(p.luma)
    kinds = torch.stack([code == 0, (code >= 3) & (code <= 5), (code >= 7) & (code < 9), code == 9], dim=1)
    add([f"pattern/{kind}" for kind in ("flat", "edge", "spot", "other")], mean(kinds.float()))

    responses, maxima, mask = blobs(p)
    for (size, _, _), response, peak in zip(SIZES, responses, maxima, strict=True):
        add([f"nuclei/{size}/number"], mean(peak[:, None]), 100.0)
        add([f"nuclei/{size}/response"], mean(response[:, None].abs()), 15.0)
    inside = mean(mask[:, None])
    add(["nuclei/area"], inside)
    add([f"nuclei/inside/{c}" for c in CHANNELS], ratio(mean(plane * mask[:, None]), inside, 1e-4), 3.0)
    return names, torch.cat(maps, dim=1).flatten(2).mT.contiguous()
