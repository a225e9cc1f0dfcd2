"""The trained network: a U-Net and the tokens that its condition is made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from morphogen.core.errors import CheckpointError
from morphogen.core.seeds import seed_for
from morphogen.nets import (
    DetailHead,
    LatentUNet,
    RepresentationTokens,
    UNetConfig,
    build_unet,
    load_unet,
)
from morphogen.tissue.config import ModelConfig

CONDITIONING = "conditioning.safetensors"


class TissueNetwork(nn.Module):
    """``network(x, t, context=…)`` → prediction shaped like ``x``.

    x: (B, C, h, w) noisy latent or blocks of pixels. context: (B, T, D) tokens, from :attr:`embedder`.

    Parameters
    ----------
    latent:
        U-Net with cross-attention to the tokens.
    embedder:
        Embeddings → tokens; trained with the U-Net.
    detail:
        Head that corrects the U-Net's output in pixel space.
    """

    def __init__(
        self, latent: LatentUNet, embedder: RepresentationTokens, detail: DetailHead | None = None
    ) -> None:
        super().__init__()
        self.latent, self.embedder, self.detail = latent, embedder, detail

    def enable_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self.latent.enable_gradient_checkpointing(enabled)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write ``unet/``, which diffusers reads too, and ``conditioning.safetensors``."""
        from safetensors.torch import save_file

        folder = Path(folder)
        self.latent.unet.save_pretrained(folder / "unet", safe_serialization=True)
        rest = {key: value for key, value in self.state_dict().items() if not key.startswith("latent.")}
        save_file(
            {key: value.detach().cpu().contiguous().clone() for key, value in rest.items()},
            folder / CONDITIONING,
        )

    def forward(self, x: Tensor, t: Tensor | float, *, context: Tensor) -> Tensor:
        out = self.latent(x, t, context)
        return out if self.detail is None else self.detail(out, x.to(out.dtype))


def load_network(folder: Path, config: ModelConfig) -> TissueNetwork:
    """What :meth:`TissueNetwork.save_pretrained` wrote; :class:`CheckpointError` where it does not fit."""
    from safetensors.torch import load_file

    network = TissueNetwork(load_unet(folder / "unet"), new_embedder(config), new_detail(config))
    try:
        state = load_file(folder / CONDITIONING)
        own = {key for key in network.state_dict() if not key.startswith("latent.")}
        if own != set(state):
            raise KeyError(f"{sorted(own ^ set(state))[0]} is missing or too much")
        network.load_state_dict(state, strict=False)
    except (OSError, KeyError, RuntimeError) as error:
        line = " ".join(str(error).split())[:160]
        raise CheckpointError(f"the weights do not load ({line})", where=folder / CONDITIONING) from None
    return network.eval()


def unet_settings(config: ModelConfig, channels: int) -> UNetConfig:
    """The U-Net of a model whose latents have ``channels``."""
    tokens = max(1, len(config.embeddings))
    return UNetConfig(
        in_channels=channels,
        out_channels=channels,
        widths=config.widths,
        layers=config.layers,
        attention=config.attention,
        heads=config.heads,
        groups=config.groups,
        context_dim=config.token_width,
        context_vector=tokens * config.token_width if config.film else 0,
        scale_shift=config.film,
    )


def new_network(config: ModelConfig, channels: int, seed: int = 0) -> TissueNetwork:
    """Fresh weights, the same for the same seed. An x0 network begins with mid-grey, not with noise."""
    latent = build_unet(unet_settings(config, channels), seed=seed_for(seed, "tissue network"))
    for parameter in latent.unet.conv_out.parameters():
        nn.init.zeros_(parameter)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "tissue tokens"))
        return TissueNetwork(latent, new_embedder(config), new_detail(config))


def new_detail(config: ModelConfig) -> DetailHead | None:
    """The head of a model in pixel space that has one, zero at first."""
    if config.first_stage != "pixels" or not config.detail:
        return None
    return DetailHead(config.pixel_factor, config.detail, images=2)


def new_embedder(config: ModelConfig) -> RepresentationTokens:
    """The tokens of ``config.embeddings``, with fresh weights."""
    return RepresentationTokens(
        config.embeddings,
        config.token_width,
        normalise="normalise" in config.features,
        unit=1.0 if config.unit_features else None,
    )


class Standardiser(nn.Module):
    """Mean and SD of every column of every embedding over the training tiles.

    widths: name → columns. Fresh ones have mean 0 and SD 1.
    """

    def __init__(self, widths: Mapping[str, int]) -> None:
        super().__init__()
        for name, width in widths.items():
            self.register_buffer(f"{name}_mean", torch.zeros(width))
            self.register_buffer(f"{name}_sd", torch.ones(width))

    @classmethod
    def of(cls, features: Mapping[str, np.ndarray]) -> Standardiser:
        """Measured on features (N, D) by name, in float64; a constant column has SD 1."""
        made = cls({name: values.shape[1] for name, values in features.items()})
        for name, values in features.items():
            wide = values.astype(np.float64)
            sd = wide.std(axis=0)
            getattr(made, f"{name}_mean").copy_(torch.from_numpy(wide.mean(axis=0)))
            getattr(made, f"{name}_sd").copy_(torch.from_numpy(np.where(sd > 1e-8, sd, 1.0)))
        return made

    def forward(self, name: str, values: Tensor) -> Tensor:
        """(…, D) with columns of mean 0 and SD 1."""
        return (values - getattr(self, f"{name}_mean")) / getattr(self, f"{name}_sd")

    def inverse(self, name: str, values: Tensor) -> Tensor:
        """(…, D) as the encoder gives them."""
        return values * getattr(self, f"{name}_sd") + getattr(self, f"{name}_mean")
