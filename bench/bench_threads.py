"""Threads: every command at its defaults against one and two threads that spin, on idle and on shared cores.

Three processes, one for each way, have loaded their libraries and take turns at every command, so that a command of a
second is not hidden behind the seconds in which Python imports.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.harness import Row
from morphogen.core.running.threads import COUNTS
from morphogen.demo.workspace import stain_model

# As libraries wait where nobody says how: 300,000 turns of GNU's loop, 200 ms of Intel's, 2^26 cycles of OpenBLAS.
SPINNING = {"GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": "200", "OPENBLAS_THREAD_TIMEOUT": "26"}
_LONG = 3.0  # seconds; what is shorter is run more often
_PASSIVE = ("OMP_WAIT_POLICY", *SPINNING)

_SERVER = """
import contextlib, io, json, sys, time
from morphogen.cli.main import main
from morphogen.core.running.threads import wait_passively
wait_passively()  # as main does, before torch is loaded
import torch
answer, threads = sys.stdout, torch.get_num_threads()
for line in sys.stdin:
    torch.set_num_threads(threads)  # OpenMP code of other libraries (numba's) changes it for the whole process
    said, began, status = io.StringIO(), time.perf_counter(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main(json.loads(line))
        except SystemExit as end:
            status = end.code or 0
    text = said.getvalue()[-600:] if status else ""
    print(json.dumps([status, time.perf_counter() - began, text]), file=answer, flush=True)
"""


def ways() -> dict[str, dict[str, str]]:
    """Environment of the defaults, and of one and two threads as they were."""
    return {
        "defaults": {},
        "one": dict.fromkeys(COUNTS, "1") | SPINNING,
        "two": dict.fromkeys(COUNTS, "2") | SPINNING,
    }


class Commands:
    """A process that runs the commands it is given, with an environment of its own."""

    def __init__(self, environment: dict[str, str]) -> None:
        own = {key: value for key, value in os.environ.items() if key not in (*COUNTS, *_PASSIVE)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            env=own | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self, arguments: list[str]) -> float:
        """Seconds of a command."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        status, seconds, text = json.loads(self._process.stdout.readline())
        if status:
            raise RuntimeError(f"{' '.join(arguments)}: status {status}: {text}")
        return float(seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def commands(base: Path, quick: bool) -> dict[str, str]:
    """What is timed, each into a folder that is filled in as ``OUT``; inputs are made below ``base``."""
    from bench.bench_expression import section
    from morphogen.demo.writers.folders import write_mist, write_segmentation
    from morphogen.demo.writers.hest import write_hest
    from morphogen.expression.sections.prepare import save_section

    hest = write_hest(base / "hest", 1, width_um=800.0, height_um=600.0, n_genes=150)
    slide = next((hest / "wsis").glob("*.tif"))
    small = next(
        (write_hest(base / "small", 1, width_um=450.0, height_um=450.0, n_genes=150) / "wsis").glob("*.tif")
    )
    pairs = write_mist(base / "pairs", 4, 2, size=256, patients=2, val_patients=1, truth=False, suffix=".png")
    labelled = write_segmentation(base / "labelled", 6, size=192, patients=3)
    (base / "store").mkdir()
    for name, patient in (("a", "A"), ("b", "B")):
        save_section(section(name, patient, 12 if quick else 30, 60), base / "store" / f"{name}.h5ad")
    store, made = base / "store", base / "made"
    steps = 2 if quick else 6
    loop = f"--training.steps {steps} --training.batch_size 8"
    longer = (
        f"--training.steps {steps if quick else 40} --training.batch_size 8"  # of networks that cost little
    )
    tiles = f"{pairs}/TrainValAB/trainA --mpp 0.5"
    sheets = f"{labelled} --annotated P01 P02 --test P03"
    return {
        "slide tile": f"slide tile {slide} --out OUT --tile-px 128",
        "slide encode, texture": f"slide encode {slide} --encoder texture --out OUT",
        "expression prepare, texture": f"expression prepare {hest} --out OUT",
        "expression train, spatial": f"expression train {store} --test b --out OUT --genes 40",
        "expression train, stem": f"expression train {store} --test b --recipe stem --out OUT --genes 40 {longer} "
        "--network.width 96 --network.depth 2",
        "expression predict": f"expression predict {store}/b.h5ad --model {made}/expression-train--stem/model "
        f"--out OUT/b.h5ad --samples {4 if quick else 8} --steps {steps}",
        "stain register": f"stain register {pairs} --out OUT/maps.csv --motion shift",
        "stain train": f"stain train {pairs} --out OUT --crop 128 --mpp 0.5 {loop}",
        "stain predict": f"stain predict {small} --model {stain_model()} --out OUT --steps 2",
        "tissue train": f"tissue train {tiles} --out OUT --size tiny --tile-mpp 0.5 --tile 64 {longer}",
        "tissue patches": f"tissue patches {tiles} --model {made}/tissue-train/model --out OUT --steps {steps}",
        "tissue canvas": f"tissue canvas --like {pairs}/TrainValAB/trainA/{_first(pairs)} --mpp 0.5 "
        f"--model {made}/tissue-train/model --out OUT --steps {steps}",
        "layout train": f"layout train {sheets} --out OUT --size tiny --crop 64 {longer}",
        "layout synthesize": f"layout synthesize {sheets} --model {made}/layout-train/model --out OUT "
        f"--count {8 if quick else 80}",
        "layout segmenter": f"layout segmenter {sheets} --out OUT --crop 64 --network.widths [16,32] {longer}",
        "layout segment": f"layout segment {labelled}/images --model {made}/layout-segmenter/model --out OUT",
    }


def _first(pairs: Path) -> str:
    return sorted(path.name for path in (pairs / "TrainValAB" / "trainA").iterdir())[0]


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
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        base = Path(folder)
        servers = {way: stack.enter_context(Commands(environment)) for way, environment in ways().items()}
        for name, text in commands(base, quick).items():
            try:
                rows += _rows(name, text, servers, base, quick)
            except RuntimeError as error:  # the other commands are measured all the same
                print(f"  {name}: {error}", flush=True)
    return rows


def _rows(name: str, text: str, servers: dict[str, Commands], base: Path, quick: bool) -> list[Row]:
    rows = []
    short = name.replace(", ", "--").replace(" ", "-")
    for way, server in servers.items():  # libraries are loaded, and what others start from is made
        out = base / ("made" if way == "defaults" else f"made-{way}") / short
        out.parent.mkdir(exist_ok=True)
        warm = server.run(text.replace("OUT", str(out)).split())
    rounds = 1 if quick else 2 if warm > _LONG else 3
    for shared in (False, True):
        took: dict[str, list[float]] = {way: [] for way in servers}
        with busy(shared):
            for k in range(rounds):
                for way, server in servers.items():
                    out = base / f"{short}-{shared}-{way}-{k}"
                    took[way].append(server.run(text.replace("OUT", str(out)).split()))
        best = {way: min(seconds) for way, seconds in took.items()}
        rows.append(
            Row(
                f"{name}, {'one core busy' if shared else 'idle cores'}: better of one and two / defaults",
                min(best["one"], best["two"]) / best["defaults"],
                goal="≥ 0.9",
                detail=", ".join(f"{way} {seconds:.2f} s" for way, seconds in best.items()),
            )
        )
    return rows
