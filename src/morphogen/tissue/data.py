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
from morphogen.tasks.streams.held import HeldImages
from morphogen.tasks.streams.turns import turn_of, turned_batch
from morphogen.tissue.config import DataConfig
from morphogen.tissue.reading import images, layouts, tables
from morphogen.tissue.reading.table import TileTable, spread_rows

__all__ = ["TileDataset", "TileTable", "read_tiles", "spread_rows"]


class TileDataset(Dataset):
    """Items for training: ``image`` (3, px, px) uint8, each embedding (D,) float32, ``index``.

    Tiles are decoded once and kept as long as they fit into ``memory_gib``. Batches are turned on the device of the
    training, and cut there where the tiles fit into its memory (:class:`~morphogen.tasks.streams.held.HeldImages`).
    """

    def __init__(
        self, table: TileTable, *, flip: bool = True, turn: bool = False, memory_gib: float = 2.0
    ) -> None:
        self.table, self.flip, self.turn = table, flip, turn
        fits = 3 * table.tile_px**2 * len(table) <= memory_gib * 2**30
        kept = _all_tiles(table) if fits and len(table) else None
        self._tiles = (
            None if kept is None else HeldImages(lambda index: [kept[index]], len(table), memory_gib)
        )

    @property
    def resident(self) -> bool:
        """Whether the tiles lie on the device."""
        return self._tiles is not None and self._tiles.resident

    def prepare(self, device: torch.device) -> None:
        """See :class:`morphogen.training.Task`."""
        if self._tiles is not None:
            self._tiles.prepare(device)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self._one((index, 0))

    def draw(self, index: int, generator: torch.Generator) -> dict[str, Tensor]:
        """An item with its axes mirrored, and swapped, at random."""
        return self._one(self.place(index, generator))

    def _one(self, place: tuple[int, int]) -> dict[str, Tensor]:
        batch = self.cut([place])
        return {name: value[0] for name, value in self.finish(batch).items()}

    def place(self, index: int, generator: torch.Generator) -> tuple[int, int]:
        """(index, turn)."""
        rows, columns = (
            bool(torch.rand((), generator=generator) < 0.5) if self.flip else False for _ in range(2)
        )
        swapped = self.turn and bool(torch.rand((), generator=generator) < 0.5)
        return index, turn_of(rows, columns, swapped)

    def cut(self, places: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """The batch of some places, not turned yet; without the pixels where those lie on the device."""
        index, turn = np.array(places, dtype=np.int64).T
        found = {name: torch.from_numpy(values[index]) for name, values in self.table.features.items()}
        found |= {"index": torch.from_numpy(index.copy()), "turn": torch.from_numpy(turn.copy())}
        if self.resident:
            return found
        if self._tiles is None:
            image = torch.from_numpy(np.ascontiguousarray(self.table.read(index.tolist())))
        else:
            corners = np.zeros((len(index), 2), np.int64)
            (image,) = self._tiles.cut(np.column_stack([index, corners]), self.table.tile_px)
        return {"image": image, **found}

    def finish(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Images (B, 3, px, px), turned, on the device of the batch."""
        turn = batch["turn"]
        if "image" in batch:
            image = turned_batch(batch["image"], turn)
        else:
            assert self._tiles is not None
            zero = torch.zeros_like(turn)
            places = torch.stack([batch["index"], zero, zero, turn], dim=1)
            (image,) = self._tiles.cut_there(places, self.table.tile_px)
        rest = {name: value for name, value in batch.items() if name not in ("image", "turn")}
        return {"image": image.permute(0, 3, 1, 2).contiguous(), **rest}


def _all_tiles(table: TileTable) -> np.ndarray:
    starts = range(0, len(table), 256)
    return np.concatenate([table.read(range(at, min(at + 256, len(table)))) for at in starts])


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
