"""Between intensities and what a network sees of them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from morphogen.core.errors import ConfigError
from morphogen.stain.targets.config import TargetConfig

_SOFT = 20.0  # asinh: linear below this part of full


def _full(target: TargetConfig, like: Tensor) -> Tensor:
    if target.full is None:
        raise ConfigError("the intensity drawn at full is not known", where="target.full", fix="Give it")
    return torch.tensor(target.full, device=like.device, dtype=torch.float32)[:, None, None]


def spread(values: Tensor, target: TargetConfig) -> Tensor:
    """Intensities (B, C, H, W) → what is diffused: −1 for 0, 1 for ``full``.

    ``sqrt`` makes the variance of counts constant (Anscombe, Biometrika 35, 1948).
    """
    x = values.float().clamp(min=0) / _full(target, values)
    if target.transform == "sqrt":
        x = x.sqrt()
    elif target.transform == "asinh":
        x = torch.asinh(_SOFT * x) / math.asinh(_SOFT)
    return 2 * x - 1


def intensities(values: Tensor, target: TargetConfig) -> Tensor:
    """The inverse of :func:`spread`, never negative and never above what a file of the target can hold."""
    x = ((values.float() + 1) / 2).clamp(min=0)
    if target.transform == "sqrt":
        x = x.square()
    elif target.transform == "asinh":
        x = torch.sinh(x.clamp(max=3) * math.asinh(_SOFT)) / _SOFT
    made = x * _full(target, values)
    return made if target.most is None else made.clamp(max=target.most)


def as_picture(values: np.ndarray, target: TargetConfig) -> np.ndarray:
    """(H, W, 3) uint8 to look at: a picture as it is; of intensities (H, W, C) the channels' colours, added."""
    if target.colour:
        return values
    shown = spread(torch.from_numpy(np.ascontiguousarray(values)).permute(2, 0, 1)[None], target)[0]
    amounts = (shown / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy()
    colours = np.array([[int(each[k : k + 2], 16) for k in (1, 3, 5)] for each in target.shown], np.float32)
    return np.clip(np.rint(amounts @ colours), 0, 255).astype(np.uint8)


def levels(values: np.ndarray, target: TargetConfig) -> np.ndarray:
    """Intensities as the levels of an image that is written, ``target.kept``."""
    most = np.iinfo(target.kept).max
    return np.clip(np.rint(values / target.step), 0, most).astype(target.kept)
