"""The published numbers on other kinds of processor: the parity tests again, with the vector units of each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).resolve().parents[1]
PARITY = [
    "nets", "diffusion/test_parity_diffusers.py", "diffusion/test_parity_histdist.py",
    "diffusion/test_parity_large_image.py", "diffusion/test_parity_stem.py", "checkpoints/test_published.py",
    "checkpoints/test_sampling.py", "stain/test_published.py", "expression/test_published.py",
    "tissue/test_published.py", "layout/test_published.py",
]  # fmt: skip
SETTINGS = [
    ("ATEN_CPU_CAPABILITY", "default"),
    ("ATEN_CPU_CAPABILITY", "avx2"),
    ("ATEN_CPU_CAPABILITY", "avx512"),
    ("ONEDNN_MAX_CPU_ISA", "AVX2"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("variable", "value"), SETTINGS)
def test_parity_holds_on_every_processor(shared, variable, value):
    if value == "avx512" and torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("this processor has no AVX-512")
    files = [str(TESTS / name) for name in PARITY]
    assert all(Path(file).exists() for file in files)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        cwd=TESTS.parent,
        env=os.environ | {variable: value, "MORPHOGEN_SHARED": str(shared)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
