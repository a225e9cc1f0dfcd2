"""What kinds of tissue there are, what kinds of cells, and how patients differ."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from morphogen.core.errors import ConfigError, nearest
from morphogen.core.seeds import numpy_generator


class Cell(IntEnum):
    """Cell types: the values of the class mask (0 is no nucleus)."""

    NONE = 0
    TUMOUR = 1
    EPITHELIAL = 2
    LYMPHOCYTE = 3
    FIBROBLAST = 4
    ENDOTHELIAL = 5
    ADIPOCYTE = 6


class Region(IntEnum):
    """Tissue regions: the values of the region mask."""

    GLASS = 0
    STROMA = 1
    TUMOUR = 2
    EPITHELIUM = 3
    LUMEN = 4
    LYMPHOID = 5
    ADIPOSE = 6
    VESSEL = 7


@dataclass(frozen=True)
class Style:
    """Amounts of each structure; amounts of a mixture are weighted means of those of its styles."""

    nests: float  # threshold of the nest field in standard deviations; high = few tumour nests
    cords: float  # half-width of infiltrating cords of tumour in µm; below 0 = none
    glands: float  # probability that a place holds a gland, 0–1
    malignant: float  # probability that a gland is tumour, 0–1
    lymphoid: float  # offset of the lymphocyte density field in standard deviations
    adipose: float  # offset of the fat field in standard deviations
    vessels: float  # probability that a place holds a blood vessel, 0–1
    collagen: float  # strength of the eosin in stroma fibres (optical density)
    looseness: float  # fraction of stroma that is open white space, 0–1
    cellularity: float  # probability that a place in the stroma holds a fibroblast, 0–1
    clefts: float  # how far tumour shrinks from stroma, µm


STYLES: dict[str, Style] = {
    # nests, cords, glands, malignant, lymphoid, adipose, vessels, collagen, looseness, cellularity, clefts
    "nests": Style(-0.15, -6.0, 0.04, 1.0, -1.9, -4.0, 0.30, 0.34, 0.20, 0.42, 2.2),
    "glandular": Style(2.6, -8.0, 0.93, 0.75, -1.8, -4.5, 0.22, 0.30, 0.24, 0.45, 1.0),
    "desmoplastic": Style(1.75, 6.0, 0.05, 1.0, -1.9, -4.0, 0.28, 0.42, 0.12, 0.48, 1.2),
    "stroma": Style(3.4, -8.0, 0.05, 0.1, -2.2, -3.0, 0.45, 0.36, 0.30, 0.36, 0.0),
    "lymphoid": Style(1.6, -8.0, 0.04, 0.5, 1.1, -4.0, 0.35, 0.24, 0.18, 0.30, 0.8),
    "adipose": Style(3.4, -8.0, 0.08, 0.1, -2.4, 1.1, 0.35, 0.36, 0.28, 0.34, 0.0),
}

#: Share of a slide that each style would have in the style "mixed", before the patient's own preferences.
MIXTURE = {
    "nests": 0.30,
    "glandular": 0.18,
    "desmoplastic": 0.20,
    "stroma": 0.14,
    "lymphoid": 0.10,
    "adipose": 0.08,
}


def style_table(style: str) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Names of the styles in ``style`` and their amounts (styles, amounts); ``"mixed"`` holds all of them."""
    if style == "mixed":
        names = tuple(MIXTURE)
    elif style in STYLES:
        names = (style,)
    else:
        choices = [*STYLES, "mixed"]
        raise ConfigError(
            f"there is no tissue style {style!r}.{nearest(style, choices)}",
            fix=f"Choose from {', '.join(choices)}",
        )
    amounts = [[getattr(STYLES[name], field.name) for field in fields(Style)] for name in names]
    return names, np.array(amounts)


@dataclass(frozen=True)
class CellLook:
    """Mean look of a cell type; lengths in µm, haematoxylin in optical density."""

    major: float  # half the nucleus's length
    minor: float  # half its width
    vary: float  # relative spread of both (log-normal)
    haematoxylin: float  # of the nucleus
    chromatin: float  # contrast of the chromatin clumps, relative
    vesicle: float  # how much paler the middle of the nucleus is than its membrane, relative
    nucleoli: float  # expected number
    ragged: float  # irregularity of the outline


LOOKS: dict[Cell, CellLook] = {
    Cell.TUMOUR: CellLook(5.0, 4.05, 0.14, 0.80, 0.30, 0.42, 1.3, 0.070),
    Cell.EPITHELIAL: CellLook(4.3, 3.0, 0.09, 0.80, 0.20, 0.22, 0.4, 0.030),
    Cell.LYMPHOCYTE: CellLook(3.2, 2.85, 0.11, 1.02, 0.24, 0.06, 0.0, 0.050),
    Cell.FIBROBLAST: CellLook(5.2, 1.30, 0.26, 0.82, 0.18, 0.10, 0.2, 0.070),
    Cell.ENDOTHELIAL: CellLook(4.8, 1.25, 0.18, 0.88, 0.14, 0.06, 0.0, 0.040),
    Cell.ADIPOCYTE: CellLook(4.6, 1.10, 0.15, 0.92, 0.10, 0.00, 0.0, 0.040),
}


def _unit(vector: NDArray) -> NDArray[np.float64]:
    return vector / np.linalg.norm(vector)


@dataclass(frozen=True)
class Patient:
    """What differs between patients: stains, scanner, tumour biology, baseline expression."""

    name: str
    haematoxylin: NDArray[np.float64]  # unit optical-density vectors (3,)
    eosin: NDArray[np.float64]
    dab: NDArray[np.float64]
    counterstain: NDArray[np.float64]  # haematoxylin of the IHC section
    white: NDArray[np.float64]  # of the scanner, grey levels (3,)
    stain_h: float  # strength of the H&E's stains, about 1
    stain_e: float
    nuclear_size: float  # of tumour nuclei, about 1
    pleomorphism: float  # spread of tumour nuclei, about 1
    er: float  # mean log-odds shift of ER positivity of tumour cells
    her2: float  # same for HER2
    proliferation: float  # same for Ki-67
    infiltration: float  # offset of the lymphocyte field
    preference: NDArray[np.float64]  # log-weight added to each style of MIXTURE
    library: float  # relative capture efficiency of its sections, about 1


@lru_cache(maxsize=256)
def make_patient(seed: int, name: str, spread: float = 1.0) -> Patient:
    """The patient of this name in the world of this seed.

    spread: how far stains and nuclei of patients lie apart, as a multiple of the usual.
    """
    random = numpy_generator(seed, "patient", name)

    def vector(red: float, green: float, blue: float, apart: float) -> NDArray[np.float64]:
        return _unit(
            np.clip(
                _unit(np.array([red, green, blue])) + apart * spread * random.standard_normal(3), 0.02, None
            )
        )

    return Patient(
        name=name,
        haematoxylin=vector(0.575, 0.735, 0.36, 0.025),
        eosin=vector(0.16, 0.86, 0.42, 0.030),
        dab=vector(0.268, 0.570, 0.776, 0.015),
        counterstain=vector(0.66, 0.62, 0.36, 0.020),
        white=np.clip(np.array([243.0, 241.0, 244.0]) + random.normal(0, 2.0, 3), 230, 252),
        stain_h=float(np.exp(random.normal(0.05, 0.16 * spread))),
        stain_e=float(np.exp(random.normal(0.0, 0.18 * spread))),
        nuclear_size=float(np.exp(random.normal(0, 0.06 * spread))),
        pleomorphism=float(np.exp(random.normal(0, 0.25))),
        er=float(random.normal(0.3, 1.0)),
        her2=float(random.normal(0.0, 1.0)),
        proliferation=float(random.normal(-0.2, 0.6)),
        infiltration=float(random.normal(0, 0.35)),
        preference=random.normal(0, 0.5, len(MIXTURE)),
        library=float(np.exp(random.normal(0, 0.25))),
    )
