"""Tiles with their embeddings, from wherever they lie, as one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from morphogen.core.errors import InputError
from morphogen.core.running.spread import Spread
from morphogen.tissue.config import DataConfig
from morphogen.tissue.reading import images, layouts, tables
from morphogen.tissue.reading.table import TileTable

__all__ = ["TileDataset", "TileTable", "read_tiles"]


class TileDataset(Dataset):
    """Items for training: ``image`` (3, px, px) uint8, each embedding (D,) float32, ``index``.

    Tiles are decoded once and kept as long as they fit into ``memory_gib``.
    """

    def __init__(
        self, table: TileTable, *, flip: bool = True, turn: bool = False, memory_gib: float = 2.0
    ) -> None:
        self.table, self.flip, self.turn = table, flip, turn
        size = 3 * table.tile_px**2 * len(table)
        self._kept: np.ndarray | None = None
        if size <= memory_gib * 2**30 and len(table):
            self._kept = np.concatenate(
                [
                    table.read(range(start, min(start + 256, len(table))))
                    for start in range(0, len(table), 256)
                ]
            )

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = self._kept[index] if self._kept is not None else self.table.read([index])[0]
        item = {"image": torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)}
        for name, values in self.table.features.items():
            item[name] = torch.from_numpy(values[index])
        return {**item, "index": torch.tensor(index)}

    def draw(self, index: int, generator: torch.Generator) -> dict[str, Tensor]:
        """An item with its axes mirrored, and swapped, at random."""
        item = self[index]
        if self.flip:
            axes = [axis for axis in (1, 2) if torch.rand((), generator=generator) < 0.5]
            item["image"] = item["image"].flip(axes) if axes else item["image"]
        if self.turn and torch.rand((), generator=generator) < 0.5:
            item["image"] = item["image"].transpose(1, 2)
        return item


def read_tiles(
    sources: Sequence[Path | str] | Path | str,
    config: DataConfig,
    *,
    cache: Path | str | None = None,
    encoder: Any = None,
    spread: Spread | None = None,
) -> TileTable:
    """Tiles of images, slides, tables or published folders.

    Parameters
    ----------
    sources:
        Image files, slides, folders of them, ``.h5ad`` tables, or one folder in a published layout.
    config:
        How they are read; ``layout: auto`` goes by the files.
    cache:
        Folder where the features of tiles cut here are kept.
    encoder:
        An encoder at hand, in place of ``config.encoder``.
    spread:
        Where images that are cut here are encoded.

    Raises
    ------
    InputError
        Nothing to read, an ambiguous folder, features that do not fit.
    """
    paths = [Path(sources)] if isinstance(sources, Path | str) else [Path(each) for each in sources]
    if not paths:
        raise InputError("no input is given", where="tiles", fix="Name images, slides or folders")
    layout: str = layouts.recognise(paths) if config.layout == "auto" else config.layout
    if layout == "images":
        return images.read_images(paths, config, cache=cache, encoder=encoder, spread=spread)
    if layout == "h5ad":
        return tables.read_tables(paths, config)
    if len(paths) != 1 or not paths[0].is_dir():
        raise InputError(f"the layout '{layout}' is one folder", where=paths[0], fix="Name the folder alone")
    return layouts.read_layout(paths[0], layout, config)
