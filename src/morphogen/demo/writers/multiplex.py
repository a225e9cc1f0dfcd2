"""Simulated tissue beside a multiplex image of it: five named channels of known truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from morphogen.core.files import Manifest, write_text
from morphogen.demo.simulator.simulator import TissueSimulator
from morphogen.demo.simulator.styles import Region
from morphogen.demo.writers.folders import claim, patient_names, write_table
from morphogen.slides.formats.channels import save_channels
from morphogen.tasks.folders import save_png

CHANNELS = ("DNA", "ER", "Ki67", "HER2", "stroma")
COLOURS = ("#0000ff", "#ff0000", "#ffff00", "#00ff00", "#ffffff")
_FULL = 20_000  # levels of a marker of optical density 1, and of what is there or not
_DARK = 120  # levels where there is none: the camera's offset


def multiplex(
    seed: int, patient: str, x: int, y: int, width: int, height: int, mpp: float = 0.5
) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """H&E (height, width, 3) uint8 of a window and its channels (height, width, 5) uint16, :data:`CHANNELS`.

    DNA is where nuclei are, ER and Ki67 lie in nuclei, HER2 on membranes, stroma where that is; a marker is as bright
    as its simulated immunostain is dense. All are of one section.
    """
    planes, he, tissue = {}, None, None
    for marker in ("er", "ki67", "her2"):
        tissue = TissueSimulator(seed, patient=patient, mpp=mpp, target=marker).render(
            x, y, width, height, ihc=False
        )
        he, planes[marker] = tissue.he, tissue.dab_od
    assert he is not None and tissue is not None
    shown = [
        tissue.instances > 0,
        planes["er"],
        planes["ki67"],
        planes["her2"],
        tissue.regions == Region.STROMA,
    ]
    light = np.stack([np.asarray(each, np.float32) for each in shown], axis=-1)
    return he, np.clip(np.rint(_DARK + _FULL * light), 0, 65535).astype(np.uint16)


def write_multiplex(
    root: Path | str,
    n: int,
    size: int = 256,
    *,
    seed: int = 0,
    patients: int = 4,
    mpp: float = 0.5,
) -> Path:
    """``n`` pairs of H&E (PNG) and channels (OME-TIFF, uint16) of each of ``patients``, with ``pairs.csv`` and
    ``target.yaml``; returns the table. Files that are there are left alone."""
    settings = {"n": n, "size": size, "seed": seed, "patients": patients, "mpp": mpp}
    root, done = claim(root, "multiplex pairs", settings)
    table = root / "pairs.csv"
    if done:
        return table
    rows = []
    for patient in patient_names(patients):
        for k in range(n):
            name = f"{patient}_{k:02d}"
            paths = root / "he" / f"{name}.png", root / "target" / f"{name}.ome.tif"
            if not all(path.is_file() for path in paths):
                he, channels = multiplex(seed, patient, 4 * size * k, 0, size, size, mpp)
                for path in paths:
                    path.parent.mkdir(exist_ok=True)
                save_png(paths[0], he)
                save_channels(paths[1], channels, CHANNELS)
            rows.append(
                {
                    "name": name,
                    "he": f"he/{name}.png",
                    "ihc": f"target/{name}.ome.tif",
                    "stain": "multiplex",
                    "patient": patient,
                }
            )
    colours = ", ".join(f'"{each}"' for each in COLOURS)
    write_text(root / "target.yaml", f"channels: [{', '.join(CHANNELS)}]\ncolours: [{colours}]\n")
    write_table(table, rows)
    Manifest.write(root, kind="multiplex pairs", pairs=len(rows))
    return table
