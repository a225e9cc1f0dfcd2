"""Grids of embeddings: what a canvas is drawn from, and the vector at any place between their cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.core.files import atomic_path, content_hash
from morphogen.core.reading.arrays import read_arrays

PARALLEL = 0.9995
"""Cosine beyond which two vectors are too nearly parallel, or opposite, for an arc between them."""


@dataclass(frozen=True)
class EmbeddingGrid:
    """One embedding per cell; ``patch[row, column]`` conditions the cell at row, column.

    Attributes
    ----------
    patch:
        (R, C, D) float32, as the encoder gives them.
    region:
        (R, C, D') for two-token models, or ``None``.
    facts:
        Where the cells came from; written beside the canvas.
    bare:
        (R, C) bool: cells that are glass without tissue, where the source shows that; ``None``: not known.
    glass:
        (3,) RGB of that glass, 0–255.
    """

    patch: np.ndarray
    region: np.ndarray | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    bare: np.ndarray | None = None
    glass: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name, values in (("patch", self.patch), ("region", self.region)):
            if values is None:
                continue
            if values.ndim != 3 or not values.size:
                raise InputError(
                    f"a grid of embeddings is (rows, columns, D), not {values.shape}", where=name
                )
            bad = ~np.isfinite(values).all(axis=2)
            if bad.any():
                row, column = np.argwhere(bad)[0].tolist()
                raise InputError(
                    f"not all numbers in {int(bad.sum())} of {bad.size} cells (first: row {row}, column {column})",
                    where="grid",
                    fix="Encode these cells again, or give others",
                )
        if self.region is not None and self.region.shape[:2] != self.patch.shape[:2]:
            raise InputError("patch and region grids differ in rows or columns", where="grid")
        if self.bare is not None:
            glass = np.asarray(self.glass if self.glass is not None else (), np.float64)
            if self.bare.shape != self.shape or self.bare.dtype != bool or glass.shape != (3,):
                raise InputError(
                    "bare is not true or false for every cell, or glass is not a colour",
                    where="grid",
                    fix="Give bare (R, C) and glass (3,), or neither",
                )
            if not ((glass >= 0) & (glass <= 255)).all():
                raise InputError("the colour of the glass is not within 0–255", where="grid")

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.patch.shape[0], self.patch.shape[1]

    def identity(self) -> str:
        """Hash of the embeddings."""
        bare = () if self.bare is None else (self.bare, self.glass)
        return content_hash(self.patch, self.region if self.region is not None else "none", *bare)

    def part(self, rows: slice, columns: slice) -> EmbeddingGrid:
        """Some of the cells."""
        region = None if self.region is None else self.region[rows, columns]
        bare = None if self.bare is None else self.bare[rows, columns]
        return EmbeddingGrid(self.patch[rows, columns], region, self.facts, bare, self.glass)

    def pasted(self, other: EmbeddingGrid, row: int, column: int) -> EmbeddingGrid:
        """The grid with ``other`` laid over it, its first cell at (row, column)."""
        rows, columns = other.shape
        beyond = row < 0 or column < 0 or row + rows > self.shape[0] or column + columns > self.shape[1]
        if beyond or other.patch.shape[2] != self.patch.shape[2]:
            raise InputError(
                f"{rows} × {columns} cells of {other.patch.shape[2]} numbers do not fit at row {row}, column {column} "
                f"of a grid of {self.shape[0]} × {self.shape[1]} of {self.patch.shape[2]}",
                where="grid",
            )
        patch = self.patch.copy()
        patch[row : row + rows, column : column + columns] = other.patch
        region = self.region
        if region is not None and other.region is not None:
            region = region.copy()
            region[row : row + rows, column : column + columns] = other.region
        bare, glass = self.bare, self.glass if self.bare is not None else other.glass
        if bare is not None or other.bare is not None:
            bare = np.zeros(self.shape, bool) if bare is None else bare.copy()
            bare[row : row + rows, column : column + columns] = False if other.bare is None else other.bare
        facts = {**self.facts, "pasted": [row, column, rows, columns]}
        return EmbeddingGrid(patch, region, facts, bare, glass)

    def save(self, path: Path | str) -> Path:
        """Write ``grid.npz``, whole or not at all."""
        given = {"patch": self.patch, "region": self.region, "bare": self.bare, "glass": self.glass}
        parts: dict[str, Any] = {name: values for name, values in given.items() if values is not None}
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **parts)
        return Path(path)

    @classmethod
    def load(cls, path: Path | str) -> EmbeddingGrid:
        """Read ``.npz`` (patch; also region, bare, glass) or ``.npy`` (R, C, D).

        Raises :class:`InputError` for anything else.
        """
        arrays = read_arrays(path, "a grid of embeddings")
        patch, region = arrays.get("patch", arrays.get("")), arrays.get("region")
        if patch is None:
            raise InputError(
                "is not a grid of embeddings: it has no 'patch'",
                where=path,
                fix="Give an .npz with 'patch' (R, C, D)",
            )
        try:
            second = None if region is None else region.astype(np.float32)
            facts = {"from": Path(path).name}
            return cls(patch.astype(np.float32), second, facts, arrays.get("bare"), arrays.get("glass"))
        except InputError as error:
            raise InputError(error.what, where=path, fix=error.fix) from None
        except (TypeError, ValueError) as error:
            raise InputError(f"is not a grid of embeddings ({str(error)[:120]})", where=path) from None


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """(N, D) vectors on the arc from ``a`` to ``b``, both (N, D); ``t`` (N,) in [0, 1].

    The angle is that of the normalised vectors, the weights are applied to the vectors as they are (Shoemake 1985; as
    published by Graikos et al.). Nearly parallel, opposite and zero vectors, for which there is no arc, are mixed
    linearly.
    """
    t = t[:, None].double()
    wide_a, wide_b = a.double(), b.double()
    dot = (torch.nn.functional.normalize(wide_a) * torch.nn.functional.normalize(wide_b)).sum(-1, True)
    zero = (wide_a.norm(dim=-1, keepdim=True) == 0) | (wide_b.norm(dim=-1, keepdim=True) == 0)
    straight = (dot.abs() > PARALLEL) | zero
    angle = torch.where(straight, torch.ones_like(dot), dot.clamp(-1, 1).acos())
    arc = (((1 - t) * angle).sin() * wide_a + (t * angle).sin() * wide_b) / angle.sin()
    return torch.where(straight, (1 - t) * wide_a + t * wide_b, arc).to(a.dtype)


def vectors_at(
    grid: Tensor,
    positions: Sequence[tuple[int, int]],
    cell: int,
    made: Callable[[Tensor], Tensor] = lambda vectors: vectors,
) -> Tensor:
    """(N, D): the vectors of windows at ``positions`` (row, column of their corners, latent cells).

    grid: (R, C, D). cell: side of a grid's cell in latent cells. made: what is slerped of the cells' vectors (…, D). A
    window exactly on a cell has that cell's vector; between cells it is slerped along the columns, above and below,
    then along the rows. Beyond the last row and column the grid's border is repeated.
    """
    where = torch.tensor(list(positions), dtype=torch.float64, device=grid.device).reshape(-1, 2) / cell
    rows, columns = grid.shape[0], grid.shape[1]
    low = where.floor()
    i, j = low[:, 0].long().clamp(0, rows - 1), low[:, 1].long().clamp(0, columns - 1)
    below, right = (i + 1).clamp(max=rows - 1), (j + 1).clamp(max=columns - 1)
    corners = made(torch.stack([grid[i, j], grid[i, right], grid[below, j], grid[below, right]]))
    fraction = (where - low).to(corners.device)
    upper = slerp(corners[0], corners[1], fraction[:, 1])
    lower = slerp(corners[2], corners[3], fraction[:, 1])
    return slerp(upper, lower, fraction[:, 0])


def interpolated(ends: np.ndarray, shape: tuple[int, int]) -> EmbeddingGrid:
    """A grid between embeddings: (2, D) from left to right, or (2, 2, D) between four corners; slerped."""
    values = np.asarray(ends, dtype=np.float32)
    if values.ndim == 2 and len(values) == 2:
        values = np.stack([values, values])
    if values.ndim != 3 or values.shape[:2] != (2, 2):
        raise InputError(
            f"an interpolation runs between 2 embeddings or 4 corners, not {values.shape}", where="grid"
        )
    rows, columns = shape
    if min(shape) < 1:
        raise InputError(f"a grid of {rows} × {columns} has no cells", where="grid")
    scale = 1_000_000  # positions are whole numbers
    at = [
        (round(r / max(rows - 1, 1) * scale), round(c / max(columns - 1, 1) * scale))
        for r in range(rows)
        for c in range(columns)
    ]
    made = vectors_at(torch.from_numpy(values), at, scale).numpy()
    return EmbeddingGrid(
        made.reshape(rows, columns, -1), facts={"from": f"interpolation of {np.size(ends, 0)} ends"}
    )


def conditions(
    grid: EmbeddingGrid, cell: int, context: Callable[..., Tensor], vectors: Callable[[str, Any], Tensor]
) -> Callable[[Sequence[tuple[int, int]]], Tensor]:
    """``positions → (N, T, width)``: the tokens of windows, for :class:`~morphogen.diffusion.PerWindow`.

    ``vectors(name, values)`` standardises and checks embeddings, ``context(**vectors)`` makes tokens of them.
    """
    # Vectors are made of the cells that windows see, batch by batch: a grid of many cells is as large as its canvas.
    fields = {"patch": torch.from_numpy(grid.patch)}
    if grid.region is not None:
        fields["region"] = torch.from_numpy(grid.region)

    def of(positions: Sequence[tuple[int, int]]) -> Tensor:
        return context(
            **{
                name: vectors_at(values, positions, cell, partial(vectors, name))
                for name, values in fields.items()
            }
        )

    return of
