"""Tissue from embeddings behind LazySlide's ``ImageGenerationModel``: ``zs.tl.image_generation``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lazyslide_models import ImageGenerationModel
from PIL import Image
from torch import Tensor

from morphogen.bridges.lazyslide.base import Bridged
from morphogen.core.errors import InputError
from morphogen.diffusion import ItemNoise
from morphogen.diffusion.sampler import sample
from morphogen.tissue import TissueDiffusion
from morphogen.tissue.sampling import TissueSampler

BATCH = 8


class TissueImages(Bridged, ImageGenerationModel):
    """A tissue model as an ``ImageGenerationModel``: one picture, or several, for every embedding.

    Parameters
    ----------
    model: folder, hub id or :class:`~morphogen.tissue.TissueDiffusion`.
    sampler: ``standard``, ``fast`` or ``reference``.
    """

    pipeline: TissueDiffusion

    def __init__(self, model: Any = None, *, sampler: TissueSampler | str = "standard") -> None:
        place = self._place(model)
        self.pipeline = (
            place if isinstance(place, TissueDiffusion) else TissueDiffusion.from_pretrained(place)
        )
        self.model = self.pipeline.network
        self.sampler = TissueSampler.of(sampler)

    def generate(self, num_images_per_prompt: int = 1, seed: int = 0) -> list[Image.Image]:
        """Pictures without any condition, from the tokens that guidance takes for none.

        Embeddings that a prior draws (`morphogen tissue prior`) give likelier tissue.
        """
        out: list[Image.Image] = []
        for start in range(0, num_images_per_prompt, BATCH):
            keys = [("drawn", i) for i in range(start, min(start + BATCH, num_images_per_prompt))]
            noise = ItemNoise(
                seed, keys, (self.pipeline.channels, self.pipeline.window, self.pipeline.window)
            )
            context = self.pipeline.null().expand(len(keys), -1, -1)
            with torch.no_grad():
                latents = sample(
                    self.pipeline.denoiser(time_offset=self.sampler.time_offset),
                    noise(-1).to(context),
                    self.pipeline.schedule,
                    self.sampler,
                    noise=noise,
                    condition={"context": context},
                    null_condition={"context": self.pipeline.null()},
                )
            out += pictures(self.pipeline.decode(latents))
        return out

    def generate_conditionally(
        self, embeddings: Any, num_images_per_prompt: int = 1, seed: int = 0
    ) -> list[Image.Image]:
        """(N, D) embeddings of the model's own encoder → N·K pictures, those of an embedding in a row."""
        values = np.asarray(embeddings, dtype=np.float32)
        if values.ndim != 2:
            raise InputError(f"embeddings must be (N, D), not {values.shape}", where=self.__class__.__name__)
        keys = [("tile", i, k) for i in range(len(values)) for k in range(num_images_per_prompt)]
        values = np.repeat(values, num_images_per_prompt, axis=0)
        out: list[Image.Image] = []
        for start in range(0, len(values), BATCH):
            part = slice(start, start + BATCH)
            out += pictures(self.pipeline(values[part], self.sampler, seed=seed, keys=keys[part]).images)
        return out


def pictures(images: Tensor) -> list[Image.Image]:
    """uint8 (B, H, W, 3) → B pictures."""
    return [Image.fromarray(image) for image in images.cpu().numpy()]
