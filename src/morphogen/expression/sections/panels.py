"""Gene panels: which genes are modelled, chosen on training sections, saved with their order and hash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
from scipy import sparse

from morphogen.core.errors import InputError
from morphogen.core.files import content_hash
from morphogen.core.reading.names import read_names
from morphogen.expression.config import PanelConfig
from morphogen.expression.data import facts

# Prefixes left out. Stem's "MT" also drops MTOR and the metallothioneins; ours names the mitochondrial ones only.
REFERENCE_PREFIXES = ("MT", "mt", "RPS", "RPL")
OUR_PREFIXES = ("MT-", "mt-", "RPS", "RPL")


@dataclass(frozen=True)
class Panel:
    """An ordered list of genes with how it was chosen."""

    genes: tuple[str, ...]
    method: str
    sections: tuple[str, ...] = ()  # sections whose counts decided the choice
    cut: int = 0  # n of the top-n lists

    @property
    def hash(self) -> str:
        """Identity of genes and order, 16 hex digits."""
        return content_hash(list(self.genes))[:16]

    def __len__(self) -> int:
        return len(self.genes)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "hash": self.hash}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Panel:
        panel = cls(
            tuple(value["genes"]), value["method"], tuple(value.get("sections", ())), int(value.get("cut", 0))
        )
        if value.get("hash") not in (None, panel.hash):
            raise InputError("the gene panel does not have the hash it was saved with", where="panel")
        return panel


def common_genes(sections: Sequence[ad.AnnData]) -> list[str]:
    """Genes that every section measures, sorted."""
    shared = set(sections[0].var_names)
    for section in sections[1:]:
        shared &= set(section.var_names)
    if not shared:
        raise InputError(
            "the sections share no gene", fix="Check that gene names are all symbols or all Ensembl ids"
        )
    return sorted(shared)


def highly_variable(section: ad.AnnData, genes: Sequence[str], top: int) -> list[str]:
    """Highly variable genes of one section by scanpy's default (Seurat) dispersion, on log-normalised counts."""
    import scanpy as sc

    part = ad.AnnData(sparse.csr_matrix(section[:, list(genes)].X).astype(np.float32))
    part.var_names = list(genes)
    sc.pp.filter_cells(part, min_counts=1)
    sc.pp.filter_genes(part, min_counts=1)
    sc.pp.normalize_total(part)
    sc.pp.log1p(part)
    sc.pp.highly_variable_genes(part, n_top_genes=top)
    return list(part.var_names[part.var["highly_variable"]])


def candidates(sections: Sequence[ad.AnnData], top: int, prefixes: tuple[str, ...]) -> list[str]:
    """Union over sections of their highly variable genes among the common ones, without the prefixes; sorted."""
    genes = common_genes(sections)
    union: set[str] = set()
    for section in sections:
        union |= set(highly_variable(section, genes, top))
    return sorted(gene for gene in union if not gene.startswith(prefixes))


def orders(sections: Sequence[ad.AnnData], genes: Sequence[str]) -> tuple[list[str], list[str]]:
    """Genes by falling mean and by falling standard deviation of the raw counts over all spots of all sections."""
    blocks = [sparse.csr_matrix(s[:, list(genes)].X) for s in sections]
    x = np.asarray(sparse.vstack(blocks).todense(), dtype=np.float64)
    by_mean = np.argsort(-x.mean(axis=0), kind="stable")
    by_std = np.argsort(-x.std(axis=0), kind="stable")
    return [genes[i] for i in by_mean], [genes[i] for i in by_std]


def hmhvg(sections: Sequence[ad.AnnData], n: int, top: int = 2000) -> Panel:
    """Stem's "high mean, highly variable" panel, as published: sorted(top-n by mean ∩ top-n by std).

    The published panel is chosen with the test slides included; ``Panel.sections`` says which were, and an
    evaluation on one of them is flagged.
    """
    by_mean, by_std = orders(sections, candidates(sections, top, REFERENCE_PREFIXES))
    genes = sorted(set(by_mean[:n]) & set(by_std[:n]))
    return Panel(tuple(genes), "hmhvg", tuple(facts(s).section for s in sections), n)


def training_panel(sections: Sequence[ad.AnnData], size: int, top: int = 2000) -> Panel:
    """The same idea with a size that is kept: the smallest n whose two top lists share at least ``size`` genes.

    One step of n can add two genes; then the one of lower rank by standard deviation is left out.
    """
    by_mean, by_std = orders(sections, candidates(sections, top, OUR_PREFIXES))
    if len(by_mean) < size:
        raise InputError(
            f"only {len(by_mean)} candidate genes for a panel of {size}",
            where="--panel.size",
            fix="Ask for fewer genes or raise --panel.highly_variable",
        )
    rank = {gene: i for i, gene in enumerate(by_mean)}
    enters = {gene: max(i, rank[gene]) for i, gene in enumerate(by_std)}  # n − 1 at which a gene is in both
    chosen = sorted(by_std, key=lambda gene: enters[gene])[:size]
    n = max(enters[gene] for gene in chosen) + 1
    return Panel(tuple(sorted(chosen)), "training", tuple(facts(s).section for s in sections), n)


def listed_panel(path: Path | str, sections: Sequence[ad.AnnData]) -> Panel:
    """A panel from a list of genes (:func:`~morphogen.core.reading.names.read_names`), in its order; all sections must
    measure all of it."""
    genes = read_names(path)
    if len(set(genes)) < len(genes):
        twice = next(gene for gene in genes if genes.count(gene) > 1)
        raise InputError(f"gene '{twice}' is listed more than once", where=path)
    for section in sections:
        missing = [gene for gene in genes if gene not in section.var_names]
        if missing:
            raise InputError(
                f"{len(missing)} listed genes are not measured in section {facts(section).section}: "
                f"{', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}",
                where=path,
            )
    return Panel(tuple(genes), "listed")


def choose_panel(sections: Sequence[ad.AnnData], config: PanelConfig) -> Panel:
    """The panel the settings ask for, from TRAINING sections only."""
    if config.genes is not None:
        return listed_panel(config.genes, sections)
    if config.method == "hmhvg":
        return hmhvg(sections, config.size, config.highly_variable)
    return training_panel(sections, config.size, config.highly_variable)
