"""Which device and which precision a computation uses: decided by the caller, never at import."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from typing import TYPE_CHECKING, Literal

from morphogen.core.errors import ConfigError, InputError, nearest

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16", "fp16"]

TOGETHER = "MORPHOGEN_DEVICES"  # devices of this process, with commas between
CALLS = 2_500  # of a network, for a full batch each, from which compiling it for a GPU pays
STEPS = 5_000  # of a training, whose backward pass is compiled too
# On an H200 compilation took up to a minute and saved about 25 ms of a call (a gene transformer of 12 × 384, batch
# 1,280: 71.5 to 44.5 ms; a Stable Diffusion U-Net, 16 × 512 px: 59 to 35) and of a training step (60 to 34).


def check_memory(wanted: int, doing: str, where: object, fix: str) -> None:
    """:class:`InputError` where ``doing`` takes more bytes than are free; small amounts are not looked at.

    The system would end the process without a word, and others with it.
    """
    if wanted < 1 << 28:
        return
    import psutil

    free = psutil.virtual_memory().available
    if wanted > free:
        raise InputError(
            f"needs {wanted / 1e9:.1f} GB of memory {doing}, and {free / 1e9:.1f} GB are free",
            where=where,
            fix=fix,
        )


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """``"auto"`` takes the first of the devices that were given to this process (``--gpus``), else CUDA, then Apple's
    MPS, then the CPU; anything else must exist on this machine."""
    import torch

    if isinstance(name, torch.device):
        return name
    if name == "auto":
        if TOGETHER in os.environ:
            return devices_together("auto")[0]
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        hint = nearest(name, ["auto", "cpu", "cuda", "mps"])
        raise ConfigError(f"unknown device '{name}'.{hint}", where="--device") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("no CUDA device is available", where="--device", fix="Use --device cpu")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(
            f"'{name}' does not exist; this machine has {count} CUDA device(s)", where="--device"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("Apple's MPS is not available here", where="--device", fix="Use --device cpu")
    return device


def devices_together(name: str | torch.device = "auto") -> list[torch.device]:
    """The devices that the work on one item is shared over: for ``"auto"`` all that were given to this process
    (``MORPHOGEN_DEVICES``, which ``--gpus`` sets), else the one of :func:`resolve_device`."""
    named = [each for each in os.environ.get(TOGETHER, "").split(",") if each] if name == "auto" else []
    return [resolve_device(each) for each in named] or [resolve_device(name)]


def torch_dtype(precision: str) -> torch.dtype:
    """The torch dtype of ``"fp32"``, ``"bf16"`` or ``"fp16"``; ``"auto"`` needs a device."""
    import torch

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision not in dtypes:
        hint = nearest(precision, ["auto", *dtypes])
        raise ConfigError(
            f"unknown precision '{precision}'.{hint}", where="--precision", fix="Use auto, fp32, bf16 or fp16"
        )
    return dtypes[precision]


def multiplies_bf16(device: torch.device | str) -> bool:
    """Whether a device is a GPU that multiplies in bfloat16 by itself."""
    import torch

    return torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def chosen_precision(asked: str, device: torch.device | str) -> str:
    """What is asked for, by a known name; for ``"auto"`` bf16 on GPUs that multiply in it, fp32 elsewhere.

    Networks alone run in it, under autocast: samplers, autoencoders, weights and losses stay in float32. On CPUs
    results are the same bytes whatever machine goes on with them, so nothing is reduced there unless asked for.

    >>> chosen_precision("auto", "cpu"), chosen_precision("bf16", "cpu")
    ('fp32', 'bf16')
    """
    if asked != "auto":
        torch_dtype(asked)
        return asked
    return "bf16" if multiplies_bf16(device) else "fp32"


def compiling_pays(device: torch.device | str, ahead: float, *, training: bool = False) -> bool:
    """Whether torch.compile costs less than it saves in the work ahead: ``ahead`` calls of a network with a full batch
    each, or steps of a ``training``. Never on a CPU, where it gains little.

    >>> compiling_pays("cpu", 1e9)
    False
    """
    import torch

    if torch.device(device).type != "cuda" or not _has_compiler():
        return False
    return ahead >= (STEPS if training else CALLS)


def _has_compiler() -> bool:
    return importlib.util.find_spec("triton") is not None


def tolerate_failures() -> None:
    """What cannot be compiled runs as it is, from now on: for a compilation that nobody asked for."""
    import torch._dynamo

    torch._dynamo.config.suppress_errors = True


def autocast(
    device: torch.device | str, precision: str = "fp32"
) -> contextlib.AbstractContextManager[object]:
    """Autocast to ``precision`` on ``device``, by :func:`chosen_precision`; a no-op for fp32."""
    import torch

    dtype = torch_dtype(chosen_precision(precision, device))
    if dtype is torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=dtype)
