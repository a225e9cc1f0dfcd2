"""Between host and device without waiting: numbers sent ahead of the work, results fetched behind it.

A copy from ordinary memory to a GPU, and any question about a number that lies there, waits for all work that was given
to the GPU so far; until the next kernel arrives it is idle. What goes there from pinned memory, and what is looked at
once an event behind it has passed, waits for nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import torch

T = TypeVar("T")


def sent(tensor: torch.Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A tensor of the host on ``device``; the same one where it is there already."""
    import torch

    device = torch.device(device)
    if device.type == "cuda" and tensor.device.type == "cpu":
        pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
        return pinned.to(device, dtype or tensor.dtype, non_blocking=True)
    return tensor.to(device, dtype or tensor.dtype)


def fetched(tensor: torch.Tensor) -> Callable[[], np.ndarray]:
    """Begin to copy a tensor to the host; what is given back waits for this copy alone, and gives the numbers.

    >>> import torch
    >>> fetched(torch.tensor([1, 2]))()
    array([1, 2])
    """
    import torch

    if tensor.device.type != "cuda":
        values = tensor.detach().cpu()
        return values.numpy
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor.detach(), non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(tensor.device))

    def wait() -> np.ndarray:
        event.synchronize()
        return host.numpy()

    return wait


def one_behind(items: Iterable[Callable[[], T]], device: torch.device | str | None) -> Iterator[T]:
    """What each of ``items`` gives, in order; on a GPU asked only once the next one was made, so that the GPU has work
    while it is waited for."""
    import torch

    behind = device is not None and torch.device(device).type == "cuda"
    before: Callable[[], T] | None = None
    for item in items:
        if not behind:
            yield item()
            continue
        if before is not None:
            yield before()
        before = item
    if before is not None:
        yield before()
