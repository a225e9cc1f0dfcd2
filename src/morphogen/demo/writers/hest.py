"""Simulated spatial transcriptomics in the layout of HEST-1k."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import openslide
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from morphogen.core.errors import InputError
from morphogen.core.files import Manifest, atomic_path, write_json
from morphogen.core.progress import progress
from morphogen.demo.simulator.fields import Outline
from morphogen.demo.simulator.genes import PROGRAMS, TYPE_PROGRAMS, Spots
from morphogen.demo.simulator.simulator import TissueSimulator
from morphogen.demo.writers.folders import claim, patient_names, write_table
from morphogen.demo.writers.slides import write_slide


def write_hest(
    root: Path | str,
    patients: int | Sequence[str] = 3,
    sections: int = 1,
    *,
    width_um: float = 2400.0,
    height_um: float = 2000.0,
    seed: int = 0,
    style: str = "mixed",
    mpp: float = 0.5,
    pitch_um: float = 100.0,
    spot_um: float = 55.0,
    n_genes: int = 400,
    patches: bool = False,
    truth: bool = True,
) -> Path:
    """Spatial transcriptomics in the layout of HEST-1k, ``sections`` of each patient.

    ``st/<id>.h5ad`` (raw counts, ``obsm["spatial"]`` = spot centres in level-0 pixels, scale factors in
    ``uns["spatial"]``), ``wsis/<id>.tif`` (pyramid), ``metadata/<id>.json`` and ``HEST_simulated.csv`` (27
    columns, with a byte-order mark, ``patient`` among them); with ``patches``, ``patches/<id>.h5`` (224 px at
    0.5 µm/px); with ``truth``, ``truth/<id>.h5ad``: expected counts (X), dispersion (var), captures and cells under
    the spots.
    Spots lie on a staggered grid, on tissue only.
    """
    names = patient_names(patients)
    settings: dict[str, Any] = {
        "patients": names,
        "sections": sections,
        "width_um": width_um,
        "height_um": height_um,
    }
    settings |= {"seed": seed, "style": style, "mpp": mpp, "pitch_um": pitch_um, "spot_um": spot_um}
    settings |= {"n_genes": n_genes, "patches": patches, "truth": truth}
    if sections < 1 or min(width_um, height_um) < 4 * pitch_um:
        raise InputError(
            f"{sections} sections of {width_um:g} × {height_um:g} µm hold no grid of spots at {pitch_um:g} µm",
            fix="Ask for at least one section of four pitches a side",
        )
    root, done = claim(root, "hest", settings)
    if done:
        return root
    rows = []
    jobs = [(patient, section) for patient in names for section in range(sections)]
    for number, (patient, section) in enumerate(progress(jobs, what="simulating sections"), start=1):
        simulator = TissueSimulator(
            seed,
            patient=patient,
            section=section,
            style=style,
            mpp=mpp,
            outline=Outline(width_um, height_um),
            n_genes=n_genes,
        )
        row = _write_section(root, f"SIM{number}", simulator, pitch_um, spot_um, patches, truth)
        rows.append(row)
    write_table(root / "HEST_simulated.csv", rows, encoding="utf-8-sig")
    Manifest.write(root, kind="hest", **settings)
    return root


def spot_grid(simulator: TissueSimulator, pitch_um: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Array positions (row, column) and centres (x, y in pixels) of a staggered grid on the simulator's outline."""
    outline = simulator.outline
    if outline is None:
        raise InputError(
            "a grid of spots needs a section with an outline", fix="Give the simulator an Outline"
        )
    step = pitch_um * 0.75**0.5
    n_rows, n_cols = int(outline.height // step), 2 * int(outline.width // pitch_um)
    row, col = np.meshgrid(np.arange(n_rows), np.arange(n_cols), indexing="ij")
    real = (row + col) % 2 == 0  # as on a Visium slide: odd rows have odd columns
    row, col = row[real], col[real]
    x, y = (col + 1) * 0.5 * pitch_um, (row + 0.5) * step
    on = simulator.architecture.on_tissue(x, y)
    centres = np.column_stack([x, y]) / simulator.mpp
    return np.column_stack([row, col])[on], np.round(centres[on], 2)


def _barcode(number: int) -> str:
    mixed = (number * 2_654_435_761 + 97) % 4**16
    return "".join("ACGT"[(mixed >> (2 * k)) & 3] for k in range(16)) + "-1"


def _write_section(
    root: Path,
    name: str,
    simulator: TissueSimulator,
    pitch: float,
    diameter: float,
    patches: bool,
    truth: bool,
) -> dict[str, Any]:
    outline = simulator.outline
    assert outline is not None
    mpp = simulator.mpp
    width, height = round(outline.width / mpp), round(outline.height / mpp)
    places, centres = spot_grid(simulator, pitch)
    slide = write_slide(root / "wsis" / f"{name}.tif", width, height, simulator=simulator)
    table, facts = root / "st" / f"{name}.h5ad", root / "truth" / f"{name}.h5ad"
    barcodes = np.array([_barcode(k) for k in range(len(centres))])
    if not table.exists() or (truth and not facts.exists()):
        spots = simulator.spots(centres, diameter)
        obs = pd.DataFrame(
            {
                "in_tissue": 1,
                "array_row": places[:, 0],
                "array_col": places[:, 1],
                "pxl_col_in_fullres": centres[:, 0],
                "pxl_row_in_fullres": centres[:, 1],
                "total_counts": spots.counts.sum(axis=1),
            },
            index=pd.Index(barcodes),
        )
        thumbnail, scale = _thumbnail(slide)
        _write_h5ad(table, _counts(spots, obs, thumbnail, scale, diameter / mpp))
        if truth:
            _write_h5ad(facts, _truth(spots, obs))
    if patches and not (path := root / "patches" / f"{name}.h5").exists():
        _write_patches(path, simulator, centres, barcodes)
    row = _metadata(name, simulator, width, height, len(centres), pitch, diameter)
    write_json(root / "metadata" / f"{name}.json", row)
    return row


def _thumbnail(slide: Path, longest: int = 1000) -> tuple[NDArray[np.uint8], float]:
    with openslide.OpenSlide(slide) as image:
        small = image.get_thumbnail((longest, longest)).convert("RGB")
        return np.asarray(small), small.width / image.dimensions[0]


def _counts(
    spots: Spots, obs: pd.DataFrame, thumbnail: NDArray[np.uint8], scale: float, diameter_px: float
) -> anndata.AnnData:
    data = anndata.AnnData(
        X=sparse.csr_matrix(spots.counts.astype(np.float32)),
        obs=obs,
        var=pd.DataFrame(index=pd.Index(spots.genes)),
    )
    data.obsm["spatial"] = spots.centres
    data.uns["spatial"] = {
        "ST": {
            "images": {"downscaled_fullres": thumbnail},
            "scalefactors": {
                "tissue_downscaled_fullres_scalef": scale,
                "spot_diameter_fullres": diameter_px,
            },
        }
    }
    return data


def _truth(spots: Spots, obs: pd.DataFrame) -> anndata.AnnData:
    var = pd.DataFrame({"dispersion": spots.dispersion}, index=pd.Index(spots.genes))
    data = anndata.AnnData(X=spots.mean.astype(np.float32), obs=obs.assign(capture=spots.capture), var=var)
    data.obsm["spatial"] = spots.centres
    data.obsm["cells"] = pd.DataFrame(spots.types, columns=list(TYPE_PROGRAMS), index=obs.index)
    data.obsm["programs"] = pd.DataFrame(spots.activity, columns=list(PROGRAMS), index=obs.index)
    return data


def _write_h5ad(path: Path, data: anndata.AnnData) -> None:
    with atomic_path(path) as temporary:
        data.write_h5ad(temporary)


def _write_patches(path: Path, simulator: TissueSimulator, centres: NDArray, barcodes: NDArray) -> None:
    """HEST's patches: 224 px at 0.5 µm/px about every spot; coordinates of the top left in level-0 pixels."""
    fine = simulator.at_mpp(0.5)
    images = np.empty((len(centres), 224, 224, 3), dtype=np.uint8)
    corners = np.empty((len(centres), 2), dtype=np.int64)
    for k, centre in enumerate(centres):
        middle = np.round(centre * simulator.mpp / 0.5).astype(int)
        images[k] = fine.render(int(middle[0]) - 112, int(middle[1]) - 112, 224, 224, ihc=False).he
        corners[k] = np.round((middle - 112) * 0.5 / simulator.mpp)
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        file["img"] = images
        file["coords"] = corners
        file["barcode"] = barcodes.astype("S")[:, None]


def _metadata(
    name: str, simulator: TissueSimulator, width: int, height: int, spots: int, pitch: float, diameter: float
) -> dict[str, Any]:
    return {
        "dataset_title": "Simulated tissue",
        "id": name,
        "image_filename": f"{name}.tif",
        "organ": "Breast",
        "disease_state": "Cancer",
        "oncotree_code": "IDC",
        "species": "Homo sapiens",
        "patient": simulator.patient.name,
        "st_technology": "Visium" if pitch == 100.0 else "Spatial Transcriptomics",
        "data_publication_date": "",
        "license": "CC0",
        "study_link": "",
        "download_page_link1": "",
        "inter_spot_dist": pitch,
        "spot_diameter": diameter,
        "spots_under_tissue": spots,
        "preservation_method": "Simulated",
        "nb_genes": len(simulator.genes.genes),
        "treatment_comment": "",
        "pixel_size_um_embedded": simulator.mpp,
        "pixel_size_um_estimated": simulator.mpp,
        "fullres_px_width": width,
        "fullres_px_height": height,
        "magnification": "20x" if simulator.mpp > 0.35 else "40x",
        "tissue": "Breast",
        "disease_comment": f"style {simulator.style}, seed {simulator.seed}",
        "subseries": f"section {simulator.section}",
    }
