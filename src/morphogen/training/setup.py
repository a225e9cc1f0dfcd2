"""Getting a run ready: accelerate, gradient checkpointing, the record of what the run is."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from morphogen.core.devices import resolve_device, torch_dtype
from morphogen.core.errors import ConfigError, DependencyError
from morphogen.core.files import plain, read_json, write_json
from morphogen.training.config import TrainingConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

RUN = "run.json"

FREE = {
    "workers",
    "log_every",
    "preview_every",
    "save_every",
    "keep_last",
    "trackers",
    "find_unused_parameters",
}
"""Settings that a resume may change, because they cannot move the weights."""


def start_accelerator(
    config: TrainingConfig, out: Path, *, device: str | torch.device, precision: str
) -> Accelerator:
    """The process group and precision of this run; under torchrun the launcher's rank chooses the GPU."""
    chosen = resolve_device(device)
    torch_dtype(precision)
    if precision == "fp16" and chosen.type != "cuda":
        raise ConfigError(
            f"fp16 needs a CUDA device, this run is on {chosen.type}",
            where="--precision",
            fix="Use bf16 or fp32",
        )
    for tracker in config.trackers:
        if importlib.util.find_spec(tracker) is None:
            raise DependencyError(
                f"the tracker '{tracker}' is not installed",
                where="trackers",
                fix=f"Install it with pip install 'morphogen[{tracker}]', or leave it out",
            )
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.utils import DistributedDataParallelKwargs

    # accelerate keeps its state for the life of the process; a second run may differ in device and precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    if chosen.type == "cuda" and chosen.index is not None and "LOCAL_RANK" not in os.environ:
        torch.cuda.set_device(chosen)
    accelerator = Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        cpu=chosen.type == "cpu",
        log_with=list(config.trackers) or None,
        project_dir=str(out),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=config.find_unused_parameters)],
    )
    if config.trackers:
        accelerator.init_trackers("morphogen", config=_flat(config.to_dict()))
    return accelerator


class AnyCall(nn.Module):
    """Runs a function of the model inside one forward.

    So DDP, FSDP and autocast surround whatever the task does with its model: several calls, parts of it, attributes.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Any) -> Any:
        return function(self.model)


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """Call the model's own switch, or those of the modules directly inside that have one."""
    found = False
    for module in (model, *model.children()):
        for name in ("enable_gradient_checkpointing", "gradient_checkpointing_enable"):
            if callable(getattr(module, name, None)):
                getattr(module, name)()
                found = True
                break
        if found and module is model:
            return
    if not found:
        raise ConfigError(
            f"{type(model).__name__} cannot recompute its activations",
            where="gradient_checkpointing",
            fix="Set it to false",
        )


def check_same_run(out: Path, record: dict[str, Any]) -> None:
    """Refuse to continue a run in ``out`` that was started with other settings, naming the first that differs."""
    path = out / RUN
    if not path.is_file():
        return
    before, now = _flat(read_json(path)), _flat(plain(record))
    free = {f"training.{name}" for name in FREE}
    if now.get("training.lr_schedule") == "constant":
        free.add("training.steps")  # a constant rate does not know where the run ends
    for key in [*now, *before]:
        if before.get(key) != now.get(key) and key not in free:
            name = key.removeprefix("training.")
            raise ConfigError(
                f"this run was started with {name} = {before.get(key)}, now it is {now.get(key)}",
                where=path,
                fix=f"Set {name} back to continue it, or choose another folder",
            )


def write_run(out: Path, record: dict[str, Any]) -> None:
    write_json(out / RUN, record)


def check_trainable(model: nn.Module) -> None:
    """Weights must be float32; ``precision`` decides what is computed in less."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise ConfigError(
                f"parameter '{name}' is {str(parameter.dtype).removeprefix('torch.')}",
                where=type(model).__name__,
                fix="Train in float32 weights and choose the precision of the computation with --precision",
            )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat
