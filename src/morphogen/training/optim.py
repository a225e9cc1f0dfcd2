"""Optimiser and learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from morphogen.core.errors import ConfigError, DependencyError
from morphogen.training.config import TrainingConfig


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Learning rate of update ``step`` (0 for the first).

    Rises linearly to ``lr``, which the update ``warmup_steps`` is the first to use in full; then constant, or
    lr·½(1 + cos πx) with x the progress through the rest of the run (Loshchilov and Hutter 2017).
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / (config.warmup_steps + 1)
    if config.lr_schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def build_optimizer(model: nn.Module, config: TrainingConfig, *, fused: bool) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters; biases, norms and other vectors are not decayed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ConfigError("the model has no trainable parameter", where=type(model).__name__)
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError:
            raise DependencyError(
                "the 8-bit optimiser needs the package bitsandbytes",
                where="optimizer",
                fix="Install it with pip install 'morphogen[bitsandbytes]', or use optimizer adamw",
            ) from None
        return AdamW8bit(groups, lr=config.lr, betas=config.betas)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)
