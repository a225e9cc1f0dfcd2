"""Gene expression of known truth: every cell under a spot adds its programs; counts are gamma-Poisson about that."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphogen.core.errors import InputError
from morphogen.core.seeds import numpy_generator
from morphogen.demo.simulator.cells import Cells
from morphogen.demo.simulator.dab import TARGETS
from morphogen.demo.simulator.styles import Cell

#: Programs: one per cell type, then those of tumour cells that follow their visible traits.
TYPE_PROGRAMS = ("tumour", "epithelial", "lymphocyte", "fibroblast", "endothelial", "adipocyte")
STATE_PROGRAMS = ("oestrogen", "her2", "cycle")
PROGRAMS = (*TYPE_PROGRAMS, *STATE_PROGRAMS)

#: Expected transcripts per cell of average size at capture 1.
TRANSCRIPTS = dict(zip(PROGRAMS, (170.0, 130.0, 70.0, 110.0, 90.0, 60.0, 90.0, 90.0, 70.0)))

#: Genes known to follow each program in breast tissue; the names are what a reader expects to see in a map.
MARKERS: dict[str, str] = {
    "tumour": "EPCAM KRT8 KRT18 KRT19 CD24 MUC1 CLDN4 AGR2 XBP1 SPDEF",
    "epithelial": "KRT5 KRT14 KRT17 KRT15 TP63 LTF PIGR SLPI KRT7 ELF5",
    "lymphocyte": "PTPRC CD3D CD3E CD2 CD8A TRAC IL7R CCL5 MS4A1 CD79A IGKC IGHG1 JCHAIN CXCL13 LTB",
    "fibroblast": "COL1A1 COL1A2 COL3A1 DCN LUM FN1 SPARC POSTN FAP ACTA2 TAGLN VCAN FBLN1 MMP2",
    "endothelial": "PECAM1 VWF CDH5 KDR ENG CLDN5 PLVAP AQP1 ESAM RGS5",
    "adipocyte": "ADIPOQ PLIN1 PLIN4 FABP4 LPL CIDEC LEP G0S2 CD36 AQP7",
    "oestrogen": "ESR1 PGR GATA3 TFF1 TFF3 GREB1 FOXA1 NAT1 SLC39A6 AREG",
    "her2": "ERBB2 GRB7 STARD3 PGAP3 MIEN1 ORMDL3 PSMD3 MED1 CDK12 FASN",
    "cycle": "MKI67 TOP2A CCNB1 CDK1 BIRC5 PCNA UBE2C TYMS MCM2 AURKA",
}
HOUSEKEEPING = "ACTB GAPDH B2M TMSB4X TPT1 EEF1A1 FTL FTH1 UBC HSP90AB1 MALAT1 TMSB10 PSAP CD63 MYL6"
MITOCHONDRIAL = "MT-CO1 MT-CO2 MT-CO3 MT-ATP6 MT-CYB MT-ND1 MT-ND4"
RIBOSOMAL = "RPL3 RPL13 RPL41 RPLP1 RPS3 RPS6 RPS12 RPS27"


@dataclass(frozen=True)
class GeneModel:
    """The expression rules of a world: the same for all its patients apart from ``baseline``."""

    genes: tuple[str, ...]
    profile: NDArray[np.float64]  # (programs, genes): expected counts of one cell at capture 1
    dispersion: NDArray[np.float64]  # (genes,): variance of a count of mean m is m + dispersion·m²
    ambient: NDArray[np.float64]  # (genes,): expected counts of a spot from drifting transcripts

    def baseline(self, seed: int, patient: str) -> NDArray[np.float64]:
        """Factor of every gene in this patient, about 1."""
        return np.exp(0.25 * numpy_generator(seed, "baseline", patient).standard_normal(len(self.genes)))

    @staticmethod
    def activity(cells: Cells) -> NDArray[np.float64]:
        """How strongly every cell runs every program: (cells, programs).

        The cell type's own program runs at the nucleus's relative area; the state programs of tumour cells
        at the level that the immunostain of the same name shows, from 0 to 1.
        """
        activity = np.zeros((len(cells), len(PROGRAMS)))
        area = cells.major * cells.minor
        for k, name in enumerate(TYPE_PROGRAMS):
            of_type = cells.type == Cell[name.upper()]
            typical = {"tumour": 20.0, "epithelial": 13.0, "lymphocyte": 9.6, "fibroblast": 12.6}.get(
                name, 7.0
            )
            activity[:, k] = of_type * np.clip(area / typical, 0.3, 3.0)
        tumour = cells.type == Cell.TUMOUR
        for k, target in enumerate(("er", "her2", "ki67")):
            activity[:, len(TYPE_PROGRAMS) + k] = tumour * TARGETS[target].level(cells) / TARGETS[target].peak
        return activity


@lru_cache(maxsize=16)
def make_genes(seed: int, n_genes: int) -> GeneModel:
    """The gene model of a world with ``n_genes`` genes: known names first, then made-up ones."""
    random = numpy_generator(seed, "genes")
    names: list[str] = []
    owner: list[str | None] = []
    for program, markers in MARKERS.items():
        for name in markers.split():
            names.append(name)
            owner.append(program)
    common = f"{HOUSEKEEPING} {MITOCHONDRIAL} {RIBOSOMAL}".split()
    names += common
    owner += [None] * len(common)
    known = len(names)
    if n_genes < known:
        raise InputError(
            f"{n_genes} genes do not hold the {known} named ones", fix=f"Ask for at least {known}"
        )
    for k in range(n_genes - known):
        names.append(f"SIM{k:05d}")
        owner.append(PROGRAMS[k % len(PROGRAMS)] if k % 3 else None)

    abundance = np.exp(random.normal(0, 0.9, n_genes))
    abundance[known - len(common) : known] *= 2.5
    fold = np.exp(random.normal(0, 0.35, (len(PROGRAMS), n_genes)))
    strength = np.exp(random.normal(np.log(18.0), 0.4, n_genes))
    for g, leader in enumerate(owner):
        if leader is not None:
            fold[:, g] *= 0.12
            fold[PROGRAMS.index(leader), g] *= strength[g]
    for k, program in enumerate(PROGRAMS):
        if program in STATE_PROGRAMS:  # a state adds its own genes and no others
            fold[k] *= [each == program for each in owner]
    profile = fold * abundance
    profile *= (np.array([TRANSCRIPTS[name] for name in PROGRAMS]) / profile.sum(axis=1))[:, None]
    # A larger panel sees more of the transcripts of a cell.
    profile *= (n_genes / 400) ** 0.5
    dispersion = np.clip(np.exp(random.normal(np.log(0.10), 0.5, n_genes)), 0.02, 0.5)
    ambient = 0.4 * profile[: len(TYPE_PROGRAMS)].mean(axis=0)
    order = np.argsort(names, kind="stable")
    return GeneModel(tuple(names[k] for k in order), profile[:, order], dispersion[order], ambient[order])


@dataclass(frozen=True)
class Spots:
    """Counts of spots, with their truth."""

    genes: tuple[str, ...]
    centres: NDArray[np.float64]  # (spots, 2): x, y in pixels
    counts: NDArray[np.int32]  # (spots, genes)
    mean: NDArray[
        np.float64
    ]  # (spots, genes): expectation of the counts given the tissue and the spot's capture
    capture: NDArray[np.float64]  # (spots,): relative library size, part of ``mean``
    dispersion: NDArray[np.float64]  # (genes,): variance of the counts is mean + dispersion·mean²
    types: NDArray[
        np.int64
    ]  # (spots, cell types): nuclei under the spot, in the order of ``Cell`` without NONE
    activity: NDArray[np.float64]  # (spots, programs): summed over its cells

    @property
    def cells(self) -> pd.DataFrame:
        """Nuclei of every type under every spot."""
        return pd.DataFrame(self.types, columns=list(TYPE_PROGRAMS))
