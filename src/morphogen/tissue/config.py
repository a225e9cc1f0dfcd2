"""What can be set about tissue from embeddings: data, network, objective, training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from morphogen.core.config import Config
from morphogen.core.errors import ConfigError, nearest
from morphogen.tasks.config import ByChannel, Whitening
from morphogen.tissue.sampling import TissueSampler
from morphogen.training.config import TrainingConfig

Size = Literal["paper", "base", "small", "tiny"]
Layout = Literal["auto", "images", "h5ad", "crc", "brca-patch", "brca-ibot", "brca-two", "naip"]


class DataConfig(Config):
    """How tiles and their embeddings are found, cut and split."""

    tile_px: int = Field(256, ge=16, description="Side of a tile in pixels: what the model draws at once.")
    tile_mpp: float = Field(0.5, gt=0.01, le=100, description="µm per pixel of the tiles.")
    stride: int | None = Field(
        None,
        ge=1,
        description="Pixels from one tile to the next where images are cut here; fewer than tile_px overlap. "
        "null = tile_px.",
    )
    mpp: float | None = Field(
        None, gt=0, description="µm per pixel of input files that do not say. null = they must say."
    )
    layout: Layout = Field(
        "auto",
        description="What the input folder holds: images (tiles, regions or slides), an h5ad table, or one of the five "
        "folders of the published code. auto = by the files that lie there.",
    )
    magnification: Literal["20x", "10x", "5x"] = Field(
        "20x", description="Published layouts: which magnification's list and features are read."
    )
    encoder: str = Field(
        "texture", description="Encoder of tiles that are cut here, or whose features a slide's store holds."
    )
    encoder_weights: str | None = Field(None, description="Weights of that encoder on disk.")
    hold_out: float = Field(
        0.1, ge=0, lt=1, description="Share of the groups that is kept out of training, for validation."
    )
    hold_out_groups: tuple[str, ...] = Field(
        (), description="Groups held out by name, in place of a share drawn from the seed."
    )
    group: Literal["patient", "slide", "folder"] = Field(
        "patient",
        description="What is held out as a whole: patients (of a TCGA name or a table's column; the image's own name "
        "where there is neither), slides or images, or the folders they lie in.",
    )
    flip: bool = Field(
        True,
        description="Mirror each axis of a tile with probability one half. Its embedding is that of the tile as it "
        "lies: an encoder that hardly sees orientation is assumed.",
    )
    turn: bool = Field(
        False,
        description="Swap the axes of a tile with probability one half; with flip, all eight positions of a square.",
    )
    min_tissue: float = Field(
        0.1, ge=0, le=1, description="Images cut here: least share of a tile that is not background."
    )
    memory_gib: float = Field(
        2.0, ge=0, description="Decoded tiles kept in memory, GiB; beyond it they are read again."
    )
    trust: bool = Field(
        False, description="Read pickled lists of the published layouts, by a reader that imports nothing."
    )


class ModelConfig(Config):
    """What the network is; saved with it."""

    size: Size = Field("small", description="Preset that the other settings of this section come from.")
    first_stage: Literal["components", "pixels", "vq", "kl"] = Field(
        "components",
        description="What is diffused: principal components of blocks of pixels, fitted to the training tiles; the "
        "blocks themselves; or latents of a VQ or KL autoencoder.",
    )
    autoencoder: str | None = Field(
        None, description="first_stage vq or kl: CompVis file or diffusers folder of its weights."
    )
    pixel_factor: int = Field(4, ge=1, description="components, pixels: blocks of this side become channels.")
    components: int | None = Field(
        None, ge=1, description="components: how many are kept. null = all, 3 · pixel_factor²."
    )
    whitening: Whitening = 0.5
    pixel_scale: float = Field(
        1.0, gt=0, description="pixels: factor on pixels in -1…1 before noise is added."
    )
    detail: int = Field(
        16, ge=0, description="pixels: channels of a head at full resolution across the borders of blocks."
    )
    widths: tuple[int, ...] = Field((64, 128, 192), min_length=1, description="Channels per U-Net level.")
    layers: int = Field(1, ge=1, description="Residual blocks per level.")
    attention: tuple[int, ...] = Field((2,), description="U-Net levels (0 = finest) with transformer blocks.")
    heads: int = Field(4, ge=1, description="Attention heads.")
    groups: int = Field(16, ge=1, description="Groups of the group norms.")
    token_width: int = Field(128, ge=1, description="Width of a representation token.")
    film: bool = Field(
        True,
        description="Tokens also enter beside the time and scale the residual blocks. false = cross-attention alone.",
    )
    embeddings: dict[str, int] = Field(
        default_factory=dict,
        description="Width of each embedding, in token order: patch alone, or patch and region. Filled from the data.",
    )
    encoder: str | None = Field(
        None, description="Encoder the embeddings are of; what is drawn is held against it."
    )
    encoder_weights: str | None = Field(None, description="Weights of that encoder on disk.")
    features: Literal["normalise", "standardise", "standardise+normalise"] = Field(
        "standardise",
        description="What is done to an embedding first: length one (published), columns of mean 0 and SD 1 over the "
        "training tiles, or both.",
    )
    feature_limit: float | None = Field(
        5.0,
        gt=0,
        description="Standardised embeddings are cut to plus and minus this many SD, so that a column that hardly "
        "varies in training cannot outweigh all others elsewhere. null = not cut.",
    )
    unit_features: bool = Field(
        True, description="Entries of a normalised embedding have root mean square 1, not length 1."
    )
    prediction: Literal["x0", "v", "epsilon"] = Field("x0", description="What the network puts out.")
    beta_start: float = Field(0.0015, gt=0, description="First beta of the scaled-linear schedule.")
    beta_end: float = Field(0.0195, gt=0, description="Last beta of the scaled-linear schedule.")
    zero_snr: bool = Field(True, description="Rescale the schedule to zero terminal signal-to-noise ratio.")

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if any(level >= len(self.widths) for level in self.attention):
            raise ValueError(
                f"attention levels are {list(self.attention)}, but there are {len(self.widths)} widths"
            )
        if self.prediction == "epsilon" and self.zero_snr:
            raise ValueError("an epsilon network needs zero_snr false")
        unknown = [name for name in self.embeddings if name not in ("patch", "region")]
        if unknown:
            raise ValueError(f"embeddings are named patch and region, not {unknown[0]}")
        return self

    @classmethod
    def of(cls, size: Size, **changes: Any) -> ModelConfig:
        """The preset of a size.

        ``paper``: Graikos et al. (CVPR 2024), 401 M parameters in VQ latents. ``base``: 80 M, for one GPU.
        ``small``: 9 M in components of blocks of 2 px, trains on a CPU. ``tiny``: for tests.
        """
        return cls(**{"size": size, **_SIZES[size], **changes})


SMALL_STEPS = 4600
"""36,800 tiles of 64 px: 42 minutes of one core."""
_LATENT = {"pixel_factor": 4, "detail": 0, "groups": 32, "token_width": 512}
_SIZES: dict[str, dict[str, Any]] = {
    "paper": {
        **_LATENT,
        "first_stage": "vq",
        "widths": (192, 384, 576, 960),
        "layers": 2,
        "attention": (1, 2, 3),
        "heads": 1,
        "film": False,
        "features": "normalise",
        "unit_features": False,
        "prediction": "epsilon",
        "zero_snr": False,
    },
    "base": {
        **_LATENT,
        "widths": (128, 192, 288, 384),
        "layers": 2,
        "attention": (2, 3),
        "heads": 8,
        "detail": 24,
    },
    "small": {"pixel_factor": 2, "widths": (48, 96, 192)},
    "tiny": {
        "first_stage": "pixels",
        "widths": (16, 32),
        "attention": (1,),
        "heads": 2,
        "groups": 8,
        "token_width": 16,
        "detail": 4,
    },
}


class ObjectiveConfig(Config):
    """What is learned."""

    p_uncond: float = Field(
        0.1, ge=0, lt=1, description="Probability that an embedding is dropped (each token by itself)."
    )
    p_both: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Two tokens: probability that both are dropped together, which guidance needs.",
    )
    min_snr_gamma: float | None = Field(
        None, gt=0, description="Weight losses by min-SNR with this gamma. null = no such weight."
    )
    x0_weight: float = Field(
        5.0, ge=1, description="x0 networks: the error counts as that in v, 1/sigma², but at most this much."
    )
    by_channel: ByChannel = False

    @model_validator(mode="after")
    def _one_weight(self) -> ObjectiveConfig:
        if self.by_channel and self.min_snr_gamma is not None:
            raise ValueError("by_channel and min_snr_gamma are two weights; choose one")
        return self


class TrainConfig(Config):
    """A training run of `morphogen tissue train`."""

    data: DataConfig = Field(default_factory=DataConfig, description="Tiles and embeddings.")
    model: ModelConfig = Field(default_factory=ModelConfig, description="Network.")
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig, description="What is learned.")
    training: TrainingConfig = Field(
        default_factory=lambda: TrainingConfig(steps=1500), description="The loop."
    )
    init: str | None = Field(
        None,
        description="Weights the U-Net starts from: a CompVis .ckpt (cin256-v2, a tissue model), a diffusers folder, "
        "or a tissue model of ours. At least 95 % of the parameters must match.",
    )
    preview_tiles: int = Field(8, ge=1, description="Held-out tiles drawn again in previews and validation.")

    ALIASES: ClassVar[Mapping[str, str]] = {"seed": "training.seed", "size": "model.size"}

    @model_validator(mode="after")
    def _of_x0(self) -> TrainConfig:
        if self.objective.by_channel and self.model.prediction != "x0":
            raise ValueError(
                f"objective.by_channel is for networks that predict x0, not {self.model.prediction}"
            )
        return self

    @classmethod
    def preset(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The recipe of the size that is given, for the steps that are given."""
        model, training = (given.get(key) or {} for key in ("model", "training"))
        size: Any = model.get("size", "small") if isinstance(model, Mapping) else "small"
        steps = training.get("steps") if isinstance(training, Mapping) else None
        if size not in _SIZES:
            raise ConfigError(f"unknown size '{size}'.{nearest(str(size), _SIZES)}", where="--size")
        recipe = cls.recipe(size, steps if isinstance(steps, int) else None).model_dump(exclude={"init"})
        objective = given.get("objective") or {}
        predicts = model.get("prediction", "x0") if isinstance(model, Mapping) else "x0"
        if predicts != "x0" or (
            isinstance(objective, Mapping) and objective.get("min_snr_gamma") is not None
        ):
            recipe["objective"]["by_channel"] = False  # another weight was chosen
        return recipe

    @classmethod
    def recipe(cls, size: Size = "small", steps: int | None = None) -> TrainConfig:
        """What a size is trained with, unless other settings are chosen.

        ``paper``: Graikos et al. 2024 (AdamW 1e-4, weight decay 1e-2, 1000 steps of warm-up), with an average of the
        weights and clipping, which the published code has not.
        """
        if size in ("paper", "base"):
            steps = steps or (100_000 if size == "paper" else 30_000)
            training = TrainingConfig(
                steps=steps,
                batch_size=96 if size == "paper" else 64,
                optimizer="adamw",
                lr=1e-4 if size == "paper" else 2e-4,
                weight_decay=1e-2,
                warmup_steps=min(1000, max(1, steps // 10)),
                ema_decay=0.9999 if size == "paper" else 0.999,
                gradient_checkpointing=size == "paper",
                save_every=5000,
            )
            return cls(model=ModelConfig.of(size), training=training)
        small = size == "small"
        steps = steps or (SMALL_STEPS if small else 20)
        training = TrainingConfig(
            steps=steps,
            batch_size=8 if small else 4,
            lr=1e-3 if small else 6e-4,
            weight_decay=1e-2,
            warmup_steps=min(100 if small else 50, steps // 10),
            lr_schedule="cosine",
            ema_decay=0.998 if steps > 3000 else 0.995,
            save_every=250,
        )
        data = DataConfig(tile_px=64 if small else 32, tile_mpp=1.0, stride=32 if small else None, turn=small)
        # Weighted like v, up to 5 or 40, a network of this size leaves out what is finer than a nucleus.
        objective = ObjectiveConfig(by_channel=small)
        return cls(data=data, model=ModelConfig.of(size), objective=objective, training=training)


GUIDANCE = {"encoder_guidance": "sampler.encoder_guidance"}


class PatchesConfig(Config):
    """A run of `morphogen tissue patches`."""

    ALIASES: ClassVar[Mapping[str, str]] = GUIDANCE

    sampler: TissueSampler = Field(default_factory=TissueSampler, description="Solver, steps and guidance.")
    samples: int = Field(1, ge=1, description="Patches per tile.")
    most: int | None = Field(None, ge=1, description="Tiles at most, spread over all. null = all.")
    batch: int = Field(16, ge=1, description="Patches through the network together.")
    seed: int = Field(0, ge=0, description="Seed of all noise.")


class EvaluateConfig(Config):
    """A run of `morphogen tissue evaluate`."""

    ALIASES: ClassVar[Mapping[str, str]] = GUIDANCE

    sampler: TissueSampler = Field(default_factory=TissueSampler, description="How patches are drawn.")
    tiles: int = Field(
        400, ge=20, description="Held-out tiles, at most, whose embeddings are drawn from; spread over all."
    )
    encoders: tuple[str, ...] = Field(
        ("model", "lite0"),
        min_length=1,
        description="Encoders that judge: model = the one the embeddings are of; beside it one the model never saw.",
    )
    group: int = Field(100, ge=2, description="Items that retrieval ranks among.")
    pictures: int = Field(24, ge=1, description="Pairs of a real and a drawn tile on the page.")
    resamples: int = Field(2000, ge=100, description="Bootstrap resamples of the intervals.")
    seed: int = Field(0, ge=0, description="Seed of noise, halves and groups.")


class UseConfig(Config):
    """What `morphogen tissue evaluate --use` asks: whether variations help a classifier."""

    ALIASES: ClassVar[Mapping[str, str]] = GUIDANCE

    sampler: TissueSampler = Field(
        default_factory=lambda: TissueSampler.named("fast"), description="How variations are drawn."
    )
    shares: tuple[float, ...] = Field(
        (0.01, 0.1), min_length=1, description="Shares of the labels that are used, each between 0 and 1."
    )
    copies: int = Field(4, ge=2, description="Variations, or recoloured copies, per labelled tile.")
    stain: float = Field(0.2, ge=0, description="Size of the random changes of stain of a recoloured copy.")
    seeds: int = Field(8, ge=2, description="Choices of labelled tiles that the intervals are over.")
    encoders: tuple[str, ...] = Field(
        ("model",),
        min_length=1,
        description="Encoders whose features are classified; model = the model's own.",
    )
    resamples: int = Field(2000, ge=100, description="Bootstrap resamples of the intervals.")
    seed: int = Field(0, ge=0, description="Seed of choices, noise and stain.")

    @model_validator(mode="after")
    def _between(self) -> UseConfig:
        if not all(0 < share <= 1 for share in self.shares):
            raise ValueError(f"shares are {list(self.shares)}, but each must lie in (0, 1]")
        return self
