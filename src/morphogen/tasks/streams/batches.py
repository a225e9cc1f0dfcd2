"""How many windows go through a network together: as many as the memory of its device takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from morphogen.tasks.config import PLAIN_BATCH, WindowConfig
from morphogen.tasks.windows import WindowPlan

MOST = 256  # windows; beyond that a GPU gains nothing
_SHARE = 0.7  # of the free memory: other work may want some, and allocators leave gaps


class Memory(Protocol):
    """What is known of a device's memory, in bytes."""

    def free(self) -> int: ...

    def peak(self, work: Callable[[], Any]) -> int:
        """The most that is taken while ``work`` runs."""
        ...


class CudaMemory:
    """Memory of a CUDA device."""

    def __init__(self, device: Any) -> None:
        self.device = device

    def free(self) -> int:
        import torch

        held = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return torch.cuda.mem_get_info(self.device)[0] + held

    def peak(self, work: Callable[[], Any]) -> int:
        import torch

        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        work()
        return torch.cuda.max_memory_allocated(self.device) - before


def batch_for(windows: WindowConfig, model: Any, plan: WindowPlan, memory: Memory | None = None) -> int:
    """The number in ``windows``, or for ``auto`` the power of two that fits: what one and four windows take is measured
    on the device of ``model`` (its attribute ``device``), and more of them are taken to cost as much each. On a CPU
    it is 8: its results are the same to the bit whatever machine goes on with them.
    """
    if windows.batch != "auto":
        return windows.batch
    device = getattr(model, "device", None)
    if memory is None and getattr(device, "type", "cpu") == "cuda":
        memory = CudaMemory(device)
    if memory is None:
        return PLAIN_BATCH

    def run(count: int) -> None:
        images = np.full((count, plan.window, plan.window, 3), 255, np.uint8)
        noise = model.noise(plan, "")
        regions = [plan.region(0, 0)] * count
        if noise is None:
            model.make(images, None, None)
        else:
            model.make(images, noise.over(regions), noise.start(regions))

    one, four = memory.peak(lambda: run(1)), memory.peak(lambda: run(4))
    each = max(1, (four - one) // 3)
    fits = int((_SHARE * memory.free() - (one - each)) / each)
    return 1 if fits < 1 else min(MOST, 1 << (fits.bit_length() - 1))
