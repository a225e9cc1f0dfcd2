"""Grids of embeddings of tiles that lie side by side: what a prior learns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from morphogen.core.errors import InputError
from morphogen.tissue.data import TileTable
from morphogen.tissue.priors.model import Components


class GridDataset(Dataset):
    """Square grids of embeddings of tiles that lie side by side, wherever a full one begins.

    An item has ``grid`` (K, g, g) float32, components, and ``label`` (), the number of its tiles' class.

    Raises :class:`InputError` when no image holds a full grid.
    """

    def __init__(self, table: TileTable, side: int, space: Components, labels: Sequence[str]) -> None:
        self.side = side
        self.components = space(torch.from_numpy(table.features["patch"]))
        known = {name: number for number, name in enumerate(labels)}
        self.grids: list[Tensor] = []
        self.labels: list[int] = []
        self.corners: list[tuple[int, int, int]] = []  # image, row and column where each begins
        for rows in full_grids(table, side):
            self.grids.append(torch.from_numpy(rows))
            name = table.labels[int(rows[0, 0])] if table.labels else ""
            self.labels.append(known.get(name, len(labels)))
            image, row, column = table.places[rows[0, 0]].tolist()
            self.corners.append((image, row, column))
        if not self.grids:
            raise InputError(
                f"no image holds {side} × {side} tiles side by side",
                where="prior",
                fix="Give larger regions without overlapping tiles (no data.stride), or a smaller --side",
            )

    def __len__(self) -> int:
        return len(self.grids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        grid = self.components[self.grids[index]].permute(2, 0, 1).contiguous()
        return {"grid": grid, "label": torch.tensor(self.labels[index])}

    def batches(self, size: int = 512) -> Iterator[Tensor]:
        """All grids in their order, (n, K, g, g) at a time."""
        for start in range(0, len(self), size):
            rows = torch.stack(self.grids[start : start + size])
            yield self.components[rows].permute(0, 3, 1, 2).contiguous()

    def draw(self, index: int, generator: torch.Generator) -> dict[str, Tensor]:
        """An item in one of its 8 orientations."""
        item = self[index]
        turn = int(torch.randint(8, (), generator=generator))
        grid = torch.rot90(item["grid"], turn % 4, (1, 2))
        return {**item, "grid": (grid.flip(2) if turn >= 4 else grid).contiguous()}


def full_grids(table: TileTable, side: int) -> list[np.ndarray]:
    """(side, side) rows of the table for every place where so many tiles lie side by side."""
    if not len(table.places):
        raise InputError("these tiles do not say where they lie", where="prior")
    found = []
    for image in np.unique(table.places[:, 0]):
        here = np.flatnonzero(table.places[:, 0] == image)
        rows, columns = table.places[here, 1], table.places[here, 2]
        filled = np.full((rows.max() + 1, columns.max() + 1), -1, np.int64)
        filled[rows, columns] = here
        for top in range(filled.shape[0] - side + 1):
            for left in range(filled.shape[1] - side + 1):
                window = filled[top : top + side, left : left + side]
                if (window >= 0).all():
                    found.append(window.copy())
    return found
