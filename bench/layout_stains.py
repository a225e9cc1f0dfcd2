"""How far recoloured tissue is from the same tissue in the stains it was to take, which a simulator can draw.

    python -m bench.layout_stains --world 100 --out build/stains

Patients of different laboratories, as in `bench.layout_study simulator`: two are recoloured to 20 others, whose stains
are estimated from their own, other images. The error is the mean difference of optical density over tissue.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.harness import Row
from bench.layout_study import simulated
from morphogen.demo.simulator.simulator import TissueSimulator
from morphogen.demo.simulator.styles import make_patient
from morphogen.demo.writers.folders import APART, write_segmentation
from morphogen.layout.data import read_sources
from morphogen.layout.sampling.looks import some_cells
from morphogen.layout.sampling.stains import recolour
from morphogen.layout.sources.sheets import Sheet
from morphogen.slides.recolouring import Stains

MPP, SIDE = 2.0, 192


def density(image: np.ndarray) -> np.ndarray:
    """Optical density of (…, 3) uint8."""
    return -np.log10((image.astype(np.float64) + 1) / 256)


def errors(world: int, out: Path) -> dict[str, np.ndarray]:
    """Way of estimating → error of each pair; ``none`` is the tissue as it was."""
    root = out / f"data-{world}"
    write_segmentation(root, 168, SIDE, labels="regions", patients=42, mpp=MPP, seed=world, laboratories=True)
    found = read_sources([root], simulated())
    sheets: dict[str, list[Sheet]] = {}
    for sheet in (*found.annotated, *found.unannotated):
        sheets.setdefault(sheet.patient, []).append(sheet)
    shown = {name: np.stack(some_cells(each, 64)) for name, each in sheets.items()}
    ways = {
        way: {name: Stains.of(each, robust=robust) for name, each in shown.items()}
        for way, robust in (("extremes of 1 %, 99th percentiles", False), ("robust", True))
    }
    sources = sorted({sheet.patient for sheet in found.annotated})
    away: dict[str, list[float]] = {"none": [], **{way: [] for way in ways}}
    for source in sources:
        simulator = TissueSimulator(world, patient=source, style="mixed", mpp=MPP, spread=APART)
        own = simulator.painter.patient
        image = simulator.render(0, 0, SIDE, SIDE, ihc=False).he
        for target in sorted(set(sheets) - set(sources)):
            true = make_patient(world, target, APART)
            simulator.painter.patient = replace(
                own,
                haematoxylin=true.haematoxylin,
                eosin=true.eosin,
                stain_h=true.stain_h,
                stain_e=true.stain_e,
            )
            ideal = density(simulator.render(0, 0, SIDE, SIDE, ihc=False).he)
            simulator.painter.patient = own
            tissue = np.linalg.norm(ideal, axis=-1) > 0.15
            made = {way: recolour(image, each[source], each[target]) for way, each in ways.items()}
            for way, pixels in {"none": image, **made}.items():
                away[way].append(float(np.abs(density(pixels) - ideal)[tissue].mean()))
    return {way: np.array(values) for way, values in away.items()}


def run(world: int, out: Path) -> list[Row]:
    """A row for every way: mean error, with the 90th percentile and the largest over pairs."""
    return [
        Row(
            f"layout: recolouring, world {world}, stains estimated: {way}",
            float(values.mean()),
            "OD",
            detail=f"90 % of pairs below {np.quantile(values, 0.9):.3f}, the worst {values.max():.3f}",
        )
        for way, values in errors(world, out).items()
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world", type=int, default=100)
    parser.add_argument("--out", type=Path, required=True)
    for row in run(**vars(parser.parse_args())):
        print(f"{row.name}: {row.value:.3f} {row.unit} ({row.detail})", flush=True)
