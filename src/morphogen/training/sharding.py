"""Full states of models and optimisers, whatever accelerate wrapped around them.

Keys are the parameter names of the task's own model, so a checkpoint made on eight sharded GPUs continues on one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from morphogen.core.errors import CheckpointError

_PREFIX = "model."  # of setup.AnyCall


def is_sharded(model: nn.Module) -> bool:
    """Whether parameters are split over processes (FSDP 2)."""
    return any(True for _ in _shards(model))


def reshard(model: nn.Module) -> None:
    """Let go of gathered weights.

    The outermost module keeps them after a forward, for the backward; when the weights are exchanged instead, the next
    forward would still see the old ones.
    """
    for module in _shards(model):
        module.reshard()


def _shards(model: nn.Module) -> Iterator[Any]:
    fsdp = sys.modules.get(
        "torch.distributed.fsdp"
    )  # importing it takes half a second, and nothing is sharded before
    if fsdp is not None:
        yield from (module for module in model.modules() if isinstance(module, fsdp.FSDPModule))


def model_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """All parameters and buffers on the CPU; under FSDP gathered, and empty on all but the first process."""
    if is_sharded(model):
        from torch.distributed.checkpoint.state_dict import get_model_state_dict

        state = get_model_state_dict(model, options=_options())
    else:
        state = {name: _copy(tensor) for name, tensor in _bare(model).state_dict().items()}
    return {name.removeprefix(_PREFIX): tensor for name, tensor in state.items()}


def load_model_state(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load what :func:`model_state` gave; :class:`CheckpointError` names the first key that does not fit."""
    state = {_PREFIX + name: tensor for name, tensor in state.items()}
    if is_sharded(model):
        from torch.distributed.checkpoint.state_dict import set_model_state_dict

        set_model_state_dict(model, state, options=_options())
        return
    own = _bare(model).state_dict()
    for name in [*own, *state]:
        if name not in state or name not in own or own[name].shape != state[name].shape:
            have = tuple(state[name].shape) if name in state else "missing"
            want = tuple(own[name].shape) if name in own else "unknown"
            raise CheckpointError(
                f"the weights do not fit the model: '{name.removeprefix(_PREFIX)}' is {have} in the checkpoint, "
                f"{want} in the model",
                fix="Use the settings that the run was started with, or another folder",
            )
    _bare(model).load_state_dict(state)


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Moments by parameter name: ``{name: {"step": …, "exp_avg": …, …}}``, full tensors on the CPU."""
    if is_sharded(model):
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

        state = get_optimizer_state_dict(model, optimizer, options=_options()).get("state", {})
    else:
        names = {parameter: name for name, parameter in _bare(model).named_parameters()}
        state = {names[p]: values for p, values in optimizer.state.items()}
    return {
        name.removeprefix(_PREFIX): {
            key: value.detach().cpu() if isinstance(value, torch.Tensor) else value
            for key, value in values.items()
        }
        for name, values in state.items()
    }


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load what :func:`optimizer_state` gave; learning rates are not part of it, the schedule sets them."""
    if is_sharded(model):
        from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

        names = {parameter: name for name, parameter in model.named_parameters()}
        whole = {
            "state": {_PREFIX + name: values for name, values in state.items()},
            "param_groups": [
                {**group, "params": [names[p] for p in group["params"]]} for group in optimizer.param_groups
            ],
        }
        set_optimizer_state_dict(model, optimizer, whole, options=_options())
        return
    parameters = dict(_bare(model).named_parameters())
    order = [p for group in optimizer.param_groups for p in group["params"]]
    number = {p: i for i, p in enumerate(order)}
    plain = optimizer.state_dict()
    plain["state"] = {number[parameters[_PREFIX + name]]: values for name, values in state.items()}
    optimizer.load_state_dict(plain)


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)


def _bare(model: nn.Module) -> nn.Module:
    from torch.nn.parallel import DistributedDataParallel

    return model.module if isinstance(model, DistributedDataParallel) else model


def _options() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(full_state_dict=True, cpu_offload=True, strict=True)
