"""Fixtures shared by all tests: the sample data beside the repository, and one thread per process."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
if (
    "numba" in sys.modules
):  # a plugin of pytest's has loaded it, and it must not find another number once it is at work
    sys.modules["numba"].core.config.reload_config()
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("MORPHOGEN_SHARED", REPOSITORY.parent / "shared"))


def load_fixture(name: str) -> tuple[dict, dict]:
    """``(fixture.json, tensors)`` of one folder of published numbers; skips when it is not there."""
    folder = SHARED / "fixtures" / name
    if not (folder / "fixture.json").is_file():
        pytest.skip(f"published numbers '{name}' are not at {folder} (set MORPHOGEN_SHARED)")
    from safetensors.torch import load_file

    return json.loads((folder / "fixture.json").read_text()), load_file(folder / "tensors.safetensors")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of sample data, fixtures and manifests; skips when it is not there."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"sample data is not at {SHARED} (set MORPHOGEN_SHARED)")
    return SHARED


@pytest.fixture(scope="session")
def tensors():
    """Loader of one fixture's tensors by folder name."""
    return lambda name: load_fixture(name)[1]


@pytest.fixture(scope="session")
def published():
    """Loader of one fixture: ``(description, tensors)`` by folder name."""
    return load_fixture


@pytest.fixture(autouse=True)
def _one_thread():
    """Before every test: OpenMP code of other libraries (numba's) changes the number for the whole process."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def looks():
    """A recorder of what would make the host wait for a device, which the meta device stands for: there are no numbers
    on it, so that any look fails, and is counted before it does. ``with looks() as looked: …; looked.found``."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Looks(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.found: list[str] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = func.overloadpacket.__name__
            waits = name in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")
            tensors = [a for a in args if isinstance(a, torch.Tensor)]
            if waits and any(t.device.type == "meta" for t in tensors):
                self.found.append(name)
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.device.type == "cpu":
                if any(t.device.type == "meta" for t in tensors) and name in ("_to_copy", "copy_"):
                    self.found.append(name)
            return out

    return Looks
