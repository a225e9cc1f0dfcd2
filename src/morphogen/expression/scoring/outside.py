"""Models of others beside ours: what they say of a section, brought to the units of the counts on training sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import anndata as ad
import numpy as np

from morphogen.core.errors import InputError
from morphogen.expression.data import facts, log
from morphogen.expression.scoring.baselines import ResidualCovariance, _Regression
from morphogen.expression.sections.panels import Panel
from morphogen.expression.sections.tables import SectionTable

_LEAST = 1e-3  # slope in units of SD/SD: a gene that a model has the wrong way round is not turned round

OUTSIDE_UNITS = (
    "one slope and one intercept per gene, fitted on the training spots; the slope is never negative"
)


class Outside(Protocol):
    """A model of others. name: in the table. Called with a prepared section, it gives gene → (N,) values in units of
    its own, for the genes it knows."""

    name: str

    def __call__(self, section: ad.AnnData) -> Mapping[str, np.ndarray]: ...


class OutsideBaseline(_Regression):
    """A model of others as a baseline.

    Its values are brought to the targets' transform by one slope and one intercept per gene, least squares on the
    training spots. The slope is never below a thousandth of the ratio of SDs, so that every correlation is the model's
    own. Genes that it does not know have the training mean, and no correlation. Samples are its mean and a Gaussian
    residual of the training spots, with full covariance over genes.
    """

    oracle = False

    def __init__(
        self,
        model: Outside,
        panel: Panel,
        tables: Sequence[SectionTable],
        sections: Mapping[str, ad.AnnData],
    ) -> None:
        self.name = model.name
        self._model, self._sections, self._genes = model, sections, list(panel.genes)
        self._known: dict[str, np.ndarray] = {}
        x = np.concatenate([self._raw(table) for table in tables]).astype(np.float64)
        y = np.concatenate([table.y for table in tables]).astype(np.float64)
        self.covered = np.asarray(np.isfinite(x).all(axis=0))
        if not self.covered.any():
            raise InputError(
                f"it predicts none of the {len(panel)} panel genes ({', '.join(self._genes[:3])} …)",
                where=self.name,
                fix="Check that gene names are of the kind it knows (symbols or Ensembl ids)",
            )
        self.missing = [gene for gene, there in zip(self._genes, self.covered, strict=True) if not there]
        if self.missing:
            log.warning(
                "%s: %d of %d panel genes are not predicted (%s …) and have the training mean",
                *(self.name, len(self.missing), len(panel), ", ".join(self.missing[:3])),
            )
        x = np.where(self.covered, x, 0.0)
        self.center, self.intercept = x.mean(axis=0), y.mean(axis=0)
        spread = x.std(axis=0)
        spread = np.where(spread > 1e-9, spread, 1.0)
        fitted = ((x - self.center) * (y - self.intercept)).mean(axis=0) / spread**2
        self.slope = np.where(self.covered, np.maximum(fitted, _LEAST * y.std(axis=0) / spread), 0.0)
        self.residual = ResidualCovariance(y - self._scaled(x))

    def _scaled(self, x: np.ndarray) -> np.ndarray:
        return (x - self.center) * self.slope + self.intercept

    def _predict(self, table: SectionTable) -> np.ndarray:
        return self._scaled(np.where(self.covered, self._raw(table).astype(np.float64), self.center))

    def _raw(self, table: SectionTable) -> np.ndarray:
        """(N, G) as the model gives it, NaN where it does not know the gene; rows joined by barcode."""
        section = self._sections[table.section]
        if table.section not in self._known:
            found = self._model(section)
            values = np.full((section.n_obs, len(self._genes)), np.nan, np.float32)
            for column, gene in enumerate(self._genes):
                if gene in found:
                    values[:, column] = found[gene]
                    if not np.isfinite(values[:, column]).all():
                        raise InputError(
                            f"{self.name} gives NaN or infinite values for '{gene}'",
                            where=facts(section).section,
                        )
            self._known[table.section] = values
        rows = section.obs_names.get_indexer(list(table.barcodes))
        return self._known[table.section][rows]
