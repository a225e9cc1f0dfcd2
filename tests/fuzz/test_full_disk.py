"""A disk that fills up under every verb that writes: one sentence, and the same command goes on when there is space."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import harness
from .specimens import TINY_LAYOUT, TINY_STAIN

GENES = "--recipe stem --training.steps 2 --training.save_every 1 --panel.size 6 --network.width 16 --network.depth 1"
TISSUE = "--model tissue/model --device cpu --mpp 1 --steps 2"
VERBS = {
    "slide tile": "slide tile slides/ome.ome.tif --out out --tissue all --tile-px 64",
    "slide encode": "slide encode slides/ome.ome.tif --out out --tissue all --tile-px 64 --tile-mpp 0.5",
    "slide import": "slide import slides/ome.ome.tif --format clam --from clam --out out",
    "slide export": "slide export slides/ome.ome.tif --out stores --format hest --to out",
    "stain train": f"stain train pairs --out out --training.save_every 1 {TINY_STAIN}",
    "stain predict images": "stain predict images --model stain --out out --steps 1 --device cpu",
    "stain predict slide": "stain predict slides/pyramid.tif --model stain --out out --steps 1 --device cpu",
    "stain evaluate": "stain evaluate stained pairs --split train --out out",
    "expression prepare": "expression prepare sections/raw --out out --data.mpp 3.33",
    "expression train": f"expression train sections/prepared --out out --network.heads 2 {GENES}",
    "expression predict": "expression predict sections/prepared/S1.h5ad --model genes/model --out out/map.h5ad "
    "--samples 64 --keep_samples zarr --shard_spots 12",
    "expression evaluate": "expression evaluate sections/prepared --model genes/model --test S2 --by section "
    "--samples 2 --out out",
    "tissue train": "tissue train images --out out --size tiny --steps 2 --training.save_every 1 --mpp 1 --tile-mpp 1 "
    "--tile 32 --training.batch_size 4",
    "tissue patches": f"tissue patches images/a.png --out out {TISSUE}",
    "tissue canvas": f"tissue canvas --like images/a.png --out out --save_every 1 {TISSUE}",
    "layout train": f"layout train labelled --out out --size tiny {TINY_LAYOUT}",
    "layout synthesize": "layout synthesize labelled --model layout/model --count 4 --out out --batch 2",
    "layout segment slide": "layout segment slides/pyramid.tif --model segmenter/model --out out",
}
SHARES = (0.02, 0.3, 0.6, 0.9)  # of what the whole result takes


class Disk:
    """A file system in memory at ``place``."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def mount(self, size: int) -> None:
        self.place.mkdir()
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(self.place)], capture_output=True
        )
        if made.returncode:
            pytest.skip(f"nothing can be mounted here: {made.stderr.decode(errors='replace').strip()}")

    def resize(self, size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.place)], check=True)

    def used(self) -> int:
        found = os.statvfs(self.place)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def unmount(self) -> None:
        if self.place.is_mount():
            subprocess.run(["umount", str(self.place)], check=True)
        if self.place.is_dir():
            self.place.rmdir()


@pytest.fixture
def work(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "work", copy_function=os.link))


@pytest.fixture
def disk(work) -> Iterator[Disk]:
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    found = Disk(work / "out")
    yield found
    found.unmount()


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_full_disk_is_one_sentence_and_the_run_goes_on(verb, work, disk):
    command = VERBS[verb].split()
    disk.mount(1 << 30)
    whole = harness.run_apart(command, work, disk.place)
    assert whole.status == 0, whole.err[-900:]
    names, size = harness.results(disk.place), disk.used()
    disk.unmount()
    wrong, full = [], 0
    for share in SHARES:
        disk.mount(max(4096, int(size * share) // 4096 * 4096))
        outcome = harness.run_apart(command, work, disk.place)
        full += "disk is full" in outcome.err
        faults = harness.faults(outcome, (2,))
        disk.resize(1 << 30)
        again = harness.run_apart(command, work, disk.place)
        if again.status != 0:
            faults.append(f"then {again.status}: {again.err[-300:]}")
        elif harness.results(disk.place) != names:
            faults.append(f"then other files: {harness.results(disk.place) ^ names}")
        wrong += [f"{share:.0%} of {size}: {fault} | {outcome.err.strip()[-1500:]}" for fault in faults]
        disk.unmount()
    assert not wrong, "\n".join(wrong)
    assert full == len(SHARES)
