"""Readers of what sections come in: HEST-1k, Space Ranger, plain ST tables, AnnData + image, SpatialData stores.

Rows are always joined by barcode, never by position.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
from scipy import sparse

from morphogen.core.errors import ConfigError, InputError, nearest
from morphogen.core.files import read_json
from morphogen.core.names import path_name
from morphogen.core.reading.listing import list_files, list_folders
from morphogen.core.reading.tables import read_table
from morphogen.core.reading.text import clean, is_missing
from morphogen.core.writing.h5ad import open_h5ad
from morphogen.expression.config import DataConfig
from morphogen.expression.data import (
    PITCH_UM,
    SectionFacts,
    check_barcodes,
    check_counts,
    check_places,
    log,
    merge_duplicate_genes,
    pitch_in_pixels,
    set_facts,
)
from morphogen.expression.sections.h5ad import (
    centres_of,
    counts_of,
    grid_of,
    positive,
    spot_diameter_of,
)
from morphogen.expression.sections.spaceranger import find_runs, read_run, run_files
from morphogen.expression.sections.st_tables import find_tables, read_tables, spots_file
from morphogen.expression.stores.finding import StoredSection, find_stores, stored_sections
from morphogen.expression.stores.reading import read_stored
from morphogen.slides.images import FLAT_SUFFIXES, TIFF_SUFFIXES, VENDOR_SUFFIXES, name_of

IMAGES = (*TIFF_SUFFIXES, *VENDOR_SUFFIXES, *FLAT_SUFFIXES)  # in order of preference


@dataclass(frozen=True)
class Source:
    """Where one section is: its name, the format, and its files."""

    section: str
    kind: str  # "hest", "spaceranger", "st-table", "anndata", "spatialdata"
    path: Path
    image: Path | None = None
    run: str = (
        ""  # name of the run where it has several sections (Visium HD): images and patients may go by it
    )
    stored: StoredSection | None = None  # where in a store

    @property
    def names(self) -> tuple[str, ...]:
        """What the section may be called in names of images and tables of patients."""
        return (self.section, self.run) if self.run and self.run != self.section else (self.section,)

    def files(self) -> list[Path]:
        """The files, or folders of a store, that its counts and coordinates come from."""
        if self.stored is not None:
            return self.stored.files()
        if self.kind == "spaceranger":
            return run_files(self.path)
        if self.kind == "st-table":
            return [self.path, spots_file(self.path, self.section)]
        return [self.path]

    def __post_init__(self) -> None:
        path_name(self.section, "section", suffix=".h5ad", where=self.path)


def find_sections(folder: Path | str, config: DataConfig | None = None) -> list[Source]:
    """The sections in a folder, whatever of the known layouts it has, in order of name.

    config: what of a SpatialData store is meant, where it holds several tables, or transcripts to be counted.
    """
    root = Path(folder)
    stores = find_stores(root)
    if stores:
        config = config or DataConfig()
        held = [stored for store in stores for stored in stored_sections(store, config)]
        return _distinct(
            [Source(each.section, "spatialdata", each.store, stored=each) for each in held], root
        )
    if not root.exists():
        raise InputError("there is no such file or folder", where=root)
    if root.is_file() and root.suffix.lower() == ".h5ad":
        return [Source(root.stem, "anndata", root, _image_for(root.stem, root.parent))]
    if root.is_file():
        raise InputError("is not a folder or an .h5ad file", where=root)
    if (root / "st").is_dir():
        files = list_files(root / "st", "*.h5ad")
        found = [Source(f.stem, "hest", f, _image_for(f.stem, root / "wsis")) for f in files]
    elif runs := find_runs(root):
        found = [Source(run.section, "spaceranger", run.path, None, run.run) for run in runs]
    else:
        runs = [run for folder in list_folders(root) for run in find_runs(folder)]
        found = [Source(run.section, "spaceranger", run.path, None, run.run) for run in runs]
        found += [
            Source(name, "st-table", path, _image_for(name, root)) for name, path in find_tables(root).items()
        ]
        tables_of = {source.section for source in found}
        found += [
            Source(f.stem, "anndata", f, _image_for(f.stem, root))
            for f in list_files(root, "*.h5ad")
            if f.stem not in tables_of
        ]
    if not found:
        raise InputError(
            "holds no sections",
            where=root,
            fix="Expected st/*.h5ad (HEST-1k), Space Ranger folders, <id>.tsv.gz with <id>_selection.tsv, *.h5ad, or "
            "SpatialData stores",
        )
    return _distinct(found, root)


def _distinct(found: list[Source], root: Path) -> list[Source]:
    """The sections; :class:`InputError` where two have one name."""
    twice = next((name for name, n in Counter(source.section for source in found).items() if n > 1), None)
    if twice is not None:
        places = ", ".join(str(source.path.name) for source in found if source.section == twice)
        raise InputError(f"there are several sections '{twice}' ({places})", where=root, fix="Rename one")
    return found


def read_sections(
    folder: Path | str, config: DataConfig | None = None, sections: Iterable[str] | None = None
) -> list[ad.AnnData]:
    """Read and check all sections of a folder, or those named.

    Raises :class:`InputError` for unknown names, values that are not counts, duplicate barcodes.
    """
    config = config or DataConfig()
    found = {source.section: source for source in find_sections(folder, config)}
    names = list(sections) if sections is not None else list(found)
    for name in names:
        if name not in found:
            raise InputError(f"there is no section '{name}'.{nearest(name, found)}", where=folder)
    return [read_section(found[name], config) for name in names]


def read_section(source: Source, config: DataConfig) -> ad.AnnData:
    """One section as described in :mod:`morphogen.expression.data`."""
    reader = {
        "hest": _read_hest,
        "spaceranger": _read_spaceranger,
        "st-table": _read_st_table,
        "anndata": _read_anndata,
        "spatialdata": _read_stored,
    }[source.kind]
    section, known = reader(source, config)
    check_barcodes(list(section.obs_names), source.path)
    section.X = check_counts(section.X, config.values, source.path)
    section = merge_duplicate_genes(_placed(section, source.path), source.path)
    check_places(section, source.path)
    section.obsm["spatial"] = section.obsm["spatial"] * config.coordinate_scale
    section.obs["total_counts"] = np.asarray(section.X.sum(axis=1)).ravel()

    technology = config.technology if config.technology != "auto" else str(known.get("technology") or "")
    grid = section.obs[["array_col", "array_row"]].to_numpy() if "array_col" in section.obs else None
    pitch_px = pitch_in_pixels(section.obsm["spatial"], grid, technology)
    pitch_um = config.pitch_um or known.get("pitch_um") or PITCH_UM.get(technology, 0.0)
    set_facts(
        section,
        SectionFacts(
            section=source.section,
            patient=_patient(source, known.get("patient"), config),
            image=str(_choose_image(source, config) or known.get("image") or ""),
            mpp=float(config.mpp or known.get("mpp") or 0.0),
            mpp_source="stated" if config.mpp or known.get("mpp") else "",
            technology=technology,
            pitch_um=float(pitch_um),
            pitch_px=pitch_px,
            spot_diameter_px=float(known.get("spot_diameter_px") or 0.0) * config.coordinate_scale,
            values=config.values,
        ),
    )
    return section


# --- formats ----------------------------------------------------------------------------------------------

Known = dict[str, Any]


def _read_anndata(source: Source, config: DataConfig) -> tuple[ad.AnnData, Known]:
    """Counts, array positions and centres only: what else a file holds is not ours to carry on."""
    table = open_h5ad(source.path)
    matrix, genes = counts_of(table, config.layer, config.values, source.path)
    section = ad.AnnData(sparse.csr_matrix(matrix))
    section.obs_names, section.var_names = table.obs_names.astype(str), genes.astype(str)
    for name, values in grid_of(table, source.path).items():
        section.obs[name] = values
    section.obsm["spatial"] = centres_of(table, source.path)
    known: Known = {"spot_diameter_px": spot_diameter_of(table)}
    if "patient" in table.obs:
        patients = {clean(value) for value in table.obs["patient"] if not is_missing(value)}
        known["patient"] = next(iter(patients)) if len(patients) == 1 else None
    return section, known


def _read_hest(source: Source, config: DataConfig) -> tuple[ad.AnnData, Known]:
    section, known = _read_anndata(source, config)
    metadata = source.path.parents[1] / "metadata" / f"{source.section}.json"
    if metadata.is_file():
        meta = read_json(metadata)
        if not isinstance(meta, dict):
            raise InputError("the metadata are not a JSON object", where=metadata)
        tech = str(meta.get("st_technology") or "")
        known["technology"] = (
            "ST" if tech.startswith("Spatial Trans") else tech if tech in ("Visium", "Visium HD") else ""
        )
        known["mpp"] = positive(meta.get("pixel_size_um_estimated")) or positive(
            meta.get("pixel_size_um_embedded")
        )
        known["pitch_um"] = positive(meta.get("inter_spot_dist"))
        known["patient"] = known.get("patient") or meta.get("patient")
    return section, known


def _read_spaceranger(source: Source, config: DataConfig) -> tuple[ad.AnnData, Known]:
    return read_run(source.path)


def _read_stored(source: Source, config: DataConfig) -> tuple[ad.AnnData, Known]:
    assert source.stored is not None
    return read_stored(source.stored, config)


def _read_st_table(source: Source, config: DataConfig) -> tuple[ad.AnnData, Known]:
    return read_tables(source.path, source.section)


def _placed(section: ad.AnnData, where: Path) -> ad.AnnData:
    """The spots that have coordinates; how many have none is said."""
    have = np.isfinite(section.obsm["spatial"]).all(axis=1)
    if not section.n_obs:
        raise InputError("the section has no spots", where=where)
    if not have.any():
        raise InputError("no spot has coordinates", where=where)
    if have.all():
        return section
    log.warning("%s: %d of %d spots have no coordinates and are left out", where, (~have).sum(), len(have))
    return section[have].copy()


# --- images and patients ----------------------------------------------------------------------------------


def _image_for(name: str, folder: Path) -> Path | None:
    """The image of a section by name: ``<id>.tif``, ``<id>_HE.JPG``, ``<id>.png`` …"""
    found: dict[str, dict[str, Path]] = {}
    for path in list_files(folder, suffixes=IMAGES):
        found.setdefault(clean(name_of(path)), {})[path.suffix.lower()] = path
    for stem in (name, f"{name}_HE", f"{name}_he", f"{name}_img", f"{name}_image"):
        if files := found.get(clean(stem)):
            return min(files.items(), key=lambda item: IMAGES.index(item[0]))[1]
    return None


def _choose_image(source: Source, config: DataConfig) -> Path | None:
    if config.images is None:
        return source.image
    place = Path(config.images)
    if place.is_file():
        return place
    for name in source.names:
        if (found := _image_for(name, place)) is not None:
            return found
    raise InputError(f"there is no image of section '{source.section}'", where=place)


def _patient(source: Source, found: Any, config: DataConfig) -> str:
    if config.patients is not None:
        table = read_table(config.patients, ("section", "patient")).by_name("section", "patient", (".h5ad",))
        for name in source.names:
            if clean(name) in table:
                return table[clean(name)]
        log.warning(
            "%s: section '%s' is not in it, so its patient is not known.%s",
            config.patients,
            source.section,
            nearest(source.section, table),
        )
        return ""
    if config.patient_pattern is not None:
        try:
            match = re.search(config.patient_pattern, source.section)
        except re.error as error:
            raise ConfigError(
                f"'{config.patient_pattern}' is not a regular expression ({error})",
                where="--data.patient_pattern",
            ) from None
        if match is None:
            raise InputError(
                f"the pattern '{config.patient_pattern}' matches nothing in the section name '{source.section}'",
                where="--data.patient_pattern",
            )
        return clean(match.group(1) if match.groups() else match.group(0))
    return "" if is_missing(found) else clean(found)
