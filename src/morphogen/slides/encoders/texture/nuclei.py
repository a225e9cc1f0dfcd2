"""Blob statistics that stand for nuclei: how many, how dark, how large, how evenly spread."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from morphogen.slides.encoders.texture.gradients import over, root
from morphogen.slides.encoders.texture.planes import (
    CHANNELS,
    Planes,
    largest_near,
    pixels,
    ratio,
    rounded,
    smooth,
)
from morphogen.slides.encoders.texture.statistics import Family

#: Blob sizes: name, smallest response (optical density) that counts, radius within which a maximum is the only one.
SIZES = (("small", 0.03, 2), ("large", 0.03, 4))
_STRENGTHS = (0.06, 0.12)


def blobs(p: Planes) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Difference-of-Gaussian responses, their local maxima, and a mask of nuclei, at 1 µm per pixel.

    Each list has one entry ``(N, h, w)`` per size in :data:`SIZES` (blobs of about 5 and 10 µm; Lindeberg
    1998); maxima and mask are 0 or 1 in float32.
    """
    haematoxylin = p.amounts[1][:, :1]
    fine = rounded(smooth(haematoxylin))
    middle = rounded(smooth(fine, 2))
    coarse = rounded(smooth(middle, 4))
    responses, maxima = [], []
    for (_, least, radius), response in zip(SIZES, (fine - middle, middle - coarse), strict=True):
        still = response.detach()
        peak = (still == largest_near(still, radius)).float() * over(response, least)
        responses.append(response[:, 0])
        maxima.append(peak[:, 0])
    mask = over(fine - coarse, 0.04) * over(fine, 0.08)
    return responses, maxima, mask[:, 0]


def nuclei(p: Planes) -> Family:
    """Density, strength, size and spatial spread of blobs; colour and texture in and around the nuclei."""
    responses, maxima, mask = blobs(p)
    plane = p.amounts[1]
    area = float(plane.shape[-1] * plane.shape[-2])
    names: list[str] = []
    values: list[Tensor] = []

    def add(name: str, value: Tensor) -> None:
        names.append(name)
        values.append(value)

    for (size, _, _), response, peak in zip(SIZES, responses, maxima, strict=True):
        flat, strength = peak.flatten(1), response.flatten(1)
        n = flat.sum(1)
        add(f"nuclei/{size}/number", n * (1000.0 / area))  # per 1000 µm² at 0.5 µm per tile pixel
        mean = ratio((flat * strength).sum(1), n)
        add(f"nuclei/{size}/strength", mean)
        spread = ratio((flat * strength.square()).sum(1), n) - mean.square()
        add(f"nuclei/{size}/strength-sd", root(spread.clamp(min=0)))
        for least in _STRENGTHS:
            add(f"nuclei/{size}/number>{least:.2f}", (flat * over(strength, least)).sum(1) * (1000.0 / area))
        for cells in (4, 7):
            count = F.adaptive_avg_pool2d(peak[:, None], cells).flatten(1) * (area / cells**2)
            average = count.mean(1)
            add(f"nuclei/{size}/dispersion/{cells}", ratio(count.var(1, unbiased=False), average))
            add(f"nuclei/{size}/crowding/{cells}", ratio(count.amax(1), average))
        at = ratio((pixels(plane) * flat[:, None]).sum(2), n[:, None])
        for c in range(4):
            add(f"nuclei/{size}/{CHANNELS[c]}", at[:, c])

    inside = mask.flatten(1)[:, None]
    x = pixels(plane)
    n = inside.sum(2)
    tissue = over(x[:, 3:], 0.08) * (1.0 - inside)
    around = tissue.sum(2)
    add("nuclei/area", n[:, 0] / area)
    add("nuclei/tissue-share", ratio(n, n + around)[:, 0])
    add("nuclei/mean-area", ratio(n[:, 0], maxima[1].flatten(1).sum(1)))
    border = (mask[:, 1:] - mask[:, :-1]).abs().flatten(1).sum(1)
    border = border + (mask[:, :, 1:] - mask[:, :, :-1]).abs().flatten(1).sum(1)
    add("nuclei/border", ratio(border, n[:, 0]))
    for place, weight, total in (("inside", inside, n), ("around", tissue, around)):
        mean = ratio((x * weight).sum(2), total)
        sd = root((ratio((x.square() * weight).sum(2), total) - mean.square()).clamp(min=0))
        for c in range(4):
            add(f"nuclei/{place}/{CHANNELS[c]}", mean[:, c])
            add(f"nuclei/{place}/{CHANNELS[c]}-sd", sd[:, c])
    return names, torch.stack(values, dim=1)
