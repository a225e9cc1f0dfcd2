"""The SpatialData store of a slide: read whole or not at all, written whole or not at all.

A change is made on a copy whose unchanged data files are hard links, and the copy takes the store's name at the end.
So a kill at any moment leaves the store as it was, and adding one encoder to a large store costs only its own size.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from morphogen.core.errors import InputError
from morphogen.core.files import atomic_path
from morphogen.core.reading.codecs import check_codecs
from morphogen.core.reading.listing import list_folders
from morphogen.core.writing.h5ad import check_stored_matrices

if TYPE_CHECKING:
    from spatialdata import SpatialData

TISSUES = "tissues"
TILES = "tiles"
NOTES = "morphogen"  # what we note in the attributes of the store and in ``uns`` of its tables
_METADATA = {"zarr.json", ".zattrs", ".zgroup", ".zmetadata", ".zarray"}  # rewritten in place by zarr


class StoredSlide(Protocol):
    """What a store needs to know of its slide."""

    path: Path
    store: Path
    width: int
    height: int
    reader: Any


def read_store(slide: StoredSlide, only: tuple[str, ...] | None = None) -> SpatialData:
    """What the slide's store holds; empty when there is none.

    ``only`` limits the kinds of elements read, e.g. ``("shapes",)``. Raises :class:`InputError` when the store cannot
    be read or belongs to a slide of another size.
    """
    from spatialdata import SpatialData, read_zarr

    if not slide.store.exists():
        return SpatialData()
    check_codecs(slide.store)
    if only is None or "tables" in only:
        check_stored_matrices(slide.store / "tables")
    try:
        with _quiet():
            data = read_zarr(slide.store, selection=only)
    except Exception as error:
        raise InputError(
            f"is not a readable SpatialData store ({' '.join(str(error).split())[:160]})",
            where=slide.store,
            fix="Delete it, or keep results elsewhere with --out FOLDER",
        ) from error
    shape = data.attrs.get("slide_properties", {}).get("shape")
    if shape is not None and [int(n) for n in shape] != [slide.height, slide.width]:
        raise InputError(
            f"belongs to a slide of {shape[1]}×{shape[0]} px, not to {slide.path.name} "
            f"({slide.width}×{slide.height} px)",
            where=slide.store,
            fix="Keep the results of equally named slides apart with --out FOLDER",
        )
    return data


def read_table(slide: StoredSlide, key: str) -> Any:
    """One AnnData table of the slide's store; :class:`InputError` that names those there are when it is absent."""
    from morphogen.core.errors import nearest

    names = table_names(slide.store)
    if key not in names:
        there = f"it holds {', '.join(names)}" if names else "it holds none"
        raise InputError(
            f"has no features '{key}'; {there}.{nearest(key, names)}",
            where=slide.store,
            fix="Run 'morphogen slide encode' first",
        )
    import anndata

    check_codecs(slide.store / "tables" / key)
    check_stored_matrices(slide.store / "tables" / key)
    with _quiet():
        return anndata.read_zarr(slide.store / "tables" / key)


def write_store(
    slide: StoredSlide,
    *,
    shapes: dict[str, Any] | None = None,
    tables: dict[str, Any] | None = None,
    attrs: dict[str, Any] | None = None,
    drop: Iterable[str] = (),
) -> Path:
    """Add or replace elements and attributes, drop elements, keep everything else; all at once or not at all.

    Raises :class:`OutputError` when the place is not writable or the disk is full; the store is then as before.
    """
    properties = slide.reader.properties.to_dict()
    attrs = {**(attrs or {}), "slide_properties": properties}
    update_store(slide.store, shapes=shapes, tables=tables, attrs=attrs, drop=drop)
    slide.__dict__.pop("wsi", None)  # it would show the store as it was
    return slide.store


def update_store(
    store: Path,
    *,
    images: dict[str, Any] | None = None,
    shapes: dict[str, Any] | None = None,
    tables: dict[str, Any] | None = None,
    attrs: dict[str, Any] | None = None,
    drop: Iterable[str] = (),
) -> Path:
    """:func:`write_store` for any SpatialData store; one of the older Zarr format 2 is written anew as a whole."""
    from spatialdata import SpatialData, read_zarr

    made: dict[str, dict[str, Any]] = {"images": images or {}, "shapes": shapes or {}, "tables": tables or {}}
    names = [name for elements in made.values() for name in elements]
    with atomic_path(store) as temporary, _quiet():
        if not store.exists():
            SpatialData(**made, attrs=attrs or {}).write(temporary)
            return store
        if not (store / "zarr.json").is_file():
            whole = read_zarr(store)
            for name in (*drop, *names):
                if name in whole:
                    del whole[name]
            for name, element in ((n, e) for elements in made.values() for n, e in elements.items()):
                whole[name] = element
            whole.attrs.update(attrs or {})
            whole.write(temporary)
            return store
        _clone(store, temporary)
        for kind, name in [(k, n) for k in made for n in (*drop, *names)]:
            shutil.rmtree(temporary / kind / name, ignore_errors=True)
        data = SpatialData(**made, attrs={**read_attrs(store), **(attrs or {})})
        data.path = temporary
        for name in names:
            data.write_element(name)
        data.write_attrs()
        _drop_metadata_of_gone(temporary)
        data.write_consolidated_metadata()
    return store


def read_attrs(store: Path) -> dict[str, Any]:
    """Attributes of a store without loading anything else; empty when there is no store."""
    try:
        value = json.loads((store / "zarr.json").read_text()).get("attributes", {})
    except (OSError, ValueError):
        return {}
    return {key: item for key, item in value.items() if key != "spatialdata_attrs"}


def stored_mpp(store: Path) -> float | None:
    """µm/px that an earlier result was made with, read without loading the store."""
    try:
        attributes = json.loads((store / "zarr.json").read_text())["attributes"]
        value = attributes["slide_properties"]["mpp"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(value) if value is not None else None


def table_names(store: Path) -> list[str]:
    """Names of the tables in a store, sorted."""
    folder = store / "tables"
    return [p.name for p in list_folders(folder) if (p / "zarr.json").is_file()]


def shape_names(store: Path) -> list[str]:
    """Names of the shapes in a store, sorted."""
    folder = store / "shapes"
    return [p.name for p in list_folders(folder) if (p / "zarr.json").is_file()]


def table_note(store: Path, key: str, fact: str) -> str | None:
    """One fact we noted in ``uns`` of a table, read alone; ``None`` when there is no such table or fact."""
    import zarr

    path = store / "tables" / key / "uns" / NOTES / fact
    if not (path / "zarr.json").is_file():
        return None
    check_codecs(path)
    return str(zarr.open_array(path, mode="r")[()])


def element_name(text: str) -> str:
    """``text`` as SpatialData allows an element to be named: letters, digits, ``_ - .``."""
    text = text.rstrip("/").rsplit("/", 1)[-1] if text.startswith("transformers:") else text
    safe = "".join(c if c.isalnum() or c in "_-." else "_" for c in text)
    return safe.strip("_") or "encoder"


def _clone(source: Path, target: Path) -> None:
    for folder, _, files in os.walk(source):
        here = target / Path(folder).relative_to(source)
        here.mkdir(parents=True)
        for name in files:
            original, copy = Path(folder) / name, here / name
            if name in _METADATA:
                shutil.copy2(original, copy)
                continue
            try:
                os.link(original, copy)
            except OSError:  # a file system without hard links
                shutil.copy2(original, copy)


def _drop_metadata_of_gone(store: Path) -> None:
    """Element groups left without content by a dropped element must not be listed."""
    for kind in ("shapes", "tables"):
        folder = store / kind
        if folder.is_dir():
            for item in folder.iterdir():
                if item.is_dir() and not (item / "zarr.json").is_file():
                    shutil.rmtree(item, ignore_errors=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """spatialdata and zarr warn about their own format versions on every read and write."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
