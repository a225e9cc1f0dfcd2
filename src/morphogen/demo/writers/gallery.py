"""A contact sheet of the simulator: every style as H&E, regions and immunostain."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from morphogen.core.files import write_bytes
from morphogen.demo.simulator.simulator import TissueSimulator
from morphogen.demo.simulator.styles import STYLES, Region

#: Colours of the region mask, in the order of :class:`Region`.
REGION_COLOURS = np.array(
    [
        (245, 245, 245),
        (240, 190, 205),
        (120, 60, 140),
        (60, 110, 190),
        (255, 255, 255),
        (50, 50, 110),
        (250, 230, 160),
        (205, 60, 60),
    ],
    dtype=np.uint8,
)
assert len(REGION_COLOURS) == len(Region)


def gallery(seed: int = 1, size: int = 320) -> NDArray[np.uint8]:
    """One row per style, each of another patient: H&E, tissue regions with nuclei outlined dark, ER, HER2.

    (styles · size, 4 · size, 3) uint8.
    """
    rows = []
    for k, style in enumerate(STYLES):
        nuclear = TissueSimulator(seed, patient=f"P{k + 1}", style=style, target="er").render(
            0, 0, size, size
        )
        membranous = TissueSimulator(seed, patient=f"P{k + 1}", style=style, target="her2").render(
            0, 0, size, size
        )
        regions = REGION_COLOURS[nuclear.regions].copy()
        regions[nuclear.instances > 0] //= 2
        rows.append(np.concatenate([nuclear.he, regions, nuclear.ihc, membranous.ihc], axis=1))
    return np.concatenate(rows, axis=0)


def main(path: str) -> None:
    """Write the contact sheet as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(gallery()).save(buffer, format="JPEG", quality=85)
    write_bytes(Path(path), buffer.getvalue())


if __name__ == "__main__":
    main(sys.argv[1])
