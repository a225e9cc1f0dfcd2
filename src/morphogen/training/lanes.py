"""A micro-batch on a CPU in lanes: each takes some of its items forward and backward, and the gradients are added.

Small networks gain next to nothing from torch's threads, which meet at the end of every layer; lanes meet once a step,
or where the loss is one of the whole batch (:class:`WholeLoss`), twice.
What a step computes is a function of the number of lanes, which is one of the machine and the run.

Lanes are Python's threads, of which one runs at a time between the operations of torch. Where these are short, one
lane and one thread is the fastest: milliseconds a step on two cores, with one thread, in two lanes, and with two
threads that sleep while they wait, by the work of a step's mean operation (:func:`counted`)::

    work   one   lanes   two
    0.07     7     14     17   tokens of genes, width 96, 8 spots
    0.50    53     65    103   U-Net of 0.3 million numbers, 8 × 64² px
    0.57    47     55     81   the same with layouts
    2.26    30     30     36   segmenter of 0.03 million
    2.90   510    321    442   U-Net of 5 million, 8 × 128² px
    3.59    58     53     70   tokens of genes, width 192, 64 spots
    4.64   186    144    216   U-Net of 2.7 million with layouts, 8 × 64² px
    6.39    63     53     67   segmenter of 0.3 million
    17.8   492    315    410   U-Net of 9 million, 8 × 64² px
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import getattr_static
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from morphogen.core.running.threads import in_lanes, lanes
from morphogen.training.order import share

Figures = dict[str, Tensor]
R = TypeVar("R")
_FEWEST = 2  # items of a lane
ENOUGH = (
    2.5  # millions of floating-point operations in a mean operation, from which more than one thread pays
)


class _Counter(TorchDispatchMode):
    operations, flops = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        value = func(*args, **kwargs)
        self.operations += 1
        if of_one := flop_registry.get(func._overloadpacket):
            self.flops += of_one(*args, **kwargs, out_val=value)
        return value


def counted(function: Callable[[], R]) -> tuple[R, float]:
    """What ``function`` gives, and the millions of floating-point operations of its mean operation: those of matrix
    products and convolutions over the number of all operations of torch. It computes the same bits as without.

    >>> round(
    ...     counted(lambda: torch.ones(100, 200) @ torch.ones(200, 50))[1], 2
    ... )  # 2 · 100 · 200 · 50 in three
    0.67
    """
    with _Counter() as counter:
        value = function()
    return value, counter.flops / 1e6 / max(1, counter.operations)


def lanes_for(model: nn.Module, accelerator: Any, items: int) -> int:
    """Lanes for micro-batches of ``items``: one on other devices and with several processes, for large and for compiled
    networks, and for those whose answer to an item depends on the others (batch norm) or on torch's own generator
    (dropout).
    """
    if accelerator.num_processes > 1 or accelerator.scaler is not None:
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
    # Networks of diffusers warn when a setting is asked for as an attribute.
    values = (getattr_static(module, name, 0) for name in names)
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


class WholeLoss:
    """A network whose batches go forward and backward in lanes while the loss sees the answer to the whole batch.

    Called like the network, with tensors (B, …), for one tensor (B, …). What reaches the weights is the gradient of
    whatever is computed from that, as without lanes.
    """

    def __init__(self, model: nn.Module, count: int) -> None:
        self._model, self._count = model, count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, *inputs: Tensor) -> Tensor:
        weights = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        return _Whole.apply(self._model, self._count, len(inputs), *inputs, *weights)  # type: ignore[no-any-return]


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, model: nn.Module, count: int, given: int, *tensors: Tensor) -> Tensor:
        inputs, ctx.weights, total = tensors[:given], tensors[given:], len(tensors[0])
        ctx.parts = [share(total, part, count) for part in range(count)]

        def one(here: range) -> tuple[list[Tensor], Tensor]:
            with torch.enable_grad():
                own = [
                    each[here.start : here.stop].detach().requires_grad_(each.requires_grad)
                    for each in inputs
                ]
                return own, model(*own)

        ctx.made = list(in_lanes(one, ctx.parts, count))
        return torch.cat([answer.detach() for _, answer in ctx.made])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        def one(part: int) -> tuple[Tensor | None, ...]:
            (own, answer), here = ctx.made[part], ctx.parts[part]
            wanted = [each for each in own if each.requires_grad] + list(ctx.weights)
            return torch.autograd.grad(
                answer, wanted, gradient[here.start : here.stop].contiguous(), allow_unused=True
            )

        found = list(in_lanes(one, range(len(ctx.parts)), len(ctx.parts)))
        first = [each.requires_grad for each in ctx.made[0][0]]
        inputs = iter(zip(*(each[: sum(first)] for each in found)))
        to_inputs = [torch.cat(next(inputs)) if needed else None for needed in first]
        to_weights = [
            None if each[0] is None else sum(each[1:], each[0])
            for each in zip(*(part[sum(first) :] for part in found))
        ]
        return None, None, None, *to_inputs, *to_weights


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
