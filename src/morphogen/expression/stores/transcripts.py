"""Transcripts counted: in the cells of shapes or labels, or in square bins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from morphogen.core.errors import InputError, nearest
from morphogen.expression.config import DataConfig
from morphogen.expression.data import log
from morphogen.expression.stores.elements import Placed, affine, fetched, place_image

GENE_COLUMNS = ("feature_name", "gene", "genes", "target", "feature")
_CONTROLS = ("NegControl", "BLANK_", "Blank-", "Unassigned", "antisense_", "NegPrb", "SystemControl")


def transcripts_of(data: Any, config: DataConfig, where: Path) -> tuple[Any, pd.DataFrame]:
    """The points element of a store, and its transcripts: x, y of the element, ``gene`` (categories).

    Of Xenium, transcripts below ``config.quality`` and those of no gene are left out, and so are control probes by
    their usual names. Raises :class:`InputError` where it cannot be told which column names the gene.
    """
    names = list(data.points)
    name = config.points or next((each for each in ("transcripts",) if each in names), None)
    if name is None and len(names) == 1:
        name = names[0]
    if name is None or name not in names:
        hint = "" if name is None else nearest(name, names)
        raise InputError(
            f"it has the points {', '.join(names) or 'none'}.{hint}",
            where=where,
            fix="Name the transcripts: --data.points NAME",
        )
    points = data.points[name]
    stated = points.attrs.get("spatialdata_attrs", {}).get("feature_key")
    column = next((each for each in (stated, *GENE_COLUMNS) if each in points.columns), None)
    if column is None:
        raise InputError(
            f"no column of '{name}' names the gene ({', '.join(map(str, points.columns))})",
            where=where,
            fix="Set feature_key of the points (PointsModel.parse)",
        )
    kept = [each for each in ("qv", "is_gene") if each in points.columns]
    read = points[["x", "y", column, *kept]].compute
    table = fetched(read, name, where).rename(columns={column: "gene"})
    good = np.isfinite(table[["x", "y"]].to_numpy(np.float64)).all(axis=1)
    if "qv" in table:
        good &= table["qv"].to_numpy(np.float64) >= config.quality
    if "is_gene" in table:
        good &= table["is_gene"].to_numpy(bool)
    genes = table["gene"].astype(str)
    good &= ~genes.str.startswith(_CONTROLS).to_numpy()
    if not good.any():
        raise InputError(
            f"none of {len(table)} transcripts has a quality of {config.quality:g} and a gene", where=where
        )
    if not good.all():
        log.info("%s: %d of %d transcripts are left out (quality, controls)", where, (~good).sum(), len(good))
    kept_rows = table[good]
    return points, pd.DataFrame(
        {"x": kept_rows["x"], "y": kept_rows["y"], "gene": pd.Categorical(genes[good])}
    ).reset_index(drop=True)


def count_cells(data: Any, config: DataConfig, where: Path) -> tuple[ad.AnnData, Any]:
    """Counts of every cell of ``config.units`` (shapes or labels), and that element.

    A transcript in two cells that overlap counts in both. ``obs["instance"]`` is the cell's name in its element.
    """
    import geopandas as gpd

    units = str(config.units)
    there = [*data.shapes, *data.labels]
    if units not in there:
        raise InputError(
            f"there are no shapes or labels '{units}', only {', '.join(there) or 'none'}.{nearest(units, there)}",
            where=where,
        )
    element = data.shapes[units] if units in data.shapes else data.labels[units]
    points, table = transcripts_of(data, config, where)
    image = place_image(data, [element, points], config.image, where, elsewhere=config.images is not None)
    matrix = affine(points, image.system, where)
    xy = table[["x", "y"]].to_numpy(np.float64) @ matrix[:2, :2].T + matrix[:2, 2]
    back = np.linalg.inv(affine(element, image.system, where))
    xy = xy @ back[:2, :2].T + back[:2, 2]  # on the element's own coordinates
    if units in data.labels:
        cells, rows = fetched(lambda: _in_labels(element, xy), units, where)
    else:
        shapes = element.buffer(element["radius"]) if "radius" in element.columns else element.geometry
        area = gpd.GeoDataFrame(geometry=gpd.GeoSeries(shapes.to_numpy(), index=element.index))
        dots = gpd.GeoDataFrame(geometry=gpd.points_from_xy(xy[:, 0], xy[:, 1]))
        hits = gpd.sjoin(dots, area, predicate="within", how="inner")
        rows, cells = hits.index.to_numpy(), hits.iloc[:, -1].to_numpy()
    if not len(cells):
        raise InputError(
            f"no transcript lies in '{units}'", where=where, fix="Check the transformations of both"
        )
    codes, instances = pd.factorize(cells, sort=True)
    return _counted(codes, len(instances), table["gene"].iloc[rows], instances), element


def _in_labels(element: Any, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(cell, row of the transcript) of those that lie in a cell; label 0 is none."""
    if hasattr(element, "children"):  # a tree of levels
        element = next(iter(element["scale0"].data_vars.values()))
    labels = np.asarray(element.transpose("y", "x").data)
    at = np.floor(xy).astype(np.int64)
    inside = ((at >= 0) & (at < np.array(labels.shape[::-1]))).all(axis=1)
    rows = np.flatnonzero(inside)
    values = labels[at[rows, 1], at[rows, 0]]
    return values[values > 0], rows[values > 0]


def count_bins(data: Any, config: DataConfig, where: Path) -> tuple[ad.AnnData, Placed, float]:
    """Counts in squares of ``config.bin_um`` on the pixels of the H&E, that image, and the side in pixels.

    Bins without a transcript are left out. ``obs`` has their row and column.
    """
    points, table = transcripts_of(data, config, where)
    image = place_image(data, [points], config.image, where, elsewhere=config.images is not None)
    mpp = config.mpp or image.mpp
    if not mpp:
        raise InputError(
            "µm/px of the image is not known, so the size of a bin is not",
            where=where,
            fix="Give --data.mpp",
        )
    side = float(config.bin_um or 0.0) / mpp
    matrix = image.matrix @ affine(points, image.system, where)
    xy = table[["x", "y"]].to_numpy(np.float64) @ matrix[:2, :2].T + matrix[:2, 2]
    cells = np.floor(xy / side).astype(np.int64)
    places, codes = np.unique(cells, axis=0, return_inverse=True)
    names = np.array([f"{column}x{row}" for column, row in places])
    section = _counted(codes.reshape(-1), len(places), table["gene"], names)
    section.obs["array_col"], section.obs["array_row"] = places[:, 0], places[:, 1]
    section.obsm["spatial"] = (places + 0.5) * side
    return section, image, side


def _counted(codes: np.ndarray, count: int, genes: pd.Series, instances: Any) -> ad.AnnData:
    """Cells × genes from one (cell, gene) per transcript."""
    names = genes.cat.categories
    ones = np.ones(len(codes), np.float32)
    x = sparse.coo_matrix((ones, (codes, genes.cat.codes.to_numpy())), shape=(count, len(names))).tocsr()
    section = ad.AnnData(x)
    section.var_names = names.astype(str)
    section.obs_names = [str(name) for name in instances]
    section.obs["instance"] = np.asarray(instances)
    return section
