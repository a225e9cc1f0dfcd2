"""Tiles and their embeddings, row by row: what every reader makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from morphogen.core.errors import InputError, nearest
from morphogen.core.files import content_hash
from morphogen.tasks.splits import hold_out


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
    failed:
        Why each image that was left out could not be read.
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
    failed: tuple[str, ...] = ()

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


def spread_rows(total: int, most: int) -> np.ndarray:
    """At most ``most`` of ``total`` rows, evenly over all, in order; none of none."""
    return (
        np.unique(np.linspace(0, total - 1, min(most, total)).astype(np.int64)) if total else np.zeros(0, int)
    )
