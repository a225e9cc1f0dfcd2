"""What can be set about spatial gene expression: data, panel, model recipe, prediction, evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from morphogen.core.config import Config
from morphogen.core.presets import merged, spelt_out
from morphogen.diffusion import sampler as diffusion
from morphogen.training.config import TrainingConfig


class DataConfig(Config):
    """How measured sections are read and checked."""

    technology: Literal["auto", "ST", "Visium", "Visium HD"] = Field(
        "auto",
        description="Array the spots come from; decides the expected spot pitch. auto = from the files.",
    )
    pitch_um: float | None = Field(
        None,
        gt=0,
        description="Centre-to-centre distance of spots in µm. null = from the files, else 200 (ST), 100 (Visium).",
    )
    mpp: float | None = Field(
        None, gt=0, description="µm per pixel of the images. null = from the file, else from the spot pitch."
    )
    trust_mpp: bool = Field(
        False, description="Go on although µm/px and the spot pitch contradict each other by more than 30 %."
    )
    coordinate_scale: float = Field(
        1.0,
        gt=0,
        description="Factor from the coordinates in the table to pixels of the image (reduced images).",
    )
    layer: str | None = Field(None, description="AnnData layer that holds the counts. null = X.")
    values: Literal["counts", "log1p"] = Field(
        "counts",
        description="What the matrix holds. log1p: it is undone and the values are taken as they are.",
    )
    images: str | None = Field(
        None,
        description="Folder (or one file) of the H&E images, named like the sections. null = where usual.",
    )
    table: str | None = Field(
        None, description="SpatialData stores: the table with the counts. null = all that annotate something."
    )
    image: str | None = Field(
        None, description="SpatialData stores: the H&E. null = the largest image in red, green and blue."
    )
    points: str | None = Field(
        None, description="SpatialData stores: the transcripts. null = 'transcripts', or the only points."
    )
    units: str | None = Field(
        None, description="SpatialData stores: shapes or labels of cells in which transcripts are counted."
    )
    bin_um: float | None = Field(
        None, gt=0, description="SpatialData stores: side in µm of squares in which transcripts are counted."
    )
    quality: float = Field(20.0, ge=0, description="Least quality (qv) of a transcript, where there is any.")
    patients: str | None = Field(
        None, description="CSV with columns section,patient. null = from metadata, where it says so."
    )
    patient_pattern: str | None = Field(
        None,
        description="Regular expression on the section's name whose match is the patient, e.g. '^[A-Z]'.",
    )


class PrepareConfig(Config):
    """What is computed from a section's image: embeddings per spot and who is next to whom."""

    data: DataConfig = Field(default_factory=DataConfig, description="How sections are read.")
    encoder: str = Field("texture", description="Encoder by name, as listed by `morphogen doctor`.")
    weights: str | None = Field(None, description="Weights of the encoder on disk, for gated encoders.")
    field: Literal["112um", "spot"] = Field(
        "112um",
        description="112um: a field of 112 µm. spot: Stem's crop, max(224, spot diameter) level-0 px.",
    )
    field_px: int = Field(224, gt=0, description="Side in pixels to which a field is resampled.")
    orientations: Literal["auto", "1", "8"] = Field(
        "auto",
        description="Embeddings stored per spot: identity, or all 8 flips and rotations. auto = 8 unless the "
        "encoder is invariant to them.",
    )
    near: int = Field(9, gt=0, description="Nearest spots per spot, itself included (HisDiff's neighbours).")
    region: int = Field(49, gt=0, description="Nearest spots that make its region, itself included.")
    batch_size: int = Field(64, gt=0, description="Fields cropped and encoded at a time.")


class PanelConfig(Config):
    """Which genes are modelled."""

    size: int = Field(200, gt=0, description="Number of genes.")
    genes: str | None = Field(None, description="Text file with one gene per line, used as it is.")
    method: Literal["training", "hmhvg"] = Field(
        "training",
        description="training: highly variable, high mean and high variance on the TRAINING sections, exactly "
        "`size` genes. hmhvg: Stem's published recipe with `size` as its cut n.",
    )
    highly_variable: int = Field(2000, gt=0, description="Highly variable genes taken per section.")


class TargetConfig(Config):
    """What a network is asked to predict."""

    log: Literal["log1p", "log2p1"] = Field("log1p", description="log(count + 1); log2p1 is Stem's base 2.")
    library: bool = Field(
        False, description="Scale counts to the training median of library sizes before the logarithm."
    )
    standardise: bool = Field(
        True,
        description="Centre and scale every gene by its training spots (stem, hisdiff; spatial always does).",
    )


class NetworkConfig(Config):
    """The gene transformer of the recipes stem and hisdiff."""

    width: int = Field(384, gt=0, le=1 << 16, description="Token width.")
    depth: int = Field(12, gt=0, le=1000, description="Blocks.")
    heads: int = Field(6, gt=0, description="Attention heads over genes.")
    genes_per_token: int = Field(1, gt=0, description="Genes that share a token; k costs about k times less.")
    conditioner: Literal["image", "hierarchical", "hierarchical_mlp"] = Field(
        "image",
        description="Spot embedding (Stem), or spot, neighbours and region (HisDiff as released, as drawn).",
    )
    condition_heads: int = Field(8, gt=0, description="Heads of the hierarchical conditioner.")
    objective: Literal["epsilon", "x0", "v", "flow"] = Field(
        "epsilon", description="What the network predicts. flow uses the straight-line schedule."
    )
    schedule: Literal["linear", "cosine"] = Field("linear", description="Noise schedule (not for flow).")
    learned_variance: bool = Field(
        True, description="Second output for the variance of reverse steps (epsilon)."
    )
    likelihood: Literal["continuous", "discretised"] = Field(
        "continuous",
        description="Last term of the variational bound; discretised is the published one, for images.",
    )
    standardise_condition: bool = Field(
        True,
        description="Scale embeddings by their training spots; the published networks take them as they are.",
    )


class SpatialConfig(Config):
    """The recipe spatial: mean read-out, section level, residual diffusion."""

    first_components: int = Field(
        128, gt=0, description="Principal components of the embedding, raw and relative."
    )
    second_components: int = Field(256, gt=0, description="Principal components of the context features.")
    factors: int = Field(8, ge=0, description="Gene factors that are diffused. 0 = a Gaussian residual.")
    diffuse_from: int = Field(
        20_000,
        ge=0,
        description="Training spots from which the residual network is tried; with fewer the residual is Gaussian.",
    )
    scores: int = Field(16, gt=0, description="Context scores the residual depends on.")
    width: int = Field(64, gt=0, le=1 << 16, description="Width of the residual network.")
    depth: int = Field(2, gt=0, le=1000, description="Blocks of the residual network.")
    dropout: float = Field(0.2, ge=0, lt=1, description="Dropout of the residual network.")
    smooth_noise: bool = Field(
        True, description="Let the noise of close spots correlate as the held-out residuals do."
    )
    counts: bool = Field(
        True,
        description="Samples are whole counts, as measurements are (not with library-normalised targets).",
    )
    new_depth: float = Field(
        1.0,
        ge=0,
        description="Prior SD of the log depth of a section of a new patient (1 = a factor of 2.7).",
    )
    new_gene: float = Field(0.5, ge=0, description="Prior SD of the log level of a gene in a new patient.")
    seen_depth: float = Field(0.3, ge=0, description="The same for another section of a patient in training.")
    seen_gene: float = Field(0.2, ge=0, description="The same for a gene in it.")
    offset_freedom: float = Field(
        3.0, gt=0, description="Held-out sections that these priors are worth (degrees of freedom)."
    )


class ExpressionConfig(Config):
    """A recipe and all it is made of. ``recipe`` and ``size`` fill in whatever is not given."""

    recipe: Literal["stem", "hisdiff", "spatial"] = Field("spatial", description="Method.")
    size: Literal["small", "paper"] = Field(
        "small", description="small: minutes on two CPU cores. paper: published."
    )
    panel: PanelConfig = Field(default_factory=PanelConfig, description="Genes.")
    target: TargetConfig = Field(default_factory=TargetConfig, description="What is predicted.")
    network: NetworkConfig = Field(default_factory=NetworkConfig, description="Network of stem and hisdiff.")
    spatial: SpatialConfig = Field(default_factory=SpatialConfig, description="The recipe spatial.")
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="The training loop.")
    validation: float = Field(
        0.15,
        ge=0,
        lt=1,
        description="Share of TRAINING tissue blocks kept for choosing the checkpoint. 0 = the last.",
    )

    ALIASES: ClassVar[Mapping[str, str]] = {"seed": "training.seed"}

    @classmethod
    def preset(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the recipe and size are trained with; a shorter run keeps a warm-up that fits into it."""
        recipe, size = given.get("recipe", "spatial"), given.get("size", "small")
        preset: dict[str, Any] = dict(PRESETS.get((str(recipe), str(size)), {}))
        training = given.get("training")
        steps = training.get("steps") if isinstance(training, Mapping) else None
        if preset and isinstance(steps, int):
            warmup = min(preset["training"].get("warmup_steps", 0), steps)
            preset["training"] = {**preset["training"], "warmup_steps": warmup}
        return preset

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        """The preset holds in Python too: ``ExpressionConfig(recipe="stem")``."""
        if not isinstance(values, Mapping):
            return values
        values = spelt_out(cls, values)
        return merged(cls.preset(values), values)


_SMALL_NETWORK = {"width": 96, "depth": 3, "heads": 4, "genes_per_token": 8, "objective": "v"}
_SMALL_TRAINING = {
    "steps": 600, "batch_size": 64, "lr": 1e-3, "warmup_steps": 50, "lr_schedule": "cosine", "ema_decay": 0.99,
    "weight_decay": 0.01, "validate_every": 50, "best_metric": "loss", "patience": 4, "save_every": 300,
}  # fmt: skip
_PAPER_TARGET = {"log": "log2p1", "standardise": False}
PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    ("stem", "small"): {
        "network": {**_SMALL_NETWORK, "learned_variance": False, "schedule": "cosine"},
        "training": _SMALL_TRAINING,
    },
    ("stem", "paper"): {
        "target": _PAPER_TARGET,
        "network": {"standardise_condition": False},
        "training": {"steps": 250_000, "batch_size": 256, "lr": 1e-4, "clip_norm": 0.0, "save_every": 10_000},
        "validation": 0.0,
    },
    ("hisdiff", "small"): {
        "network": {
            **_SMALL_NETWORK,
            "learned_variance": False,
            "schedule": "cosine",
            "conditioner": "hierarchical",
        },
        "training": _SMALL_TRAINING,
    },
    ("hisdiff", "paper"): {
        "panel": {"size": 300},
        "target": _PAPER_TARGET,
        "network": {"heads": 12, "conditioner": "hierarchical", "standardise_condition": False},
        "training": {"steps": 250_000, "batch_size": 128, "lr": 1e-4, "clip_norm": 0.0, "save_every": 10_000},
        "validation": 0.0,
    },
    ("spatial", "small"): {
        "training": {
            "steps": 400, "batch_size": 128, "lr": 5e-4, "ema_decay": 0.98, "weight_decay": 0.1,
            "validate_every": 40, "save_every": 400,
        },
    },
    ("spatial", "paper"): {
        "spatial": {"factors": 64, "scores": 64, "width": 512, "depth": 6},
        "training": {
            "steps": 30_000, "batch_size": 512, "lr": 3e-4, "ema_decay": 0.999, "weight_decay": 0.01,
            "validate_every": 1000, "save_every": 5000,
        },
    },
}  # fmt: skip


class SamplerConfig(diffusion.SamplerConfig):
    """How a sample is made. ``fast``: DPM-Solver++ 2M, 20 evaluations; ``faster``: of third order, 10 evaluations;
    ``reference``: DDPM over all 1000 steps, as published; ``mean``: the mean alone."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **diffusion.SamplerConfig.PRESETS,
        "faster": {"solver": "dpmpp_3m", "steps": 10, "spacing": "log_snr_few"},
    }

    spacing: Literal["model", "trailing", "leading", "linspace", "strided", "log_snr", "log_snr_few"] = Field(
        "model",
        description="Where the steps lie. model = log_snr for stem and hisdiff, trailing for spatial.",
    )


class PredictConfig(Config):
    """How predictions are drawn and kept."""

    ALIASES: ClassVar[Mapping[str, str]] = {"solver": "sampler.preset", "steps": "sampler.steps"}

    samples: int = Field(
        20, ge=0, description="Samples per spot. 0 = the mean alone, from one forward per spot."
    )
    sampler: SamplerConfig = Field(default_factory=SamplerConfig, description="How samples are made.")
    seed: int = Field(0, ge=0, description="Seed of the noise, which is a function of spot and sample alone.")
    batch_size: int = Field(1024, gt=0, description="Spots × samples in one network call.")
    shard_spots: int = Field(
        2048, gt=0, description="Spots per shard: what memory and a resume are bounded by."
    )
    keep_samples: Literal["no", "obsm", "zarr"] = Field(
        "no", description="Keep the samples: in obsm (float16), or in a zarr array beside the result."
    )
    grid_um: float | None = Field(
        None,
        gt=0,
        description="Spacing of the grid on slides without measured spots. null = the training pitch.",
    )
    geojson_genes: tuple[str, ...] = Field(
        (), description="Genes in the QuPath GeoJSON. Empty = the 20 with the most varied predictions."
    )
    tissue: Literal["otsu", "entropy", "all"] = Field(
        "otsu", description="How tissue is found on such slides."
    )

    @property
    def draws(self) -> int:
        """Samples that are drawn: none for the solver ``mean``."""
        return 0 if self.sampler.solver == "mean" else self.samples


class EvaluateConfig(Config):
    """What an evaluation computes."""

    predict: PredictConfig = Field(default_factory=PredictConfig, description="How the models are sampled.")
    baselines: bool = Field(
        True, description="Fit and score every baseline of the protocol beside the models."
    )
    maps: int = Field(6, ge=0, description="Genes drawn as maps: the best half and a spread over the rest.")
    genes: tuple[str, ...] = Field((), description="Genes to draw instead.")
    seed: int = Field(0, ge=0, description="Seed of baseline samples and of the bootstrap.")
