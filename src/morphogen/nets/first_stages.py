"""First stages: between images and the latents that are diffused.

One contract over diffusers' KL and VQ autoencoders and over plain pixels. Images are (B,3,H,W) in −1…1, sides
multiples of ``factor``. ``encode`` gives the first stage's own latents, without scaling; ``latents`` and
``images`` speak the diffusion model's units (scaling · latent).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from morphogen.core.errors import CheckpointError, InputError
from morphogen.core.files import write_json
from morphogen.nets.folders import class_name, component, component_file

if TYPE_CHECKING:  # takes seconds: where one is read
    from diffusers import AutoencoderKL, VQModel

_BASIS = "components.safetensors"


@dataclass(frozen=True)
class LatentDistribution:
    """What an encoder knows of a latent: mean (B,C,h,w) and, for a KL autoencoder, standard deviation."""

    mean: Tensor
    std: Tensor | None = None

    def mode(self) -> Tensor:
        """The most probable latent."""
        return self.mean

    def sample(self, noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """mean + std · noise, with the noise given or drawn; the mean where there is no spread."""
        if self.std is None:
            return self.mean
        if noise is None:
            if generator is None:
                raise InputError("sampling a latent needs noise= or generator=")
            noise = torch.randn(self.mean.shape, generator=generator, device=generator.device)
        return self.mean + self.std * noise.to(self.mean)


class FirstStage(nn.Module, ABC):
    """The contract. channels: of a latent. factor: image pixels per latent cell, along one side. scaling:
    what a
    latent is multiplied with to be diffused."""

    channels: int
    factor: int
    scaling: float

    @abstractmethod
    def encode(self, images: Tensor) -> LatentDistribution:
        """(B,3,H,W) in −1…1 → distribution of (B,channels,H/factor,W/factor), unscaled."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Unscaled latents → (B,3,H,W) around −1…1, not clamped."""

    @abstractmethod
    def save_pretrained(self, folder: Path | str) -> None:
        """Write a component folder that :func:`load_first_stage` reads."""

    def latents(
        self, images: Tensor, noise: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Images → latents as they are diffused: scaling · sample, or scaling · mode with neither noise nor
        generator."""
        encoded = self.encode(self._checked(images))
        drawn = encoded.mode() if noise is None and generator is None else encoded.sample(noise, generator)
        return self.scaling * drawn

    def images(self, latents: Tensor) -> Tensor:
        """Diffused latents → images (B,3,H,W), not clamped."""
        return self.decode(latents / self.scaling)

    @torch.no_grad()
    def variance(self, images: Tensor, batch: int = 64) -> Tensor:
        """(C, 1, 1) variance of the channels of these images' latents, which are made ``batch`` at a time."""
        parts = [self.latents(part) for part in images.split(batch)]
        return torch.cat(parts).var(dim=(0, 2, 3))[:, None, None]

    def _checked(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3:
            raise InputError(f"images must be (B,3,H,W), but are {tuple(images.shape)}")
        if images.shape[2] % self.factor or images.shape[3] % self.factor:
            raise InputError(
                f"an image of {images.shape[3]} × {images.shape[2]} px has sides that are no multiples of "
                f"{self.factor}",
                fix="Crop or pad it",
            )
        return images


class PixelFirstStage(FirstStage):
    """No autoencoder: the image itself is diffused, optionally with blocks of ``factor``² pixels as
    channels. images: channels of an image, 3 of a picture in colour."""

    def __init__(self, factor: int = 1, images: int = 3) -> None:
        super().__init__()
        if factor < 1:
            raise InputError(f"factor must be at least 1, but is {factor}")
        self.channels, self.factor, self.scaling = images * factor**2, factor, 1.0

    def encode(self, images: Tensor) -> LatentDistribution:
        return LatentDistribution(F.pixel_unshuffle(images, self.factor))

    def decode(self, latents: Tensor) -> Tensor:
        return F.pixel_shuffle(latents, self.factor)

    def save_pretrained(self, folder: Path | str) -> None:
        write_json(Path(folder) / "config.json", {"_class_name": type(self).__name__, "factor": self.factor})


class ComponentFirstStage(FirstStage):
    """Principal components of blocks of ``factor``² pixels, each divided by a power of its standard deviation: the
    linear form of an autoencoder.

    In pixels, fine structure is a thousandth of the variance and is what short trainings leave out. Divided by their
    standard deviations to some power, components of fine structure count in the loss, and are lost in less noise.

    Parameters
    ----------
    factor:
        Side of a block.
    mean:
        (3·factor²,) mean block.
    basis:
        (channels, 3·factor²) orthonormal rows, the leading components.
    scale:
        (channels,) what each component is divided by.

    Examples
    --------
    >>> stage = ComponentFirstStage.fit(torch.rand(8, 3, 32, 32) * 2 - 1, factor=4, channels=48)
    >>> image = torch.rand(1, 3, 8, 8)
    >>> bool((stage.decode(stage.encode(image).mode()) - image).abs().max() < 1e-4)
    True
    """

    mean: Tensor
    basis: Tensor
    scale: Tensor

    def __init__(self, factor: int, mean: Tensor, basis: Tensor, scale: Tensor) -> None:
        super().__init__()
        size = 3 * factor**2
        if (
            mean.shape != (size,)
            or basis.ndim != 2
            or basis.shape[1] != size
            or scale.shape != basis.shape[:1]
        ):
            raise InputError(
                f"mean {tuple(mean.shape)}, basis {tuple(basis.shape)} and scale {tuple(scale.shape)} are not those of "
                f"blocks of {factor} × {factor} pixels",
                where="first stage",
            )
        self.channels, self.factor, self.scaling = len(basis), factor, 1.0
        for name, value in (("mean", mean), ("basis", basis), ("scale", scale)):
            self.register_buffer(name, value.float().clone())

    @classmethod
    def fit(
        cls, images: Tensor, *, factor: int = 4, channels: int = 24, whitening: float = 1.0
    ) -> ComponentFirstStage:
        """From images (N, 3, H, W) in −1…1. whitening: the power, 0 (components as they are) to 1 (variance 1 each); in
        between the mean variance is 1. At least twice as many blocks as pixels in one are needed."""
        size = 3 * factor**2
        if not 1 <= channels <= size:
            raise InputError(
                f"blocks of {factor} × {factor} pixels have 1 to {size} components, not {channels}",
                where="first stage",
            )
        blocks = F.pixel_unshuffle(images, factor).permute(0, 2, 3, 1).reshape(-1, size).double()
        if len(blocks) < 2 * size:
            raise InputError(
                f"{len(blocks)} blocks are too few for the components of {size} values", where="first stage"
            )
        values, vectors = torch.linalg.eigh(torch.cov(blocks.T))
        values = values.flip(0)[:channels].clamp(min=1e-8)
        basis = vectors.flip(1)[:, :channels].T
        # An eigenvector's sign is arbitrary; its largest entry is made positive.
        largest = basis.gather(1, basis.abs().argmax(dim=1, keepdim=True))
        scale = values ** (whitening / 2)
        scale = scale * (values / scale**2).mean().sqrt()
        return cls(factor, blocks.mean(dim=0), basis * largest.sign(), scale)

    def encode(self, images: Tensor) -> LatentDistribution:
        blocks = F.pixel_unshuffle(images, self.factor) - self.mean[:, None, None]
        return LatentDistribution(F.conv2d(blocks, (self.basis / self.scale[:, None])[:, :, None, None]))

    def decode(self, latents: Tensor) -> Tensor:
        blocks = F.conv2d(latents, (self.basis * self.scale[:, None]).T[:, :, None, None], self.mean)
        return F.pixel_shuffle(blocks, self.factor)

    def save_pretrained(self, folder: Path | str) -> None:
        from safetensors.torch import save_file

        write_json(Path(folder) / "config.json", {"_class_name": type(self).__name__, "factor": self.factor})
        save_file(
            {name: value.cpu().contiguous() for name, value in self.state_dict().items()},
            Path(folder) / _BASIS,
        )

    @classmethod
    def load(cls, folder: Path | str) -> ComponentFirstStage:
        """What :meth:`save_pretrained` wrote; :class:`CheckpointError` where it is damaged."""
        from safetensors.torch import load_file

        path = Path(folder) / _BASIS
        try:
            state = load_file(path)
            return cls(component_file(folder).factor, state["mean"], state["basis"], state["scale"])
        except (OSError, KeyError, InputError, SafetensorError) as error:
            line = " ".join(str(error).split())[:160]
            raise CheckpointError(f"the components do not load ({line})", where=path) from None


class KLFirstStage(FirstStage):
    """A KL autoencoder, Stable Diffusion's for one (f = 8, 4 channels, scaling 0.18215)."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.channels = autoencoder.config.latent_channels
        self.factor = 2 ** (len(autoencoder.config.block_out_channels) - 1)
        self.scaling = autoencoder.config.scaling_factor

    def encode(self, images: Tensor) -> LatentDistribution:
        posterior = self.autoencoder.encode(images).latent_dist
        return LatentDistribution(posterior.mean, posterior.std)

    def decode(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(latents).sample

    def save_pretrained(self, folder: Path | str) -> None:
        self.autoencoder.save_pretrained(folder, safe_serialization=True)


class VQFirstStage(FirstStage):
    """A vector-quantised autoencoder. Its latent is the one BEFORE quantisation; decoding quantises first."""

    def __init__(self, autoencoder: VQModel) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.channels = autoencoder.config.vq_embed_dim or autoencoder.config.latent_channels
        self.factor = 2 ** (len(autoencoder.config.block_out_channels) - 1)
        self.scaling = autoencoder.config.scaling_factor

    def encode(self, images: Tensor) -> LatentDistribution:
        return LatentDistribution(self.autoencoder.encode(images).latents)

    def decode(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(latents).sample

    def codes(self, latents: Tensor) -> Tensor:
        """(B,C,h,w) latents → (B,h,w) indices of the nearest codebook vectors."""
        indices = self.autoencoder.quantize(latents)[2][2]
        return indices.view(len(latents), *latents.shape[2:])

    def save_pretrained(self, folder: Path | str) -> None:
        self.autoencoder.save_pretrained(folder, safe_serialization=True)


def load_first_stage(folder: Path | str, dtype: torch.dtype = torch.float32) -> FirstStage:
    """Read a first stage folder: diffusers' AutoencoderKL or VQModel, blocks of pixels or their components."""
    name = class_name(folder, ["AutoencoderKL", "VQModel", "PixelFirstStage", "ComponentFirstStage"])
    if name == "PixelFirstStage":
        return PixelFirstStage(component_file(folder).factor)
    if name == "ComponentFirstStage":
        return ComponentFirstStage.load(folder)
    from diffusers import AutoencoderKL, VQModel

    if name == "AutoencoderKL":
        return KLFirstStage(component(folder, AutoencoderKL, dtype))
    return VQFirstStage(component(folder, VQModel, dtype))
