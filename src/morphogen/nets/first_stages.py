"""First stages: between images and the latents that are diffused.

One contract over diffusers' KL and VQ autoencoders and over plain pixels. Images are (B,3,H,W) in −1…1, sides
multiples of ``factor``. ``encode`` gives the first stage's own latents, without scaling; ``latents`` and
``images`` speak the diffusion model's units (scaling · latent).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, VQModel
from torch import Tensor, nn
from torch.nn import functional as F

from morphogen.core.errors import InputError
from morphogen.core.files import write_json
from morphogen.nets.folders import class_name, component, component_file


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
    """Read a first stage folder: diffusers' AutoencoderKL or VQModel, or a pixel first stage."""
    name = class_name(folder, ["AutoencoderKL", "VQModel", "PixelFirstStage"])
    if name == "PixelFirstStage":
        return PixelFirstStage(component_file(folder).factor)
    if name == "AutoencoderKL":
        return KLFirstStage(component(folder, AutoencoderKL, dtype))
    return VQFirstStage(component(folder, VQModel, dtype))
