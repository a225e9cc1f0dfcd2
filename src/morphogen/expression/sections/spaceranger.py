"""Space Ranger's folders: Visium, and every bin size of Visium HD.

``outs/spatial`` with ``outs/filtered_feature_bc_matrix.h5`` (or its folder of Matrix Market files) is one section;
``outs/binned_outputs/square_008um`` and its like are one section for each bin size. Rows are joined by barcode.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from morphogen.core.errors import InputError
from morphogen.core.files import read_json
from morphogen.core.reading.frames import read_frame
from morphogen.core.reading.listing import list_files, list_folders
from morphogen.core.writing.h5ad import check_matrices
from morphogen.expression.data import check_barcodes, log
from morphogen.expression.sections.h5ad import positive

_POSITIONS = (
    "barcode",
    "in_tissue",
    "array_row",
    "array_col",
    "pxl_row_in_fullres",
    "pxl_col_in_fullres",
)
_FILES = [
    f"tissue_positions{end}"
    for end in (".csv", ".csv.gz", ".parquet", "_list.csv", "_list.csv.gz", ".tsv", ".tsv.gz")
]
_BIN = re.compile(r"square_0*(\d+(?:\.\d+)?)um")
_SUFFIX = re.compile(r"-\d+$")


@dataclass(frozen=True)
class Run:
    """A folder with a count matrix and ``spatial/``; images may be named after the section or the run."""

    section: str
    run: str
    path: Path


def find_runs(folder: Path) -> list[Run]:
    """The sections of a run's folder, its ``outs``, ``binned_outputs`` or one bin size; coarse bins first."""
    for place in (folder, folder / "outs"):
        if _complete(place):
            return [_named(place)]
        within = place if place.name == "binned_outputs" else place / "binned_outputs"
        bins = [path for path in list_folders(within) if _complete(path)]
        if bins:
            return [_named(path) for path in reversed(bins)]
    return []


def _complete(place: Path) -> bool:
    return (place / "spatial").is_dir() and (
        bool(_matrices(place)) or (place / "filtered_feature_bc_matrix").is_dir()
    )


def _matrices(place: Path) -> list[Path]:
    return list_files(place, "*filtered_feature_bc_matrix.h5") or list_files(place, "*feature_bc_matrix.h5")


def _named(place: Path) -> Run:
    parts = list(place.absolute().parts)
    bins = parts.pop() if len(parts) > 2 and parts[-2] == "binned_outputs" else ""
    if bins:
        parts.pop()
    if len(parts) > 2 and parts[-1] == "outs":
        parts.pop()
    run = parts[-1]
    return Run(f"{run}_{bins}" if bins else run, run, place)


def run_files(place: Path) -> list[Path]:
    """The files that decide a section: matrix, positions, scale factors."""
    matrices = _matrices(place)[:1] or list_files(place / "filtered_feature_bc_matrix")
    return [*matrices, *(p for p in (_positions_file(place), _factors_file(place)) if p is not None)]


def read_run(place: Path) -> tuple[ad.AnnData, dict[str, Any]]:
    """Counts, array positions and centres of the spots in the tissue; technology, pitch, µm/px, spot diameter.

    The centres are level-0 pixels of the full-resolution image. Raises :class:`InputError`.
    """
    table = _counts(place)
    positions = _positions(place)
    names = [str(name) for name in table.obs_names]
    check_barcodes(names, place)
    rows = _joined(names, positions, place)
    have = rows >= 0
    if not have.all():
        log.warning("%s: %d of %d barcodes have no position", place, int((~have).sum()), len(names))
    table, placed = table[have].copy(), positions.iloc[rows[have]]
    inside = placed["in_tissue"].to_numpy(np.float64) > 0
    if not inside.any():
        raise InputError("no spot of the matrix is in the tissue (in_tissue)", where=place)
    table, placed = table[inside].copy(), placed[inside]
    table.obs["array_row"], table.obs["array_col"] = (
        placed["array_row"].to_numpy(),
        placed["array_col"].to_numpy(),
    )
    table.obsm["spatial"] = placed[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(np.float64)
    return table, _known(place)


def _counts(place: Path) -> ad.AnnData:
    import scanpy as sc

    matrices = _matrices(place)
    if matrices:
        check_matrices(matrices[0])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # genes that share a name are summed by us
            if matrices:
                return sc.read_10x_h5(matrices[0])
            return sc.read_10x_mtx(place / "filtered_feature_bc_matrix", make_unique=False)
    except Exception as error:
        raise InputError(
            f"the count matrix cannot be read ({' '.join(str(error).split())[:160]})", where=place
        ) from None


def _positions_file(place: Path) -> Path | None:
    files = {path.name.lower(): path for path in list_files(place / "spatial", "tissue_positions*")}
    return next((files[name] for name in _FILES if name in files), None)


def _positions(place: Path) -> pd.DataFrame:
    """Columns of Space Ranger 2, barcode-indexed; version 1 has no header and another name, HD is Parquet."""
    path = _positions_file(place)
    if path is None:
        raise InputError("there is no table of tissue positions", where=place / "spatial")
    table = read_frame(path, _POSITIONS, text=("barcode",))
    check_barcodes(list(table["barcode"]), path)
    return table.set_index("barcode")


def _joined(names: list[str], positions: pd.DataFrame, place: Path) -> np.ndarray:
    """Row of each barcode in the positions, −1 = none; a sample suffix (``-1``) that one side lacks does not matter."""
    rows = positions.index.get_indexer(pd.Index(names))
    sides = (names, list(positions.index))
    if (rows < 0).all() and len({bool(_SUFFIX.search(side[0])) for side in sides if side}) == 2:
        bare = [[_SUFFIX.sub("", name) for name in side] for side in sides]
        if all(len(set(side)) == len(side) for side in bare):
            rows = pd.Index(bare[1]).get_indexer(pd.Index(bare[0]))
    if (rows < 0).all():
        raise InputError(
            f"no barcode of the matrix is in the table of spot positions: '{sides[0][0] if names else ''}' "
            f"against '{sides[1][0] if len(positions) else ''}'",
            where=place,
        )
    return np.asarray(rows)


def _factors_file(place: Path) -> Path | None:
    path = place / "spatial" / "scalefactors_json.json"
    return path if path.is_file() else None


def _known(place: Path) -> dict[str, Any]:
    path = _factors_file(place)
    factors = read_json(path) if path is not None else {}
    if not isinstance(factors, dict):
        raise InputError("the scale factors are not a JSON object", where=path)
    if path is None:
        log.warning("%s: no scalefactors_json.json; the spot diameter is taken from the pitch", place)
    named = _BIN.fullmatch(place.name)
    bin_um = positive(factors.get("bin_size_um")) or (float(named[1]) if named else None)
    return {
        "technology": "Visium HD" if bin_um else "Visium",
        "pitch_um": bin_um,
        "mpp": positive(factors.get("microns_per_pixel")),
        "spot_diameter_px": positive(factors.get("spot_diameter_fullres")),
    }
