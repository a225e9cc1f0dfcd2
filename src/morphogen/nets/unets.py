"""Latent U-Nets: diffusers' networks, built by size, under the one contract of this package.

``network(x, t, context=…, image=…)`` returns a tensor shaped like the latent, as the gene transformer does
for genes, so that the diffusion core can wrap either.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from morphogen.core.errors import InputError
from morphogen.nets.config import UNetConfig
from morphogen.nets.folders import class_name, component

if TYPE_CHECKING:  # takes seconds: where a network is made
    from diffusers import UNet2DConditionModel, UNet2DModel


class LatentUNet(nn.Module):
    """A diffusers U-Net as a denoiser network.

    x: (B,C,H,W) noisy latent. t: one time for all, or (B,), integer or fractional training steps. image:
    (B,C′,H,W) or (1,C′,H,W), joined to x along channels (HistDiST's H&E latent; zeros when the task has
    none). context: (B,T,D) or (1,T,D) tokens for cross-attention. Returns (B, out_channels, H, W).
    """

    def __init__(self, unet: UNet2DConditionModel | UNet2DModel) -> None:
        super().__init__()
        self.unet = unet

    @property
    def in_channels(self) -> int:
        """Channels of x and image together."""
        return self.unet.config.in_channels

    @property
    def out_channels(self) -> int:
        """Channels of the prediction."""
        return self.unet.config.out_channels

    @property
    def context_dim(self) -> int:
        """Width of the context tokens; 0 where the network takes none."""
        return self.unet.config.get("cross_attention_dim") or 0

    def enable_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        if enabled:
            self.unet.enable_gradient_checkpointing()
        else:
            self.unet.disable_gradient_checkpointing()

    def forward(
        self, x: Tensor, t: Tensor | float, context: Tensor | None = None, image: Tensor | None = None
    ) -> Tensor:
        batch = len(x)
        joined = x if image is None else torch.cat([x, image.expand(batch, -1, -1, -1)], dim=1)
        if joined.shape[1] != self.in_channels:
            raise InputError(
                f"the network takes {self.in_channels} channels, but latent and image have {joined.shape[1]}"
            )
        if (context is None) != (self.context_dim == 0):
            raise InputError(
                "this network needs context tokens" if context is None else "this network takes no context"
            )
        time = torch.as_tensor(t, device=x.device)
        joined = joined.to(self.unet.dtype)  # the network may be in bfloat16; the latent stays as it came
        if context is None:
            return self.unet(joined, time).sample.to(x.dtype)
        tokens = context.to(self.unet.dtype).expand(batch, -1, -1)
        # With a context vector the tokens, side by side, also enter beside the time.
        vector = tokens.flatten(1) if self.unet.class_embedding is not None else None
        return self.unet(joined, time, encoder_hidden_states=tokens, class_labels=vector).sample.to(x.dtype)


def build_unet(config: UNetConfig, seed: int | None = None) -> LatentUNet:
    """A network with fresh weights. seed: makes them reproducible, leaving torch's global generator as it
    was."""
    kinds = ("DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D")
    if not config.context_dim:
        kinds = ("DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D")
    levels = range(len(config.widths))
    common: dict[str, Any] = {
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": config.widths,
        "layers_per_block": config.layers,
        "down_block_types": tuple(kinds[level in config.attention] for level in levels),
        "up_block_types": tuple(kinds[2 + (level in config.attention)] for level in reversed(levels)),
        "norm_num_groups": config.groups,
        "norm_eps": 1e-5,
        "dropout": config.dropout,
        "resnet_time_scale_shift": "scale_shift" if config.scale_shift else "default",
    }
    from diffusers import UNet2DConditionModel, UNet2DModel

    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        if config.context_dim:
            # diffusers reads attention_head_dim as the NUMBER of heads here, for the sake of old checkpoints.
            if config.context_vector:
                common |= {
                    "class_embed_type": "projection",
                    "projection_class_embeddings_input_dim": config.context_vector,
                }
            unet = UNet2DConditionModel(
                **common, cross_attention_dim=config.context_dim, attention_head_dim=config.heads
            )
        else:  # and here as the width of a head
            first = config.widths[min(config.attention, default=-1)]
            unet = UNet2DModel(**common, attention_head_dim=first // config.heads)
    return LatentUNet(unet)


@torch.no_grad()
def widen_input(unet: UNet2DConditionModel, channels: int) -> UNet2DConditionModel:
    """More input channels for a trained U-Net (in place): the old ones keep their weights, the new ones
    get zero.

    Stable Diffusion's 4 → HistDiST's 8: the network gives what it gave, whatever the new channels hold,
    until it is trained.
    """
    old = unet.conv_in
    if channels < old.in_channels:
        raise InputError(f"the network has {old.in_channels} input channels already; {channels} is fewer")
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,
        padding=old.padding,
        dtype=old.weight.dtype,
        device=old.weight.device,
    )
    new.weight.zero_()
    new.weight[:, : old.in_channels] = old.weight
    new.bias.copy_(old.bias)
    unet.conv_in = new
    unet.register_to_config(in_channels=channels)
    return unet


def load_unet(folder: Path | str, dtype: torch.dtype = torch.float32) -> LatentUNet:
    """Read a diffusers U-Net folder (config.json + safetensors); :class:`CheckpointError` where it is not
    one."""
    from diffusers import UNet2DConditionModel, UNet2DModel

    kinds = {"UNet2DConditionModel": UNet2DConditionModel, "UNet2DModel": UNet2DModel}
    return LatentUNet(component(folder, kinds[class_name(folder, kinds)], dtype))
