"""Generated against real images, paired: pixels, perception and retrieval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from morphogen.core.errors import InputError, WeightsError
from morphogen.metrics.images import as_features

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _pair(generated: Any, real: Any) -> tuple[np.ndarray, np.ndarray]:
    generated, real = np.asarray(generated), np.asarray(real)
    if generated.shape != real.shape or generated.ndim != 3 or generated.shape[-1] != 3:
        raise InputError(
            f"a pair must be two (H, W, 3) images of one size, not {generated.shape} and {real.shape}"
        )
    if generated.dtype != np.uint8 or real.dtype != np.uint8:
        raise InputError(f"a pair must be uint8 RGB, not {generated.dtype} and {real.dtype}")
    return generated, real


def psnr(real: Any, generated: Any, mask: Any = None) -> float:
    """Peak signal-to-noise ratio in dB of two ``(H, W, 3)`` uint8 images (data range 255), over the pixels of
    ``mask`` (H, W); inf when equal, NaN where it leaves none.

    >>> image = np.zeros((8, 8, 3), np.uint8)
    >>> round(psnr(image, image + 16), 2)
    24.05
    """
    from skimage.metrics import peak_signal_noise_ratio

    generated, real = _pair(generated, real)
    if mask is not None:
        keep = np.asarray(mask, bool)
        generated, real = generated[keep], real[keep]
        if not keep.any():
            return float("nan")
    if np.array_equal(generated, real):
        return float("inf")
    return float(peak_signal_noise_ratio(real, generated))


def ssim(real: Any, generated: Any, mask: Any = None) -> float:
    """Structural similarity of two ``(H, W, 3)`` uint8 images with scikit-image's defaults.

    Window 7, uniform filter, data range 255, mean over channels (Wang et al. 2004), over the windows that lie within
    ``mask`` (H, W); NaN where there is none.
    """
    from scipy.ndimage import binary_erosion
    from skimage.metrics import structural_similarity

    generated, real = _pair(generated, real)
    if min(generated.shape[:2]) < 7:
        raise InputError(f"SSIM needs 7 × 7 px or more, not {generated.shape[0]} × {generated.shape[1]}")
    if mask is None:
        return float(structural_similarity(generated, real, channel_axis=2, data_range=255))
    inside = binary_erosion(np.asarray(mask, bool), np.ones((7, 7), bool))  # none at the border of the image
    _, each = structural_similarity(generated, real, channel_axis=2, data_range=255, full=True)
    return float(each[inside].mean()) if inside.any() else float("nan")


def lpips(real: Any, generated: Any, network: str = "alex") -> np.ndarray:
    """Learned perceptual distance ``(N,)`` of image pairs ``(N, H, W, 3)`` uint8 (Zhang et al. 2018), by
    torchmetrics.

    ``network`` is ``alex``, ``vgg`` or ``squeeze``; its ImageNet weights come from torchvision's cache or
    download, and :class:`WeightsError` says so when they cannot be had.
    """
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

    def unit(images: Any) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255

    try:
        values = [
            learned_perceptual_image_patch_similarity(a[None], b[None], net_type=network, normalize=True)
            for a, b in zip(unit(generated), unit(real), strict=True)
        ]
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"ImageNet weights of '{network}' cannot be had ({type(error).__name__})",
            where="LPIPS",
            fix="Put torchvision's file into its cache ($TORCH_HOME/hub/checkpoints) or leave LPIPS out",
        ) from None
    return torch.stack(values).numpy()


# --- perceptual hash value -----

LayerNetwork = Callable[[Tensor], Sequence[Tensor]]


def resnet50_layers(weights: Path | str | None = None) -> nn.Module:
    """ResNet-50 that returns the outputs of its layers 1–4 as a list, for :func:`perceptual_hash_value`.

    ``weights`` is torchvision's state dict on disk; ``None`` takes torchvision's ImageNet weights from its
    cache or download. :class:`WeightsError` when neither works.
    """
    import torchvision
    from torchvision.models.feature_extraction import create_feature_extractor

    try:
        if weights is None:
            network = torchvision.models.resnet50(weights="IMAGENET1K_V1")
        else:
            network = torchvision.models.resnet50(weights=None)
            network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except Exception as error:
        raise WeightsError(
            f"ResNet-50 weights cannot be read ({type(error).__name__})",
            where=weights or "torchvision cache",
            fix="Give torchvision's resnet50 file with --resnet-weights or leave PHV out",
        ) from None
    names = [f"layer{k}" for k in (1, 2, 3, 4)]
    extractor = create_feature_extractor(network.eval(), return_nodes=names)
    return _Values(extractor)


class _Values(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> list[Tensor]:
        return list(self.network(x).values())


def imagenet_normalise(images: Tensor, *, as_signed: bool = False) -> Tensor:
    """ImageNet mean and SD for images ``(N, 3, H, W)`` in [0, 1].

    ``as_signed`` first maps x to (x + 1)/2, as if x were in [−1, 1]: what the published HistDiST code does
    to images that are already in [0, 1]. Only for comparing with its numbers.
    """
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).view(3, 1, 1)
    return ((images + 1) / 2 - mean) / std if as_signed else (images - mean) / std


@torch.no_grad()
def layer_averages(images: Tensor, network: LayerNetwork, *, reference: bool = False) -> list[Tensor]:
    """Global average activation ``(N, C_k)`` of every layer of ``network`` for images ``(N, 3, H, W)`` in
    [0, 1].
    """
    normalised = imagenet_normalise(images.float(), as_signed=reference)
    return [layer.mean(dim=(2, 3)) for layer in network(normalised)]


def perceptual_hash_value(
    real: Tensor,
    generated: Tensor,
    network: LayerNetwork,
    *,
    threshold: float = 0.01,
    reference: bool = False,
) -> np.ndarray:
    """PHV ``(N, layers)``: fraction of channels whose global average activations differ by more than
    ``threshold``.

    Parameters
    ----------
    real, generated:
        Image pairs ``(N, 3, H, W)`` in [0, 1].
    network:
        Images → list of activations ``(N, C, h, w)``; :func:`resnet50_layers` in the papers.
    reference:
        Normalise like the published code (see :func:`imagenet_normalise`).

    0 is best. The mean over images and the four layers is what virtual-staining papers print (Liu et al.
    2021).
    """
    if generated.shape != real.shape:
        raise InputError(
            f"pairs differ in shape: {tuple(generated.shape)} and {tuple(real.shape)}", where="PHV"
        )
    averages = [layer_averages(images, network, reference=reference) for images in (generated, real)]
    return np.stack(
        [((a - b).abs() > threshold).double().mean(dim=1).numpy(force=True) for a, b in zip(*averages)],
        axis=1,
    )


# --- molecular retrieval accuracy -----


@dataclass(frozen=True)
class Retrieval:
    """``ranks (N,)`` of the true partner (0 is first), ``top1`` and ``top3`` accuracy, chance = 1/N."""

    ranks: np.ndarray
    top1: float
    top3: float
    n: int
    chance: float


TIE = 1e-7  # cosine similarities closer than single precision can tell apart are equal


def molecular_retrieval(real: Any, generated: Any, *, ties: str = "against") -> Retrieval:
    """MRA: does the generated image lie nearest to its own real partner among all N real images?

    Parameters
    ----------
    real, generated:
        Features ``(N, D)``, row i of one belonging to row i of the other.
    ties:
        ``"against"`` (default): a real image as similar as the partner ranks before it, so that a constant
        output scores zero. ``"for"``: it ranks after, as in the published HistDiST code, where it scores one.

    Cosine similarity in float64, one matrix product (HistDiST, section 3).
    """
    generated, real = as_features(generated, "generated"), as_features(real, "real")
    if generated.shape != real.shape:
        raise InputError(f"MRA needs N generated and N real features, not {generated.shape} and {real.shape}")
    if ties not in ("against", "for"):
        raise InputError(f"'{ties}' is not a way to count ties", where="ties", fix="Use 'against' or 'for'")
    similarity = _unit(generated) @ _unit(real).T
    lead = similarity - np.diag(similarity)[:, None]
    if ties == "for":
        ranks = (lead > TIE).sum(axis=1)
    else:
        ranks = (lead >= -TIE).sum(axis=1) - 1  # the partner itself is among them
    n = len(ranks)
    return Retrieval(ranks, float((ranks == 0).mean()), float((ranks < 3).mean()), n, 1.0 / n)


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
