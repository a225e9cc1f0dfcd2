"""What is computed for a section, in which order, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from morphogen.core.errors import InputError
from morphogen.core.running.threads import in_lanes, lanes
from morphogen.core.running.transfers import fetched, one_behind
from morphogen.expression.config import PredictConfig
from morphogen.expression.recipes.heads import Head
from morphogen.expression.sections.tables import SectionTable
from morphogen.metrics.probabilistic import sample_quantile

LAYERS = ("pred_mean", "pred_std", "pred_q05", "pred_q95")
MIN_SAMPLES_FOR_QUANTILES = 19  # 5 % lies inside the samples from here on


class Plan:
    """The shards of one section: rows that are close together, all their samples in large batches.

    Parameters
    ----------
    head, precision:
        What is sampled, and the autocast it is sampled with.
    genes:
        G.
    """

    def __init__(
        self, head: Head, genes: int, table: SectionTable, config: PredictConfig, precision: str
    ) -> None:
        head.check(config)
        self.head, self.genes, self.table, self.config, self.precision = head, genes, table, config, precision
        self.given: Any = head.given(table, config)
        self.order = locality(table)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers; quantiles and spread need samples enough."""
        if self.config.draws < 2:
            return LAYERS[:1]
        return LAYERS if self.config.draws >= MIN_SAMPLES_FOR_QUANTILES else LAYERS[:2]

    @property
    def evaluations(self) -> int:
        """Network evaluations per sample."""
        return self.head.evaluations(self.config)

    @property
    def calls(self) -> int:
        """Calls of the network for the whole section."""
        rows = len(self.table) * max(1, self.config.draws)
        return -(-rows // self.config.batch_size) * self.evaluations

    @property
    def mean_from(self) -> str:
        return "read-out" if self.head.reads_out_mean or not self.config.draws else "samples"

    def shards(self) -> Iterator[np.ndarray]:
        """Rows of each shard; close spots are in one shard, because they share noise."""
        for start in range(0, len(self.order), self.config.shard_spots):
            yield self.order[start : start + self.config.shard_spots]

    def shard(self, rows: np.ndarray, *, want_samples: bool) -> dict[str, np.ndarray]:
        """The layers of some rows, (B, G) each, and their samples (B, K, G) when wanted."""
        if not self.config.draws:
            return {"pred_mean": self._mean(rows)}
        samples = self._samples(rows)
        mean = self._mean(rows) if self.head.reads_out_mean else samples.mean(axis=1)
        out = {"pred_mean": mean.astype(np.float32)}
        if "pred_std" in self.layers:
            out["pred_std"] = samples.std(axis=1, ddof=1)
        if "pred_q05" in self.layers:
            out["pred_q05"] = sample_quantile(samples, 0.05).astype(np.float32)
            out["pred_q95"] = sample_quantile(samples, 0.95).astype(np.float32)
        if want_samples:
            out["samples"] = samples.astype(np.float16)
        return out

    def _samples(self, rows: np.ndarray) -> np.ndarray:
        """(B, K, G). One flat list of (row, sample), so that batches stay full at the end of a shard."""
        k, n = self.config.draws, len(rows)
        samples = np.empty((n, k, self.genes), dtype=np.float32)
        if self.head.draws_together:
            which, number, size = np.tile(np.arange(n), k), np.repeat(np.arange(k), n), n
        else:
            which, number = np.repeat(np.arange(n), k), np.tile(np.arange(k), n)
            size = self.config.batch_size

        parts = [
            (which[start : start + size], number[start : start + size])
            for start in range(0, len(which), size)
        ]

        def drawn(
            part: tuple[np.ndarray, np.ndarray],
        ) -> Callable[[], tuple[np.ndarray, np.ndarray, np.ndarray]]:
            r, s = part
            values = self.head.draw(self.given, rows[r], s, self.config, self.precision)
            return partial(_placed, r, s, fetched(values))

        device = next(chain(self.head.parameters(), self.head.buffers())).device
        # A head that found nothing to diffuse has an empty network.
        count = min(lanes(device, sum(each.numel() for each in self.head.sampled.parameters())), len(parts))
        for r, s, values in one_behind(in_lanes(drawn, parts, count), device):
            samples[r, s] = values
        if not np.isfinite(samples).all():
            raise InputError("the samples hold NaN or infinite values", where=self.table.section)
        return samples

    def _mean(self, rows: np.ndarray) -> np.ndarray:
        size = self.config.batch_size
        parts = [
            self.head.mean(self.given, rows[i : i + size], self.precision) for i in range(0, len(rows), size)
        ]
        return np.concatenate(parts)


def _placed(
    rows: np.ndarray, sample: np.ndarray, values: Callable[[], np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return rows, sample, values()


def locality(table: SectionTable, block_pitches: float = 16.0) -> np.ndarray:
    """Row order that walks the section block by block."""
    if not len(table):
        return np.zeros(0, dtype=np.int64)
    cells = np.floor((table.coords - table.coords.min(axis=0)) / (block_pitches * max(table.pitch_px, 1e-9)))
    return np.lexsort((np.arange(len(table)), cells[:, 0], cells[:, 1]))
