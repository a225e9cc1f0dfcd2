"""What can be set in the layout room (no torch here: the command line reads it)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from morphogen.core.config import Config
from morphogen.nets.layout.config import LayoutNetworkConfig, SegmenterConfig, StyleConfig
from morphogen.tasks.config import ByChannel, Whitening
from morphogen.training.config import TrainingConfig

StyleSampling = Literal["none", "augmented", "nearby", "mp"]
Edit = Annotated[
    Literal["sdedit", "cyclediffusion"],
    Field(
        description="How an image of a layout becomes one of another style. cyclediffusion (Wu & De la Torre 2023): it "
        "changes by what the network sees its own style and the other differ in; what the network cannot draw is kept. "
        "sdedit (Meng et al. 2022): what the noise hid is drawn anew."
    ),
]


class DataConfig(Config):
    """Which images are annotated, which only lend their style, and how crops are drawn of them."""

    crop: int = Field(128, gt=0, description="Side of a crop in pixels.")
    mpp: float | None = Field(
        None, gt=0, description="µm per pixel of the crops. None: images as they are, slides at level 0."
    )
    classes: tuple[str, ...] = Field(
        (),
        description="Classes that are kept, in this order; all others are background. Empty: all that are named.",
    )
    patient: str | None = Field(
        None,
        description="Regular expression whose first group in a file's name is the patient, where no patients.csv "
        "names them.",
    )
    annotated: tuple[str, ...] = Field(
        (),
        description="Patients whose masks are used; those of others are not looked at. Empty: all with masks.",
    )
    test: tuple[str, ...] = Field((), description="Patients left out of everything but the evaluation.")
    class_train_samples: int | None = Field(
        None,
        gt=0,
        description="Annotated images (or slides) kept per class; the rest lends its style. None: all.",
    )
    ratios: tuple[float, float] = Field(
        (0.5, 0.5),
        description="Shares of annotated and unannotated crops in a batch; a share of 0 leaves them out.",
    )
    balance: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of crops drawn around a pixel of a foreground class (class, then image, then place, each "
        "uniform); the rest is drawn anywhere.",
    )
    sampling: StyleSampling = Field(
        "nearby",
        description="Where style images come from. none: black images. augmented: the crop itself, deformed. nearby: "
        "the same image, moved. mp: random tissue cells of the same patient.",
    )
    style_images: int = Field(1, gt=0, description="Style images per item; more than 1 with mp alone.")
    relative_distance: float = Field(1.0, gt=0, description="nearby: largest shift per axis, in crops.")
    stain_shift: float = Field(
        0.0,
        ge=0,
        description="Size of a random change of colour that a crop and its style images share: the colour can then "
        "only be learned from the style images. 0.1 is moderate.",
    )
    focus_shift: float = Field(
        0.0,
        ge=0,
        description="Largest SD in pixels of a blur that a crop and its style images share, in half of the draws: "
        "the focus, too, can then only be learned from the style images.",
    )

    @model_validator(mode="after")
    def _fits(self) -> DataConfig:
        if self.style_images > 1 and self.sampling != "mp":
            raise ValueError(f"style_images is {self.style_images}, but {self.sampling} gives 1")
        if min(self.ratios) < 0 or not sum(self.ratios):
            raise ValueError("ratios must not be negative, and not both 0")
        return self


class ModelConfig(Config):
    """What the model is: network, first stage, noise schedule."""

    classes: tuple[str, ...] = Field(
        ("background", "foreground"), min_length=2, description="Names of the classes, background first."
    )
    network: LayoutNetworkConfig = Field(description="U-Net, layout mapper, style encoder.")
    prediction: Literal["epsilon", "x0", "v"] = Field("x0", description="What the network predicts.")
    beta_start: float = Field(0.0015, gt=0, lt=1, description="Noise schedule, √β linear from here …")
    beta_end: float = Field(0.0205, gt=0, lt=1, description="… to here.")
    crop: int = Field(128, gt=0, description="Side in pixels of the crops it is trained on.")
    mpp: float | None = Field(None, description="µm per pixel of these crops.")
    sampling: StyleSampling = Field("nearby", description="Where its style images came from.")
    style_images: int = Field(1, gt=0, description="Style images per item in training.")

    @classmethod
    def sized(
        cls,
        size: Literal["paper", "base", "small", "tiny"] = "small",
        classes: tuple[str, ...] = ("background", "foreground"),
        **changes: Any,
    ) -> ModelConfig:
        """A size: ``paper`` is STEDM's network over VQ-f4 (235 M); ``base`` (about 60 M) one GPU and ten minutes;
        ``small`` (2.6 M) a CPU; ``tiny`` tests. The last three work on blocks of pixels and predict x0: after a
        short training v leaves visible noise in the pixels."""
        count = len(classes)
        if size == "paper":
            images = int(changes.get("style_images", 1))
            network = LayoutNetworkConfig(
                latent_channels=3,
                factor=4,
                classes=count,
                widths=(128, 512, 1024),
                layers=2,
                heads=8,
                groups=32,
                layout_channels=3,
                layout_by="mean",
                style=StyleConfig(encoder="swin", width=512, images=images),
                style_in="middle",  # as the checkpoint it starts from
            )
            return cls(classes=classes, network=network, prediction="epsilon", **{"crop": 512, **changes})
        widths, layers, style, layout, factor, detail = _SIZES[size]
        network = LayoutNetworkConfig(
            latent_channels=3 * factor**2,
            factor=factor,
            classes=count,
            widths=widths,
            layers=layers,
            layout_channels=layout,
            style=style,
            detail=detail,
        )
        return cls(classes=classes, network=network, **changes)


_SIZES: dict[str, tuple[tuple[int, ...], int, StyleConfig, int, int, int]] = {
    "base": ((128, 256, 384), 2, StyleConfig(width=512, channels=(64, 128, 192, 256)), 32, 4, 24),
    "small": ((32, 48, 64, 96), 1, StyleConfig(width=128, channels=(24, 48, 64, 96)), 16, 2, 0),
    "tiny": ((16, 32), 1, StyleConfig(width=32, channels=(8, 16)), 8, 4, 8),
}
"""Size → widths, residual blocks per level, style, layout channels, side of a block of pixels, detail channels."""


class ObjectiveConfig(Config):
    """The loss and what is dropped in training."""

    style_drop: float = Field(
        0.15, ge=0, le=1, description="Share of items whose style is not told, for guidance."
    )
    layout_drop: float = Field(
        0.0, ge=0, le=1, description="Share of annotated items whose layout is not told."
    )
    loss: Literal["l1", "mse"] = Field("mse", description="Distance of the prediction (STEDM: l1).")
    x0_weight: float = Field(
        5.0, gt=0, description="Largest weight of nearly clean items in the loss of an x0-predicting network."
    )
    by_channel: ByChannel = False


class TrainConfig(Config):
    """Everything about one training."""

    size: Literal["paper", "base", "small", "tiny"] = Field("small", description="Size of the network.")
    network: dict[str, Any] = Field({}, description="Changes to the size's network, by setting.")
    data: DataConfig = Field(DataConfig(), description="Which images, and how crops are drawn.")
    objective: ObjectiveConfig = Field(ObjectiveConfig(), description="The loss.")
    training: TrainingConfig = Field(
        TrainingConfig(
            steps=2000,
            batch_size=10,
            lr=8e-4,
            lr_schedule="cosine",
            ema_decay=0.998,
            save_every=100,
        ),
        description="The loop.",
    )
    start: str | None = Field(
        None,
        description="Weights to start from: a model of this room, or the CompVis landscape checkpoint (size paper).",
    )
    first_stage: Literal["components", "pixels"] = Field(
        "components",
        description="What is diffused in sizes base, small and tiny: principal components of blocks of pixels, fitted "
        "to the training crops, or the blocks themselves.",
    )
    whitening: Whitening = 0.5
    train_style: bool = Field(
        True,
        description="Train style encoder and aggregator. Off is an ablation: STEDM's code never trains them.",
    )

    @model_validator(mode="after")
    def _of_x0(self) -> TrainConfig:
        if self.objective.by_channel and (self.size == "paper" or self.objective.loss != "mse"):
            raise ValueError(
                "objective.by_channel is for networks that predict x0 (not size paper) and loss mse"
            )
        return self

    @classmethod
    def preset(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The loop of the size that is given, for the steps that are given: STEDM's batch of 64 for ``paper``. For the
        other sizes also what makes a short training learn the style (docs/layout.md): two style images from anywhere on
        the patient, and colour and focus that only they tell. ``--style-sampling`` other than mp is taken alone."""
        training, data = given.get("training") or {}, given.get("data") or {}
        told = training.get("steps") if isinstance(training, Mapping) else None
        size = str(given.get("size", "small"))
        preset: dict[str, Any] = {
            "training": cls.loop(size, told if isinstance(told, int) else None).to_dict()
        }
        if size != "paper" and isinstance(data, Mapping) and data.get("sampling", "mp") == "mp":
            preset["data"] = {"sampling": "mp", "style_images": 2, "stain_shift": 0.2, "focus_shift": 1.0}
        return preset

    @classmethod
    def loop(cls, size: str = "small", steps: int | None = None) -> TrainingConfig:
        """The loop of a size for so many steps."""
        most, batch, lr = _LOOPS.get(size, _LOOPS["small"])
        steps = most if steps is None or steps < 1 else steps
        return TrainingConfig(
            steps=steps,
            batch_size=batch,
            lr=lr,
            warmup_steps=min(100, steps // 10),
            lr_schedule="constant" if size == "paper" else "cosine",
            ema_decay=0.9999 if size == "paper" else 0.998,
            save_every=100,
        )


_LOOPS = {
    "paper": (20_000, 64, 1e-4),
    "base": (20_000, 32, 2e-4),
    "small": (2000, 10, 8e-4),
    "tiny": (200, 8, 1e-3),
}
"""Size → steps, batch size, learning rate."""


class SynthesisConfig(Config):
    """What is synthesised."""

    count: int = Field(500, gt=0, description="Images to make.")
    pairing: Literal["quota", "random", "density"] = Field(
        "quota",
        description="Layout × style. quota: every patient that lends its style gives the same number. random: drawn. "
        "density: quota, with the layout whose share of foreground is nearest to what a segmenter finds in the style.",
    )
    layouts: Literal["affine", "annotated"] = Field(
        "annotated",
        description="annotated: layouts as they are, flipped. affine: turned, scaled and sheared, too, as STEDM does: "
        "new ones, of images that were interpolated and whose nuclei have other sizes, which costs a segmenter more "
        "than it gives (docs/layout.md).",
    )
    style_images: int | None = Field(None, gt=0, description="Style images per image; None: as in training.")
    strength: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of the noise that sampling begins with, on the annotated image of the layout in the stain "
        "colours of the style. 1: noise alone. None: as the sampler says.",
    )
    edit: Edit | None = Field(None, description="cyclediffusion or sdedit; None: as the sampler says.")
    focus: bool = Field(
        True,
        description="The annotated image that sampling begins at is blurred or sharpened to the style's focus, too.",
    )
    guidance: float | None = Field(
        None, ge=0, description="Guidance towards the style; None: as the sampler says."
    )
    batch: int = Field(16, gt=0, description="Images at a time.")
    seed: int = Field(0, ge=0, description="Seed of every draw.")
    agreement: float | None = Field(
        0.2,
        ge=0,
        lt=1,
        description="Quantile of a real-trained segmenter's IoU on held-out real images below which a synthetic image "
        "is left out; None: no filter.",
    )
    flag_below: float = Field(
        0.2, ge=0, le=1, description="Kept share below which a patient's style is reported as not learned."
    )


class SegmentConfig(Config):
    """Training of a segmentation network."""

    network: SegmenterConfig = Field(SegmenterConfig(), description="The network.")
    data: DataConfig = Field(DataConfig(), description="Which images, and how crops are drawn.")
    synthetic_ratio: float = Field(
        0.5, ge=0, le=1, description="Share of synthetic crops in a batch, where there are synthetic images."
    )
    ratios: tuple[float, ...] = Field(
        (), description="Shares for a sweep: one network each, with the same steps."
    )
    ce: float = Field(0.5, ge=0, description="Weight of the cross-entropy (STEDM: 0.1).")
    dice: float = Field(0.5, ge=0, description="Weight of the Dice loss (STEDM: 0.9).")
    overlap: int = Field(
        0, ge=0, description="Border in pixels that the loss does not look at (STEDM: 64 of 512)."
    )
    stain_augment: float = Field(
        0.15, ge=0, description="Size of random changes of colour, per crop, real or synthetic. 0: none."
    )
    training: TrainingConfig = Field(
        TrainingConfig(
            steps=1200,
            batch_size=12,
            lr=3e-3,
            lr_schedule="cosine",
            weight_decay=1e-2,
            ema_decay=0.99,
            save_every=300,
        ),
        description="The loop.",
    )
