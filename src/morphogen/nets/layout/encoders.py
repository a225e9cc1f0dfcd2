"""Style encoders: one vector per image, and a set of images to one style vector."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from morphogen.core.errors import InputError
from morphogen.nets.layout.aggregators import SetTransformer, build_aggregator
from morphogen.nets.layout.config import StyleConfig

NULL = -2.0  # value of every style pixel where there is no style: the constant of STEDM's code


class StatisticsEncoder(nn.Module):
    """Convolutions whose features leave as mean and SD per channel and stage.

    Means and SDs of features over the image say how a slide is stained and focused and how dense it is, and not
    where things lie: what style is here. Images (B,3,H,W) in −1…1, any size of at least 16 px → (B, width).
    """

    def __init__(self, channels: tuple[int, ...] = (32, 64, 128, 192), width: int = 256) -> None:
        super().__init__()
        stages, before = [], 3
        for number, now in enumerate(channels):
            stages.append(
                nn.Sequential(
                    nn.Conv2d(before, now, 4 if number == 0 else 3, stride=2, padding=1),
                    # No normalisation of the first stage: the absolute colour is what is asked.
                    nn.Identity() if number == 0 else nn.GroupNorm(8, now),
                    nn.SiLU(),
                    nn.Conv2d(now, now, 3, padding=1),
                    nn.SiLU(),
                )
            )
            before = now
        self.stages = nn.ModuleList(stages)
        features = 2 * (3 + sum(channels))
        self.head = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, images: Tensor) -> Tensor:
        found, features = [pooled(images)], images
        for stage in self.stages:
            features = stage(features)
            found.append(pooled(features))
        return self.head(torch.cat(found, dim=1).to(self.head[0].weight.dtype))


def pooled(features: Tensor) -> Tensor:
    """(B,C,H,W) → (B,2C): mean and SD of each channel."""
    flat = features.float().flatten(2)
    return torch.cat([flat.mean(2), (flat.var(2, correction=0) + 1e-6).sqrt()], dim=1)


class StyleEncoder(nn.Module):
    """Style images (B,n,3,H,W) in −1…1 → style vectors (B, width): each image encoded, the set aggregated.

    n may differ from call to call with mean, max and attention; linear and svit are built for one n.
    """

    def __init__(self, config: StyleConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _image_encoder(config)
        self.aggregator = build_aggregator(config)

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 5 or images.shape[2] != 3:
            raise InputError(f"style images must be (B,n,3,H,W), but are {tuple(images.shape)}")
        if self.config.aggregator == "none":
            return images.new_zeros(len(images), self.config.width)
        fixed = self.config.aggregator in ("linear", "svit")
        if fixed and images.shape[1] != self.config.images:
            raise InputError(
                f"the aggregator {self.config.aggregator} was built for {self.config.images} style images, "
                f"not for {images.shape[1]}"
            )
        if isinstance(self.aggregator, SetTransformer):
            return self.aggregator(images)
        return self.aggregator(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """(B,n,3,H,W) → (B,n,width): the vector of each image."""
        batch, number = images.shape[:2]
        return self.encoder(images.flatten(0, 1)).unflatten(0, (batch, number))


def _image_encoder(config: StyleConfig) -> nn.Module:
    if config.encoder == "small":
        return StatisticsEncoder(config.channels, config.width)
    if config.encoder == "none":
        return nn.Identity()
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

    side = config.swin_window
    swin = SwinTransformer(
        patch_size=[4, 4],
        embed_dim=config.swin_width,
        depths=list(config.swin_depths),
        num_heads=list(config.swin_heads),
        window_size=[side, side],
        stochastic_depth_prob=0.2,
        block=SwinTransformerBlockV2,
        downsample_layer=PatchMergingV2,
        norm_layer=partial(nn.LayerNorm, eps=1e-5),
    )
    swin.head = nn.Linear(swin.head.in_features, config.width)
    return swin


def build_style_encoder(config: StyleConfig, seed: int | None = None) -> StyleEncoder:
    """A style encoder with fresh weights; ``seed`` makes them reproducible."""
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return StyleEncoder(config)


def null_images(count: int, number: int, side: int, **options: Any) -> Tensor:
    """Style images that say nothing: (count, number, 3, side, side), every value −2."""
    return torch.full((count, number, 3, side, side), NULL, **options)
