"""Families of texture statistics. Each is a function ``Planes -> (names, values (N, K))``.

All are unchanged by the eight rotations and reflections of a tile: they are taken over all pixels, and
treat the four axis and diagonal directions alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from morphogen.core.running.transfers import sent
from morphogen.slides.encoders.texture.gradients import (
    entropy_terms,
    grey_levels,
    ordered_at,
    over,
    root,
    straight,
)
from morphogen.slides.encoders.texture.planes import (
    CHANNELS,
    LEVELS,
    LOWEST,
    STEP,
    Planes,
    block_means,
    blocks_of,
    counts,
    detailed,
    gradient,
    halve,
    pixels,
    ratio,
)

Family = tuple[list[str], Tensor]

_QUANTILES = (0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99)
_BINS = 1024


def amounts(p: Planes) -> Family:
    """Mean, spread and quantiles of the optical density of every stain, from histograms of 1 µm pixels."""
    plane = p.amounts[1]
    n, channels = plane.shape[:2]
    kinds = ["mean", "sd", *(f"q{round(q * 100):02d}" for q in _QUANTILES)]
    names = [f"amount/{channel}/{kind}" for channel in CHANNELS for kind in kinds]
    levels = sent(torch.tensor(_QUANTILES, dtype=torch.float64), plane.device)
    if plane.requires_grad:
        binned = straight(((plane - LOWEST) / STEP).floor() * STEP + (LOWEST + STEP / 2), plane)
        x = pixels(binned)
        mean = x.mean(2, keepdim=True)
        spread = root((x - mean).square().mean(2, keepdim=True))
        return names, torch.cat([mean, spread, ordered_at(x, levels)], dim=2).reshape(n, -1)
    index = ((plane - LOWEST) * (1 / STEP)).to(torch.int32).reshape(n * channels, -1)
    histogram = counts(index, _BINS).to(torch.float64)
    share = histogram / histogram.sum(1, keepdim=True)
    value = torch.arange(_BINS, dtype=torch.float64, device=plane.device) * STEP + (LOWEST + STEP / 2)
    mean = (share * value).sum(1, keepdim=True)
    centred = value - mean
    sd = (share * centred**2).sum(1).sqrt()
    cumulative = share.cumsum(1)
    # The lowest level whose cumulative share reaches q; a hair below q so that rounding of the sum cannot matter.
    found = torch.searchsorted(cumulative, (levels - 1e-9).expand(n * channels, -1).contiguous())
    quantiles = value[found.clamp(max=_BINS - 1)]
    values = torch.cat([mean, sd[:, None], quantiles], dim=1)
    return names, values.reshape(n, -1).float()


def shares(p: Planes) -> Family:
    """Shares of the tile that are tissue, and that are dark, among 1 µm and 4 µm pixels."""
    names, values = [], []
    for level in (1, 3):
        density = pixels(p.amounts[level][:, 3:])[:, 0]
        for threshold in (0.05, 0.10, 0.60):
            names.append(f"share/density>{threshold:.2f}/{level}")
            values.append(over(density, threshold).mean(1))
    return names, torch.stack(values, dim=1)


def bands(p: Planes) -> Family:
    """Energy of five octaves of detail: root mean square, flatness (how even it is), ratios between
    octaves."""
    names, values = [], []
    previous: dict[int, Tensor] = {}
    for level in range(LEVELS):
        channels = detailed(level)
        d = pixels(p.detail(level))
        rms = root(d.square().mean(2))
        values += [rms, ratio(d.abs().mean(2), rms)]
        names += [f"band/{kind}/{CHANNELS[c]}/{level}" for kind in ("rms", "flatness") for c in channels]
        current = dict(zip(channels, rms.unbind(1), strict=True))
        for c in sorted(previous.keys() & current.keys()):
            values.append(ratio(previous[c], previous[c] + current[c])[:, None])
            names.append(f"band/ratio/{CHANNELS[c]}/{level - 1}")
        previous = current
    return names, torch.cat(values, dim=1)


_RING = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))


def patterns(p: Planes) -> Family:
    """Shares of the ten :func:`local_patterns` of luma at three scales, as square roots."""
    names, values = [], []
    plane = p.luma
    for level in range(3):
        if level:
            halved = halve(plane[:, None].float())[:, 0]
            soft = plane.requires_grad
            plane = straight(halved.round(), halved) if soft else halved.round().to(torch.int16)
        histogram = _soft_patterns(plane) if plane.requires_grad else counts(local_patterns(plane), 10)
        values.append(root(histogram / histogram.sum(1, keepdim=True)))
        names += [f"pattern/{level}/{k}" for k in range(10)]
    return names, torch.cat(values, dim=1)


def local_patterns(luma: Tensor) -> Tensor:
    """Rotation-invariant uniform local binary patterns (Ojala et al. 2002), ``(N, H-2, W-2)`` uint8 in 0–9.

    The code is the number of brighter neighbours among eight where these are adjacent on the ring, else 9.
    Brighter means at least 3 grey levels, so that compression noise in blank areas reads as flat.
    """
    h, w = luma.shape[1:]
    centre = luma[:, 1:-1, 1:-1] + 3
    bits = [(luma[:, 1 + i : h - 1 + i, 1 + j : w - 1 + j] >= centre).to(torch.uint8) for i, j in _RING]
    ones, changes = bits[7].clone(), bits[7] ^ bits[0]
    for a, b in zip(bits[:-1], bits[1:], strict=True):
        ones += a
        changes += a ^ b
    return ones.masked_fill_(changes > 2, 9)


def _soft_patterns(luma: Tensor) -> Tensor:
    """The histogram (N, 10) of :func:`local_patterns` of float luma, with the slope of soft comparisons."""
    h, w = luma.shape[1:]
    centre = luma[:, 1:-1, 1:-1]
    rise = torch.stack([luma[:, 1 + i : h - 1 + i, 1 + j : w - 1 + j] - centre for i, j in _RING], dim=1)
    bits = torch.sigmoid((rise - 2.5) / 2.0)
    changes = (bits - bits.roll(1, 1)).abs().sum(1)
    even = torch.sigmoid((2.5 - changes) / 0.5)
    codes = torch.arange(10, device=luma.device)[:, None, None]
    near = (1 - (bits.sum(1)[:, None] - codes[:9]).abs()).clamp(min=0) * even[:, None]
    soft = torch.cat([near, 1 - even[:, None]], dim=1)
    hard = (local_patterns(luma.detach().to(torch.int16))[:, None] == codes).float()
    return straight(hard, soft).sum((2, 3))


_GREYS = 8


def cooccurrence(p: Planes) -> Family:
    """Haralick's co-occurrence statistics (1973) of haematoxylin and eosin in 8 steps, mean of four
    directions."""
    names, values = [], []
    for channel, top in ((0, 0.6), (1, 0.5)):
        for level, distances in ((1, (1, 3)), (2, (3, 6))):
            plane = p.amounts[level][:, channel]
            grey = (
                grey_levels(plane, top, _GREYS)
                if plane.requires_grad
                else (plane * (_GREYS / top)).floor().clamp_(0, _GREYS - 1).to(torch.uint8)[:, None]
            )
            for distance in distances:
                values.append(_haralick(grey, distance))
                names += [
                    f"cooccurrence/{CHANNELS[channel]}/{distance * 2**level}px/{kind}"
                    for kind in ("contrast", "correlation", "homogeneity", "energy", "entropy")
                ]
    return names, torch.cat(values, dim=1)


def _haralick(grey: Tensor, d: int) -> Tensor:
    """grey: (N, 1, h, w) steps 0…7, or (N, 8, h, w) memberships in them."""
    n, _, h, w = grey.shape
    d = min(d, h - 1, w - 1)
    pairs = [
        (grey[..., : w - d], grey[..., d:]),
        (grey[..., : h - d, :], grey[..., d:, :]),
        (grey[..., : h - d, : w - d], grey[..., d:, d:]),
        (grey[..., : h - d, d:], grey[..., d:, : w - d]),
    ]
    if grey.shape[1] == 1:
        index = torch.cat([(a * _GREYS + b).reshape(n, -1) for a, b in pairs], dim=1)
        matrix = counts(index, _GREYS**2).reshape(n, _GREYS, _GREYS)
    else:
        matrix = torch.stack([pixels(a) @ pixels(b).mT for a, b in pairs]).sum(0)
    matrix = matrix + matrix.mT
    matrix = matrix / matrix.sum((1, 2), keepdim=True)
    level = torch.arange(_GREYS, dtype=torch.float32, device=grey.device)
    difference = (level[:, None] - level[None]).square()
    marginal = matrix.sum(2)
    mean = (marginal * level).sum(1, keepdim=True)
    variance = (marginal * (level - mean).square()).sum(1)
    contrast = (matrix * difference).sum((1, 2))
    correlation = ratio(variance - contrast / 2, variance)
    homogeneity = (matrix / (1 + difference)).sum((1, 2))
    energy = root(matrix.square().sum((1, 2)))
    entropy = entropy_terms(matrix).sum((1, 2))
    return torch.stack([contrast, correlation, homogeneity, energy, entropy], dim=1)


def edges(p: Planes) -> Family:
    """Gradient size and the structure tensor: how strong edges are, and how much they share one direction.

    Coherence ``|(λ1-λ2)/(λ1+λ2)|`` of the structure tensor in blocks of 8 pixels and over the whole tile.
    """
    names, values = [], []
    for level in range(3):
        channels = [3] if level == 0 else [0, 1, 3]
        plane = p.amounts[level][:, channels]
        gx, gy = gradient(plane)
        cross = (gx * gy).mul_(2.0)
        xx, yy = gx.square(), gy.square()
        energy, twist = xx + yy, xx - yy
        size = root(energy)
        mean, power = pixels(size).mean(2), pixels(energy).mean(2)
        sd = root((power - mean.square()).clamp_(min=0))
        values += [mean, ratio(sd, mean), pixels(over(size, 0.06)).mean(2)]
        blocks = blocks_of(plane, 8)
        energy, twist, cross = (pixels(block_means(t, blocks)) for t in (energy, twist, cross))
        coherence = ratio(root(twist.square() + cross.square()), energy, 1e-9)
        aligned = root(twist.mean(2).square() + cross.mean(2).square())
        values += [coherence.mean(2), coherence.std(2, unbiased=False)]
        values += [ratio((coherence * energy).mean(2), power, 1e-9), ratio(aligned, power, 1e-9)]
        kinds = (
            "mean",
            "variation",
            "share",
            "coherence",
            "coherence-sd",
            "coherence-weighted",
            "coherence-tile",
        )
        names += [f"edge/{kind}/{CHANNELS[c]}/{level}" for kind in kinds for c in channels]
    return names, torch.cat(values, dim=1)


def local_entropy(p: Planes) -> Family:
    """Shannon entropy of 8 grey levels within blocks of 8 µm: mean, spread and quantiles over the tile."""
    names, values = [], []
    for channel, top in ((0, 0.6), (1, 0.5), (3, 0.8)):
        plane = p.amounts[1][:, channel]
        share = block_means(_membership(plane, top), blocks_of(plane, 8))
        entropy = entropy_terms(share).sum(1).flatten(1)
        ordered = entropy.sort(dim=1).values
        last = ordered.shape[1] - 1
        picks = [ordered[:, round(last * q)] for q in (0.1, 0.5, 0.9)]
        values.append(torch.stack([entropy.mean(1), entropy.std(1, unbiased=False), *picks], dim=1))
        names += [f"entropy/{CHANNELS[channel]}/{kind}" for kind in ("mean", "sd", "q10", "q50", "q90")]
    return names, torch.cat(values, dim=1)


def _membership(plane: Tensor, top: float) -> Tensor:
    """(N, 8, h, w) which of 8 equal steps of 0…``top`` every pixel is in."""
    if plane.requires_grad:
        return grey_levels(plane, top, _GREYS)
    grey = (plane * (_GREYS / top)).clamp_(0, _GREYS - 1).to(torch.uint8)
    steps = torch.arange(_GREYS, dtype=torch.uint8, device=plane.device)
    return (grey[:, None] == steps[:, None, None]).float()
