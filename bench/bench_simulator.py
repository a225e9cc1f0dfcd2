"""How fast simulated tissue comes, on one core."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from bench.harness import Row
from morphogen.demo import STYLES, TissueSimulator

_SIZE = 256


def _rate(job: Callable[[int], object], count: int, repeats: int) -> tuple[float, float, float]:
    """Median, lowest and highest number of jobs per second of one core's time.

    Time of this process, not of the clock, so that others on the machine count less; the simulator runs in one
    thread.
    """
    job(0)
    rates = []
    for repeat in range(repeats):
        start = time.process_time()
        for k in range(count):
            job(repeat * count + k)
        rates.append(count / (time.process_time() - start))
    return statistics.median(rates), min(rates), max(rates)


def _tiles(style: str, ihc: bool) -> Callable[[int], object]:
    sim = TissueSimulator(3, patient="A", style=style)
    # New places every time: nothing of a window is kept for the next.
    return lambda k: sim.render(_SIZE * (k % 16), _SIZE * (k // 16), _SIZE, _SIZE, ihc=ihc)


def run(quick: bool) -> list[Row]:
    """Tiles of 256 px per second for each style; spots per second."""
    count, repeats = (8, 3) if quick else (32, 5)
    rows = []
    for style in ("mixed", *STYLES):
        middle, low, high = _rate(_tiles(style, True), count, repeats)
        rows.append(
            Row(
                f"simulated 256 px tiles, {style}",
                middle,
                "tiles/s",
                low,
                high,
                goal="≥ 20 on one core",
                detail="H&E, immunostain, DAB truth, three masks and the table of cells",
            )
        )
    middle, low, high = _rate(_tiles("mixed", False), count, repeats)
    rows.append(Row("simulated 256 px tiles, mixed, no immunostain image", middle, "tiles/s", low, high))
    sim = TissueSimulator(3, patient="A")
    centres = np.stack(np.meshgrid(np.arange(16), np.arange(16)), axis=-1).reshape(-1, 2) * 200.0
    middle, low, high = _rate(lambda k: sim.spots(centres + 4000.0 * k), 2, repeats)
    size = len(centres)
    rows.append(Row("simulated spots of 55 µm, 400 genes", middle * size, "spots/s", low * size, high * size))
    return rows
