"""What can be set about virtual staining: data, model, training, application, evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from morphogen.core.config import Config
from morphogen.core.errors import ConfigError
from morphogen.core.names import path_name
from morphogen.diffusion import sampler as diffusion
from morphogen.slides.recolouring import Normalise
from morphogen.stain.fitting.config import ObjectiveConfig
from morphogen.stain.scoring.config import EvaluateConfig as EvaluateConfig
from morphogen.stain.targets.config import TargetConfig
from morphogen.tasks.config import WindowConfig
from morphogen.training.config import TrainingConfig


class DataConfig(Config):
    """How H&E / IHC pairs are read, checked and cut."""

    crop: int = Field(
        128, ge=32, description="Side of the square training crops in pixels (512 in HistDiST)."
    )
    orient: bool = Field(True, description="Draw one of the 8 orientations (quarter turns, mirror) per crop.")
    mpp: float | None = Field(
        None, gt=0, description="µm per pixel of the training images; slides are read at it. null = unknown."
    )
    balance_stains: bool = Field(
        False,
        description="Draw every stain as often, however many pairs it has. With a few pairs of a new stain beside "
        "many of a known one, what is known is kept.",
    )
    skip_bad: bool = Field(False, description="Leave bad pairs out (counted and listed) instead of stopping.")
    register_pairs: Literal["none", "shift", "rigid", "affine"] = Field(
        "none",
        description="Register the two images of every pair and cut both to what they share: a shift in whole pixels "
        "(re-stained sections), a turn and a shift (serial sections), or with stretch and shear.",
    )

    @field_validator("register_pairs", mode="before")
    @classmethod
    def _was_a_switch(cls, value: Any) -> Any:
        """Models saved before there were several ways say yes or no."""
        return {True: "shift", False: "none"}.get(value, value) if isinstance(value, bool) else value

    max_shift: int = Field(
        32, ge=1, description="Largest shift in pixels that register_pairs: shift may find."
    )
    memory_gib: float = Field(
        2.0, ge=0, description="Decoded images kept in memory, GiB; the rest is read again."
    )
    target: TargetConfig | None = Field(
        None,
        description="What the second image of a pair is. null = as target.yaml beside the pairs says, else a picture "
        "in colour.",
    )
    stain_jitter: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Random changes of stain of the H&E crops: SD of the amounts, relative. 0 = none.",
    )
    cache_crops: int = Field(
        0,
        ge=0,
        description="Crops per pair whose latents and tokens are computed once and kept on disk. 0 = fresh crops.",
    )


def known_before(config: Config, *later: str) -> dict[str, Any]:
    """A configuration as plain values, without the settings ``later`` where they have their defaults."""
    values, defaults = config.to_dict(), type(config)().to_dict()
    return {key: value for key, value in values.items() if key not in later or value != defaults[key]}


class ModelConfig(Config):
    """What the network is; saved with it."""

    size: Literal["small", "paper"] = Field(
        "small",
        description="small: pixel space, minutes on a CPU. paper: Stable Diffusion 1.5 shape (HistDiST).",
    )
    stains: tuple[str, ...] = Field(
        ("IHC",),
        min_length=1,
        description="Target stains, in label order; more than one gives one model for all.",
    )
    encoder: str = Field(
        "texture",
        description="Token encoder of the H&E crop: texture, phikon, any name of `morphogen doctor`, timm:NAME, "
        "transformers:FOLDER, or none.",
    )
    encoder_weights: str | None = Field(None, description="Weights of the token encoder on disk.")
    texture_grid: int = Field(4, ge=1, description="Rows and columns of the texture encoder's token grid.")
    null_context: Literal["learned", "text"] = Field(
        "learned",
        description="Context of the H&E generation task: a learned token, or CLIP's states of 'H&E' (needs a start "
        "folder with a text encoder).",
    )
    pixel_factor: int = Field(4, ge=1, description="small: blocks of this side become channels of the U-Net.")
    pixel_scale: float = Field(
        1.0, gt=0, description="small: factor on pixels in -1…1 before noise is added."
    )
    detail: int = Field(
        0,
        ge=0,
        description="small: channels of a head at full resolution that sees across the borders of blocks. 0 = none.",
    )
    widths: tuple[int, ...] = Field(
        (64, 96, 128), min_length=1, description="small: channels per U-Net level."
    )
    layers: int = Field(1, ge=1, le=256, description="small: residual blocks per level.")
    attention: tuple[int, ...] = Field(
        (2,), description="small: U-Net levels (0 = finest) with cross-attention."
    )
    heads: int = Field(4, ge=1, description="small: attention heads.")
    groups: int = Field(8, ge=1, description="small: groups of the group norms.")
    prediction: Literal["auto", "v", "x0", "epsilon"] = Field(
        "auto",
        description="What the network puts out. v (paper) and x0 (small) go with zero terminal SNR and trailing "
        "steps; epsilon with the plain schedule and leading steps. auto = by size.",
    )
    regression: bool = Field(
        False,
        description="Train the same network as a plain regression (no noise, one evaluation): a baseline.",
    )
    residual: bool = Field(
        False,
        description="Diffuse what a regression of the same network leaves over (CorrDiff, arXiv 2309.15214) instead of "
        "the stain itself: samples then scatter around the regression's answer.",
    )
    residual_scale: float | None = Field(
        None,
        gt=0,
        description="Unit of what is left over, in latents. null = its standard deviation over "
        "objective.residual_spread, measured when training begins.",
    )
    target: TargetConfig = Field(
        default_factory=TargetConfig, description="What is made; taken from the data when training begins."
    )
    residual_knots: tuple[tuple[tuple[float, float], ...], ...] | None = Field(
        None,
        description="residual: of every channel of the target, answers of the regression and the unit there, in "
        "residual_scale. null = the same everywhere, or measured when training begins (objective.residual_knots).",
    )
    noise_shares: tuple[float, ...] | None = Field(
        None,
        description="Shares of the noise's variance in fields at scales of 1, 2, 4 … cells; the rest is white. null = "
        "all white, or measured when training begins (objective.noise_scales).",
    )
    balance: bool = Field(
        False,
        description="Divide every H&E by the colour of its glass first: scanners differ in it, tissue does not.",
    )
    normalise: Normalise = Field(
        "none",
        description="What every H&E is set to before it is looked at, by itself or by its slide: white glass; on white "
        "glass the same mean optical density of tissue (strength), or the same two stains (macenko).",
    )
    image_effects: tuple[tuple[tuple[float, float], ...], ...] | None = Field(
        None,
        min_length=1,
        description="residual: of images and every channel of the target, what an image makes of the regression's "
        "answer as a whole: offset and slope. Every sample takes those of one image. null = none, or measured when "
        "training begins (objective.image_effects).",
    )
    effect_spread: float = Field(
        1.0,
        ge=0,
        description="image_effects: factor on their distance from their mean (objective.effect_spread).",
    )
    colour_start: bool = Field(
        False,
        description="small, x0: begin as a polynomial of each pixel's colour, fitted to the training pairs; the "
        "network learns what it leaves over.",
    )
    colour_degree: int = Field(
        2, ge=1, le=4, description="Degree of that polynomial; 3 fits most stains better."
    )
    see_mean: bool = Field(
        False, description="residual: show the regression's answer to the network beside the H&E."
    )
    beta_start: float = Field(0.00085, gt=0, description="First beta of the scaled-linear schedule.")
    beta_end: float = Field(0.012, gt=0, description="Last beta of the scaled-linear schedule.")

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        for stain in self.stains:  # part of the names of slides that are written
            path_name(stain, "stain", suffix="_uncertainty.ome.tif", error=ConfigError)
        if len(set(self.stains)) != len(self.stains):
            raise ValueError(f"stains are {list(self.stains)}, but each may be named once")
        if any(level >= len(self.widths) for level in self.attention):
            raise ValueError(
                f"attention levels are {list(self.attention)}, but there are {len(self.widths)} widths"
            )
        if self.regression and self.residual:
            raise ValueError("a model is a regression or diffuses what one leaves over; set one of the two")
        if self.size == "paper" and not self.target.colour:
            raise ValueError("size 'paper' paints pictures in colour; channels need size 'small'")
        if self.colour_start and (self.size == "paper" or not (self.residual or self.output == "x0")):
            raise ValueError("colour_start needs size 'small' and an x0 network")
        if self.image_effects is not None and (not self.residual or self.target.colour):
            raise ValueError("image_effects need residual, and a target of channels")
        if any(len(each) != self.target.width for each in self.image_effects or ()):
            raise ValueError(f"image_effects have {self.target.width} channels, as the target has")
        if self.see_mean and not (self.residual or self.regression):
            raise ValueError("see_mean needs residual: there is no regression to be seen")
        if self.size == "small" and self.null_context == "text":
            raise ValueError(
                "null_context 'text' needs size 'paper', started from a folder with a text encoder"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """What a model is, for hashes: what models of before did not know is left out where it is the default."""
        later = ("target", "balance", "colour_start", "colour_degree", "see_mean", "noise_shares")
        newest = ("residual_knots", "normalise", "image_effects", "effect_spread")
        return known_before(self, *later, *newest) | {"encoder_weights": None}

    @property
    def seen(self) -> Normalise:
        """What an H&E is set to before it is looked at; ``balance`` is the older word for white glass."""
        return "white" if self.balance and self.normalise == "none" else self.normalise

    @property
    def output(self) -> Literal["v", "x0", "epsilon"]:
        """What the network puts out, by size where it is not said."""
        if self.prediction != "auto":
            return self.prediction
        return "v" if self.size == "paper" else "x0"


class TrainConfig(Config):
    """A training run of `morphogen stain train`."""

    data: DataConfig = Field(default_factory=DataConfig, description="Pairs and crops.")
    model: ModelConfig = Field(default_factory=ModelConfig, description="Network.")
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig, description="What is learned.")
    training: TrainingConfig = Field(
        default_factory=lambda: TrainingConfig(steps=1000), description="The loop."
    )
    start: str | None = Field(
        None,
        description="Folder to start from: Stable Diffusion (4 → 8 channels), HistDiST, or a stain model.",
    )
    mean: str | None = Field(
        None,
        description="model.residual: folder of the regression (trained with model.regression). null = it is trained "
        "first, into OUT/mean.",
    )
    mean_share: float = Field(
        0.5, gt=0, lt=1, description="model.residual: share of the steps that train the regression."
    )
    mean_lr: float | None = Field(
        None, gt=0, description="model.residual: learning rate of the regression. null = training.lr."
    )
    preview_pairs: int = Field(
        4, ge=1, description="Validation pairs shown in previews and scored in validation."
    )

    ALIASES: ClassVar[Mapping[str, str]] = {"seed": "training.seed", "size": "model.size"}

    @classmethod
    def preset(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The recipe of the size that is given, for the steps that are given."""
        model, training = (given.get(key) or {} for key in ("model", "training"))
        size = model.get("size", "small") if isinstance(model, Mapping) else "small"
        steps = training.get("steps") if isinstance(training, Mapping) else None
        residual = isinstance(model, Mapping) and bool(model.get("residual"))
        recipe = cls.recipe(
            size, steps if isinstance(steps, int) else None, residual or bool(given.get("mean"))
        )
        return recipe.model_dump(exclude={"start", "mean"})

    @classmethod
    def recipe(cls, size: str = "small", steps: int | None = None, residual: bool = False) -> TrainConfig:
        """The settings a size is trained with, unless others are chosen; the warm-up is at most a tenth of
        ``steps``. ``residual``: around a regression (:mod:`morphogen.stain.fitting.residual`), which knows the
        mean already.

        ``small``: minutes on a CPU. ``paper``: HistDiST, section 3 (batch 48 over 3 GPUs, 300 epochs of
        MIST).
        """
        if size == "paper":
            return cls(
                data=DataConfig(crop=512),
                model=ModelConfig(size="paper", encoder="phikon", null_context="text", residual=residual),
                objective=ObjectiveConfig(bias_he_ihc=0.5),
                training=TrainingConfig(
                    steps=steps or 26_000,
                    batch_size=48,
                    lr=1.5e-4,
                    weight_decay=1e-2,
                    warmup_steps=min(1000, (steps or 26_000) // 10),
                    lr_schedule="cosine",
                    ema_decay=0.0,
                    save_every=4000,
                ),
            )
        return cls(
            data=DataConfig(crop=128),
            model=ModelConfig(detail=16, residual=residual),
            objective=ObjectiveConfig(bias_he_ihc=0.05, last_step_share=0.1 if residual else 0.4),
            training=TrainingConfig(
                steps=steps or 1000,
                batch_size=8,
                lr=8e-4,
                weight_decay=1e-2,
                warmup_steps=min(50, (steps or 1000) // 10),
                lr_schedule="cosine",
                ema_decay=0.995,
                save_every=250,
            ),
        )


class SamplerConfig(diffusion.SamplerConfig):
    """How an image is made: the sampler of the diffusion core, and the inversion of HistDiST.

    ``reference`` is HistDiST (100-step inversion, standardised, then 100 DDIM steps with the cosine eta); ``fast`` a
    few second-order steps from position-keyed noise; ``mean`` one evaluation.
    """

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "reference": {
            "solver": "ddim",
            "steps": 100,
            "spacing": "model",
            "inversion_steps": 100,
            "eta": "cosine",
            "final": "first",
        },
        "fast": {},
        "mean": {"solver": "mean", "steps": 1},
    }

    steps: int = Field(10, ge=1, description="Translation steps.")
    inversion_steps: int = Field(
        0,
        ge=0,
        description="DDIM inversion steps of the H&E image for the starting noise. 0 = start from noise.",
    )
    standardise: Literal["end", "never", "steps"] = Field(
        "end", description="Standardise the inverted latent per channel: at the end, never, or at every step."
    )
    eta: float | str = Field(
        "cosine",
        description="DDIM noise: cosine (0.6−0.4cos), cosine-narrow (0.55−0.45cos), cosine-wide "
        "(0.65−0.35cos), linear, or a number 0…1.",
    )


class ApplyConfig(Config):
    """A run of `morphogen stain predict`."""

    sampler: SamplerConfig = Field(default_factory=SamplerConfig, description="How images are made.")
    windows: WindowConfig = Field(default_factory=WindowConfig, description="Windows of large images.")
    samples: int = Field(
        1, ge=1, description="Samples per image; with 2 or more the mean and the uncertainty too."
    )
    antithetic: bool = Field(
        True,
        description="Samples in pairs of opposite noise: each is as good as before and their mean nearer to that of "
        "endless samples (a fifth to a half of the variance). false = independent samples.",
    )
    mean_weight: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Models of residuals: weight of the samples in their mean; the rest is the regression's answer.",
    )
    sample_spread: float = Field(
        1.0,
        gt=0,
        description="Models of residuals: factor on the samples' distance from the regression's answer, where held-out "
        "pairs show that they lie too close together or too far apart.",
    )
    effect_spread: float = Field(
        1.0,
        ge=0,
        description="Models with image_effects: factor on the effects' distance from their mean beside the model's, "
        "where new images are less alike than training images: another scanner, another organ.",
    )
    show: Literal["sample", "mean"] = Field(
        "sample", description="What the main image is with several samples: one sample (sharp) or their mean."
    )
    stain: str | None = Field(None, description="Target stain of a model with several. null = its only one.")
    mpp: float | None = Field(None, gt=0, description="µm per pixel of the input, if its file does not say.")
    seed: int = Field(0, ge=0, description="Seed of all noise.")
    quality: int = Field(90, ge=1, le=100, description="JPEG quality of pyramid tiles and of .jpg outputs.")


def plain(config: Config) -> dict[str, Any]:
    """The configuration as plain values, for result files."""
    return config.model_dump(mode="json")
