"""A micro-batch on a CPU in lanes: each takes some of its items forward and backward, and the gradients are added.

Small networks gain next to nothing from torch's threads, which meet at the end of every layer; lanes meet once a step.
What a step computes is a function of the number of lanes, which is one of the machine and the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from morphogen.core.running.threads import in_lanes, lanes
from morphogen.training.order import share

Figures = dict[str, Tensor]
_FEWEST = 2  # items of a lane


def lanes_for(model: nn.Module, accelerator: Any, items: int, *, whole: bool = False) -> int:
    """Lanes for micro-batches of ``items``: one on other devices and with several processes, for large and for compiled
    networks, and for those whose answer to an item depends on the others (batch norm) or on torch's own generator
    (dropout). whole: that the batch has to stay together.
    """
    if accelerator.num_processes > 1 or accelerator.scaler is not None or whole:
        return 1
    if any(_looks_aside(module) for module in model.modules()):
        return 1
    numbers = sum(parameter.numel() for parameter in model.parameters())
    return max(1, min(lanes(accelerator.device, numbers), items // _FEWEST))


def _looks_aside(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.batchnorm._BatchNorm) or module._compiled_call_impl is not None:
        return True
    names = ["dropout", "attention_dropout", "dropout_p"]
    if any(word in type(module).__name__.lower() for word in ("drop", "stochasticdepth")):
        names += ["p", "drop_prob"]
    values = (getattr(module, name, 0) for name in names)
    return any(isinstance(value, (int, float)) and value > 0 for value in values)


def backward_in_lanes(
    loss: Callable[[Any, Tensor], Figures],
    parameters: Sequence[nn.Parameter],
    items: Any,
    positions: Tensor,
    count: int,
    weight: float = 1.0,
) -> Figures:
    """Forward and backward of a micro-batch in ``count`` lanes; its figures, as they would be of the whole.

    loss: figures of some items and their positions; the mean of ``"loss"``, times ``weight``, is what gradients are of,
    and they are added to those that ``parameters`` hold. items: tensors (B, …), lists of B, in dictionaries.
    """
    total = len(positions)
    wanted = [parameter for parameter in parameters if parameter.requires_grad]

    def one(part: int) -> tuple[Figures, Sequence[Tensor | None]]:
        here = share(total, part, count)
        figures = loss(some(items, here, total), positions[here.start : here.stop])
        mean = figures["loss"].mean() * (weight * len(here) / total)
        gradients = torch.autograd.grad(mean, wanted, allow_unused=True)
        return {name: value.detach() for name, value in figures.items()}, gradients

    parts = list(in_lanes(one, range(count), count))
    with torch.no_grad():
        for parameter, *gradients in zip(wanted, *(gradients for _, gradients in parts), strict=True):
            for gradient in gradients:  # in the order of the items, whichever lane was first
                if gradient is None:
                    continue
                if parameter.grad is None:
                    parameter.grad = gradient
                else:
                    parameter.grad += gradient
    return together(
        [figures for figures, _ in parts], [len(share(total, part, count)) for part in range(count)]
    )


def some(items: Any, here: range, total: int) -> Any:
    """Those of ``total`` items that are ``here``, of a batch in dictionaries; what is not one per item stays."""
    if isinstance(items, dict):
        return {key: some(value, here, total) for key, value in items.items()}
    if isinstance(items, Tensor) and items.ndim and len(items) == total:
        return items[here.start : here.stop]
    if isinstance(items, (list, tuple)) and len(items) == total:
        return items[here.start : here.stop]
    return items


def together(parts: Sequence[Figures], sizes: Sequence[int]) -> Figures:
    """Figures of a batch from those of its parts: per item one after another, means weighted by their items."""
    found: Figures = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        if values[0].ndim:
            found[name] = torch.cat(values)
        else:
            found[name] = sum(value * (size / sum(sizes)) for value, size in zip(values, sizes))  # type: ignore
    return found
