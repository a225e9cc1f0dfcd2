"""AnnData files of others: looked at before SciPy and pandas see them, then read.

Compiled code trusts the index arrays of a sparse matrix: one index out of range reads or writes beyond an array and
ends the process. So the structure is checked in the file first.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from morphogen.core.errors import InputError, nearest
from morphogen.core.tables import fold
from morphogen.core.text import is_missing
from morphogen.expression.data import log

_BLOCK = 1 << 22
COUNT_LAYERS = ("counts", "raw_counts", "count", "raw")
XY_COLUMNS = (
    ("x", "y"),
    ("pxl_col_in_fullres", "pxl_row_in_fullres"),
    ("pixel_x", "pixel_y"),
    ("imagecol", "imagerow"),
)


def open_h5ad(path: Path | str) -> ad.AnnData:
    """An AnnData file; :class:`InputError` when it is none, or holds a matrix whose structure is broken."""
    path = Path(path)
    if not path.is_file():
        what = "this is not a file" if path.exists() else "there is no such file"
        raise InputError(what, where=path)
    check_matrices(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters of names and formats is said by our own checks
            return ad.read_h5ad(path)
    except Exception as error:
        raise InputError(
            f"cannot be read as AnnData ({' '.join(str(error).split())[:160]})", where=path
        ) from None


def check_matrices(path: Path | str) -> None:
    """Check every compressed sparse matrix of an HDF5 file: AnnData's groups, and the ``matrix`` of 10x Genomics.

    ``indptr`` begins with 0, never falls, ends with the number of values and has an entry per row (CSR) or column
    (CSC) and one more; ``indices`` are as many as the values and within the shape. Raises :class:`InputError`.
    """
    try:
        with h5py.File(path) as file:
            broken: list[str] = []

            def visit(name: str, item: Any) -> bool | None:
                if isinstance(item, h5py.Group) and {"indptr", "indices"} <= set(item):
                    problem = _problem(item)
                    if problem:
                        broken.append(f"the sparse matrix '{name}' is broken: {problem}")
                        return True
                return None

            file.visititems(visit)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"is not a readable HDF5 file ({' '.join(str(error).split())[:120]})", where=path
        ) from None
    if broken:
        raise InputError(broken[0], where=path, fix="Write the file again")


def _problem(group: h5py.Group) -> str:
    """What is wrong with the structure of a compressed sparse matrix, ``""`` when nothing is."""
    parts = [group.get(name) for name in ("data", "indices", "indptr")]
    if not all(isinstance(part, h5py.Dataset) and part.ndim == 1 for part in parts):
        return "data, indices and indptr must be arrays with one axis"
    data, indices, indptr = parts
    if data.dtype.kind not in "iufb":
        return "its values are text or objects, not numbers"
    if indices.dtype.kind not in "iu" or indptr.dtype.kind not in "iu":
        return "indices and indptr must be whole numbers"
    stated = group.attrs.get("shape", group.attrs.get("h5sparse_shape"))
    if stated is None and isinstance(group.get("shape"), h5py.Dataset):
        stated = group["shape"][()]
    shape = np.asarray(stated).reshape(-1) if stated is not None else np.zeros(0)
    if shape.dtype.kind not in "iu" or len(shape) != 2 or (shape < 0).any():
        return "its shape is not two whole numbers"
    kind = group.attrs.get(
        "encoding-type", group.attrs.get("h5sparse_format", "csc")
    )  # 10x: genes × barcodes, CSC
    kind = kind.decode(errors="replace") if isinstance(kind, bytes) else str(kind)
    major, minor = (int(n) for n in (shape if kind.startswith("csr") else shape[::-1]))
    if len(data) != len(indices):
        return f"{len(data)} values have {len(indices)} indices"
    if len(indptr) != major + 1:
        return (
            f"indptr has {len(indptr)} entries for {major} {'rows' if kind.startswith('csr') else 'columns'}"
        )
    last = 0
    for block in _blocks(indptr):
        if int(block[0]) < last or (np.diff(block.astype(np.int64)) < 0).any():
            return "indptr falls"
        last = int(block[-1])
    if int(indptr[0]) != 0 or last != len(data):
        return f"indptr goes from {int(indptr[0])} to {last} for {len(data)} values"
    for block in _blocks(indices):
        if int(block.min()) < 0 or int(block.max()) >= minor:
            return f"an index is {int(block.min())} or {int(block.max())}, outside 0 … {minor - 1}"
    return ""


def _blocks(values: h5py.Dataset) -> Any:
    return (values[start : start + _BLOCK] for start in range(0, len(values), _BLOCK))


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
        raise InputError("there is no obsm['spatial'] with the spot centres", where=where)
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
