"""A cohort by the commands a user types: shards of a job array and a dask cluster, killed in the middle."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from morphogen.demo import TissueSimulator
from morphogen.slides.pyramid import write_pyramid

pytestmark = pytest.mark.slow
MORPHOGEN = [sys.executable, "-m", "morphogen.cli.main"]
COUNT, PATIENCE = 5, 400.0


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    """``slides/`` and a tiny stain model, and in ``one/`` what one process makes of them."""
    from morphogen.stain.config import ModelConfig
    from morphogen.stain.fitting.build import build_model

    root = tmp_path_factory.mktemp("cohort")
    (root / "slides").mkdir()
    for k in range(COUNT):
        he = TissueSimulator(k).render(0, 0, 200, 160, ihc=False).he
        write_pyramid(root / "slides" / f"s{k}.ome.tif", [he], 200, 160, mpp=0.5, tile=64)
    small = {"widths": (8, 16), "groups": 4, "heads": 2, "attention": (1,), "encoder": "none"}
    build_model(ModelConfig(**small, pixel_factor=4, detail=4), crop=64, seed=3).save_pretrained(
        root / "stain"
    )
    subprocess.run(predict(root, "one"), check=True, capture_output=True)
    return root


def predict(root: Path, out: str, *more: str) -> list[str]:
    words = ["stain", "predict", "slides", "--model", "stain", "--steps", "20", "--device", "cpu"]
    words = [
        str(root / word) if word in ("slides", "stain") and at > 1 else word for at, word in enumerate(words)
    ]
    return [*MORPHOGEN, *words, "--out", str(root / out), *more]


def images(folder: Path) -> dict[str, str]:
    """The pyramids of a folder by the hash of their bytes."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.ome.tif")}


def waited(there, what: str) -> None:
    until = time.monotonic() + PATIENCE
    while not there():
        assert time.monotonic() < until, f"no {what} in {PATIENCE:.0f} s"
        time.sleep(0.02)


def test_four_shards_one_of_them_killed(cohort):
    out = cohort / "shards"
    claims = out / "runs" / ".claims"
    first = subprocess.Popen(predict(cohort, "shards", "--shard", "1/4"), stderr=subprocess.DEVNULL)
    waited(lambda: any(claims.glob("*.lock")), "claim")
    first.send_signal(signal.SIGKILL)
    first.wait()
    (left,) = claims.glob("*.lock")  # of what it was at
    assert not images(out)
    others = [
        subprocess.Popen(predict(cohort, "shards", "--shard", f"{k}/4"), stdout=subprocess.DEVNULL)
        for k in (2, 3, 4)
    ]
    assert [other.wait(PATIENCE) for other in others] == [0, 0, 0]
    assert images(out) == images(cohort / "one") and len(images(out)) == COUNT
    assert not left.exists() and not list(claims.glob("*.lock"))
    assert f"{COUNT} items are done, 0 failed." in (out / "runs" / "summary.md").read_text()


@contextmanager
def background(words: list[str], **how) -> Iterator[subprocess.Popen]:
    with subprocess.Popen(words, **how) as running:
        try:
            yield running
        finally:
            running.kill()


def test_a_dask_worker_killed(cohort, tmp_path):
    dask = [sys.executable, "-m", "dask"]
    where = {"cwd": tmp_path, "stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    file = tmp_path / "scheduler.json"
    serve = [*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    with background([*serve, "--scheduler-file", str(file)], **where):
        waited(file.is_file, "scheduler")
        address = re.search(r'"address": "([^"]+)"', file.read_text())[1]
        work = [*dask, "worker", address, "--no-nanny", "--nthreads", "2", "--no-dashboard"]
        with background(work, **where) as first:
            asked = predict(cohort, "dask", "--scheduler", address)
            with background(asked, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as running:
                # A slide is being written by the first worker: it goes, and another comes.
                waited(lambda: any((cohort / "dask").glob(".*ome*")), "slide begun")
                os.kill(first.pid, signal.SIGKILL)
                with background(work, **where):
                    said = running.communicate(timeout=PATIENCE)[1]
                    assert running.returncode == 0, said[-2000:]
    assert images(cohort / "dask") == images(cohort / "one")
    assert '"attempts": 2' in next((cohort / "dask" / "runs").glob("*.json")).read_text()
