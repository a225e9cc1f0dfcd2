"""Small heads behind a U-Net."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DetailHead(nn.Module):
    """A correction of a U-Net's output at full resolution, for networks whose channels are blocks of pixels.

    The output and the images beside it are laid out as pixels again; two small convolutions see across the borders
    of blocks, which the U-Net's output does not, and add what they find. Zero at first.

    factor: side of a block. width: channels between the two convolutions. images: RGB images it sees, the output
    among them. channels: of the output, where it is no RGB image. inputs: channels of all it sees together.
    """

    def __init__(
        self, factor: int, width: int, images: int = 3, *, channels: int = 3, inputs: int | None = None
    ) -> None:
        super().__init__()
        self.factor, self.width = factor, width
        self.first = nn.Conv2d(inputs or 3 * images, width, 3, padding=1)
        self.last = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, out: Tensor, *images: Tensor) -> Tensor:
        """All (B, channels·factor², h, w); returns the corrected ``out``."""
        pixels = torch.cat([nn.functional.pixel_shuffle(each, self.factor) for each in (out, *images)], dim=1)
        correction = self.last(nn.functional.silu(self.first(pixels)))
        return out + nn.functional.pixel_unshuffle(correction, self.factor)
