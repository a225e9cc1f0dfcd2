"""What can be set about the networks of the layout room (no torch here: the command line reads it)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from morphogen.core.config import Config


class StyleConfig(Config):
    """Style images to one style vector: an encoder of each image and an aggregator over the set."""

    encoder: Literal["swin", "small", "none"] = Field(
        "small",
        description="swin: torchvision's Swin-V2-T (STEDM). small: convolutions pooled to mean and SD, about "
        "1 M parameters. none: the aggregator reads the images (svit), or there is no style at all.",
    )
    aggregator: Literal["mean", "max", "linear", "svit", "attention", "none"] = Field(
        "attention",
        description="mean, max, linear, svit: those of STEDM. attention: one learned query over any number of "
        "images. none: the style vector is zero.",
    )
    width: int = Field(256, gt=0, description="Width of the style vector.")
    images: int = Field(
        1, gt=0, description="Style images per item; linear and svit are built for this number."
    )
    swin_width: int = Field(96, gt=0, description="Channels of the Swin's first stage.")
    swin_depths: tuple[int, ...] = Field((2, 2, 6, 2), description="Blocks per stage of the Swin.")
    swin_heads: tuple[int, ...] = Field((3, 6, 12, 24), description="Heads per stage of the Swin.")
    swin_window: int = Field(8, gt=0, description="Side of the Swin's attention windows, in tokens.")
    channels: tuple[int, ...] = Field(
        (32, 64, 128, 192), description="Channels per stage of the small encoder; each stage halves the side."
    )
    svit_side: int = Field(
        512, gt=0, description="Side of the svit's images in pixels (its positions are learned)."
    )
    svit_patch: int = Field(8, gt=0, description="Side of the svit's patches in pixels.")
    svit_width: int = Field(256, gt=0, description="Token width of the svit.")
    svit_depth: int = Field(6, gt=0, description="Blocks of the svit.")
    svit_heads: int = Field(12, gt=0, description="Heads of 64 of the svit.")
    svit_mlp: int = Field(256, gt=0, description="Hidden width of the svit's MLPs.")

    @model_validator(mode="after")
    def _fits(self) -> StyleConfig:
        if len(self.swin_depths) != len(self.swin_heads):
            raise ValueError("swin_depths and swin_heads have different lengths")
        if self.aggregator == "svit" and self.svit_side % self.svit_patch:
            raise ValueError(f"svit_side {self.svit_side} is no multiple of svit_patch {self.svit_patch}")
        if self.encoder == "none" and self.aggregator not in ("svit", "none"):
            raise ValueError(f"the aggregator {self.aggregator} needs an encoder")
        return self


class LayoutNetworkConfig(Config):
    """The U-Net that is told a layout and a style. The class methods are the sizes."""

    latent_channels: int = Field(gt=0, description="Channels of the latent that is diffused.")
    factor: int = Field(gt=0, description="Image pixels per latent cell along one side.")
    classes: int = Field(2, ge=2, description="Classes of the layout, background included.")
    widths: tuple[int, ...] = Field((64, 128, 192), description="Channels per level, from the finest.")
    layers: int = Field(1, gt=0, description="Residual blocks per level.")
    heads: int = Field(4, gt=0, description="Heads of the middle attention.")
    groups: int = Field(16, gt=0, description="Groups of the group norms; must divide every width.")
    style: StyleConfig = Field(StyleConfig(), description="Encoder and aggregator of the style images.")
    style_in: Literal["middle", "everywhere"] = Field(
        "everywhere",
        description="middle: one residual block of the middle is told the style (STEDM). everywhere: the style "
        "is also added to the embedding of time, which every residual block reads as scale and shift, and to the "
        "output as a colour for all of it.",
    )
    detail: int = Field(
        0,
        ge=0,
        description="Channels of two convolutions at pixel resolution that correct the output, for a first stage of "
        "pixels. 0: none.",
    )
    layout_channels: int = Field(16, gt=0, description="Channels of the layout beside the latent.")
    layout_by: Literal["mean", "blocks"] = Field(
        "blocks",
        description="Layout at the latent's grid: mean over the pixels of a cell (STEDM), or blocks: all pixels "
        "of a cell as channels, so that borders keep their place.",
    )
    binarise: bool = Field(
        False, description="Classes 1 and above as one, as in STEDM's code; otherwise every class is told."
    )
    border: bool = Field(False, description="One more layout channel: distance to the nearest border.")
    learned_null: bool = Field(
        True,
        description="The style of the unconditional half is a learned vector; off: the encoding of style images "
        "filled with −2, as in STEDM's code.",
    )

    @model_validator(mode="after")
    def _fits(self) -> LayoutNetworkConfig:
        for width in self.widths:
            if width % self.groups:
                raise ValueError(f"width {width} is no multiple of groups {self.groups}")
        if self.widths[-1] % self.heads:
            raise ValueError(f"width {self.widths[-1]} is no multiple of heads {self.heads}")
        if self.detail and self.latent_channels != 3 * self.factor**2:
            raise ValueError("a detail head needs a first stage of pixels")
        if self.binarise and self.border:
            raise ValueError("a binarised layout has no border channel")
        return self

    @property
    def planes(self) -> int:
        """Layout planes at pixel resolution: a map per class, and the distance to the border."""
        return self.classes + self.border


class SegmenterConfig(Config):
    """The network that labels pixels."""

    architecture: str = Field(
        "small",
        description="small: a U-Net of this package. Otherwise a network of segmentation-models-pytorch: Unet "
        "(STEDM), UnetPlusPlus, FPN, DeepLabV3Plus, Segformer …",
    )
    encoder: str = Field(
        "mit_b2", description="Encoder of a segmentation-models-pytorch network (not of small)."
    )
    encoder_weights: str | None = Field(
        None, description="Pre-trained weights of that encoder, by name (imagenet); none: fresh weights."
    )
    widths: tuple[int, ...] = Field((24, 48, 96), description="Channels per level of the small network.")
    block: int = Field(
        2,
        gt=0,
        description="Side in pixels of the blocks that the small network sees as one place; 1: every pixel.",
    )
    norm: Literal["instance", "batch"] = Field(
        "instance",
        description="Normalisation in the small network. instance: by the statistics of each image, so that stains "
        "that training did not see are labelled alike. batch: by those of the training images.",
    )
    classes: int = Field(2, ge=2, description="Classes, background included.")
