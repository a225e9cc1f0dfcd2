"""Which device and which precision a computation uses: decided by the caller, never at import."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Literal

from morphogen.core.errors import ConfigError, InputError, nearest

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16", "fp16"]


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
    """``"auto"`` takes CUDA, then Apple's MPS, then the CPU; anything else must exist on this machine."""
    import torch

    if isinstance(name, torch.device):
        return name
    if name == "auto":
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


def torch_dtype(precision: str) -> torch.dtype:
    """The torch dtype of ``"fp32"``, ``"bf16"`` or ``"fp16"``."""
    import torch

    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision not in dtypes:
        hint = nearest(precision, dtypes)
        raise ConfigError(
            f"unknown precision '{precision}'.{hint}", where="--precision", fix="Use fp32, bf16 or fp16"
        )
    return dtypes[precision]


def autocast(
    device: torch.device | str, precision: str = "fp32"
) -> contextlib.AbstractContextManager[object]:
    """Autocast to ``precision`` on ``device``; a no-op for fp32."""
    import torch

    dtype = torch_dtype(precision)
    if dtype is torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=dtype)
