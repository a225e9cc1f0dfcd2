"""AnnData files of others: looked at before SciPy and pandas see them, then read.

Compiled code trusts the index arrays of a sparse matrix: one index out of range reads or writes beyond an array and
ends the process. So the structure is checked in the file first.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from morphogen.core.errors import InputError

if TYPE_CHECKING:
    import h5py
    import zarr
    from anndata import AnnData

_BLOCK = 1 << 22


def open_h5ad(path: Path | str) -> AnnData:
    """An AnnData file; :class:`InputError` when it is none, or holds a matrix whose structure is broken."""
    import anndata

    path = Path(path)
    if not path.is_file():
        what = "this is not a file" if path.exists() else "there is no such file"
        raise InputError(what, where=path)
    check_matrices(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters of names and formats is said by our own checks
            return anndata.read_h5ad(path)
    except Exception as error:
        raise InputError(
            f"cannot be read as AnnData ({' '.join(str(error).split())[:160]})", where=path
        ) from None


def check_matrices(path: Path | str) -> None:
    """Check every compressed sparse matrix of an HDF5 file: AnnData's groups, and the ``matrix`` of 10x Genomics.

    ``indptr`` begins with 0, never falls, ends with the number of values and has an entry per row (CSR) or column
    (CSC) and one more; ``indices`` are as many as the values and within the shape. Raises :class:`InputError`.
    """
    import h5py

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


def check_stored_matrices(store: Path | str) -> None:
    """:func:`check_matrices` for every sparse matrix of a Zarr store on disk, of format 2 or 3."""
    import zarr

    for folder, inside, _ in os.walk(store):
        if {"indptr", "indices"} <= set(inside):
            try:
                problem = _problem(zarr.open_group(folder, mode="r"))
            except Exception as error:  # zarr and its codecs raise many kinds
                problem = f"it cannot be read ({' '.join(str(error).split())[:120]})"
            if problem:
                raise InputError(
                    f"the sparse matrix is broken: {problem}", where=folder, fix="Write the store again"
                )


def _problem(group: h5py.Group | zarr.Group) -> str:
    """What is wrong with the structure of a compressed sparse matrix, ``""`` when nothing is."""
    parts = [group.get(name) for name in ("data", "indices", "indptr")]
    if not all(hasattr(part, "dtype") and part.ndim == 1 for part in parts):
        return "data, indices and indptr must be arrays with one axis"
    data, indices, indptr = parts
    if data.dtype.kind not in "iufb":
        return "its values are text or objects, not numbers"
    if indices.dtype.kind not in "iu" or indptr.dtype.kind not in "iu":
        return "indices and indptr must be whole numbers"
    stated = group.attrs.get("shape", group.attrs.get("h5sparse_shape"))
    if stated is None and hasattr(group.get("shape"), "dtype"):
        stated = group["shape"][()]
    shape = np.asarray(stated).reshape(-1) if stated is not None else np.zeros(0)
    if shape.dtype.kind not in "iu" or len(shape) != 2 or (shape < 0).any():
        return "its shape is not two whole numbers"
    kind = group.attrs.get(
        "encoding-type", group.attrs.get("h5sparse_format", "csc")
    )  # 10x: genes × barcodes, CSC
    kind = kind.decode(errors="replace") if isinstance(kind, bytes) else str(kind)
    major, minor = (int(n) for n in (shape if kind.startswith("csr") else shape[::-1]))
    if data.shape[0] != indices.shape[0]:
        return f"{data.shape[0]} values have {indices.shape[0]} indices"
    if indptr.shape[0] != major + 1:
        return f"indptr has {indptr.shape[0]} entries for {major} {'rows' if kind.startswith('csr') else 'columns'}"
    last = 0
    for block in _blocks(indptr):
        if int(block[0]) < last or (np.diff(block.astype(np.int64)) < 0).any():
            return "indptr falls"
        last = int(block[-1])
    if int(indptr[0]) != 0 or last != data.shape[0]:
        return f"indptr goes from {int(indptr[0])} to {last} for {data.shape[0]} values"
    for block in _blocks(indices):
        if int(block.min()) < 0 or int(block.max()) >= minor:
            return f"an index is {int(block.min())} or {int(block.max())}, outside 0 … {minor - 1}"
    return ""


def _blocks(values: h5py.Dataset | zarr.Array) -> Any:
    return (values[start : start + _BLOCK] for start in range(0, values.shape[0], _BLOCK))
