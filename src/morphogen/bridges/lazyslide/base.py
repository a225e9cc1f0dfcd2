"""What our models have in common where they stand behind the protocols of lazyslide-models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from morphogen.core.devices import resolve_device
from morphogen.core.errors import ConfigError, InputError


class Bridged:
    """A saved model of ours with the manners of a ``lazyslide_models.ModelBase``.

    Classes made by :func:`~morphogen.bridges.lazyslide.register` know their ``folder``, so that LazySlide can make one
    from nothing but its name; the others are given a folder or a loaded model.

    Attributes
    ----------
    pipeline: the model of ours, e.g. a :class:`~morphogen.stain.StainTransfer`.
    model: its network, an ``nn.Module``: what LazySlide counts parameters of.
    """

    folder: ClassVar[str | None] = None
    """Bound by :func:`register`: path or hub id."""

    pipeline: Any
    model: Any

    @classmethod
    def _place(cls, model: Any) -> Any:
        """What is to be loaded: the folder given, or the one that the class is bound to."""
        place = cls.folder if model is None else model
        if place is None:
            raise ConfigError(
                f"{cls.__name__} was given no model",
                fix="Give a model folder, or make it with register(FOLDER)",
            )
        return Path(place) if isinstance(place, str) and Path(place).exists() else place

    def get_transform(self) -> Callable:
        """Tiles as they are: uint8 (3, H, W). Our models scale colours themselves."""
        from torchvision.transforms.v2 import Compose, ToImage

        return Compose([ToImage()])

    def to(self, device: Any) -> Self:
        """Move the model to a device."""
        self.pipeline.to(resolve_device(device))
        return self

    def try_compile(self, **compile_kws: Any) -> None:
        """Compile the network, as ``--compile`` does; the arguments are LazySlide's and are not needed."""
        self.pipeline.compile()


def pixels(image: Any, where: str) -> Tensor:
    """A batch of tiles (B, 3, H, W) or (B, H, W, 3), uint8 or float in 0…1, as uint8 (B, H, W, 3).

    Raises :class:`InputError` for another shape, and for normalised tiles, whose colours are not known any more.
    """
    tensor = torch.as_tensor(image)
    if tensor.ndim != 4 or 3 not in (tensor.shape[1], tensor.shape[-1]):
        raise InputError(
            f"tiles must be (B, 3, H, W), not {tuple(tensor.shape)}",
            where=where,
            fix="Use its own get_transform()",
        )
    if tensor.shape[1] == 3:
        tensor = tensor.permute(0, 2, 3, 1)
    if tensor.is_floating_point():
        low, high = (float(value) for value in (tensor.min(), tensor.max()))
        if not (low >= 0 and high <= 1):
            raise InputError(
                f"the tiles hold values from {low:.3g} to {high:.3g}: they were normalised for another network",
                where=where,
                fix="Use its own get_transform(), which gives uint8",
            )
        tensor = (tensor.float() * 255).round().to(torch.uint8)
    elif tensor.dtype != torch.uint8:
        raise InputError(f"tiles must be uint8, not {tensor.dtype}", where=where)
    return tensor.contiguous()


def padded(images: Tensor, multiple: int) -> Tensor:
    """uint8 (B, H, W, 3) whose sides are multiples, by mirroring at the right and the lower border."""
    height, width = images.shape[1:3]
    down, right = -height % multiple, -width % multiple
    if not down and not right:
        return images
    mode = "reflect" if down < height and right < width else "replicate"
    planes = F.pad(images.permute(0, 3, 1, 2).float(), (0, right, 0, down), mode=mode)
    return planes.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
