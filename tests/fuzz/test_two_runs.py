"""Two runs into one place, for every verb that writes: the second is refused in one sentence, or shares the work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from . import harness
from .specimens import TINY_LAYOUT, TINY_STAIN

HOLD = """
import sys
from pathlib import Path
from morphogen.core.writing import locks
place = Path(sys.argv[1])
with (locks.file_lock if place.suffix else locks.folder_lock)(place):
    print("held", flush=True)
    sys.stdin.read()
"""
STAIN = "--model stain --out out --steps 1 --device cpu"
GENES = (
    "--recipe stem --training.steps 1 --panel.size 6 --network.width 16 --network.depth 1 --network.heads 2"
)
TINY_SEGMENTER = f"--network.widths [8,16] {TINY_LAYOUT}"
TISSUE = "--model tissue/model --device cpu"
# The place that the other run works at: a folder, or (with a suffix) a file or store; then the command.
VERBS = {
    "slide tile": ("out/ome.ome.zarr", "slide tile slides/ome.ome.tif --out out --tissue all --tile-px 64"),
    "slide encode": (
        "out/ome.ome.zarr",
        "slide encode slides/ome.ome.tif --out out --tissue all --tile-px 64",
    ),
    "slide import": (
        "out/ome.ome.zarr",
        "slide import slides/ome.ome.tif --format clam --from clam --out out",
    ),
    "stain train": ("out", f"stain train pairs --out out {TINY_STAIN}"),
    "stain predict images": ("out", f"stain predict images/a.png {STAIN}"),
    "stain predict slide": ("out/pyramid_{stain}.json", f"stain predict slides/pyramid.tif {STAIN}"),
    "stain evaluate": ("out", "stain evaluate stained pairs --split train --out out"),
    "stain register": ("out/maps.csv", "stain register pairs --out out/maps.csv --motion shift"),
    "expression prepare": ("out/S1.h5ad", "expression prepare sections/raw --out out --data.mpp 3.33"),
    "expression train": ("out", f"expression train sections/prepared --out out {GENES}"),
    "expression predict": (
        "out/map.h5ad",
        "expression predict sections/prepared/S1.h5ad --model genes/model --out out/map.h5ad --samples 1",
    ),
    "expression evaluate": (
        "out",
        "expression evaluate sections/prepared --model genes/model --test S2 --by section --samples 2 --out out",
    ),
    "tissue train": (
        "out",
        "tissue train images --out out --size tiny --steps 1 --mpp 1 --tile-mpp 1 --tile 32",
    ),
    "tissue patches": ("out", f"tissue patches images/a.png --out out --mpp 1 --steps 1 {TISSUE}"),
    "tissue canvas": ("out", f"tissue canvas --like images/a.png --mpp 1 --out out --steps 1 {TISSUE}"),
    "tissue prior": ("out", f"tissue prior images --out out --mpp 1 --side 2 --steps 1 {TISSUE}"),
    "tissue evaluate": (
        "out",
        f"tissue evaluate images --out out --mpp 1 --encoders model --steps 1 {TISSUE}",
    ),
    "tissue import-samples": ("out", "tissue import-samples samples.pkl --out out --trust"),
    "layout train": ("out", f"layout train labelled --out out --size tiny {TINY_LAYOUT}"),
    "layout synthesize": ("out", "layout synthesize labelled --model layout/model --count 2 --out out"),
    "layout segmenter": ("out", f"layout segmenter labelled --out out {TINY_SEGMENTER}"),
    "layout segment images": ("out", "layout segment labelled/images --model segmenter/model --out out"),
    "layout segment slide": (
        "out/ome_mask.json",
        "layout segment slides/ome.ome.tif --model segmenter/model --mpp 0.5 --out out",
    ),
    "layout evaluate": ("out", f"layout evaluate labelled --synthetic synthetic --out out {TINY_SEGMENTER}"),
}


@pytest.fixture
def work(written, tmp_path) -> Path:
    """A copy of everything, to be worked in."""
    return Path(shutil.copytree(written, tmp_path / "work", copy_function=os.link))


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_second_run_is_refused_in_one_sentence(verb, work):
    place, command = VERBS[verb]
    place = place.format(stain="IHC")
    options = {"cwd": work, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLD, place], **options) as other:
        assert other.stdout.readline() == b"held\n"
        before = harness.listing(work / "out")
        outcome = harness.run(command.split(), work, work / "out")
        many = verb == "expression prepare"  # the other sections are made, this one is listed
        assert not harness.faults(outcome, (3 if many else 2,)), (outcome.status, outcome.err[-600:])
        said = f"another run is writing here (process {other.pid} on"
        assert said in (outcome.out if many else outcome.err)
        assert not (work / place).is_file()
        after = harness.listing(work / "out")
        kept = {path for path in after if "/features/" not in path}  # of tiles, shared by all runs
        assert many or kept == set(before)
        other.stdin.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "verb",
    ["slide encode", "slide import", "stain predict images", "stain predict slide", "expression prepare",
     "expression predict", "tissue patches", "layout segment images"],
)  # fmt: skip
def test_two_at_once_leave_what_one_leaves(verb, work):
    command = VERBS[verb][1].split()
    outcomes = harness.run_both(command, work, work / "out")
    assert 0 in [outcome.status for outcome in outcomes], [outcome.err[-300:] for outcome in outcomes]
    for outcome in outcomes:
        assert not harness.faults(outcome, (0, 2, 3)), (outcome.status, outcome.err[-600:])
        assert outcome.status == 0 or "another run is writing here" in outcome.err + outcome.out
    found = harness.results(work / "out")
    again = harness.run(command, work, work / "out")
    assert again.status == 0 or "--overwrite" in again.err, again.err[-600:]
    shutil.rmtree(work / "out")
    alone = harness.run(command, work, work / "out")
    assert alone.status == 0, alone.err[-600:]
    assert found == harness.results(work / "out")
