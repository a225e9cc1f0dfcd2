"""Gradients through statistics that count and compare: the values are exact, their slope is that of a soft form.

A count of pixels above a threshold is flat nearly everywhere. Where a gradient is asked for, it is that of a smooth
stand-in, while the value stays what it is (straight-through, Bengio et al. 2013). Without a gradient nothing here
costs anything.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-8


def straight(hard: Tensor, soft: Tensor) -> Tensor:
    """The values of ``hard`` with the gradient of ``soft``."""
    return hard.detach() + (soft - soft.detach())


def over(x: Tensor, least: float, width: float = 0.02) -> Tensor:
    """1 where ``x > least``, else 0, float32; the slope is that of a logistic step of ``width``."""
    hard = (x > least).float()
    return straight(hard, torch.sigmoid((x - least) / width)) if x.requires_grad else hard


def root(x: Tensor) -> Tensor:
    """``sqrt`` of x ≥ 0, with a finite slope at 0."""
    return straight(x.detach().sqrt(), (x + _TINY).sqrt()) if x.requires_grad else x.sqrt()


def entropy_terms(share: Tensor) -> Tensor:
    """``−p log p`` of shares p, 0 at 0, where its slope is that at a small p."""
    if not share.requires_grad:
        return -torch.xlogy(share, share)
    still = share.detach()
    return straight(-torch.xlogy(still, still), -share * (still.clamp(min=1e-4).log() + 1))


def grey_levels(plane: Tensor, top: float, levels: int) -> Tensor:
    """(N, levels, h, w) membership of every pixel in equal steps of 0…``top``; the slope shares a pixel out between
    the two nearest steps."""
    steps = torch.arange(levels, device=plane.device)[:, None, None]
    grey = (plane.detach() * (levels / top)).floor().clamp(0, levels - 1)
    hard = (grey[:, None] == steps).float()
    place = (plane * (levels / top) - 0.5).clamp(0, levels - 1)
    return straight(hard, (1 - (place[:, None] - steps).abs()).clamp(min=0))


def ordered_at(values: Tensor, levels: Tensor) -> Tensor:
    """Quantiles (…, Q) of values (…, P): the lowest value whose cumulative share reaches each level."""
    last = values.shape[-1]
    rank = torch.ceil((levels - 1e-9) * last).long() - 1
    return values.sort(dim=-1).values[..., rank.clamp(0, last - 1)]
