"""The trained network of virtual staining: a U-Net, its stain label, and what its cross-attention looks
at.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from morphogen.core.errors import InputError
from morphogen.nets import DetailHead, FirstStage, LatentUNet, PixelFirstStage
from morphogen.slides import Encoder, get_encoder
from morphogen.stain.config import ModelConfig
from morphogen.stain.recipes.colours import ColourSkip

PROMPT = "H&E"  # the text context of the H&E generation task (HistDiST)
HE = 0  # label of the H&E generation task; target stains follow from 1


def token_encoder(config: ModelConfig, device: str | torch.device = "cpu") -> Encoder | None:
    """The encoder of H&E crops that a configuration names; ``None`` for a model without one."""
    if config.encoder == "none":
        return None
    grid = config.texture_grid, config.texture_grid
    return get_encoder(config.encoder, config.encoder_weights, tokens=grid, device=device)


def target_stage(config: ModelConfig, first_stage: FirstStage) -> FirstStage:
    """Between targets and latents: the first stage of the H&E for pictures in colour, blocks of pixels for channels."""
    if config.target.colour:
        return first_stage
    stage = PixelFirstStage(config.pixel_factor, config.target.width)
    stage.scaling = config.pixel_scale
    return stage


def shown_images(config: ModelConfig) -> int:
    """Channels per pixel of what a network sees beside the noisy target: the H&E and, where it is seen, the
    regression's answer."""
    return 3 + (config.target.width if config.see_mean and config.residual else 0)


def detail_head(config: ModelConfig) -> DetailHead | None:
    """The head of a network at full resolution, fresh."""
    if not config.detail:
        return None
    width = config.target.width
    inputs = 2 * width + shown_images(config)
    return DetailHead(config.pixel_factor, config.detail, channels=width, inputs=inputs)


def colour_skip(config: ModelConfig) -> ColourSkip | None:
    """The path of what colour alone tells, for a network that answers by itself; not fitted yet."""
    if not config.colour_start or config.residual:
        return None
    return ColourSkip(config.pixel_factor, config.target.width, config.pixel_scale, config.colour_degree)


class StainNetwork(nn.Module):
    """``network(x, t, image=…, context=…, label=…)`` → prediction shaped like ``x``.

    x: (B, C, h, w) noisy latent of the target. image: (B, C′, h, w) or (1, …) latent of the H&E (and of what a
    regression says of it), joined to x along channels; ``None`` means zeros (H&E generation, inversion). context:
    (B, T, D) tokens. label: (B,) stain labels, for a U-Net with a label embedding. mask: (B, T) bool, tokens that
    count.

    Parameters
    ----------
    latent:
        U-Net with twice the latent's channels.
    null:
        (1, L, D) context of the generation task; a parameter when it is learned.
    token_width:
        Width of the encoder's tokens; a projection is made when the U-Net's context is of another width.
    detail:
        Head that corrects the U-Net's output in pixel space.
    colours:
        What the colour of a pixel alone tells of the target; the rest of the network learns what is left over.
    """

    def __init__(
        self,
        latent: LatentUNet,
        *,
        null: Tensor | None = None,
        token_width: int = 0,
        learn_null: bool = True,
        detail: DetailHead | None = None,
        colours: ColourSkip | None = None,
    ) -> None:
        super().__init__()
        self.latent, self.detail, self.colours = latent, detail, colours
        width = latent.context_dim
        self.projection = nn.Linear(token_width, width) if width and token_width not in (0, width) else None
        if width and null is None:
            null = torch.zeros(1, 1, width)
        self.null: Tensor | None
        if null is None:
            self.register_parameter("null", None)
        elif learn_null:
            self.null = nn.Parameter(null.clone())
        else:
            self.register_buffer("null", null.clone())

    @property
    def channels(self) -> int:
        """Channels C of the latent."""
        return self.latent.out_channels

    @property
    def labelled(self) -> bool:
        """Whether the U-Net has a stain label."""
        return getattr(self.latent.unet, "class_embedding", None) is not None

    def enable_gradient_checkpointing(self, enabled: bool = True) -> None:
        """Recompute activations in the backward pass."""
        self.latent.enable_gradient_checkpointing(enabled)

    def project(self, tokens: Tensor) -> Tensor:
        """Encoder tokens (B, T, d) → context (B, T, D)."""
        tokens = tokens.to(self.latent.unet.dtype)
        return tokens if self.projection is None else self.projection(tokens)

    def contexts(self, tokens: Tensor | None, generate: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Context and mask of a batch in which ``generate`` (B,) bool items take the null context.

        ``tokens`` (B, T, d). A one-token null is repeated, which attention cannot tell from one; a longer
        null (text) pads the shorter of the two, and the mask says so.
        """
        if self.null is None:
            return None, None
        if tokens is None:
            return self.null.expand(len(generate), -1, -1), None
        own = self.project(tokens)
        null = self.null.to(own.dtype)
        if null.shape[1] == 1:
            return torch.where(generate[:, None, None], null.expand_as(own), own), None
        t, n = own.shape[1], null.shape[1]
        longest = max(t, n)
        own = nn.functional.pad(own, (0, 0, 0, longest - t))
        null = nn.functional.pad(null, (0, 0, 0, longest - n)).expand_as(own)
        at = torch.arange(longest, device=own.device)
        mask = at[None] < torch.where(generate, n, t)[:, None]
        return torch.where(generate[:, None, None], null, own), (None if t == n else mask)

    def forward(
        self,
        x: Tensor,
        t: Tensor | float,
        *,
        image: Tensor | None = None,
        context: Tensor | None = None,
        label: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        batch = len(x)
        if image is None:
            image = x.new_zeros(batch, self.latent.in_channels - x.shape[1], *x.shape[2:])
        image = image.expand(batch, -1, -1, -1).to(x.dtype)
        joined = torch.cat([x, image], dim=1)
        if joined.shape[1] != self.latent.in_channels:
            raise InputError(
                f"the network takes {self.latent.in_channels} channels, but latent and H&E have {joined.shape[1]}"
            )
        options: dict[str, Tensor | None] = {}
        if self.labelled:
            if label is None:
                raise InputError("this network needs a stain label", where="stain network")
            options["class_labels"] = label.expand(batch)
        if self.null is not None:
            if context is None:
                raise InputError("this network needs context tokens", where="stain network")
            options["encoder_hidden_states"] = context.expand(batch, -1, -1)
            options["encoder_attention_mask"] = mask
        time = torch.as_tensor(t, device=x.device).expand(batch)
        out = self.latent.unet(joined, time, **options).sample
        out = out if self.detail is None else self.detail(out, x, image)
        return out if self.colours is None else out + self.colours(image)


def add_labels(latent: LatentUNet, stains: Sequence[str]) -> None:
    """Give a U-Net a label embedding (in place), zero at first, so that it gives what it gave before.

    Label 0 is H&E generation, label i + 1 is ``stains[i]``.
    """
    unet = latent.unet
    width = unet.time_embedding.linear_2.out_features
    embedding = nn.Embedding(len(stains) + 1, width)
    nn.init.zeros_(embedding.weight)
    unet.class_embedding = embedding.to(unet.dtype)
    unet.register_to_config(num_class_embeds=len(stains) + 1)


def change_labels(latent: LatentUNet, before: Sequence[str], after: Sequence[str]) -> None:
    """Target stains ``after`` in place of ``before`` (in place).

    A stain that was known keeps its label; a new one starts as the mean of those known, so that it begins as
    a translation and not as noise.
    """
    old = latent.unet.class_embedding
    add_labels(latent, after)
    if old is None:
        return
    known = dict(zip(before, old.weight.detach()[HE + 1 :], strict=True))
    mean = old.weight.detach()[HE + 1 :].mean(0)
    rows = [old.weight.detach()[HE], *(known.get(stain, mean) for stain in after)]
    with torch.no_grad():
        latent.unet.class_embedding.weight.copy_(torch.stack(rows))
