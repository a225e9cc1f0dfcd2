"""Noise at several scales: white noise and coarser fields, in shares that add up to a variance of one.

White noise hides small structures long before large ones, so that large ones are decided in the first few steps,
where a network sees next to nothing. Noise with as much of its variance at every scale as the data have hides all
scales alike (pyramid noise; compare the coloured noise of Rissanen et al., arXiv 2206.13397).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from morphogen.core.errors import ConfigError
from morphogen.core.seeds import seed_for
from morphogen.diffusion.noise import CanvasNoise, ItemNoise, Key, Part

Span = tuple[int, int]


def nodes(span: Span, scale: int) -> Span:
    """First and behind the last node that cells ``span`` of an axis look at, where nodes are ``scale`` cells apart.

    >>> nodes((0, 4), 4), nodes((6, 9), 4)
    ((0, 2), (1, 4))
    """
    return span[0] // scale, (span[1] - 1) // scale + 2


def weights(span: Span, scale: int) -> Tensor:
    """(cells, nodes): linear interpolation of independent nodes, scaled to give every cell a variance of one."""
    first, last = nodes(span, scale)
    at = (torch.arange(*span, dtype=torch.float64) + 0.5) / scale - first
    linear = (1 - (at[:, None] - torch.arange(last - first, dtype=torch.float64)).abs()).clamp(min=0)
    return (linear / linear.square().sum(dim=1, keepdim=True).sqrt()).float()


class NoiseScales:
    """How noise is put together.

    shares: part of the variance of fields whose nodes are 1, 2, 4 … cells apart; the rest is white.
    together: channels of a cell that share a coarse field: the pixels of a block.

    >>> NoiseScales((0.25, 0.25)).white
    0.5
    """

    def __init__(self, shares: Sequence[float], together: int = 1) -> None:
        if min(shares, default=0) < 0 or sum(shares) > 1 + 1e-6:
            raise ConfigError(
                f"shares of a variance are not below 0 and not above 1 together: {list(shares)}"
            )
        self.shares, self.together = tuple(shares), together

    @property
    def white(self) -> float:
        """Share of the white noise."""
        return max(0.0, 1 - sum(self.shares))

    def mixed(self, white: Tensor, fields: Sequence[Tensor], rows: Span, columns: Span) -> Tensor:
        """White noise (N, C, h, w) and nodes (N, C/together, a, b) of every scale → noise over these cells."""
        out = self.white**0.5 * white
        for level, (share, field) in enumerate(zip(self.shares, fields, strict=True)):
            down, across = (weights(span, 2**level).to(white) for span in (rows, columns))
            coarse = down @ field @ across.T
            out = out + share**0.5 * coarse.repeat_interleave(self.together, dim=1)
        return out

    def drawn(self, normal: Callable[..., Tensor], shape: Sequence[int]) -> Tensor:
        """(N, C, h, w) of ``normal(*shape of one item)``, which gives N of them."""
        channels, height, width = shape
        white = normal(channels, height, width)
        sizes = [[b - a for a, b in (nodes((0, n), 2**k) for n in (height, width))] for k in self.levels]
        fields = [normal(channels // self.together, *size) for size in sizes]
        return self.mixed(white, fields, (0, height), (0, width))

    @property
    def levels(self) -> range:
        """Numbers of the scales."""
        return range(len(self.shares))

    def items(self, seed: int, keys: Sequence[Key], shape: Sequence[int], device: Any) -> ScaledItems:
        """Noise of independent items, as :class:`~morphogen.diffusion.ItemNoise`."""
        return ScaledItems(self, seed, keys, shape, device)


class ScaledItems:
    """``noise(step)`` for independent items, (N, *shape)."""

    def __init__(
        self, scales: NoiseScales, seed: int, keys: Sequence[Key], shape: Sequence[int], device: Any
    ) -> None:
        self.scales, self.seed, self.keys, self.shape, self.device = scales, seed, keys, shape, device

    def __call__(self, step: int) -> Tensor:
        drawn = iter(range(len(self.scales.shares) + 1))

        def normal(*shape: int) -> Tensor:
            part = next(drawn)
            seed = self.seed if part == 0 else seed_for(self.seed, "noise scale", part - 1)
            return ItemNoise(seed, self.keys, shape, self.device)(step)

        return self.scales.drawn(normal, self.shape)


class ScaledCanvas:
    """Noise over a canvas: like :class:`~morphogen.diffusion.CanvasNoise`, with coarser fields of seeds of their own.

    ``field(seed, shape)`` makes the noise of one scale.
    """

    def __init__(
        self,
        scales: NoiseScales,
        seed: int,
        shape: Sequence[int],
        field: Callable[[int, Sequence[int]], CanvasNoise],
    ) -> None:
        channels, height, width = shape
        self.scales, self.shape, self.white = scales, tuple(shape), field(seed, shape)
        self.fields = [
            field(
                seed_for(seed, "noise scale", k),
                (channels // scales.together, *(nodes((0, n), 2**k)[1] for n in (height, width))),
            )
            for k in scales.levels
        ]

    def over(self, regions: Sequence[Part]) -> Callable[[int], Tensor]:
        """``noise(step)`` for a batch of equal parts of the canvas."""
        white = self.white.over(regions)
        spans = [
            tuple(part.indices(size)[:2] for part, size in zip(region, self.shape[1:], strict=True))
            for region in regions
        ]

        def noise(step: int) -> Tensor:
            found = []
            for plain, (rows, columns) in zip(white(step), spans, strict=True):
                fields = [
                    field(step, (slice(*nodes(rows, 2**k)), slice(*nodes(columns, 2**k))))[None]
                    for k, field in enumerate(self.fields)
                ]
                found.append(self.scales.mixed(plain[None], fields, rows, columns))
            return torch.cat(found)

        return noise
