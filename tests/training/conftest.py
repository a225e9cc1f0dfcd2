from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("toy_run.py")


@pytest.fixture(scope="session")
def toy():
    """The module of the small denoising task."""
    spec = importlib.util.spec_from_file_location("toy_run", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """Start jobs in fresh processes: ``start(jobs, processes=1) -> Popen``; more than one go through torchrun."""

    def start(jobs: list[dict], processes: int = 1) -> subprocess.Popen:
        path = tmp_path_factory.mktemp("jobs") / "jobs.json"
        path.write_text(json.dumps(jobs, default=str))
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [sys.executable, *(torchrun if processes > 1 else []), str(SCRIPT), str(path)]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start


@pytest.fixture(scope="session")
def answers(start):
    """Run jobs to their end: ``answers(jobs, processes=1) -> (one dict per job and process, stderr)``."""

    def answers(jobs: list[dict], processes: int = 1) -> tuple[list[dict], str]:
        process = start(jobs, processes)
        out, err = process.communicate(timeout=300)
        own = "\n".join(line for line in err.splitlines() if line.startswith("[rank")) or err
        assert process.returncode == 0, own[-4000:]
        return [json.loads(line) for line in out.splitlines() if line.startswith("{")], err

    return answers
