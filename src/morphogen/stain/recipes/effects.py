"""How bright an image is as a whole, beside what a regression says of it: an effect of the image, not of its places.

Detectors, staining and thickness make one section brighter than another, which its H&E does not tell. Every sample of
an image is as bright, beside the regression's answer, as one of the training images was: a random effect of the image
(Laird and Ware, Biometrics 38, 1982), drawn from those that were measured.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from morphogen.core.running.transfers import sent

Effects = Sequence[Sequence[tuple[float, float]]]
"""Of every image, of every channel of the target: offset and slope."""


class ImageEffects:
    """Offsets and slopes of images, on what is diffused with 0 for dark and 1 for ``full``.

    effects: by image and channel. together: channels of a cell that are pixels of one channel of the target. scaling:
    of what is diffused. spread: factor on their distance from their mean; a slope stays 0 or more.

    >>> effects = ImageEffects([[(0.0, 0.5)], [(0.1, 2.0)]])
    >>> dark, bright = torch.full((2, 1, 1, 1), -0.5)  # a quarter of full
    >>> effects.applied(torch.stack([dark, bright]), torch.tensor([0, 1])).flatten()
    tensor([-0.7500,  0.2000])
    """

    def __init__(
        self, effects: Effects, together: int = 1, scaling: float = 1.0, spread: float = 1.0
    ) -> None:
        values = torch.tensor([[list(each) for each in image] for image in effects])
        if spread != 1:
            values = torch.lerp(values.mean(dim=0, keepdim=True), values, spread)
            values[..., 1] = values[..., 1].clamp(min=0)
        self.values = values
        self.together, self.scaling = together, scaling
        brightness = (self.values[..., 0] + self.values[..., 1] / 2).mean(dim=1)
        self._order = brightness.argsort(stable=True)

    def applied(self, answers: Tensor, images: Tensor) -> Tensor:
        """Answers (N, C, h, w) with the effects of the images of these numbers (N,)."""
        values = sent(self.values, answers.device)[sent(images, answers.device)].to(answers)
        offset, slope = values.repeat_interleave(self.together, dim=1)[..., None, None].unbind(2)
        return slope * answers + self.scaling * (2 * offset + slope - 1)

    def drawn(self, draws: Tensor) -> Tensor:
        """Numbers of images (N,) for draws (N,) in 0…1: 0 is the darkest."""
        place = (draws * len(self._order)).long().clamp(max=len(self._order) - 1)
        return self._order[place]
