"""What staining a batch of crops gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from morphogen.slides.colour import dab_density
from morphogen.stain.targets.config import TargetConfig


@dataclass(frozen=True)
class StainOutput:
    """What staining a batch gives.

    samples: (B, K, H, W, 3) uint8. mean: (B, H, W, 3) uint8, mean of the samples' colours. uncertainty: (B,
    H, W) float32, SD over the samples of the DAB optical density (zero for one sample). latents: (B, K, C,
    h, w), scaled. Of channels samples and mean are intensities, float32 with C in place of 3, and the uncertainty is
    (B, H, W, C), the SD of each.
    """

    samples: Tensor
    mean: Tensor
    uncertainty: Tensor
    latents: Tensor

    @property
    def images(self) -> Tensor:
        """(B, H, W, 3) uint8, or (B, H, W, C) float32: the first sample of each."""
        return self.samples[:, 0]


def stain_output(pixels: Tensor, mean: Tensor, latents: Tensor, target: TargetConfig) -> StainOutput:
    """From decoded samples (B, K, C, H, W), colours in 0…1 or intensities, their mean (B, C, H, W) and latents."""
    batch, samples = pixels.shape[:2]
    if not target.colour:
        doubt = pixels.std(dim=1) if samples > 1 else torch.zeros_like(mean)
        mean, doubt = (each.permute(0, 2, 3, 1).contiguous() for each in (mean, doubt))
        return StainOutput(pixels.permute(0, 1, 3, 4, 2).contiguous(), mean, doubt, latents)
    colours = (pixels * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).contiguous()
    picture = (mean * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    if samples == 1:
        return StainOutput(colours, picture, torch.zeros(picture.shape[:3], device=mean.device), latents)
    density = dab_density(colours.flatten(0, 1), layout="nhwc").unflatten(0, (batch, samples))
    return StainOutput(colours, picture, density.std(dim=1), latents)
