"""Planes that the texture statistics are taken from: stain amounts in a pyramid, smoothed in fixed point.

Amounts are rounded to 1/256 of an optical density and every smoothing step divides by a power of two, so
all values are exact binary fractions within float32's 24 bits. A rotated or mirrored tile therefore gives
the *same* planes, rotated or mirrored, bit for bit, and comparisons of neighbouring pixels (local binary
patterns, local maxima) cannot flip through rounding.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from morphogen.core.running.transfers import sent
from morphogen.slides.colour import stain_matrix
from morphogen.slides.encoders.texture.gradients import straight

#: Channels of the amount planes: three stains and the mean optical density of red, green and blue.
CHANNELS = ("haematoxylin", "eosin", "dab", "density")
STEP = 1.0 / 256.0
LOWEST, HIGHEST = -1.0, 3.0 - STEP
LEVELS = 5

_DENSITY = [-math.log10(max(value, 1) / 255.0) for value in range(256)]


class Planes:
    """Stain amounts of a batch of tiles at five scales.

    ``amounts[l]``: ``(N, 4, ~H/2^l, ~W/2^l)`` float32 optical densities of :data:`CHANNELS`; ``luma``:
    ``(N, H, W)`` int16, 0–255 (float32 where a gradient is taken).
    """

    def __init__(self, amounts: list[Tensor], luma: Tensor) -> None:
        self.amounts = amounts
        self.luma = luma
        self._detail: dict[int, Tensor] = {}

    def detail(self, level: int) -> Tensor:
        """The finest band of a level for :func:`detailed` channels, ``(N, C, h, w)``."""
        if level not in self._detail:
            self._detail[level] = detail(self.amounts[level][:, detailed(level)])
        return self._detail[level]


def detailed(level: int) -> list[int]:
    """Channels whose detail is looked at: at full resolution colour is mostly compression noise."""
    return [0, 3] if level == 0 else [0, 1, 2, 3]


def planes(images: Tensor) -> Planes:
    """The planes of uint8 images ``(N, H, W, 3)``, or of float32 ones in 0…255 whose gradient is asked for."""
    rgb = images.permute(0, 3, 1, 2).contiguous()
    if images.is_floating_point():
        return _smooth_planes(rgb)
    table = sent(torch.tensor(_DENSITY, dtype=torch.float32), rgb.device)
    density = torch.index_select(table, 0, rgb.reshape(-1).to(torch.int32)).reshape(rgb.shape)
    red, green, blue = density.unbind(1)
    amounts = torch.empty((len(rgb), 4, *rgb.shape[2:]), dtype=torch.float32, device=rgb.device)
    for channel, weights in enumerate([*torch.linalg.inv(stain_matrix("hed")).T.tolist(), [1 / 3] * 3]):
        # Written out, since a matrix product may run in reduced precision on some devices.
        plane = torch.mul(red, weights[0] / STEP, out=amounts[:, channel])
        plane.add_(green, alpha=weights[1] / STEP).add_(blue, alpha=weights[2] / STEP)
    amounts.round_().clamp_(LOWEST / STEP, HIGHEST / STEP).mul_(STEP)
    r, g, b = rgb.to(torch.int16).unbind(1)
    luma = (r * 38 + g * 75 + b * 15 + 64) >> 7  # the largest sum, 255 * 128 + 64, just fits
    return Planes(_pyramid(amounts), luma)


def _smooth_planes(rgb: Tensor) -> Planes:
    """The same planes of float32 ``(N, 3, H, W)``, with a gradient through every rounding."""
    rgb = straight(rgb.round(), rgb.clamp(0, 255)).clamp(0, 255)
    density = (rgb.clamp(min=1.0) / 255.0).log10().neg()
    weights = torch.linalg.inv(stain_matrix("hed")).T.to(density)
    stains = torch.einsum("nchw,kc->nkhw", density, weights)
    exact = torch.cat([stains, density.mean(1, keepdim=True)], dim=1)
    amounts = straight((exact / STEP).round() * STEP, exact).clamp(LOWEST, HIGHEST)
    r, g, b = rgb.unbind(1)
    luma = (r * 38 + g * 75 + b * 15 + 64) / 128
    return Planes(_pyramid(amounts), straight(luma.floor(), luma))


def _pyramid(amounts: Tensor) -> list[Tensor]:
    pyramid = [amounts]
    while len(pyramid) < LEVELS:
        pyramid.append(halve(pyramid[-1]))
    return pyramid


def halve(x: Tensor) -> Tensor:
    """Means of 2×2 blocks of ``(N, C, H, W)``; an odd side is cut into blocks that share rows,
    symmetrically."""
    h, w = x.shape[2:]
    return block_means(x, ((h + 1) // 2, (w + 1) // 2))


def block_means(x: Tensor, blocks: tuple[int, int]) -> Tensor:
    """Means over ``blocks`` rows × columns of blocks that cover ``(N, C, H, W)``."""
    n, c, h, w = x.shape
    if h % blocks[0] or w % blocks[1]:
        return F.adaptive_avg_pool2d(x, blocks)
    a, b = h // blocks[0], w // blocks[1]
    rows = x.reshape(n, c, blocks[0], a, w)
    # Adding strided rows is several times faster than a pooling layer on a CPU.
    total = rows[:, :, :, 0] + rows[:, :, :, 1] if a > 1 else rows[:, :, :, 0]
    for k in range(2, a):
        total += rows[:, :, :, k]
    if b == 2:
        return (total[..., 0::2] + total[..., 1::2]) * (1.0 / (a * b))
    return total.reshape(n, c, blocks[0], blocks[1], b).sum(-1) * (1.0 / (a * b))


def blocks_of(plane: Tensor, side: int) -> tuple[int, int]:
    """How many blocks of about ``side`` pixels fit along each axis, at least one."""
    h, w = plane.shape[-2:]
    return max(1, round(h / side)), max(1, round(w / side))


def smooth(x: Tensor, spacing: int = 1) -> Tensor:
    """Binomial filter [1 4 6 4 1]/16 along both axes, taps ``spacing`` apart, edges repeated."""
    x = F.pad(x, (2 * spacing,) * 4, mode="replicate")
    for axis in (-1, -2):
        size = x.shape[axis] - 4 * spacing
        a, b, c, d, e = (x.narrow(axis, k * spacing, size) for k in range(5))
        x = (b + d).mul_(4.0).add_(a).add_(e).add_(c, alpha=6.0).mul_(0.0625)
    return x


def rounded(x: Tensor, step: float = STEP / 16) -> Tensor:
    """Back to few binary digits, before another smoothing."""
    near = (x.detach() * (1.0 / step)).round_().mul_(step)
    return straight(near, x) if x.requires_grad else near


def detail(x: Tensor) -> Tensor:
    """A plane minus its 3×3 binomial mean: the finest band of a level. Same shape, edges repeated."""
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    rows = (padded[..., :-2] + padded[..., 2:]).add_(padded[..., 1:-1], alpha=2.0)
    mean = (rows[..., :-2, :] + rows[..., 2:, :]).add_(rows[..., 1:-1, :], alpha=2.0)
    return mean.mul_(-0.0625).add_(x)


def gradient(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scharr derivatives per pixel along columns and rows, same shape, edges repeated."""
    p = F.pad(x, (1, 1, 1, 1), mode="replicate")
    down = (p[..., :-2, :] + p[..., 2:, :]).mul_(0.3).add_(p[..., 1:-1, :])
    right = (p[..., :-2] + p[..., 2:]).mul_(0.3).add_(p[..., 1:-1])
    return (down[..., 2:] - down[..., :-2]).mul_(0.3125), (right[..., 2:, :] - right[..., :-2, :]).mul_(
        0.3125
    )


def largest_near(x: Tensor, radius: int) -> Tensor:
    """The maximum within a square of side ``2 radius + 1``, same shape."""
    for axis in (-1, -2):
        edge = (radius, radius, 0, 0) if axis == -1 else (0, 0, radius, radius)
        p = F.pad(x, edge, value=-math.inf)
        size = x.shape[axis]
        # Doubling window: 1, 2, 4, ... taps wide, then one overlap to reach the full width.
        width, target = 1, 2 * radius + 1
        while 2 * width <= target:
            n = p.shape[axis] - width
            p = torch.maximum(p.narrow(axis, 0, n), p.narrow(axis, width, n))
            width *= 2
        p = torch.maximum(p.narrow(axis, 0, size), p.narrow(axis, target - width, size))
        x = p
    return x


def counts(index: Tensor, bins: int) -> Tensor:
    """Histogram of whole numbers ``index`` ``(N, ...)`` in ``0 … bins-1``: ``(N, bins)`` float32, exact
    counts."""
    n = len(index)
    if n > 1:
        offset = torch.arange(n, dtype=torch.int32, device=index.device) * bins
        index = index.reshape(n, -1).to(torch.int32) + offset[:, None]
    return torch.bincount(index.reshape(-1), minlength=n * bins).reshape(n, bins).to(torch.float32)


def pixels(x: Tensor) -> Tensor:
    """``(N, C, H, W)`` as ``(N, C, H·W)``."""
    return x.flatten(2)


def ratio(a: Tensor, b: Tensor, floor: float = 1e-6) -> Tensor:
    """``a / b``, 0 where ``b`` is (nearly) 0."""
    return torch.where(b > floor, a / b.clamp(min=floor), torch.zeros_like(a))
