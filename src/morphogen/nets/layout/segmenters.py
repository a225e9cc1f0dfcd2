"""Segmentation networks: a small U-Net of ours, and those of segmentation-models-pytorch by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from morphogen.core.errors import ConfigError, nearest
from morphogen.nets.layout.config import SegmenterConfig


class SmallSegmenter(nn.Module):
    """A U-Net that trains in minutes on a CPU: images (B,3,H,W) in −1…1 → logits (B,classes,H,W).

    It works on blocks of ``block`` × ``block`` pixels as channels, and its head labels all pixels of a block: with 2,
    a step costs a third. Sides are multiples of block · 2^(levels − 1).

    ``norm``: instance norms (Ulyanov et al. 2016) take the stain of an image out of it. Batch norms subtract that of
    the training images: with many stains in training and another one in the test much is lost (docs/layout.md).
    """

    def __init__(
        self, classes: int, widths: tuple[int, ...] = (24, 48, 96), block: int = 2, norm: str = "instance"
    ) -> None:
        super().__init__()
        self.block = block
        self.down = nn.ModuleList()
        before = 3 * block**2
        for width in widths:
            self.down.append(_double(before, width, norm))
            before = width
        self.up = nn.ModuleList(
            _double(low + high, high, norm) for low, high in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(widths[0], classes * block**2, 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        features = F.pixel_unshuffle(images, self.block).contiguous(memory_format=torch.channels_last)
        kept = []
        for number, block in enumerate(self.down):
            features = block(features if number == 0 else F.max_pool2d(features, 2))
            kept.append(features)
        for block, beside in zip(self.up, kept[-2::-1], strict=True):
            raised = F.interpolate(features, scale_factor=2.0, mode="nearest")
            features = block(torch.cat([raised, beside], dim=1))
        return F.pixel_shuffle(self.head(features), self.block)


def _double(before: int, width: int, norm: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, width, 3, padding=1, bias=False),
        _norm(width, norm),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        _norm(width, norm),
        nn.ReLU(inplace=True),
    )


def _norm(width: int, kind: str) -> nn.Module:
    return nn.BatchNorm2d(width) if kind == "batch" else InstanceNorm(width, affine=True)


class InstanceNorm(nn.InstanceNorm2d):
    """That of torch, which lays out images channel by channel first and so makes two copies of all; as a group norm
    with a group for each channel it leaves them as they are: training is a sixth faster on a CPU."""

    def forward(self, images: Tensor) -> Tensor:
        return F.group_norm(images, self.num_features, self.weight, self.bias, self.eps)


def build_segmenter(config: SegmenterConfig, seed: int | None = None) -> nn.Module:
    """A segmentation network with fresh weights (or pre-trained ones of its encoder): (B,3,H,W) in −1…1 →
    logits (B,classes,H,W).

    Raises :class:`ConfigError` for a name that segmentation-models-pytorch does not have.
    """
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        if config.architecture == "small":
            return SmallSegmenter(config.classes, config.widths, config.block, config.norm)
        import segmentation_models_pytorch as smp

        known = {name.lower(): name for name in ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet")}
        known |= {
            name.lower(): name for name in ("DeepLabV3", "DeepLabV3Plus", "PAN", "UPerNet", "Segformer")
        }
        kind = known.get(config.architecture.lower())
        if kind is None:
            raise ConfigError(
                f"there is no segmentation network '{config.architecture}'."
                f"{nearest(config.architecture, ['small', *known.values()])}",
                where="segmenter.architecture",
            )
        try:
            return getattr(smp, kind)(
                encoder_name=config.encoder,
                encoder_weights=config.encoder_weights,
                in_channels=3,
                classes=config.classes,
            )
        except (KeyError, ValueError) as error:
            line = " ".join(str(error).split())
            raise ConfigError(
                f"segmentation-models-pytorch does not build it ({line[:140]})", where="segmenter.encoder"
            ) from None
