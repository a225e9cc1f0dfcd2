"""Seeds as pure functions of names: no global random state anywhere in the package."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


def seed_for(*keys: int | str | bytes | tuple) -> int:
    """A 63-bit seed from any sequence of integers and strings; stable across runs, platforms and versions."""
    digest = hashlib.blake2b(digest_size=8)
    for key in keys:
        if isinstance(key, bytes):
            data = b"b" + key
        elif isinstance(key, tuple):
            data = b"t" + seed_for(*key).to_bytes(8, "little")
        elif isinstance(key, str):
            data = b"s" + key.encode()
        else:
            data = b"i" + str(int(key)).encode()
        digest.update(len(data).to_bytes(4, "little") + data)
    return int.from_bytes(digest.digest(), "little") >> 1


def generator(*keys: int | str | tuple, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator seeded by :func:`seed_for`."""
    import torch

    return torch.Generator(device=device).manual_seed(seed_for(*keys))


def numpy_generator(*keys: int | str | tuple) -> np.random.Generator:
    """A NumPy generator seeded by :func:`seed_for`."""
    import numpy as np

    return np.random.default_rng(seed_for(*keys))
