"""What can be set about a training run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from morphogen.core.config import Config


class TrainingConfig(Config):
    """Settings of the one training loop, the same for every task.

    A *step* is one update of the weights. ``batch_size`` is the number of items behind one update, whatever the
    number of processes and whatever ``accumulation``: the same configuration trains the same weights on one GPU
    and on sixteen.
    """

    steps: int = Field(10_000, ge=1, description="Updates of the weights in the whole run.")
    batch_size: int = Field(
        32, ge=1, description="Items per update, over all processes and accumulated parts together."
    )
    accumulation: int = Field(
        1, ge=1, description="Parts in which each process takes its share of a batch, to save memory."
    )

    optimizer: Literal["adamw", "adamw8bit"] = Field(
        "adamw", description="AdamW (Loshchilov and Hutter 2019), or its 8-bit form from bitsandbytes."
    )
    lr: float = Field(1e-4, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(
        0.0, ge=0, description="Decoupled weight decay of matrices and kernels; never of biases and norms."
    )
    betas: tuple[float, float] = Field((0.9, 0.999), description="Decay of the first and second moments.")
    warmup_steps: int = Field(0, ge=0, description="Steps over which the learning rate rises linearly.")
    lr_schedule: Literal["constant", "cosine"] = Field(
        "constant", description="After the warm-up: constant, or half a cosine down to zero."
    )
    clip_norm: float = Field(
        1.0, ge=0, description="Largest norm of the whole gradient; longer ones are scaled. 0 = no clipping."
    )

    ema_decay: float = Field(
        0.9999,
        ge=0,
        lt=1,
        description="Decay of the moving average of the weights. 0 = the weights themselves.",
    )
    ema_warmup: bool = Field(
        True,
        description="Decay min(ema_decay, (1 + n) / (10 + n)) at update n, so that the start is forgotten.",
    )

    seed: int = Field(0, ge=0, description="Decides the order of the data and every draw.")
    workers: int | None = Field(
        None,
        ge=0,
        description="Processes per rank that load data. 0 = in the training process. null = none on a CPU or where "
        "crops are cut on the GPU; else the cores but one, 8 at most.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, about a third more time."
    )
    find_unused_parameters: bool = Field(
        False, description="On several processes: allow parameters that a loss does not reach in some steps."
    )

    log_every: int = Field(50, ge=1, description="Steps between lines in metrics.jsonl; each is their mean.")
    validate_every: int = Field(0, ge=0, description="Steps between validations. 0 = none.")
    preview_every: int = Field(0, ge=0, description="Steps between previews. 0 = none.")
    save_every: int = Field(
        1000, ge=1, description="Steps between checkpoints; the last step always has one."
    )
    keep_last: int = Field(2, ge=1, description="Checkpoints kept; older ones are removed.")
    best_metric: str | None = Field(
        None, description="Figure of the validation that chooses the best weights. None = none are chosen."
    )
    best_mode: Literal["min", "max"] = Field("min", description="Whether small or large is best.")
    patience: int | None = Field(
        None, ge=1, description="Stop after so many validations without a better one. None = never."
    )
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        (), description="Where figures go besides metrics.jsonl."
    )

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {list(self.betas)}, but each must lie in [0, 1)")
        if self.warmup_steps > self.steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps}, more than the {self.steps} steps of the run"
            )
        if self.accumulation > self.batch_size:
            raise ValueError(
                f"accumulation is {self.accumulation}, but a batch of {self.batch_size} has not so many parts"
            )
        if self.best_metric is not None and not self.validate_every:
            raise ValueError("best_metric needs validations: set validate_every")
        if self.patience is not None and self.best_metric is None:
            raise ValueError("patience needs best_metric, the figure that must get better")
        return self
