"""The U-Net that is told a layout and a style (STEDM, ECCV 2024), and all that is trained with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from morphogen.core.errors import InputError
from morphogen.nets.config import UNetConfig
from morphogen.nets.heads import DetailHead
from morphogen.nets.layout.config import LayoutNetworkConfig
from morphogen.nets.layout.encoders import StyleEncoder, null_images
from morphogen.nets.unets import build_unet

if TYPE_CHECKING:
    from diffusers import UNet2DModel


class LayoutMapper(nn.Module):
    """Layout planes at pixel resolution → channels beside the latent.

    Planes (B, P, H, W): one map per class (0…1) and, where the network has it, the distance to the border. All
    zeros mean that no layout is told. Returns (B, layout_channels, H/factor, W/factor).
    """

    def __init__(self, config: LayoutNetworkConfig) -> None:
        super().__init__()
        self.config = config
        planes = 2 if config.binarise else config.planes
        cells = config.factor**2 if config.layout_by == "blocks" else 1
        self.project = nn.Conv2d(planes * cells, config.layout_channels, 1, bias=False)

    def forward(self, planes: Tensor) -> Tensor:
        return self.project(self.on_latent_grid(planes))

    def on_latent_grid(self, planes: Tensor) -> Tensor:
        """The planes before the projection."""
        if planes.shape[1] != self.config.planes:
            raise InputError(
                f"the layout has {planes.shape[1]} planes, the network reads {self.config.planes}"
            )
        if self.config.binarise:
            planes = torch.cat([planes[:, :1], planes[:, 1:].sum(1, keepdim=True)], dim=1)
        if self.config.layout_by == "blocks":
            return F.pixel_unshuffle(planes, self.config.factor)
        return F.avg_pool2d(planes, self.config.factor)  # what halving bilinearly again and again gives


class StyledUNet(nn.Module):
    """diffusers' U-Net with a residual block in its middle that is told the style in the place of time.

    ``network(x, t, layout=…, style=…)``: x (B,C,h,w) noisy latent, t (B,) steps, layout (B,L,h,w) what
    :class:`LayoutMapper` gives, style (B,W). Returns (B,C,h,w).
    """

    def __init__(self, unet: UNet2DModel, config: LayoutNetworkConfig) -> None:
        from diffusers.models.resnet import ResnetBlock2D

        super().__init__()
        self.unet = unet
        self.style_block = ResnetBlock2D(
            in_channels=config.widths[-1],
            temb_channels=config.style.width,
            groups=config.groups,
            eps=1e-5,
        )
        self.style_to_time = self.style_to_output = self.detail = None
        if config.style_in == "everywhere":
            self.style_to_time = nn.Linear(config.style.width, 4 * config.widths[0])
            # Group norms take a colour that is the same everywhere away: it has a way of its own. Time has a part in
            # it, since how much colour a prediction of v holds depends on the noise.
            self.style_to_output = nn.Linear(4 * config.widths[0], config.latent_channels)
            nn.init.zeros_(self.style_to_output.bias)
        if config.detail:
            self.detail = DetailHead(config.factor, config.detail, images=2)

    def forward(self, x: Tensor, t: Tensor | float, layout: Tensor, style: Tensor) -> Tensor:
        unet: Any = self.unet
        joined = torch.cat([x, layout.expand(len(x), -1, -1, -1)], dim=1).to(unet.dtype)
        style = style.to(unet.dtype)
        times = torch.as_tensor(t, device=x.device).expand(len(x))
        embedding = unet.time_embedding(unet.time_proj(times).to(unet.dtype))
        if self.style_to_time is not None:
            embedding = embedding + self.style_to_time(style)
        hidden = unet.conv_in(joined)
        kept: tuple[Tensor, ...] = (hidden,)
        for block in unet.down_blocks:
            hidden, more = block(hidden_states=hidden, temb=embedding)
            kept += more
        hidden = self._middle(hidden, embedding, style)
        for block in unet.up_blocks:
            count = len(block.resnets)
            hidden = block(hidden, kept[-count:], embedding)
            kept = kept[:-count]
        out = unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))
        if self.style_to_output is not None:
            out = out + self.style_to_output(F.silu(embedding))[:, :, None, None]
        if self.detail is not None:
            out = self.detail(out, x.to(out.dtype))
        return out.to(x.dtype)

    def _middle(self, hidden: Tensor, embedding: Tensor, style: Tensor) -> Tensor:
        middle = self.unet.mid_block
        hidden = middle.resnets[0](hidden, embedding)
        hidden = self.style_block(hidden, style)
        hidden = middle.attentions[0](hidden, temb=embedding)
        return middle.resnets[1](hidden, embedding)


class LayoutNetwork(nn.Module):
    """Everything that is trained: U-Net, layout mapper, style encoder and aggregator, null style.

    The U-Net is called with what :meth:`mapped` and :meth:`styles` give.
    """

    def __init__(self, config: LayoutNetworkConfig) -> None:
        from diffusers import UNet2DModel

        super().__init__()
        self.config = config
        unet = build_unet(
            UNetConfig(
                in_channels=config.latent_channels + config.layout_channels,
                out_channels=config.latent_channels,
                widths=config.widths,
                layers=config.layers,
                heads=config.heads,
                groups=config.groups,
                scale_shift=config.style_in == "everywhere",
            )
        ).unet
        assert isinstance(unet, UNet2DModel)
        self.unet = StyledUNet(unet, config)
        self.mapper = LayoutMapper(config)
        self.style = StyleEncoder(config.style)
        if config.learned_null:
            self.null = nn.Parameter(torch.randn(config.style.width) * 0.02)

    def mapped(self, planes: Tensor) -> Tensor:
        """Layout planes (B,P,H,W) → layout channels on the latent's grid."""
        return self.mapper(planes)

    def styles(self, images: Tensor) -> Tensor:
        """Style images (B,n,3,H,W) in −1…1 → (B, W)."""
        return self.style(images)

    def null_style(self, batch: int, side: int = 0) -> Tensor:
        """(batch, W): the style of the unconditional half.

        side: of the style images, needed where the null is the encoding of blank ones.
        """
        if self.config.learned_null:
            return self.null.expand(batch, -1)
        like = self.mapper.project.weight
        blank = null_images(1, self.config.style.images, side, dtype=like.dtype, device=like.device)
        return self.style(blank).expand(batch, -1)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations of the U-Net in the backward pass instead of keeping them."""
        self.unet.unet.enable_gradient_checkpointing()


def build_layout_network(config: LayoutNetworkConfig, seed: int | None = None) -> LayoutNetwork:
    """A network with fresh weights; ``seed`` makes them reproducible. The style block begins as nothing added, and the
    last layer small but not at zero, so that the style encoder learns from the first step on."""
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        network = LayoutNetwork(config)
    with torch.no_grad():
        network.unet.unet.conv_out.weight.mul_(0.1)
    nn.init.zeros_(network.unet.unet.conv_out.bias)
    nn.init.zeros_(network.unet.style_block.conv2.weight)
    nn.init.zeros_(network.unet.style_block.conv2.bias)
    return network
