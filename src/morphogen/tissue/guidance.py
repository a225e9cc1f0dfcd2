"""Encoder guidance: while it is drawn, a picture is pulled towards the embedding it shall have.

The encoder that the embeddings are of looks at the picture the network predicts, and the prediction goes down the
gradient of the distance of both embeddings (universal guidance, Bansal et al. 2023; taken at the prediction alone, He
et al. 2024). Scores in that encoder are then no longer blind: another one must judge, too.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from morphogen.core.errors import ConfigError
from morphogen.diffusion import Denoiser, gradient_guided
from morphogen.nets import ComponentFirstStage, FirstStage, PixelFirstStage
from morphogen.slides import get_encoder
from morphogen.tissue.sampling import TissueSampler

if TYPE_CHECKING:
    from morphogen.tissue.network import Standardiser

#: The condition that holds the wanted embeddings, as :meth:`EncoderGuide.wanted` makes them.
WANTED = "wanted"


class EncoderGuide:
    """The distance of a picture's embedding to the wanted one.

    Parameters
    ----------
    encoder:
        A :class:`morphogen.slides.Encoder`; its ``differentiable`` is used.
    stage:
        Pixels ↔ latents. Where it is exact both ways, the gradient is taken in pixels, else in latents.
    statistics:
        Mean and SD of the embeddings' columns over the training tiles.
    limit:
        Wanted columns beyond so many SD only have to be reached; ``None``: met exactly.
    """

    def __init__(
        self,
        encoder: Any,
        stage: FirstStage,
        statistics: Standardiser,
        limit: float | None = 5.0,
    ) -> None:
        self.encoder, self.stage, self.statistics = encoder, stage, statistics
        exact = isinstance(stage, PixelFirstStage | ComponentFirstStage)
        self.exact = exact and stage.channels == 3 * stage.factor**2
        self.limit = math.inf if limit is None else limit

    def wanted(self, vectors: Tensor | np.ndarray) -> Tensor:
        """(…, D) embeddings → standardised by column, cut at the limit."""
        device = self.statistics.patch_mean.device
        values = torch.as_tensor(vectors, dtype=torch.float32, device=device)
        return self.statistics("patch", values).clamp(-self.limit, self.limit)

    def distance(self, shown: Tensor, wanted: Tensor) -> Tensor:
        """(B,) mean Huber distance of the columns, in SD, of what is shown and what is wanted.

        shown: (B, 3, H, W) in −1…1 where the first stage is exact, else (B, C, h, w) latents.
        """
        images = ((shown if self.exact else self.stage.images(shown)) + 1) * 127.5
        found = self.statistics("patch", self.encoder.differentiable(images.float()))
        reached = (wanted.abs() >= self.limit) & (found * wanted.sign() >= self.limit)
        found = torch.where(reached, wanted, found)
        return F.huber_loss(found, wanted, reduction="none", delta=1.0).mean(1)

    def around(self, denoiser: Denoiser, schedule: Any, sampler: TissueSampler, over: Any = None) -> Denoiser:
        """``denoiser`` with the pull of ``sampler``; it takes the condition :data:`WANTED` beside its own.

        over: how a canvas is pulled, as for :func:`~morphogen.diffusion.gradient_guided`.
        """
        return gradient_guided(
            denoiser,
            self.distance,
            schedule,
            rate=sampler.encoder_guidance,
            steps=sampler.encoder_guidance_steps,
            interval=sampler.encoder_guidance_interval,
            wanted=WANTED,
            space=(self.stage.images, self.stage.latents) if self.exact else None,
            over=over,
        )


@lru_cache(maxsize=2)
def guiding_encoder(name: str | None, weights: str | None, device: str) -> Any:
    """The encoder of a model's embeddings; :class:`ConfigError` where the model does not say which."""
    if name is None:
        raise ConfigError(
            "the model does not say which encoder its embeddings are of, so that none can guide",
            where="sampler.encoder_guidance",
            fix="Use 0 with this model",
        )
    return get_encoder(name, weights, device=device)
