"""Spatial Transcriptomics as two tables: counts (spots named ``XxY`` × genes) and ``<id>_selection.tsv``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from morphogen.core.errors import InputError
from morphogen.core.reading.frames import read_frame, read_matrix
from morphogen.core.reading.listing import list_files
from morphogen.expression.data import check_barcodes, log

_SELECTION = ("_selection.tsv", "_selection.tsv.gz", "_selection.csv", "_selection.csv.gz")
_COUNTS = (".tsv.gz", ".tsv", ".csv.gz", ".csv")
_NEEDED = ("x", "y", "pixel_x", "pixel_y")


def find_tables(root: Path) -> dict[str, Path]:
    """The count tables of a folder that have a spot file, by the section's name."""
    found: dict[str, Path] = {}
    for spots in list_files(root, suffixes=_SELECTION):
        name = spots.name[: spots.name.lower().rindex("_selection.")]
        tables = [root / f"{name}{end}" for end in _COUNTS]
        if (counts := next((path for path in tables if path.is_file()), None)) is not None:
            found.setdefault(name, counts)
    return found


def spots_file(counts: Path, section: str) -> Path:
    """The spot file of a count table."""
    names = [counts.with_name(f"{section}{end}") for end in _SELECTION]
    return next((path for path in names if path.is_file()), names[0])


def read_tables(path: Path, section: str) -> tuple[ad.AnnData, dict[str, Any]]:
    """Counts, array positions and centres of the spots that both tables have and that are selected.

    Counts as genes × spots are turned. Raises :class:`InputError`.
    """
    where = spots_file(path, section)
    spots = _spots(where)
    counts = read_matrix(path)
    if not spots.index.isin(counts.index).any() and spots.index.isin(counts.columns).any():
        log.info("%s: genes × spots, turned", path)
        counts = counts.T
    check_barcodes([str(name) for name in counts.index], path)
    have = counts.index.isin(spots.index)
    if not have.any():
        raise InputError("no row of the counts (named XxY) is in the spot file", where=path)
    if not have.all():
        log.warning("%s: %d of %d spots have no position", path, int((~have).sum()), len(counts))
    placed = spots.loc[counts.index[have]]
    selected = placed["selected"].to_numpy() > 0
    if not selected.any():
        raise InputError("none of the spots with counts is selected", where=where)
    names = [str(name) for name in counts.index[have][selected]]
    placed = placed[selected]
    table = ad.AnnData(sparse.csr_matrix(counts.to_numpy(np.float32)[have][selected]))
    table.obs_names, table.var_names = names, [str(gene) for gene in counts.columns]
    table.obs["array_col"], table.obs["array_row"] = placed["x"].to_numpy(), placed["y"].to_numpy()
    table.obsm["spatial"] = placed[["pixel_x", "pixel_y"]].to_numpy(np.float64)
    return table, {"technology": "ST"}


def _spots(path: Path) -> pd.DataFrame:
    """x, y, pixel_x, pixel_y, selected by the spot's name ``XxY``; all are selected where no column says so."""
    spots = read_frame(path, _NEEDED, optional=("selected",), headed=True)
    if "selected" not in spots:
        spots["selected"] = 1
    for name in ("x", "y"):
        values = spots[name].to_numpy(np.float64)
        bad = np.flatnonzero(~np.isfinite(values) | (values != np.round(values)))
        if len(bad):
            raise InputError(
                f"{name} is {values[bad[0]]:g}, not a whole number",
                where=f"{path}, line {spots.attrs['lines'][bad[0]]}",
            )
        spots[name] = values.astype(np.int64)
    spots.index = pd.Index([f"{x}x{y}" for x, y in zip(spots["x"], spots["y"], strict=True)])
    check_barcodes([str(name) for name in spots.index], path)
    return spots
