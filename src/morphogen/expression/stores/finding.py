"""Which sections a SpatialData store holds, from its metadata alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from morphogen.core.errors import InputError, nearest
from morphogen.core.reading.listing import list_folders
from morphogen.core.writing.replacing import recover
from morphogen.expression.config import DataConfig

ELEMENTS = ("images", "labels", "points", "shapes", "tables", "table")


@dataclass(frozen=True)
class StoredSection:
    """A section of a store: a table and the element it annotates, or transcripts that are still to be counted."""

    section: str
    store: Path
    table: str = ""  # "" = transcripts
    region: str = ""

    def files(self) -> list[Path]:
        """The folders that its counts and places come from."""
        if not self.table:
            return [
                self.store / kind for kind in ("points", "shapes", "labels") if (self.store / kind).is_dir()
            ]
        places = [self.store / kind / self.table for kind in ("tables", "table")]
        places += [self.store / kind / self.region for kind in ("shapes", "labels")]
        return [place for place in places if place.is_dir()]


def is_store(path: Path) -> bool:
    """Whether a folder is a SpatialData store, of Zarr format 2 or 3."""
    if not path.is_dir():
        return False
    if "spatialdata_attrs" in attributes(path):
        return True
    zarr = (path / ".zgroup").is_file() or (path / "zarr.json").is_file()
    return zarr and sum((path / name).is_dir() for name in ELEMENTS) >= 2


def attributes(group: Path) -> dict[str, Any]:
    """Attributes of a Zarr group on disk; empty where there are none or they cannot be read."""
    for name, inside in (("zarr.json", "attributes"), (".zattrs", "")):
        try:
            value = json.loads((group / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        value = value.get(inside, {}) if inside and isinstance(value, dict) else value
        if isinstance(value, dict):
            return value
    return {}


def find_stores(root: Path) -> list[Path]:
    """The store that ``root`` is, or the stores that lie in it."""
    if is_store(root):
        return [root]
    return [folder for folder in list_folders(root) if is_store(folder)] if root.is_dir() else []


def stored_sections(store: Path, config: DataConfig) -> list[StoredSection]:
    """The sections of a store: one for each element that a table annotates; with ``units`` or ``bin_um``, one of its
    transcripts. Raises :class:`InputError` where there is nothing of the kind."""
    recover(store)
    stem = store.name.removesuffix(".zarr")
    if config.bin_um is not None or config.units is not None:
        if not names_of(store, "points"):
            raise InputError("it has no points, so there are no transcripts to count", where=store)
        return [StoredSection(stem, store)]
    tables = names_of(store, "tables")
    if config.table is not None:
        if config.table not in tables:
            raise InputError(
                f"there is no table '{config.table}', only {', '.join(tables) or 'none'}."
                f"{nearest(config.table, tables)}",
                where=store,
            )
        tables = [config.table]
    found = [(table, region) for table in tables for region in regions_of(store, table)]
    if not found:
        what = "no table of it annotates shapes or labels" if tables else "it has no table"
        points = names_of(store, "points")
        fix = "Count its transcripts: --data.bin_um 16, or --data.units NAME of cells" if points else None
        raise InputError(f"{what}, so it says no counts of spots or cells", where=store, fix=fix)
    if len(found) == 1:
        return [StoredSection(stem, store, *found[0])]
    regions = [region for _, region in found]
    return [
        StoredSection(
            _joined(stem, region if regions.count(region) == 1 else f"{region}_{table}"), store, table, region
        )
        for table, region in found
    ]


def _joined(stem: str, name: str) -> str:
    return name if name.startswith(stem) else f"{stem}_{name}"


def names_of(store: Path, kind: str) -> list[str]:
    """Names of the elements of a kind; a store of the first format has one ``table``."""
    names = [folder.name for folder in list_folders(store / kind) if attributes(folder) or kind == "points"]
    if kind == "tables" and not names and (store / "table").is_dir():
        names = [folder.name for folder in list_folders(store / "table")]
    return names


def regions_of(store: Path, table: str) -> list[str]:
    """The elements that a table annotates, and that are there. Results of ours annotate no further section."""
    folder = store / "tables" / table
    facts = attributes(folder if folder.is_dir() else store / "table" / table)
    if (folder / "uns" / "morphogen").is_dir():
        return []
    region = facts.get("region")
    named = [region] if isinstance(region, str) else region if isinstance(region, list) else []
    there = {*names_of(store, "shapes"), *names_of(store, "labels")}
    return [str(name) for name in named if str(name) in there]
