"""``Segmenter``: images to label maps, as a pipeline object; and the loss it is trained with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from morphogen.checkpoints.folder import ModelFolder
from morphogen.core.config import Config
from morphogen.nets.layout.config import SegmenterConfig
from morphogen.nets.layout.segmenters import build_segmenter
from morphogen.tasks import Pretrained


class SegmenterModelConfig(Config):
    """What a segmenter is."""

    network: SegmenterConfig = Field(description="The network.")
    classes: tuple[str, ...] = Field(min_length=2, description="Names of the classes, background first.")
    crop: int = Field(gt=0, description="Side in pixels of the crops it was trained on.")
    mpp: float | None = Field(None, description="µm per pixel of these crops.")


class Segmenter(Pretrained):
    """Images → label maps.

    ``model(images)`` labels a batch of equal crops; :mod:`morphogen.layout.segmenter.apply` cuts images and slides
    into windows and blends their probabilities, for which this object is the translator.
    """

    kind = "segmenter"
    config: SegmenterModelConfig

    def __init__(
        self, network: nn.Module, config: SegmenterModelConfig, facts: Mapping[str, Any] | None = None
    ) -> None:
        self.network, self.config, self.facts = network, config, dict(facts or {})

    @classmethod
    def fresh(
        cls,
        network: SegmenterConfig,
        classes: tuple[str, ...],
        *,
        crop: int,
        mpp: float | None = None,
        seed: int = 0,
        facts: Mapping[str, Any] | None = None,
    ) -> Self:
        """A segmenter with fresh weights for these classes."""
        network = network.replace(classes=len(classes))
        config = SegmenterModelConfig(network=network, classes=classes, crop=crop, mpp=mpp)
        return cls(build_segmenter(network, seed), config, facts)

    def components(self) -> dict[str, Any]:
        return {"network": self.network}

    def saved(self) -> dict[str, Any]:
        return {"facts": self.facts}

    @classmethod
    def restored(cls, read: ModelFolder, **options: Any) -> Self:
        config = read.settings(SegmenterModelConfig)
        if "norm" not in read.config["network"]:  # before there was a choice
            config = config.replace(network=config.network.replace(norm="batch"))
        network = build_segmenter(config.network.replace(encoder_weights=None))
        read.restore(network, "network")
        return cls(network.eval(), config, read.fact("facts", dict[str, Any], {}))

    # -- what windows need to know
    # -------------------------------------------------------------------------------------

    @property
    def multiple(self) -> int:
        """Sides of a crop are multiples of this many pixels."""
        network = self.config.network
        small = network.architecture == "small"
        return network.block * 2 ** (len(network.widths) - 1) if small else 32

    @property
    def factor(self) -> int:
        """Pixels per cell of the grid that windows lie on."""
        return self.multiple

    @property
    def crop(self) -> int:
        """Side in pixels of the crops it was trained on."""
        return self.config.crop

    @property
    def mpp(self) -> float | None:
        """µm per pixel of these crops."""
        return self.config.mpp

    @property
    def planes(self) -> int:
        """Planes of a window: one per class."""
        return len(self.config.classes)

    @property
    def replicas(self) -> Sequence[Segmenter]:
        """The same segmenter on further devices: the windows of a slide are dealt out to all."""
        return self.others

    def noise(self, plan: Any, name: str) -> None:
        """None: labelling draws nothing."""

    @torch.no_grad()
    def make(
        self,
        images: np.ndarray,
        noise: Callable[[int], Tensor] | None = None,
        posterior_noise: Tensor | None = None,
    ) -> Tensor:
        """(B, h, w, 3) uint8 → (B, C, h, w) logits; blended over windows before a class is chosen."""
        return self.network(self.pixels(torch.from_numpy(np.ascontiguousarray(images)))).float()

    def __call__(self, images: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 → (B, H, W) uint8 classes."""
        return self.make(images.numpy()).argmax(1).to(torch.uint8).cpu()


def segmentation_loss(
    logits: Tensor, labels: Tensor, ce: float = 0.1, dice: float = 0.9, overlap: int = 0, eps: float = 0.01
) -> dict[str, Tensor]:
    """STEDM's loss: ``ce`` · cross-entropy + ``dice`` · Dice loss of the softmax, for C classes.

    logits (B,C,H,W), labels (B,H,W). The Dice is of each foreground class, with sums over batch and space, and their
    mean; ``overlap`` pixels at the border are not looked at.
    """
    if overlap:
        inner = slice(overlap, -overlap)
        logits, labels = logits[..., inner, inner], labels[..., inner, inner]
    cross = F.cross_entropy(logits.float(), labels)
    shown = logits.float().softmax(1)[:, 1:]
    wanted = F.one_hot(labels, logits.shape[1]).permute(0, 3, 1, 2)[:, 1:].to(shown)
    both = (shown * wanted).sum((0, 2, 3))
    total = shown.sum((0, 2, 3)) + wanted.sum((0, 2, 3))
    overlap_loss = (1 - (2 * both + eps) / (total + eps)).mean()
    return {"loss": ce * cross + dice * overlap_loss, "ce": cross.detach(), "dice": overlap_loss.detach()}
