"""Threads: the commands at their defaults against one and two threads that spin, on idle and on shared cores."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.harness import Row
from morphogen.core.running.threads import COUNTS
from morphogen.demo.workspace import stain_model

# As libraries wait where nobody says how: 300,000 turns of GNU's loop, 200 ms of Intel's, 2^26 cycles of OpenBLAS.
SPINNING = {"GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": "200", "OPENBLAS_THREAD_TIMEOUT": "26"}


def ways() -> dict[str, dict[str, str]]:
    """Environment of the defaults, and of one and two threads as they were."""
    return {
        "defaults": {},
        "one": dict.fromkeys(COUNTS, "1") | SPINNING,
        "two": dict.fromkeys(COUNTS, "2") | SPINNING,
    }


def commands(base: Path, quick: bool) -> dict[str, list[str]]:
    """What is timed, each into a folder that is filled in as ``{out}``."""
    from bench.bench_expression import section
    from morphogen.demo.writers.hest import write_hest
    from morphogen.expression.sections.prepare import save_section

    hest = write_hest(base / "hest", 1, width_um=1500.0 if quick else 2400.0, height_um=1200.0, n_genes=150)
    slide = next((hest / "wsis").glob("*.tif"))
    (base / "store").mkdir()
    for name, patient in (("a", "A"), ("b", "B")):
        save_section(section(name, patient, 12 if quick else 20, 60), base / "store" / f"{name}.h5ad")
    return {
        "slide encode, texture": ["slide", "encode", str(slide), "--encoder", "texture", "--out", "{out}"],
        "expression prepare, texture": ["expression", "prepare", str(hest), "--out", "{out}"],
        "expression train, spatial": [
            *("expression", "train", str(base / "store"), "--test", "b", "--out", "{out}"),
            *("--genes", "40"),
        ],
        "stain predict": [
            *(
                "stain",
                "predict",
                str(slide),
                "--model",
                str(stain_model()),
                "--out",
                "{out}",
                "--steps",
                "2",
            ),
        ],
    }


def timed(arguments: list[str], environment: dict[str, str], out: Path) -> float:
    own = {key: value for key, value in os.environ.items() if key not in COUNTS}
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "morphogen.cli.main", *(str(out) if a == "{out}" else a for a in arguments)],
        check=True,
        env=own | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - began


@contextmanager
def busy(wanted: bool) -> Iterator[None]:
    """Another process at work on one core."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if wanted else None
    try:
        yield
    finally:
        if other is not None:
            other.kill()
            other.wait()


def run(quick: bool) -> list[Row]:
    """The better of one and two threads over the defaults: 1 and more is what is wanted."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        for name, arguments in commands(base, quick).items():
            for shared in (False, True):
                took: dict[str, list[float]] = {way: [] for way in ways()}
                with busy(shared):
                    for k in range(1 if quick else 3):
                        for way, environment in ways().items():
                            out = base / f"{name}-{shared}-{way}-{k}".replace(" ", "-").replace(",", "")
                            took[way].append(timed(arguments, environment, out))
                best = {way: min(seconds) for way, seconds in took.items()}
                text = ", ".join(f"{way} {seconds:.1f} s" for way, seconds in best.items())
                rows.append(
                    Row(
                        f"{name}, {'one core busy' if shared else 'idle cores'}: better of one and two / defaults",
                        min(best["one"], best["two"]) / best["defaults"],
                        goal="≥ 0.9",
                        detail=text,
                    )
                )
    return rows
