"""Readers of the folders in which sections come: HEST-1k, Space Ranger, plain ST tables, AnnData + image.

Rows are always joined by barcode, never by position.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from morphogen.core.errors import InputError, nearest
from morphogen.core.files import read_json
from morphogen.expression.config import DataConfig
from morphogen.expression.data import (
    PITCH_UM,
    SectionFacts,
    check_barcodes,
    check_counts,
    log,
    merge_duplicate_genes,
    pitch_in_pixels,
    set_facts,
)

IMAGES = (".tif", ".tiff", ".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".btf", ".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Source:
    """Where one section is: its name, the format, and its files."""

    section: str
    kind: str  # "hest", "spaceranger", "st-table", "anndata"
    path: Path
    image: Path | None = None


def find_sections(folder: Path | str) -> list[Source]:
    """The sections in a folder, whatever of the known layouts it has, in order of name."""
    root = Path(folder)
    if not root.exists():
        raise InputError("there is no such file or folder", where=root)
    if root.is_file() and root.suffix == ".h5ad":
        return [Source(root.stem, "anndata", root, _image_for(root.stem, root.parent))]
    if root.is_file():
        raise InputError("is not a folder or an .h5ad file", where=root)
    if (root / "st").is_dir():
        files = sorted((root / "st").glob("*.h5ad"))
        found = [Source(f.stem, "hest", f, _image_for(f.stem, root / "wsis")) for f in files]
    elif _is_spaceranger(root):
        found = [Source(_run_name(root), "spaceranger", root, None)]
    else:
        runs = [p for p in sorted(root.iterdir()) if p.is_dir() and _is_spaceranger(p)]
        found = [Source(_run_name(p), "spaceranger", p, None) for p in runs]
        for spots in sorted(root.glob("*_selection.tsv")):
            name = spots.name.removesuffix("_selection.tsv")
            tables = [
                root / f"{name}{end}" for end in (".tsv.gz", ".tsv") if (root / f"{name}{end}").is_file()
            ]
            if tables:
                found.append(Source(name, "st-table", tables[0], _image_for(name, root)))
        tables_of = {source.section for source in found}
        found += [
            Source(f.stem, "anndata", f, _image_for(f.stem, root))
            for f in sorted(root.glob("*.h5ad"))
            if f.stem not in tables_of
        ]
    if not found:
        raise InputError(
            "holds no sections",
            where=root,
            fix="Expected st/*.h5ad (HEST-1k), Space Ranger folders, <id>.tsv.gz with <id>_selection.tsv, or *.h5ad",
        )
    return found


def read_sections(
    folder: Path | str, config: DataConfig | None = None, sections: Iterable[str] | None = None
) -> list[ad.AnnData]:
    """Read and check all sections of a folder, or those named.

    Raises :class:`InputError` for unknown names, values that are not counts, duplicate barcodes.
    """
    config = config or DataConfig()
    found = {source.section: source for source in find_sections(folder)}
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
    }[source.kind]
    section, known = reader(source, config)
    check_barcodes(list(section.obs_names), source.path)
    section.X = check_counts(section.X, config.values, source.path)
    section = merge_duplicate_genes(section)
    section.obsm["spatial"] = np.asarray(section.obsm["spatial"], np.float64)[:, :2] * config.coordinate_scale
    section.obs["total_counts"] = np.asarray(section.X.sum(axis=1)).ravel()

    technology = config.technology if config.technology != "auto" else str(known.get("technology") or "")
    grid = section.obs[["array_col", "array_row"]].to_numpy() if "array_col" in section.obs else None
    pitch_px = pitch_in_pixels(section.obsm["spatial"], grid, technology)
    pitch_um = config.pitch_um or known.get("pitch_um") or PITCH_UM.get(technology, 0.0)
    set_facts(
        section,
        SectionFacts(
            section=source.section,
            patient=_patient(source.section, known.get("patient"), config),
            image=str(_choose_image(source, config) or ""),
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


def _open_h5ad(path: Path, config: DataConfig) -> ad.AnnData:
    try:
        table = ad.read_h5ad(path)
    except Exception as error:
        raise InputError(
            f"cannot be read as AnnData ({' '.join(str(error).split())[:160]})", where=path
        ) from None
    if config.layer is not None:
        if config.layer not in table.layers:
            raise InputError(
                f"there is no layer '{config.layer}'.{nearest(config.layer, table.layers)}", where=path
            )
        table.X = table.layers[config.layer]
    if "spatial" not in table.obsm:
        raise InputError("there is no obsm['spatial'] with the spot centres", where=path)
    return table


def _bare(table: ad.AnnData) -> ad.AnnData:
    """Counts, array positions and centres only: what else a file holds is not ours to carry on."""
    keep = [c for c in ("array_row", "array_col") if c in table.obs]
    section = ad.AnnData(sparse.csr_matrix(table.X), obs=table.obs[keep].copy(), var=table.var[[]].copy())
    section.obs_names, section.var_names = table.obs_names.astype(str), table.var_names.astype(str)
    section.obsm["spatial"] = np.asarray(table.obsm["spatial"])
    return section


def _scalefactors(table: ad.AnnData) -> Known:
    for library in dict(table.uns.get("spatial", {})).values():
        factors = dict(library).get("scalefactors", {})
        if "spot_diameter_fullres" in factors:
            return {"spot_diameter_px": float(factors["spot_diameter_fullres"])}
    return {}


def _read_anndata(source: Source, config: DataConfig) -> tuple[ad.AnnData, Known]:
    table = _open_h5ad(source.path, config)
    known = _scalefactors(table)
    if "patient" in table.obs and table.obs["patient"].nunique() == 1:
        known["patient"] = str(table.obs["patient"].iloc[0])
    return _bare(table), known


def _read_hest(source: Source, config: DataConfig) -> tuple[ad.AnnData, Known]:
    section, known = _read_anndata(source, config)
    metadata = source.path.parents[1] / "metadata" / f"{source.section}.json"
    if metadata.is_file():
        meta = read_json(metadata)
        tech = str(meta.get("st_technology") or "")
        known["technology"] = (
            "ST" if tech.startswith("Spatial Trans") else "Visium" if tech == "Visium" else ""
        )
        known["mpp"] = _number(meta.get("pixel_size_um_estimated")) or _number(
            meta.get("pixel_size_um_embedded")
        )
        known["pitch_um"] = _number(meta.get("inter_spot_dist"))
        known["patient"] = known.get("patient") or meta.get("patient")
    return section, known


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and value == value and value > 0 else None


def _is_spaceranger(folder: Path) -> bool:
    for place in (folder, folder / "outs"):
        if (place / "spatial").is_dir() and (
            list(place.glob("*feature_bc_matrix.h5")) or (place / "filtered_feature_bc_matrix").is_dir()
        ):
            return True
    return False


def _run_name(folder: Path) -> str:
    return folder.parent.name if folder.name == "outs" else folder.name


def _read_spaceranger(source: Source, config: DataConfig) -> tuple[ad.AnnData, Known]:
    import scanpy as sc

    root = source.path if (source.path / "spatial").is_dir() else source.path / "outs"
    matrices = sorted(root.glob("*filtered_feature_bc_matrix.h5")) or sorted(
        root.glob("*feature_bc_matrix.h5")
    )
    try:
        if matrices:
            table = sc.read_10x_h5(matrices[0])
        else:
            table = sc.read_10x_mtx(root / "filtered_feature_bc_matrix")
    except Exception as error:
        raise InputError(f"the count matrix cannot be read ({error})", where=root) from None
    positions = _positions(root / "spatial")
    check_barcodes(list(positions.index), root / "spatial")
    common = [barcode for barcode in table.obs_names if barcode in positions.index]
    if not common:
        raise InputError("no barcode of the matrix is in the table of spot positions", where=root)
    if len(common) < table.n_obs:
        log.warning("%s: %d of %d barcodes have no position", root, table.n_obs - len(common), table.n_obs)
    table = table[common].copy()
    placed = positions.loc[common]
    table.obs["array_row"], table.obs["array_col"] = placed["row"].to_numpy(), placed["col"].to_numpy()
    table.obsm["spatial"] = placed[["x", "y"]].to_numpy(np.float64)
    factors = read_json(root / "spatial" / "scalefactors_json.json")
    known: Known = {
        "technology": "Visium",
        "spot_diameter_px": _number(factors.get("spot_diameter_fullres")),
    }
    return _bare(table), known


def _positions(folder: Path) -> pd.DataFrame:
    """Barcode-indexed x, y (full-resolution pixels), row, col. Space Ranger 1 has no header and another name."""
    names = ["in_tissue", "row", "col", "y", "x"]
    new, old = folder / "tissue_positions.csv", folder / "tissue_positions_list.csv"
    if new.is_file():
        table = pd.read_csv(new, index_col=0, header=0)
    elif old.is_file():
        table = pd.read_csv(old, index_col=0, header=None)
    elif (folder / "tissue_positions.parquet").is_file():
        table = pd.read_parquet(folder / "tissue_positions.parquet").set_index("barcode")
    else:
        raise InputError("there is no table of tissue positions", where=folder)
    table.columns = names
    return table[table["in_tissue"] == 1]


def _read_st_table(source: Source, config: DataConfig) -> tuple[ad.AnnData, Known]:
    try:
        counts = pd.read_csv(source.path, sep="\t", index_col=0)
        spots = pd.read_csv(source.path.with_name(f"{source.section}_selection.tsv"), sep="\t")
    except Exception as error:
        raise InputError(
            f"cannot be read as a table ({' '.join(str(error).split())})", where=source.path
        ) from None
    needed = ["x", "y", "pixel_x", "pixel_y"]
    lacking = [c for c in needed if c not in spots]
    if lacking:
        raise InputError(
            f"the spot file has no column {', '.join(lacking)}", where=f"{source.section}_selection.tsv"
        )
    spots.index = pd.Index([f"{x}x{y}" for x, y in zip(spots["x"], spots["y"], strict=True)])
    check_barcodes([str(b) for b in spots.index], f"{source.section}_selection.tsv")
    check_barcodes([str(b) for b in counts.index], source.path)
    common = [barcode for barcode in counts.index if barcode in spots.index]
    if not common:
        raise InputError("no row of the counts (named XxY) is in the spot file", where=source.path)
    if len(common) < len(counts):
        log.warning(
            "%s: %d of %d spots have no position", source.path, len(counts) - len(common), len(counts)
        )
    placed = spots.loc[common]
    table = ad.AnnData(sparse.csr_matrix(counts.loc[common].to_numpy(np.float32)))
    table.obs_names, table.var_names = [str(b) for b in common], [str(g) for g in counts.columns]
    table.obs["array_col"], table.obs["array_row"] = placed["x"].to_numpy(), placed["y"].to_numpy()
    table.obsm["spatial"] = placed[["pixel_x", "pixel_y"]].to_numpy(np.float64)
    return table, {"technology": "ST"}


# --- images and patients ----------------------------------------------------------------------------------


def _image_for(name: str, folder: Path) -> Path | None:
    """The image of a section by name: ``<id>.tif``, ``<id>_HE.jpg``, ``<id>.png`` …"""
    if not folder.is_dir():
        return None
    stems = (name, f"{name}_HE", f"{name}_he", f"{name}_img", f"{name}_image")
    for stem in stems:
        for suffix in IMAGES:
            if (folder / f"{stem}{suffix}").is_file():
                return folder / f"{stem}{suffix}"
    return None


def _choose_image(source: Source, config: DataConfig) -> Path | None:
    if config.images is None:
        return source.image
    place = Path(config.images)
    if place.is_file():
        return place
    found = _image_for(source.section, place)
    if found is None:
        raise InputError(f"there is no image of section '{source.section}'", where=place)
    return found


def _patient(section: str, found: Any, config: DataConfig) -> str:
    if config.patients is not None:
        table = pd.read_csv(config.patients, dtype=str, encoding="utf-8-sig")
        if not {"section", "patient"} <= set(table.columns):
            raise InputError("must have columns section,patient", where=config.patients)
        rows = table[table["section"] == section]["patient"].dropna().unique()
        if len(rows) > 1:
            raise InputError(f"section '{section}' has {len(rows)} patients", where=config.patients)
        return str(rows[0]) if len(rows) else ""
    if config.patient_pattern is not None:
        match = re.search(config.patient_pattern, section)
        if match is None:
            raise InputError(
                f"the pattern '{config.patient_pattern}' matches nothing in the section name '{section}'",
                where="--data.patient_pattern",
            )
        return match.group(1) if match.groups() else match.group(0)
    return str(found) if found not in (None, "") and found == found else ""
