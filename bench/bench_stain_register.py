"""Virtual staining: registering the pairs of a data set, several at a time against one by one."""

from __future__ import annotations

import tempfile
from pathlib import Path

from bench.harness import Row, compare
from morphogen.core.devices import cpu_cores
from morphogen.demo.writers.folders import write_mist
from morphogen.stain.registration.table import register_table


def run(quick: bool) -> list[Row]:
    pairs, size = (4, 256) if quick else (16, 1024)
    with tempfile.TemporaryDirectory() as folder:
        data = write_mist(Path(folder) / "data", pairs, 1, size, patients=2, val_patients=1, truth=False)

        def register(workers: int) -> None:
            register_table(data, Path(folder) / f"{workers}.csv", workers=workers)

        return [
            compare(
                f"stain register: {cpu_cores()} pairs at a time against one",
                lambda: register(cpu_cores()),
                lambda: register(1),
                pairs=1 if quick else 5,
                detail=f"{pairs + 1} pairs of {size} px, rigid, {cpu_cores()} cores",
            )
        ]
