"""What a model reads of a prepared section: plain arrays in one row order, with the targets where there are any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import anndata as ad
import numpy as np

from morphogen.core.errors import InputError
from morphogen.expression.data import facts, gene_matrix, total_counts
from morphogen.expression.sections.neighbours import nearest_spots
from morphogen.expression.sections.panels import Panel
from morphogen.expression.sections.transforms import Transform, keep_for_training


@dataclass(frozen=True)
class SectionTable:
    """One section as arrays over its N spots."""

    section: str
    patient: str
    barcodes: tuple[str, ...]
    coords: np.ndarray  # (N, 2) float64, level-0 px
    embedding: np.ndarray  # (N, D) float32
    views: np.ndarray | None  # (N, V, D) float32, the other orientations
    neighbours: np.ndarray  # (N, k) int32, itself first, −1 = none
    near: int  # how many of them are the close neighbourhood
    pitch_px: float
    values: np.ndarray | None = None  # (N, G) float32 targets in the transform
    totals: np.ndarray | None = None  # (N,) library sizes

    def __len__(self) -> int:
        return len(self.embedding)

    @property
    def y(self) -> np.ndarray:
        """The targets; an error where the section has none."""
        if self.values is None:
            raise InputError("this section has no measured counts", where=self.section)
        return self.values

    def rows(self, keep: np.ndarray) -> SectionTable:
        """Some spots only, as a section of their own: neighbours are found anew among them."""
        index = np.flatnonzero(keep) if keep.dtype == bool else keep
        return SectionTable(
            self.section,
            self.patient,
            tuple(self.barcodes[i] for i in index),
            self.coords[index],
            self.embedding[index],
            None if self.views is None else self.views[index],
            nearest_spots(self.coords[index], self.neighbours.shape[1]),
            self.near,
            self.pitch_px,
            None if self.values is None else self.values[index],
            None if self.totals is None else self.totals[index],
        )

    @property
    def region(self) -> int:
        return self.neighbours.shape[1]


def tabulate(
    section: ad.AnnData,
    panel: Panel | None = None,
    transform: Transform | None = None,
    *,
    training: bool = False,
) -> SectionTable:
    """A prepared section as a table.

    panel, transform: give the targets too. training: drop spots whose panel genes sum to zero (never in a test: they
    are part of what is measured).
    """
    f = facts(section)
    prepared = section.uns["morphogen"]["prepare"]
    values = totals = None
    keep = None
    if panel is not None:
        counts = gene_matrix(section, list(panel.genes))
        totals = total_counts(section)
        values = (transform or Transform()).forward(counts, totals)
        keep = keep_for_training(counts)
    table = SectionTable(
        f.section,
        f.patient,
        tuple(str(b) for b in section.obs_names),
        np.asarray(section.obsm["spatial"], np.float64),
        np.asarray(section.obsm["embedding"], np.float32),
        np.asarray(section.obsm["embedding_views"], np.float32)
        if "embedding_views" in section.obsm
        else None,
        np.asarray(section.obsm["neighbours"], np.int32),
        int(prepared["near"]),
        f.pitch_px,
        values,
        totals,
    )
    if training and keep is not None and not keep.all():
        if not keep.any():
            raise InputError("no spot has a count of any panel gene", where=f.section)
        return table.rows(keep)
    return table


def inner_folds(
    tables: Sequence[SectionTable], parts: int = 5, block_pitches: float = 4.0
) -> list[np.ndarray]:
    """Inner folds over TRAINING spots: fold number of each spot, one array per table.

    Several sections: one section is one fold, so that what is chosen works on a section not seen. A single section:
    ``parts`` folds of square tissue blocks four pitches wide, because single spots leak into their neighbours.
    """
    if len(tables) > 1:
        return [np.full(len(table), i) for i, table in enumerate(tables)]
    table = tables[0]
    cells = np.floor((table.coords - table.coords.min(axis=0)) / (block_pitches * table.pitch_px)).astype(
        np.int64
    )
    block = np.unique(cells, axis=0, return_inverse=True)[1].reshape(-1)
    count = int(block.max()) + 1
    if count < 2:
        return [np.arange(len(table)) % min(parts, len(table))]
    order = np.random.default_rng(0).permutation(count)
    return [order[block] % min(parts, count)]


def fold_numbers(folds: Sequence[np.ndarray]) -> list[int]:
    """The fold numbers that occur."""
    return sorted({int(k) for fold in folds for k in np.unique(fold)})
