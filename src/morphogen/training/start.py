"""Before the first step: accelerate, what the model must be able to do, the record of what a run is."""

from __future__ import annotations

import atexit
import importlib.util
import logging
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from morphogen.core.devices import resolve_device, torch_dtype
from morphogen.core.errors import ConfigError, DependencyError, shortened
from morphogen.core.files import write_json
from morphogen.core.jobs import Job, flat, kept_facts
from morphogen.training.checkpoint import CHECKPOINTS, list_steps
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
    """Join the processes of the launcher, if any, and set the precision.

    Under torchrun or ``accelerate launch`` the launcher's rank chooses the GPU and only the type of ``device``
    counts. Raises :class:`ConfigError` when device, precision or the launcher's configuration do not go together.
    """
    chosen = resolve_device(device)
    torch_dtype(precision)
    if precision == "fp16" and chosen.type != "cuda":
        raise ConfigError(
            f"fp16 needs a CUDA device, this run is on {chosen.type}",
            where="--precision",
            fix="Use bf16 or fp32",
        )
    check_trackers(config)
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.utils import DistributedDataParallelKwargs, DistributedType

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
    if accelerator.gradient_accumulation_steps != 1:
        raise ConfigError(
            "the launcher sets gradient accumulation",
            where="accelerate",
            fix="Use the setting 'accumulation' instead",
        )
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ConfigError(
            f"{accelerator.distributed_type.value} is not supported",
            where="accelerate",
            fix="Use FSDP or plain DDP",
        )
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ConfigError("FSDP version 1 is not supported", where="accelerate", fix="Set fsdp_version to 2")
    if torch.distributed.is_initialized():
        atexit.unregister(_leave_group)
        atexit.register(_leave_group)
    return accelerator


def _leave_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def leave(code: int = 0) -> None:
    """End this process with ``code`` when it is one of several of a launcher; in a process of its own, do nothing.

    Exit handlers run and output is flushed, but Python's own teardown is left out: threads of torch.distributed
    that still live then may abort the process ("terminate called without an active exception"), and the
    launcher would count a finished run as failed. The command does this by itself; a script of yours that runs
    under torchrun can call it as its last line.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    atexit._run_exitfuncs()  # trackers finish, the group is left
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def check_trackers(config: TrainingConfig) -> None:
    """:class:`DependencyError` when the package of a tracker is missing."""
    for tracker in config.trackers:
        spec = importlib.util.find_spec(tracker)
        if spec is None or spec.origin is None:  # a folder named wandb is no package
            raise DependencyError(
                f"the tracker '{tracker}' is not installed",
                where="trackers",
                fix=f"Install it with pip install 'morphogen[{tracker}]', or leave it out",
            )


def start_trackers(accelerator: Any, config: TrainingConfig, out: Path, *, run_id: str, step: int) -> None:
    """Open TensorBoard files or a W&B run; a resumed run goes on in the same place from ``step``."""
    if config.trackers:
        options = {
            "tensorboard": {"purge_step": step + 1},
            "wandb": {"id": run_id, "name": out.resolve().name, "resume": "allow", "dir": str(out)},
        }
        accelerator.init_trackers(
            "morphogen",
            config={key: _scalar(value) for key, value in flat(config.to_dict()).items()},
            init_kwargs={name: options[name] for name in config.trackers},
        )


class AnyCall(nn.Module):
    """Runs a function of the model inside one forward.

    So DDP, FSDP and autocast surround whatever a task does with its model: several calls, parts of it, attributes.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._no_split_modules = getattr(model, "_no_split_modules", None)  # what accelerate shards by

    def forward(self, function: Callable[[nn.Module], Any]) -> Any:
        return function(self.model)


def check_model(model: nn.Module) -> None:
    """Trained weights must be float32; ``precision`` decides what is computed in less."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise ConfigError(
                f"parameter '{name}' is {str(parameter.dtype).removeprefix('torch.')}",
                where=type(model).__name__,
                fix="Keep the weights in float32 and choose the precision of the computation with --precision",
            )


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """Call the model's own switch, or those of its direct children that have one."""
    if _switch(model):
        return
    switched = [_switch(child) for child in model.children()]
    if any(switched):
        return
    raise ConfigError(
        f"{type(model).__name__} cannot recompute its activations",
        where="gradient_checkpointing",
        fix="Set it to false",
    )


def _switch(module: nn.Module) -> bool:
    for name in ("enable_gradient_checkpointing", "gradient_checkpointing_enable"):
        if callable(getattr(module, name, None)):
            getattr(module, name)()
            return True
    return False


@contextmanager
def compiled(model: nn.Module, wanted: bool, device: torch.device) -> Iterator[None]:
    """Within the block calls of ``model`` run through torch.compile, if wanted; its keys stay as they are."""
    if not wanted:
        yield
        return
    if (
        device.type == "cpu"
        and shutil.which(os.environ.get("CXX", "g++")) is None
        and shutil.which("clang++") is None
    ):
        raise DependencyError(
            "compiling for the CPU needs a C++ compiler",
            where="--compile",
            fix="Install g++ or leave --compile out",
        )
    logging.getLogger("torch.utils.cpp_extension").setLevel(
        logging.ERROR
    )  # speaks of CUDA where there is none
    model.compile()
    try:
        yield
    finally:
        model._compiled_call_impl = None  # what nn.Module.compile sets


def check_same_run(out: Path, record: dict[str, Any]) -> str:
    """The id of the run in ``out``, new or old; one that never came to a checkpoint binds nobody.

    Raises :class:`ConfigError` when the run there was started with other settings, naming the first that differs.
    """
    path = out / RUN
    if not path.is_file() or not list_steps(out / CHECKPOINTS):
        return uuid.uuid4().hex[:12]
    kept = kept_facts(path)
    if kept is None:
        raise ConfigError(
            "is damaged, so nothing tells what its checkpoints are of",
            where=path,
            fix="Remove the folder, or choose another",
        )
    free = {f"training.{name}" for name in FREE}
    if record["training"]["lr_schedule"] == "constant":
        free.add("training.steps")  # a constant rate does not know where the run ends
    for key, before, now in Job(record, free=free).differences(kept):
        name = key.removeprefix("training.")
        raise ConfigError(
            f"this run was started with {name} = {shortened(before)}, now it is {shortened(now)}",
            where=path,
            fix=f"Set {name} back to continue the run, or choose another folder",
        )
    return str(kept.get("id", ""))


def write_run(out: Path, record: dict[str, Any], run_id: str) -> None:
    """Keep what the run is beside its results."""
    write_json(out / RUN, {"id": run_id, **record})


def _scalar(value: Any) -> Any:
    return value if isinstance(value, (int, float, str, bool)) else str(value)
