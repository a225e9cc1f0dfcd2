"""``TissueDiffusion``: embeddings of a pathology encoder to tissue images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor

from morphogen.checkpoints.folder import ModelFolder
from morphogen.core.errors import InputError
from morphogen.core.running.transfers import sent
from morphogen.diffusion import Denoiser, ItemNoise, Schedule, network_denoiser
from morphogen.diffusion.sampler import sample
from morphogen.nets import FirstStage, PixelFirstStage, load_first_stage
from morphogen.tasks.pretrained import Pretrained
from morphogen.tissue.config import ModelConfig
from morphogen.tissue.guidance import WANTED, EncoderGuide, guiding_encoder
from morphogen.tissue.network import Standardiser, TissueNetwork, load_network
from morphogen.tissue.sampling import TissueSampler


@dataclass(frozen=True)
class TissueOutput:
    """What sampling a batch gives: images (B, H, W, 3) uint8; latents (B, C, h, w), scaled."""

    images: Tensor
    latents: Tensor


class Preprocessing(BaseModel):
    """What a model folder must say of its tiles: side in px, µm/px (None: not known)."""

    tile_px: Annotated[int, Field(gt=0, le=1 << 16)] = 256
    mpp: Annotated[float, Field(gt=0, lt=1000)] | None = None


class TissueDiffusion(Pretrained):
    """Embeddings → tissue (Graikos et al., CVPR 2024).

    ``model(features)`` draws one patch per embedding; :func:`morphogen.tissue.draw_canvas` makes images of any size
    from a grid of them.

    Parameters
    ----------
    network:
        U-Net and tokens.
    first_stage:
        Pixels ↔ latents; frozen.
    config:
        What the model is.
    statistics:
        Mean and SD of the embeddings over the training tiles.
    tile_px, mpp:
        Side in pixels and µm/px of the tiles it was trained on.
    facts:
        Provenance, saved with the model.

    Examples
    --------
    >>> from morphogen.tissue import ModelConfig, new_model
    >>> model = new_model(ModelConfig.of("tiny", embeddings={"patch": 5}), tile_px=32)
    >>> model(np.zeros((2, 5), np.float32), "fast").images.shape
    torch.Size([2, 32, 32, 3])
    """

    kind: ClassVar[str] = "tissue"
    config: ModelConfig

    def __init__(
        self,
        network: TissueNetwork,
        first_stage: FirstStage,
        config: ModelConfig,
        *,
        statistics: Standardiser | None = None,
        tile_px: int = 256,
        mpp: float | None = None,
        facts: dict[str, Any] | None = None,
    ) -> None:
        self._network, self.first_stage, self.config = network, first_stage, config
        self.statistics = statistics if statistics is not None else Standardiser(config.embeddings)
        self.tile_px, self.mpp, self.facts = tile_px, mpp, dict(facts or {})
        schedule = Schedule.scaled_linear(config.beta_start, config.beta_end)
        self.schedule = schedule.zero_terminal_snr() if config.zero_snr else schedule
        first_stage.requires_grad_(False)

    # -- building, saving ----------------------------------------------------------------------------------------

    @property
    def network(self) -> TissueNetwork:
        """What is trained."""
        return self._network

    def components(self) -> Mapping[str, Any]:
        return {
            "network": self._network,
            "first_stage": self.first_stage,
            "statistics": self.statistics,
        }

    def saved(self) -> dict[str, Any]:
        return {"preprocessing": {"tile_px": self.tile_px, "mpp": self.mpp}, "training": self.facts}

    @classmethod
    def restored(cls, read: ModelFolder, **options: Any) -> Self:
        config: ModelConfig = read.settings(ModelConfig)
        stage = load_first_stage(read.component("first_stage"))
        if isinstance(stage, PixelFirstStage):
            stage.scaling = config.pixel_scale
        statistics = Standardiser(config.embeddings)
        read.restore(statistics, "statistics")
        return cls(
            load_network(read.component("network"), config),
            stage,
            config,
            statistics=statistics,
            facts=read.fact("training", dict[str, Any], {}),
            **read.fact("preprocessing", Preprocessing).model_dump(),
        )

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, *, device: str | torch.device = "cpu", **options: Any
    ) -> Self:
        """Load a tissue model: a folder of ours or its hub id, or a published checkpoint.

        Published are the one- and two-token models of Graikos et al. (Lightning ``.ckpt``, with or without the
        ``inception.*`` keys), also as folders that ``morphogen checkpoint import`` wrote. Option ``heads``: attention
        heads of a checkpoint file whose widths are not the published ones.
        """
        from morphogen.tissue.published import is_published, load_published

        if is_published(folder):
            return cls(**load_published(folder, options.get("heads"))).to(device)
        return super().from_pretrained(folder, device=device, **options)

    def to(self, device: str | torch.device) -> Self:
        """Move every component."""
        return super().to(device)

    # -- sizes -----------------------------------------------------------------------------------------------------

    @property
    def multiple(self) -> int:
        """Sides of a window are multiples of this many pixels."""
        return self.first_stage.factor * 2 ** (len(self.config.widths) - 1)

    @property
    def window(self) -> int:
        """Side of a window in latent cells."""
        return self.tile_px // self.first_stage.factor

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return self.first_stage.channels

    # -- conditions --------------------------------------------------------------------------------------------------

    def vectors(self, name: str, values: Tensor | np.ndarray) -> Tensor:
        """(…, D) embeddings as the network's tokens are made of: standardised where the model does so.

        Raises :class:`InputError` for another width than the model's, and for numbers that are not finite.
        """
        given = torch.as_tensor(values, dtype=torch.float32)
        tensor = sent(given, self.device)
        width = self.config.embeddings.get(name)
        if width is None:
            raise InputError(f"this model has no embedding '{name}'", where="embeddings")
        if tensor.shape[-1] != width:
            encoder = f" of '{self.config.encoder}'" if self.config.encoder else ""
            raise InputError(
                f"the embeddings have {tensor.shape[-1]} columns, this model was trained on {width}{encoder}",
                where="embeddings",
                fix="Encode with the model's own encoder",
            )
        # On a GPU they come from training data, which was checked as it was read.
        if given.device.type == "cpu" and not torch.isfinite(given).all():
            raise InputError(
                "the embeddings hold NaN or infinite numbers", where="embeddings", fix="Encode again"
            )
        if "standardise" not in self.config.features:
            return tensor
        limit = self.config.feature_limit
        standard = self.statistics(name, tensor)
        return standard if limit is None else standard.clamp(-limit, limit)

    def context(self, patch: Tensor | np.ndarray, region: Tensor | np.ndarray | None = None) -> Tensor:
        """(B, T, width) tokens of embeddings (B, D); a missing region is the zero vector, as published."""
        given = {"patch": self.vectors("patch", patch)}
        if region is not None:
            given["region"] = self.vectors("region", region)
        return self.network.embedder(**given)

    def null(self) -> Tensor:
        """(1, T, width): the tokens of no condition, for guidance."""
        return self.network.embedder.null()

    def denoiser(self, precision: str = "fp32", time_offset: int = 0) -> Denoiser:
        """The network as a denoiser of the diffusion core; ``time_offset``: what it is told beyond the level."""
        denoiser = network_denoiser(self.network, self.schedule, self.config.prediction, precision=precision)
        if not time_offset:
            return denoiser

        def told_later(x: Tensor, t: Any, /, **condition: Any) -> Any:
            return denoiser(x, t, network_time=t + time_offset, **condition)

        return told_later

    def guide(self, sampler: TissueSampler) -> EncoderGuide | None:
        """What pulls pictures towards their embeddings, where ``sampler`` wants that."""
        if not sampler.encoder_guidance:
            return None
        encoder = guiding_encoder(self.config.encoder, self.config.encoder_weights, str(self.device))
        return EncoderGuide(encoder, self.first_stage, self.statistics, self.config.feature_limit)

    # -- drawing -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def __call__(
        self,
        patch: Tensor | np.ndarray,
        sampler: TissueSampler | str = "standard",
        *,
        region: Tensor | np.ndarray | None = None,
        seed: int = 0,
        keys: Sequence[Any] | None = None,
        noise: Callable[[int], Tensor] | None = None,
        precision: str = "fp32",
    ) -> TissueOutput:
        """Draw one patch per embedding.

        Parameters
        ----------
        patch, region:
            (B, D) embeddings of the patch and, for two-token models, of the region around it.
        sampler:
            ``standard``, ``fast``, ``reference`` or a :class:`~morphogen.tissue.TissueSampler`.
        keys:
            One per item: the noise of an item is that of its seed and key, whatever the batch. Default: 0, 1, ….
        noise:
            ``noise(step)`` → (B, C, h, w) in place of the seed's; step −1 is the start.
        precision:
            ``fp32``, ``bf16`` or ``fp16`` autocast of the network.
        """
        sampler = TissueSampler.of(sampler)
        context = self.context(patch, region)
        if noise is None:
            shape = (self.channels, self.window, self.window)
            own = list(keys) if keys is not None else list(range(len(context)))
            noise = ItemNoise(seed, own, shape, context.device)
        guide = self.guide(sampler)
        condition, around = {"context": context}, None
        if guide is not None:
            condition[WANTED] = guide.wanted(patch)
            around = partial(guide.around, schedule=self.schedule, sampler=sampler)
        latents = sample(
            self.denoiser(precision, sampler.time_offset),
            noise(-1).to(context),
            self.schedule,
            sampler,
            noise=noise,
            condition=condition,
            null_condition={"context": self.null()},
            around=around,
        )
        return TissueOutput(self.decode(latents), latents)

    def latents(self, images: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) → (B, C, h, w) scaled latents, the most probable ones."""
        return self.first_stage.latents(self.pixels(images))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) → uint8 (B, H, W, 3), rounded to the nearest."""
        parts = [self.first_stage.images(part) for part in latents.split(8)]
        return to_bytes(torch.cat(parts))


def to_bytes(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) in −1…1 → uint8 (B, H, W, 3), rounded to the nearest (published code truncates)."""
    scaled = ((pixels.float() + 1) * 127.5).clamp(0, 255).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
