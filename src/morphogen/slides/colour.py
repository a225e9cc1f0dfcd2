"""Optical density and stain separation, batched in torch.

Light that passes stained tissue is absorbed exponentially (Beer–Lambert), so amounts of stain add up in
optical density ``OD = -log10(I)`` and are found from it by a 3×3 linear system (Ruifrok & Johnston 2001,
"Quantification of histochemical staining by color deconvolution"). A *stain matrix* has one stain per row,
each row the stain's optical density in red, green and blue.

Images are ``uint8`` in 0–255 or floating point in 0–1, ``(N, H, W, 3)``, ``(N, 3, H, W)`` or one image
without N; arrays or tensors, on any device. Amounts are ``(N, 3, H, W)`` float32 (float64 for float64
input) on that device.

Two units of amounts:

``"od"``
    base-10 optical density, what QuPath and ImageJ show; a channel of 0 counts as 1/255, the darkest a
    camera can tell from black, so no value is above 2.41 per channel.
``"skimage"``
    what :func:`skimage.color.separate_stains` gives: base-10 optical density divided by 6, with a floor of
    1e-6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from morphogen.core.errors import InputError, nearest
from morphogen.core.running.transfers import sent

Unit: TypeAlias = Literal["od", "skimage"]

Layout: TypeAlias = Literal["auto", "nhwc", "nchw"]

_HAEMATOXYLIN = (0.650, 0.704, 0.286)
_EOSIN = (0.072, 0.990, 0.105)
_DAB = (0.268, 0.570, 0.776)

#: Rows of each named matrix, in the order of the channels that :func:`deconvolve` returns.
CHANNELS: dict[str, tuple[str, str, str]] = {
    "hed": ("haematoxylin", "eosin", "dab"),
    "he": ("haematoxylin", "eosin", "residual"),
    "hdab": ("haematoxylin", "dab", "residual"),
}

_FLOOR = {"od": 1.0 / 255.0, "skimage": 1e-6}
_TO_UNIT = {"od": 1.0, "skimage": 1.0 / 6.0}

StainMatrix: TypeAlias = str | Tensor | np.ndarray | Sequence[Sequence[float]]


def stain_matrix(stains: StainMatrix, *, device: torch.device | str | None = None) -> Tensor:
    """The stain matrix ``(3, 3)`` or ``(N, 3, 3)`` float64 for a name or for given vectors.

    ``"hed"``, ``"he"`` and ``"hdab"`` are Ruifrok and Johnston's vectors as scikit-image has them (``hed``
    with two decimals, ``hdab`` = its ``hdx``). Two rows given, or a third row of zeros, are completed by
    the direction orthogonal to both (the residual). Raises :class:`InputError` for an unknown name, a
    wrong shape, or stains that are so alike that they cannot be told apart.
    """
    if isinstance(stains, str):
        if stains == "hed":
            matrix = torch.tensor(
                [[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], dtype=torch.float64
            )
        elif stains == "he":
            matrix = torch.tensor([_HAEMATOXYLIN, _EOSIN], dtype=torch.float64)
        elif stains == "hdab":
            matrix = torch.tensor([_HAEMATOXYLIN, _DAB], dtype=torch.float64)
        else:
            raise InputError(
                f"unknown stains '{stains}'.{nearest(stains, CHANNELS)}",
                fix=f"Use one of {', '.join(CHANNELS)} or give a matrix with one stain per row",
            )
    else:
        matrix = torch.as_tensor(stains, dtype=torch.float64)
    if matrix.ndim not in (2, 3) or matrix.shape[-1] != 3 or matrix.shape[-2] not in (2, 3):
        raise InputError(
            f"a stain matrix has shape (2 or 3, 3), with N in front for one per image; this one has "
            f"{tuple(matrix.shape)}"
        )
    if matrix.shape[-2] == 2 or bool((matrix[..., 2, :] == 0).all()):
        residual = torch.linalg.cross(matrix[..., 0, :], matrix[..., 1, :])
        matrix = torch.stack([matrix[..., 0, :], matrix[..., 1, :], residual], dim=-2)
    unit = matrix / matrix.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    if bool((torch.linalg.det(unit).abs() < 1e-3).any()):
        raise InputError("the stain vectors are too alike to be told apart", where="stain matrix")
    return matrix if device is None else sent(matrix, device)  # only now: the checks wait for nothing


def as_nchw(images: Tensor | np.ndarray, layout: Layout = "auto") -> Tensor:
    """Images as a tensor ``(N, 3, H, W)`` of their own type (a view where possible), values unchanged.

    ``layout="auto"`` takes the axis of length 3 for colour; channels-last wins where both could be meant.
    """
    x = torch.as_tensor(images)
    if x.ndim == 3:
        x = x[None]
    if x.ndim != 4:
        raise InputError(f"images have shape (N, H, W, 3) or (N, 3, H, W), not {tuple(x.shape)}")
    if layout == "auto":
        layout = "nhwc" if x.shape[-1] == 3 else "nchw"
    if x.shape[-1 if layout == "nhwc" else 1] != 3:
        raise InputError(
            f"images need three colour channels, these have shape {tuple(x.shape)}",
            fix="Drop an alpha channel or repeat a grey one",
        )
    if not (x.dtype == torch.uint8 or x.is_floating_point()):
        raise InputError(
            f"images are uint8 in 0-255 or floating point in 0-1, not {str(x.dtype).removeprefix('torch.')}",
            fix="Convert them first; 16-bit images divide by 65535",
        )
    return x.permute(0, 3, 1, 2) if layout == "nhwc" else x


def transmitted(images: Tensor | np.ndarray, layout: Layout = "auto") -> Tensor:
    """Images as transmitted light ``(N, 3, H, W)`` in 0–1, float32 (float64 stays)."""
    x = as_nchw(images, layout)
    if x.dtype == torch.uint8:
        return x.to(torch.float32) / 255.0
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def optical_density(
    images: Tensor | np.ndarray, *, floor: float = _FLOOR["od"], layout: Layout = "auto"
) -> Tensor:
    """Base-10 optical density ``(N, 3, H, W)`` of red, green and blue; 0 for white, at most
    ``-log10(floor)``."""
    return -torch.log10(transmitted(images, layout).clamp(floor, 1.0))


def deconvolve(
    images: Tensor | np.ndarray,
    stains: StainMatrix = "hed",
    *,
    unit: Unit = "od",
    clamp: bool = True,
    layout: Layout = "auto",
) -> Tensor:
    """Amounts of three stains in every pixel, ``(N, 3, H, W)``.

    Parameters
    ----------
    images:
        uint8 or float, NHWC or NCHW (see the module's docstring).
    stains:
        ``"hed"`` (haematoxylin, eosin, DAB), ``"he"`` or ``"hdab"`` (two stains and a residual), or a matrix
        ``(3, 3)``, ``(2, 3)`` or one per image ``(N, 3, 3)``, for example from :func:`estimate_stains`.
    unit:
        ``"od"`` or ``"skimage"``. With ``unit="skimage"`` the result equals
        ``skimage.color.separate_stains(images, inv(matrix))``, and ``rgb2hed`` for ``"hed"``.
    clamp:
        Set negative amounts, which have no physical meaning, to 0, as scikit-image does.

    A blank (white) tile gives zeros. Source: Ruifrok & Johnston 2001, section "Color deconvolution".
    """
    density = optical_density(images, floor=_FLOOR[_unit(unit)], layout=layout)
    inverse = torch.linalg.inv(stain_matrix(stains, device="cpu")) * _TO_UNIT[unit]
    inverse = inverse.to(device=density.device, dtype=density.dtype)
    amounts = _mix(density, inverse)
    return amounts.clamp_(min=0.0) if clamp else amounts


def reconstruct(
    amounts: Tensor | np.ndarray, stains: StainMatrix = "hed", *, unit: Unit = "od", dtype: str = "float"
) -> Tensor:
    """The image that given amounts of stain make: the inverse of :func:`deconvolve`.

    ``amounts`` is ``(N, 3, H, W)``; the result is RGB ``(N, 3, H, W)`` in 0–1, or uint8 in 0–255 with
    ``dtype="uint8"``. Keep one stain by zeroing the others' channels first.
    """
    x = torch.as_tensor(amounts)
    if x.ndim != 4 or x.shape[1] != 3:
        raise InputError(f"stain amounts have shape (N, 3, H, W), not {tuple(x.shape)}")
    x = x if x.dtype == torch.float64 else x.to(torch.float32)
    matrix = stain_matrix(stains, device="cpu") / _TO_UNIT[_unit(unit)]
    density = _mix(x, matrix.to(device=x.device, dtype=x.dtype))
    light = torch.exp(density * -math.log(10.0)).clamp_(0.0, 1.0)
    if dtype == "uint8":
        return (light * 255.0).round_().to(torch.uint8)
    return light


def dab_density(
    images: Tensor | np.ndarray, stains: StainMatrix = "hdab", *, layout: Layout = "auto"
) -> Tensor:
    """DAB (brown) optical density ``(N, H, W)``, base 10, never negative.

    ``stains`` is ``"hdab"``, ``"hed"`` or a matrix with haematoxylin in row 0 and DAB in row 1. The usual
    threshold of a weakly positive cell is near 0.2.
    """
    channel = 2 if isinstance(stains, str) and stains == "hed" else 1
    return deconvolve(images, stains, layout=layout)[:, channel]


def estimate_stains(
    images: Tensor | np.ndarray,
    method: Literal["macenko"] = "macenko",
    *,
    stains: Literal["he", "hdab"] = "he",
    alpha: float = 1.0,
    beta: float = 0.15,
    per_image: bool = False,
    max_pixels: int = 1_000_000,
    layout: Layout = "auto",
) -> Tensor:
    """Stain vectors of these images, ``(3, 3)`` float64: unit rows of the two stains and their residual.

    Macenko et al. 2009, "A method for normalizing histology slides for quantitative analysis": tissue
    pixels span a plane in optical-density space; within it the extreme directions are the pure stains.

    Parameters
    ----------
    stains:
        Which two stains to expect; decides the order of the rows, by likeness to the fixed vectors.
    alpha:
        Percentile of the angles within the plane that counts as extreme (from both ends), in (0, 50).
    beta:
        Pixels whose optical density (length of the RGB vector, base 10) is below this are background.
    per_image:
        One estimate per image, ``(N, 3, 3)``, instead of one for all of them.
    max_pixels:
        At most this many pixels, evenly spaced, are used.

    Images with too little tissue (under 100 pixels) or only one stain give the fixed vectors, so blank
    tiles are safe.
    """
    if method != "macenko":
        raise InputError(f"unknown method '{method}' of stain estimation", fix="Use 'macenko'")
    if stains not in ("he", "hdab"):
        raise InputError(f"stains to estimate are 'he' or 'hdab', not '{stains}'")
    if not 0 < alpha < 50:
        raise InputError(f"alpha is a percentile between 0 and 50, not {alpha}")
    x = as_nchw(images, layout)
    if per_image:
        return torch.stack([_macenko(image[None], stains, alpha, beta, max_pixels) for image in x])
    return _macenko(x, stains, alpha, beta, max_pixels)


def _macenko(images: Tensor, stains: str, alpha: float, beta: float, max_pixels: int) -> Tensor:
    fixed = stain_matrix(stains, device="cpu")
    fixed = fixed / fixed.norm(dim=1, keepdim=True)
    pixels = images.permute(0, 2, 3, 1).reshape(-1, 3)
    pixels = pixels[:: max(1, math.ceil(len(pixels) / max_pixels))]
    density = optical_density(pixels[:, :, None, None], layout="nchw")[:, :, 0, 0].to("cpu", torch.float64)
    density = density[density.norm(dim=1) >= beta]
    if len(density) < 100:
        return fixed
    # The plane goes through the origin (no stain, no density), so second moments are not centred.
    _, vectors = torch.linalg.eigh(density.T @ density / len(density))
    plane = vectors[:, [2, 1]]
    plane[:, 0] *= torch.where(plane[:, 0].sum() < 0, -1.0, 1.0)
    projected = density @ plane
    angle = torch.atan2(projected[:, 1], projected[:, 0])
    low, high = torch.quantile(angle, torch.tensor([alpha, 100.0 - alpha], dtype=torch.float64) / 100.0)
    if float(high - low) < math.radians(3.0):
        return fixed
    pair = torch.stack([plane @ torch.stack([a.cos(), a.sin()]) for a in (low, high)])
    pair = pair.clamp(min=0.0)  # a stain cannot emit light
    norm = pair.norm(dim=1, keepdim=True)
    if float(norm.min()) < 1e-3:
        return fixed
    pair = pair / norm
    likeness = pair @ fixed[:2].T
    if likeness[0, 0] + likeness[1, 1] < likeness[0, 1] + likeness[1, 0]:
        pair = pair.flip(0)
    residual = torch.linalg.cross(pair[0], pair[1])
    if float(residual.norm()) < math.sin(math.radians(3.0)):
        return fixed
    return torch.stack([pair[0], pair[1], residual / residual.norm()])


def _mix(planes: Tensor, matrix: Tensor) -> Tensor:
    """``out[n, j] = sum_i planes[n, i] * matrix[(n,) i, j]``, without a copy to channels-last."""
    n, _, h, w = planes.shape
    if matrix.ndim == 3 and matrix.shape[0] not in (1, n):
        raise InputError(f"{matrix.shape[0]} stain matrices were given for {n} images")
    return torch.matmul(matrix.mT, planes.reshape(n, 3, h * w)).reshape(n, 3, h, w)


def _unit(unit: str) -> str:
    if unit not in _FLOOR:
        raise InputError(f"unknown unit '{unit}' of stain amounts.{nearest(unit, _FLOOR)}")
    return unit
