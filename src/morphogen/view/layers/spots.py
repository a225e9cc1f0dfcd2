"""Tables of spots, cells or bins: where they lie, and one number of each by the name of a gene.

Files are AnnData (``.h5ad``). Columns are read when they are asked for; the matrix is never held whole.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from morphogen.core.errors import InputError
from morphogen.core.writing.h5ad import check_matrices

# What layers of a prediction are called on the page; others keep their names.
TITLES = {
    "pred_mean": "predicted mean",
    "pred_std": "uncertainty (SD)",
    "pred_q05": "5 % quantile",
    "pred_q95": "95 % quantile",
}
_MOST = 4_000_000  # spots
_BLOCK = 1 << 22
_SPREAD = ("pred_std", "std", "sd", "uncertainty")


class SpotLayer:
    """A table as the viewer sees it.

    Attributes
    ----------
    points:
        (N, 2) float32 centres x, y in pixels of the slide that the table belongs to, from the corner of its bounds.
    diameter:
        Of a spot, in these pixels.
    genes:
        Names of the columns of every quantity.
    quantities:
        Matrices by key: ``X`` and layers, with what they are called.
    mpp:
        µm of such a pixel or ``None``.
    """

    kind = "spots"

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        check_matrices(path)
        self._lock = threading.Lock()
        with self._open() as file:
            try:
                self._read(file)
            except InputError:
                raise
            except Exception as error:  # what strangers wrote raises many kinds
                raise InputError(
                    f"cannot be read as AnnData ({' '.join(str(error).split())[:120]})", where=path
                ) from None
        self.varied = self._most_varied()

    def _open(self) -> Any:
        import h5py

        try:
            return h5py.File(self.path, "r")
        except OSError as error:
            raise InputError(
                f"is not a readable HDF5 file ({' '.join(str(error).split())[:120]})", where=self.path
            ) from None

    def _read(self, file: Any) -> None:
        from anndata.io import read_elem

        obsm = file.get("obsm", {})
        key = next((key for key in ("spatial", "X_spatial") if key in obsm), None)
        if key is None:
            raise InputError("there is no obsm['spatial'] with the places of the spots", where=self.path)
        value = read_elem(obsm[key])
        points = np.asarray(value, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] < 2 or not len(points):
            raise InputError(f"obsm['{key}'] has the shape {points.shape}, not spots × 2", where=self.path)
        if len(points) > _MOST:
            raise InputError(
                f"has {len(points)} spots, more than the {_MOST} that are shown", where=self.path
            )
        facts = _facts(file, read_elem)
        origin = [float(facts.get(f"origin_{axis}") or 0) for axis in "xy"]
        self.mpp = _positive(facts.get("mpp"))
        self.picture, scale = _hires(file, read_elem)
        self.scale = scale
        self.points = (points[:, :2] - origin).astype(np.float32)
        pitch = _pitch(self.points)
        size = _positive(facts.get("spot_diameter_px")) or _spot_diameter(file, read_elem)
        self.square = not size and _on_grid(self.points, pitch)
        usual = pitch if self.square else 0.9 * pitch
        self.diameter = min(size or usual, 1.1 * pitch) if pitch else size or 1.0
        self.genes = _names(read_elem(file["var"]))
        found = {"X": file["X"]} if "X" in file else {}
        found |= {f"layers/{name}": item for name, item in file.get("layers", {}).items()}
        shape = (len(points), len(self.genes))
        self.quantities = {key: self._title(key) for key, item in found.items() if _shape(item) == shape}
        if facts.get("measured") == "no" and len(self.quantities) > 1:
            self.quantities.pop("X", None)
        self.labels = self._obs(read_elem(file["obs"]))

    def _title(self, key: str) -> str:
        name = key.removeprefix("layers/")
        return TITLES.get(name, "measured" if key == "X" else name)

    def _obs(self, obs: Any) -> dict[str, tuple[np.ndarray, list[str]]]:
        """Columns that can be shown: numbers, and categories of up to 64 names as their numbers."""
        out: dict[str, tuple[np.ndarray, list[str]]] = {}
        for name in obs.columns:
            column = obs[name]
            if column.dtype.kind in "iufb":
                out[str(name)] = column.to_numpy(np.float32), []
            elif column.dtype.name == "category" and 1 < len(column.cat.categories) <= 64:
                codes = column.cat.codes.to_numpy(np.float32)
                out[str(name)] = (
                    np.where(codes < 0, np.nan, codes).astype(np.float32),
                    [str(each) for each in column.cat.categories],
                )
        return out

    def _most_varied(self, most: int = 12) -> list[int]:
        """Genes to begin with: those whose predicted or measured values vary most over the spots."""
        key = (
            "layers/pred_mean" if "layers/pred_mean" in self.quantities else next(iter(self.quantities), None)
        )
        if key is None or len(self.genes) * len(self.points) > 50_000_000:
            return list(range(min(most, len(self.genes))))
        spread = self.matrix(key)
        order = np.argsort(-np.nan_to_num(spread.std(axis=0)), kind="stable")
        return [int(each) for each in order[:most]]

    # ------------------------------------------------------------------ values

    def described(self) -> dict[str, Any]:
        """What the page must know of it, plain values."""
        return {
            "kind": self.kind,
            "name": self.name,
            "count": len(self.points),
            "diameter": round(float(self.diameter), 3),
            "square": self.square,
            "genes": self.genes,
            "varied": self.varied,
            "quantities": [
                {"title": title, "spread": key.rpartition("/")[2] in _SPREAD}
                for key, title in self.quantities.items()
            ],
            "labels": [{"name": name, "categories": kinds} for name, (_, kinds) in self.labels.items()],
        }

    def matrix(self, key: str) -> np.ndarray:
        """(N, G) float32 of a quantity, whole: for small ones."""
        from anndata.io import read_elem

        with self._lock, self._open() as file:
            value = read_elem(file[key])
        return np.asarray(value.toarray() if hasattr(value, "toarray") else value, dtype=np.float32)

    def values(self, number: int, gene: int) -> np.ndarray:
        """(N,) float32 of the quantity ``number`` for the gene ``gene``; :class:`InputError` when there is none."""
        keys = list(self.quantities)
        if not (0 <= number < len(keys) and 0 <= gene < len(self.genes)):
            raise InputError(f"there is no quantity {number} of gene {gene}", where=self.name)
        return self.column(keys[number], gene)

    def label_values(self, number: int) -> np.ndarray:
        """(N,) float32 of a column of the table of spots."""
        columns = list(self.labels.values())
        if not 0 <= number < len(columns):
            raise InputError(f"there is no column {number}", where=self.name)
        return columns[number][0]

    def column(self, key: str, gene: int) -> np.ndarray:
        """(N,) float32: one column of a matrix, dense or sparse, of the file."""
        with self._lock, self._open() as file:
            item = file[key]
            if hasattr(item, "shape"):
                return np.asarray(item[:, gene], dtype=np.float32)
            return _sparse_column(item, gene, len(self.points))


def _sparse_column(group: Any, gene: int, rows: int) -> np.ndarray:
    kind = group.attrs.get("encoding-type", "csr_matrix")
    data, indices, indptr = group["data"], group["indices"], group["indptr"]
    out = np.zeros(rows, dtype=np.float32)
    if str(kind).startswith("csc"):
        start, end = int(indptr[gene]), int(indptr[gene + 1])
        np.add.at(out, np.asarray(indices[start:end]), np.asarray(data[start:end], np.float32))
        return out
    bounds = np.asarray(indptr[...])
    for start in range(0, indices.shape[0], _BLOCK):
        found = np.flatnonzero(np.asarray(indices[start : start + _BLOCK]) == gene)
        if len(found):
            values = np.asarray(data[start : start + _BLOCK])[found]
            np.add.at(
                out, np.searchsorted(bounds, found + start, side="right") - 1, values.astype(np.float32)
            )
    return out


def _facts(file: Any, read: Any) -> Mapping[str, Any]:
    """What this package notes of a section: µm/px, spot size, corner of the bounds."""
    group = file.get("uns/morphogen/section")
    facts = dict(read(group)) if group is not None else {}
    said = file.get("uns/morphogen/prediction/X")
    if said is not None and "nothing was measured" in str(read(said)):
        facts["measured"] = "no"
    return facts


def _positive(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) and number > 0 else None


def _libraries(file: Any) -> list[Any]:
    spatial = file.get("uns/spatial")
    return [each for each in spatial.values() if hasattr(each, "keys")] if spatial is not None else []


def _spot_diameter(file: Any, read: Any) -> float | None:
    for library in _libraries(file):
        value = library.get("scalefactors/spot_diameter_fullres")
        if value is not None and (number := _positive(read(value))):
            return number
    return None


def _hires(file: Any, read: Any) -> tuple[np.ndarray | None, float]:
    """The picture that scanpy plots below the spots, (H, W, 3) uint8, and its pixels per pixel of the slide."""
    for library in _libraries(file):
        for size in ("hires", "lowres"):
            image = library.get(f"images/{size}")
            scale = library.get(f"scalefactors/tissue_{size}_scalef")
            if image is None or scale is None or not (factor := _positive(read(scale))):
                continue
            if len(image.shape) != 3 or image.shape[2] not in (3, 4) or image.size > 200_000_000:
                continue
            pixels = np.asarray(image)[..., :3]
            if pixels.dtype.kind == "f":
                pixels = np.clip(pixels * (255 if pixels.max(initial=0) <= 1 else 1), 0, 255)
            return np.ascontiguousarray(pixels.astype(np.uint8)), factor
    return None, 1.0


def _names(var: Any) -> list[str]:
    """Names of genes as people know them: a column of symbols where the index holds Ensembl ids."""
    names = [str(each) for each in var.index]
    if names and all(each.startswith("ENS") for each in names[:20]):
        for column in ("gene_symbols", "gene_name", "gene_names", "feature_name", "symbol"):
            if column in var.columns:
                return [str(each) for each in var[column]]
    return names


def _shape(item: Any) -> tuple[int, ...]:
    shape = item.shape if hasattr(item, "shape") else item.attrs.get("shape", ())
    return tuple(int(each) for each in shape)


def _pitch(points: np.ndarray) -> float:
    """The usual distance between neighbours."""
    from scipy.spatial import cKDTree

    known = points[np.isfinite(points).all(axis=1)]
    if len(known) < 2:
        return 0.0
    some = known[:: max(1, len(known) // 5000)]
    return float(np.median(cKDTree(known).query(some, k=2)[0][:, 1]))


def _on_grid(points: np.ndarray, pitch: float) -> bool:
    """Whether spots lie on a square grid, as predictions over a slide do: they are shown as squares."""
    if not pitch or len(points) < 4:
        return False
    steps = (points - np.nanmin(points, axis=0)) / pitch
    return bool(np.nanmean(np.abs(steps - np.round(steps))) < 0.03)
