"""The one face of what a recipe trains: prediction asks it the same questions whichever recipe it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, Self

import numpy as np
from torch import Tensor, nn

from morphogen.expression.config import ExpressionConfig, PredictConfig
from morphogen.expression.recipes.gene_diffusion import GeneDiffusion
from morphogen.expression.recipes.spatial import SpatialModel
from morphogen.expression.sections.tables import SectionTable
from morphogen.expression.sections.transforms import Transform


class Head(Protocol):
    """Maps a section to expression: what is given once per section, its mean, its samples.

    ``given`` is whatever a head makes of a section (:meth:`given`); ``rows`` are spots (B,), ``sample`` the number of
    the sample of each of them (B,). Values are in the targets' transform.
    """

    reads_out_mean: bool
    """Whether the mean is a read-out of its own, kept beside samples; else it is theirs."""
    draws_together: bool
    """Whether all spots of a shard are drawn in one call, sample by sample."""

    @property
    def sampled(self) -> nn.Module:
        """The network that sampling calls."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """As of a module."""
        ...

    def buffers(self) -> Iterator[Tensor]:
        """As of a module."""
        ...

    def check(self, config: PredictConfig) -> None:
        """:class:`ConfigError` where this head cannot be sampled so."""

    def evaluations(self, config: PredictConfig) -> int:
        """Calls of the network per sample; for the mean alone, per spot."""

    def given(self, table: SectionTable, config: PredictConfig) -> Any:
        """What is computed once per section."""

    def mean(self, given: Any, rows: np.ndarray, precision: str = "fp32") -> np.ndarray:
        """(B, G) expected values."""

    def draw(
        self, given: Any, rows: np.ndarray, sample: np.ndarray, config: PredictConfig, precision: str = "fp32"
    ) -> Tensor:
        """(B, G): one sample per row, a function of seed, section, barcode and sample number."""

    def reduced(self, precision: str) -> tuple[Self, str]:
        """A head for sampling in reduced precision, and the autocast it is sampled with."""

    def facts(self) -> dict[str, Any]:
        """What a saved model needs beside its tensors."""

    @classmethod
    def from_facts(cls, config: ExpressionConfig, facts: Mapping[str, Any], transform: Transform) -> Self:
        """An empty head of these sizes, to load tensors into."""


HEADS: dict[str, type[GeneDiffusion] | type[SpatialModel]] = {
    "stem": GeneDiffusion,
    "hisdiff": GeneDiffusion,
    "spatial": SpatialModel,
}
"""Recipe → its head."""
