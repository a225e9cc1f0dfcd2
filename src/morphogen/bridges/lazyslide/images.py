"""Virtual stains and segmentation behind LazySlide's dense models: ``zs.tl.virtual_stain``, ``zs.seg.semantic``."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from lazyslide_models import MarkerMapModel, SegmentationModel, TilePredictionModel, VirtualStainModel
from lazyslide_models.base import SegmentationOutput
from torch import Tensor

from morphogen.bridges.lazyslide.base import Bridged, padded, pixels
from morphogen.core.errors import InputError
from morphogen.diffusion import ItemNoise
from morphogen.layout import Segmenter
from morphogen.slides.colour import dab_density
from morphogen.stain import StainTransfer
from morphogen.stain.config import SamplerConfig


class _Stain(Bridged):
    """What the two faces of a stain model share.

    LazySlide cuts a slide into tiles, asks for each by itself and blends them where they overlap. So the default is
    the mean, which has no noise and therefore no seams. With ``sampler="fast"`` every tile is a sample of its own
    whose noise depends on the seed and the tile's pixels alone, not on its place in a batch; `morphogen stain predict`
    draws samples that agree over a whole slide.

    Parameters
    ----------
    model: folder, hub id or :class:`~morphogen.stain.StainTransfer`.
    sampler: ``mean``, ``fast``, ``reference`` or a :class:`~morphogen.stain.config.SamplerConfig`.
    seed: of the noise.
    """

    pipeline: StainTransfer

    def __init__(self, model: Any = None, *, sampler: SamplerConfig | str = "mean", seed: int = 0) -> None:
        place = self._place(model)
        self.pipeline = place if isinstance(place, StainTransfer) else StainTransfer.from_pretrained(place)
        self.model = self.pipeline.network
        self.sampler, self.seed = SamplerConfig.of(sampler), seed
        self.tile_mpp = self.pipeline.mpp

    def colours(self, image: Any) -> Tensor:
        """(B, S, 3, H, W) float32 in 0…1: every stain of a batch of tiles, on the model's device."""
        tiles = pixels(image, self.__class__.__name__)
        height, width = tiles.shape[1:3]
        whole = padded(tiles, self.pipeline.multiple)
        keys = [hashlib.sha256(tile.cpu().numpy().tobytes()).hexdigest()[:16] for tile in tiles]
        factor = self.pipeline.factor
        shape = (self.pipeline.first_stage.channels, whole.shape[1] // factor, whole.shape[2] // factor)
        stains = []
        for stain in self.pipeline.stains:
            noise = ItemNoise(self.seed, [(stain, key) for key in keys], shape)
            posterior = ItemNoise(self.seed, [("posterior", key) for key in keys], shape)
            out = self.pipeline(
                whole,
                self.sampler,
                stain=stain,
                noise=noise,
                posterior_noise=posterior(-1).to(self.pipeline.device),
            )
            stains.append(out.images[:, :height, :width].permute(0, 3, 1, 2).float() / 255)
        return torch.stack(stains, dim=1)


class StainImages(_Stain, VirtualStainModel):
    """A stain model as a ``VirtualStainModel``: RGB images of each of its stains, values 0…1."""

    output_range = (0.0, 1.0)

    def __init__(self, model: Any = None, *, sampler: SamplerConfig | str = "mean", seed: int = 0) -> None:
        super().__init__(model, sampler=sampler, seed=seed)
        self.stains = tuple(self.pipeline.stains)

    def predict(self, image: Any) -> Tensor:
        """Tiles (B, 3, H, W) → (B, 3·S, H, W) float32: red, green and blue of the first stain, then the next."""
        return self.colours(image).flatten(1, 2)


class StainDensity(_Stain, MarkerMapModel):
    """A stain model as a ``MarkerMapModel``: one channel per stain, the optical density of DAB (0 = none)."""

    output_range = None

    def __init__(self, model: Any = None, *, sampler: SamplerConfig | str = "mean", seed: int = 0) -> None:
        super().__init__(model, sampler=sampler, seed=seed)
        self.channel_names = tuple(self.pipeline.stains)

    def predict(self, image: Any) -> Tensor:
        """Tiles (B, 3, H, W) → (B, S, H, W) float32."""
        colours = (self.colours(image) * 255).round().to(torch.uint8)
        density = dab_density(colours.permute(0, 1, 3, 4, 2).flatten(0, 1), layout="nhwc")
        return density.unflatten(0, colours.shape[:2]).float()


class _Classes(Bridged):
    """What the two faces of a segmentation network share."""

    pipeline: Segmenter

    def __init__(self, model: Any = None) -> None:
        place = self._place(model)
        self.pipeline = place if isinstance(place, Segmenter) else Segmenter.from_pretrained(place)
        self.model = self.pipeline.network
        self.tile_mpp = self.pipeline.mpp
        self.classes = tuple(self.pipeline.config.classes)

    def probabilities(self, image: Any) -> Tensor:
        """Tiles (B, 3, H, W) → (B, C, H, W) probabilities."""
        tiles = pixels(image, self.__class__.__name__)
        height, width = tiles.shape[1:3]
        logits = self.pipeline.make(padded(tiles, self.pipeline.multiple).cpu().numpy())
        return logits[..., :height, :width].softmax(dim=1)


class ClassMap(_Classes, SegmentationModel):
    """A segmentation network as a ``SegmentationModel``, for ``zs.seg.semantic``."""

    def segment(self, image: Any) -> SegmentationOutput:
        """Tiles (B, 3, H, W) → probabilities (B, C, H, W) and the names of the classes."""
        return SegmentationOutput(probability_map=self.probabilities(image), classes=self.classes)


class ClassShares(_Classes, TilePredictionModel):
    """A segmentation network as a ``TilePredictionModel``: of every class, its share of the tile's area."""

    def __init__(self, model: Any = None) -> None:
        super().__init__(model)
        self.columns = self.classes

    def predict(self, image: Any) -> dict[str, np.ndarray]:
        """Tiles (B, 3, H, W) → class → (B,) shares that sum to one."""
        chosen = self.probabilities(image).argmax(dim=1)
        if not chosen.numel():
            raise InputError("there are no tiles", where=self.__class__.__name__)
        shares = [(chosen == index).float().mean(dim=(1, 2)) for index in range(len(self.classes))]
        return {name: share.cpu().numpy() for name, share in zip(self.classes, shares, strict=True)}
