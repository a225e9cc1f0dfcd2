"""What an AnnData file of others holds of a section: counts, centres, array positions, spot diameter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from morphogen.core.errors import InputError, nearest
from morphogen.core.reading.tables import fold
from morphogen.core.reading.text import is_missing
from morphogen.expression.data import log

COUNT_LAYERS = ("counts", "raw_counts", "count", "raw")
XY_COLUMNS = (
    ("x", "y"),
    ("pxl_col_in_fullres", "pxl_row_in_fullres"),
    ("pixel_x", "pixel_y"),
    ("imagecol", "imagerow"),
)


# --- what a section is made of --------------------------------------------------------------------------------


def counts_of(table: ad.AnnData, layer: str | None, values: str, where: Path) -> tuple[Any, pd.Index]:
    """The matrix of counts (N, G) and its genes.

    layer: a layer by name, or ``raw``. Without one ``X`` is taken, except where it is empty or no counts and a layer of
    a usual name or ``.raw`` holds whole numbers; that is said in the log.
    """
    if layer is not None:
        if layer in table.layers:
            return _numeric(table.layers[layer], f"layer '{layer}'", where), table.var_names
        if layer == "raw" and table.raw is not None:
            return _numeric(table.raw.X, ".raw", where), table.raw.var_names
        raise InputError(f"there is no layer '{layer}'.{nearest(layer, table.layers)}", where=where)
    others = [(f"layer '{name}'", table.layers[name]) for name in COUNT_LAYERS if name in table.layers]
    x = None if table.X is None else _numeric(table.X, "X", where)
    if x is not None and (values != "counts" or _whole(x)):
        return x, table.var_names
    if values == "counts":
        for name, matrix in others:
            if _whole(_numeric(matrix, name, where)):
                log.warning("%s: X holds no counts; taken from %s", where, name)
                return matrix, table.var_names
        if table.raw is not None and _whole(_numeric(table.raw.X, ".raw", where)):
            log.warning("%s: X holds no counts; taken from .raw", where)
            return table.raw.X, table.raw.var_names
    if x is None:
        layers = ", ".join(map(str, table.layers)) or "none"
        raise InputError(
            f"X is empty, and no usual layer holds counts (layers: {layers})",
            where=where,
            fix="Name the layer with the counts: --data.layer NAME",
        )
    return x, table.var_names


def _numeric(matrix: Any, name: str, where: Path) -> Any:
    if isinstance(matrix, pd.DataFrame):
        matrix = matrix.to_numpy()
    if getattr(matrix, "ndim", 0) != 2 or getattr(matrix, "dtype", np.dtype(object)).kind not in "iufb":
        raise InputError(f"{name} holds text or objects, not counts", where=where)
    return matrix


def _whole(matrix: Any) -> bool:
    data = matrix.data if sparse.issparse(matrix) else np.asarray(matrix)
    if data.dtype.kind in "iub":
        return True
    return bool(np.isfinite(data).all() and (data >= 0).all() and (data == np.round(data)).all())


def centres_of(table: ad.AnnData, where: Path) -> np.ndarray:
    """``obsm["spatial"]`` as (N, 2) float64 x, y; NaN where a spot has none.

    A DataFrame is read by the names of its columns, text as numbers. Raises :class:`InputError` for anything else.
    """
    key = next((key for key in ("spatial", "X_spatial") if key in table.obsm), None)
    if key is None:
        raise InputError(
            "there is no obsm['spatial'] with the spot centres",
            where=where,
            fix="Put x and y of each spot, in pixels of the image, there",
        )
    value = table.obsm[key]
    if isinstance(value, pd.DataFrame):
        columns = {fold(name): name for name in value.columns}
        pair = next((pair for pair in XY_COLUMNS if set(pair) <= set(columns)), None)
        if pair is None:
            raise InputError(
                f"obsm['{key}'] has the columns {', '.join(map(str, value.columns))}, not x and y",
                where=where,
                fix="Name them x and y",
            )
        value = value[[columns[name] for name in pair]].to_numpy()
    value = value.toarray() if sparse.issparse(value) else np.asarray(value)
    if value.ndim != 2 or value.shape[1] < 2:
        raise InputError(
            f"obsm['{key}'] has the shape {value.shape}, but x and y of each spot are needed", where=where
        )
    return np.column_stack([_floats(value[:, i], f"obsm['{key}']", where) for i in range(2)])


def _floats(values: np.ndarray, name: str, where: Path) -> np.ndarray:
    if values.dtype.kind in "iufb":
        return values.astype(np.float64)
    words = [v.decode(errors="replace") if isinstance(v, bytes) else v for v in values.tolist()]
    found = pd.to_numeric(pd.Series(words, dtype=object), errors="coerce").to_numpy(np.float64)
    for row in np.flatnonzero(np.isnan(found)):
        if not is_missing(words[row]):
            raise InputError(f"'{str(words[row])[:40]}' in {name} is not a number (spot {row})", where=where)
    return found


def grid_of(table: ad.AnnData, where: Path) -> dict[str, np.ndarray]:
    """``array_row`` and ``array_col`` as whole numbers where every spot has both, else nothing."""
    grid = {}
    for name in ("array_row", "array_col"):
        if name not in table.obs:
            return {}
        values = pd.to_numeric(table.obs[name].astype(object), errors="coerce").to_numpy(np.float64)
        if not np.isfinite(values).all() or (values != np.round(values)).any():
            log.warning("%s: obs['%s'] is not a whole number for every spot and is not used", where, name)
            return {}
        grid[name] = values.astype(np.int64)
    return grid


def spot_diameter_of(table: ad.AnnData) -> float | None:
    """``spot_diameter_fullres`` of the first library in ``uns["spatial"]`` that says it, in level-0 pixels.

    The slot holds other things, too (CELLxGENE's ``is_single``, images, arrays): they are passed over.
    """
    spatial = table.uns.get("spatial")
    for library in spatial.values() if isinstance(spatial, Mapping) else ():
        factors = library.get("scalefactors") if isinstance(library, Mapping) else None
        value = factors.get("spot_diameter_fullres") if isinstance(factors, Mapping) else None
        if value is not None and (number := positive(value)):
            return number
    return None


def positive(value: Any) -> float | None:
    """A finite number > 0 from a scalar, an array of one, or its text; ``None`` for anything else."""
    flat = np.asarray(value).reshape(-1)
    if len(flat) != 1 or isinstance(flat[0], bool | np.bool_):
        return None
    try:
        number = float(flat[0])
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) and number > 0 else None
