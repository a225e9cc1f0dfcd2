"""The ``processed_data`` folders of Stem and HisDiff: embeddings made by their scripts, as prepared sections.

Their rows follow the rows of ``st/<id>.h5ad``; a file with another number of rows is refused, since nothing else in it
could show a mismatch.
"""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import torch

from morphogen.core.errors import CheckpointError, InputError
from morphogen.core.reading.text import clean, read_lines
from morphogen.core.weights.reading import read_weights
from morphogen.expression.config import DataConfig, PrepareConfig
from morphogen.expression.data import check_embeddings, facts, log
from morphogen.expression.sections.prepare import index_neighbours
from morphogen.expression.sections.readers import find_sections, read_section

STEM_ENCODERS = ("uni", "conch")


def is_processed(folder: Path | str) -> bool:
    """Whether a folder has a ``processed_data`` with embeddings beside its ``st``."""
    place = Path(folder) / "processed_data"
    return place.is_dir() and any(
        (place / name).is_dir() for name in ("1spot_uni_ebd", "1spot_conch_ebd", "local_ebd")
    )


def read_processed(folder: Path | str, config: DataConfig | None = None) -> list[ad.AnnData]:
    """Prepared sections from ``<folder>/st`` and ``<folder>/processed_data``, Stem's or HisDiff's.

    The slides of ``all_slide_lst.txt`` where it is there. Stem: embedding = UNI ⊕ CONCH, views = the 7 stored
    orientations. HisDiff: embedding = ``local_ebd``; its gathered neighbour tensors are compared with the indices
    found here and not kept (238 KB a spot).
    """
    root, config = Path(folder), config or DataConfig()
    place = root / "processed_data"
    sources = {source.section: source for source in find_sections(root, config)}
    listed = place / "all_slide_lst.txt"
    names = [clean(name) for name in read_lines(listed)] if listed.is_file() else list(sources)
    sections = []
    for name in names:
        if name not in sources:
            raise InputError(f"slide '{name}' has no st/{name}.h5ad", where=listed)
        section = read_section(sources[name], config)
        if (place / "local_ebd").is_dir():
            _hisdiff(section, place)
        else:
            _stem(section, place)
        index_neighbours(section, PrepareConfig())
        sections.append(section)
    return sections


def published_genes(folder: Path | str) -> list[str]:
    """The genes of ``selected_gene_list.txt``, in order."""
    path = Path(folder) / "processed_data" / "selected_gene_list.txt"
    if not path.is_file():
        raise InputError("there is no list of genes", where=path)
    return [clean(name) for name in read_lines(path)]


def _stem(section: ad.AnnData, place: Path) -> None:
    name = facts(section).section
    upright, turned, used = [], [], []
    for encoder in STEM_ENCODERS:
        path = place / f"1spot_{encoder}_ebd" / f"{name}_{encoder}.pt"
        if not path.is_file():
            continue
        upright.append(_tensor(path, section.n_obs, 2))
        views = place / f"1spot_{encoder}_ebd_aug" / f"{name}_{encoder}_aug.pt"
        if views.is_file():
            turned.append(_tensor(views, section.n_obs, 3))
        used.append(encoder)
    if not upright:
        raise InputError(f"there are no embeddings of slide '{name}'", where=place)
    section.obsm["embedding"] = np.concatenate(upright, axis=1)
    check_embeddings(section.obsm["embedding"], name)
    if len(turned) == len(upright):
        section.obsm["embedding_views"] = np.concatenate(turned, axis=2)
    _record(section, "+".join(used), 8 if len(turned) == len(upright) else 1)


def _hisdiff(section: ad.AnnData, place: Path) -> None:
    name = facts(section).section
    local = _tensor(place / "local_ebd" / f"{name}.pt", section.n_obs, 2)
    section.obsm["embedding"] = local
    check_embeddings(local, name)
    index_neighbours(section, PrepareConfig())
    path = place / "neighbor_ebd" / f"{name}.pt"
    if path.is_file():
        gathered = _tensor(path, section.n_obs, 3)
        index = section.obsm["neighbours"][:, : gathered.shape[1]]
        same = np.isclose(gathered.sum(axis=1), local[index].sum(axis=1), atol=1e-3).all(axis=1)
        if same.mean() < 0.9:
            log.warning(
                "%s: the neighbours of %d of %d spots differ from those found here",
                path,
                (~same).sum(),
                len(same),
            )
    _record(section, "uni", 1)


def _record(section: ad.AnnData, encoder: str, orientations: int) -> None:
    section.uns["morphogen"]["prepare"] = {
        "encoder": {"name": encoder, "kind": "published"},
        "encoder_identity": f"published {encoder}",
        "field": "spot",
        "field_um": 0.0,
        "field_px": 224,
        "near": 9,
        "region": 49,
        "orientations": orientations,
        "invariant": False,
        "key": "",
    }


def _tensor(path: Path, rows: int, dimensions: int) -> np.ndarray:
    try:
        value = read_weights(path).content
    except CheckpointError as error:
        raise InputError(error.what, where=path, fix=error.fix) from None
    if not isinstance(value, torch.Tensor) or value.ndim != dimensions:
        raise InputError(f"must hold one tensor with {dimensions} axes", where=path)
    if len(value) != rows:
        raise InputError(f"has {len(value)} rows, but the section has {rows} spots", where=path)
    return value.float().numpy()
