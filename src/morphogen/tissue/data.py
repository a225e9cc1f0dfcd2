"""Tiles with their embeddings, from wherever they lie, as one table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from morphogen.core.errors import InputError, nearest
from morphogen.core.files import content_hash
from morphogen.tasks.splits import hold_out
from morphogen.tissue.config import DataConfig

log = logging.getLogger("morphogen.tissue")


@dataclass(frozen=True)
class TileTable:
    """Tiles and their embeddings, row by row.

    Attributes
    ----------
    names:
        N names, unique.
    groups:
        Patient or slide of each tile: what is held out as a whole.
    features:
        ``{"patch": (N, D)}``, and ``"region"`` for two-token models; float32, finite.
    read:
        ``read(indices)`` → (n, px, px, 3) uint8, RGB.
    tile_px, mpp:
        Side of a tile in pixels, µm per pixel (``None`` = unknown).
    labels:
        Class of each tile, or empty.
    places:
        (N, 3) int64: image, row and column of the tile on that image's grid; (0, 3) where tiles have no places.
    facts:
        Encoder, file formats, layout: saved with the model.
    """

    names: list[str]
    groups: list[str]
    features: dict[str, np.ndarray]
    read: Callable[[Sequence[int]], np.ndarray]
    tile_px: int
    mpp: float | None = None
    labels: list[str] = field(default_factory=list)
    places: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.int64))
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in self.features.items():
            if values.ndim != 2 or len(values) != len(self.names):
                raise InputError(
                    f"embedding '{name}' has shape {values.shape} for {len(self.names)} tiles", where="tiles"
                )
            bad = ~np.isfinite(values).all(axis=1)
            if bad.any():
                raise InputError(
                    f"the embeddings of {int(bad.sum())} tiles are not all numbers "
                    f"(first: {self.names[int(bad.argmax())]})",
                    where="tiles",
                    fix="Encode them again",
                )

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: Sequence[int] | np.ndarray) -> TileTable:
        """The table of some rows."""
        rows = np.asarray(rows, dtype=np.int64)
        read = self.read
        return replace(
            self,
            names=[self.names[i] for i in rows],
            groups=[self.groups[i] for i in rows],
            features={name: values[rows] for name, values in self.features.items()},
            read=lambda indices: read(rows[np.asarray(indices, dtype=np.int64)].tolist()),
            labels=[self.labels[i] for i in rows] if self.labels else [],
            places=self.places[rows] if len(self.places) else self.places,
        )

    def split(self, share: float, seed: int = 0, names: Sequence[str] = ()) -> tuple[TileTable, TileTable]:
        """(training, held out): whole groups, those of ``names``, else at least one where ``share`` > 0.

        Tables of published folders hold their own test split out. Raises :class:`InputError` for an unknown group, and
        when there is one group only, so that nothing could be held out.
        """
        if not names and set(self.groups) <= {"train", "test", "val"} and len(set(self.groups)) > 1 and share:
            names = [group for group in ("test", "val") if group in self.groups]
        if names:
            for name in names:
                if name not in self.groups:
                    raise InputError(
                        f"there is no group '{name}'.{nearest(name, set(self.groups))}",
                        where="data.hold_out_groups",
                    )
            out = np.isin(self.groups, names)
            return self.take(np.flatnonzero(~out)), self.take(np.flatnonzero(out))
        if share == 0:
            return self, self.take([])
        train, held = hold_out(self.groups, share, seed=seed)
        return self.take(train), self.take(held)

    def identity(self) -> str:
        """Hash of names and embeddings."""
        return content_hash(self.names, self.features, self.tile_px)


class TileDataset(Dataset):
    """Items for training: ``image`` (3, px, px) uint8, each embedding (D,) float32, ``index``.

    Tiles are decoded once and kept as long as they fit into ``memory_gib``.
    """

    def __init__(self, table: TileTable, *, flip: bool = True, memory_gib: float = 2.0) -> None:
        self.table, self.flip = table, flip
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
        """An item with its axes mirrored at random."""
        item = self[index]
        if self.flip:
            axes = [axis for axis in (1, 2) if torch.rand((), generator=generator) < 0.5]
            item["image"] = item["image"].flip(axes) if axes else item["image"]
        return item


def read_tiles(
    sources: Sequence[Path | str] | Path | str,
    config: DataConfig,
    *,
    cache: Path | str | None = None,
    encoder: Any = None,
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

    Raises
    ------
    InputError
        Nothing to read, an ambiguous folder, features that do not fit.
    """
    from morphogen.tissue.reading import images, layouts, tables

    paths = [Path(sources)] if isinstance(sources, Path | str) else [Path(each) for each in sources]
    if not paths:
        raise InputError("no input is given", where="tiles", fix="Name images, slides or folders")
    layout: str = layouts.recognise(paths) if config.layout == "auto" else config.layout
    if layout == "images":
        return images.read_images(paths, config, cache=cache, encoder=encoder)
    if layout == "h5ad":
        return tables.read_tables(paths, config)
    if len(paths) != 1 or not paths[0].is_dir():
        raise InputError(f"the layout '{layout}' is one folder", where=paths[0], fix="Name the folder alone")
    return layouts.read_layout(paths[0], layout, config)
