"""H&E / IHC pairs: where they are.

These layouts are read:

* MIST and BCI folders: ``<root>/[TrainValAB/]{train,val,test}{A,B}`` with A = H&E, B = IHC, one file name
per pair;
* BCI as published: ``<root>/HE/{train,val,test}`` and ``<root>/IHC/{train,val,test}``; HER2match likewise, with
``HE_20x`` and ``IHC_20x``;
* HEMIT as published: ``<root>/{train,val,test}/{input,label}``;
* two folders, one of H&E and one of IHC, likewise;
* a CSV with the columns ``he, ihc`` and, optionally, ``name, stain, patient, group, split, shift_x, shift_y, affine,
  mask, nuclei``; paths relative to the CSV.

``patients.csv`` in a root says whose each pair is (``patient``) and of which array, slide or scanner (``group``).

``target.yaml`` beside them says what the targets are, when they are no pictures in colour
(:class:`~morphogen.stain.targets.config.TargetConfig`).

A root that holds ``<stain>/TrainValAB`` folders (MIST as published: ER, HER2, Ki67, PR) gives one stain per
folder.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from morphogen.core.errors import InputError, nearest
from morphogen.core.names import path_name
from morphogen.core.reading.cells import without_suffix
from morphogen.core.reading.listing import list_files, list_folders
from morphogen.core.reading.tables import Table, read_table
from morphogen.core.reading.text import clean
from morphogen.slides.formats.channels import CHANNEL_SUFFIXES
from morphogen.slides.images import IMAGE_SUFFIXES, TIFF_SUFFIXES, list_images
from morphogen.stain.targets.config import TargetConfig
from morphogen.stain.targets.files import stated_target

log = logging.getLogger("morphogen.stain")

_SUFFIXES = (*IMAGE_SUFFIXES, *(f".ome{suffix}" for suffix in TIFF_SUFFIXES))

SPLITS = ("train", "val", "test")
COLOUR = TargetConfig()


@dataclass(frozen=True)
class Pair:
    """One H&E image and the IHC image of the same tissue.

    ``name`` is the file name without suffix. ``affine`` (a b tx c d ty) and then ``shift`` (dy, dx) take a pixel of
    the H&E to that of the IHC which shows the same (:mod:`morphogen.stain.pairs.geometry`). ``mask`` says, on the
    pixels of the H&E, where the target was scanned, ``nuclei`` which nucleus a pixel is of (0 none); ``target`` what
    the second image is; ``group`` the array, slide or scanner, within which images are more alike.
    """

    name: str
    he: Path
    ihc: Path
    stain: str = "IHC"
    patient: str | None = None
    shift: tuple[int, int] = (0, 0)
    affine: tuple[float, ...] | None = None
    mask: Path | None = None
    nuclei: Path | None = None
    target: TargetConfig = COLOUR
    group: str | None = None

    def identity(self) -> list[Any]:
        """What a cache or a run that goes on must find unchanged."""
        more: list[Any] = [list(self.affine)] if self.affine else []
        if self.mask is not None:
            more.append("mask")
        return [self.name, self.stain, list(self.shift), *more]

    @property
    def files(self) -> tuple[Path, ...]:
        """H&E, target and, where there are any, mask and nuclei."""
        return (self.he, self.ihc, *(path for path in (self.mask, self.nuclei) if path is not None))

    @property
    def unit(self) -> str:
        """What is independent for intervals: the patient, else the image."""
        return self.patient or self.name


@dataclass(frozen=True)
class FoundPairs:
    """What a layout holds: ``pairs``, and names of files ``alone`` without their partner."""

    pairs: list[Pair]
    alone: list[str]


def pair_folders(
    he: Path | str,
    ihc: Path | str,
    stain: str = "IHC",
    patient: str | None = None,
    *,
    target: TargetConfig = COLOUR,
) -> FoundPairs:
    """Pair the images of two folders by file name (without suffix)."""
    he, ihc = Path(he), Path(ihc)
    if he.resolve() == ihc.resolve():
        raise InputError("the H&E and the IHC folder are the same", where=he)
    a, b = list_images(he), list_images(ihc, suffixes=IMAGE_SUFFIXES if target.colour else CHANNEL_SUFFIXES)
    pairs = [Pair(name, a[name], b[name], stain, patient, target=target) for name in a if name in b]
    alone = [str(a[name]) for name in a if name not in b] + [str(b[name]) for name in b if name not in a]
    return FoundPairs(pairs, alone)


def find_pairs(root: Path | str, split: str = "train", target: TargetConfig | None = None) -> FoundPairs:
    """The pairs of one split (``train``, ``val`` or ``test``) in any layout of this module; of ``target``, else of what
    ``target.yaml`` states, else pictures in colour."""
    root = Path(root)
    target = target or stated_target(root) or COLOUR
    if split not in SPLITS:
        raise InputError(f"unknown split '{split}'.{nearest(split, SPLITS)}", fix=f"Use {', '.join(SPLITS)}")
    if root.is_file():
        return _from_table(root, split, target)
    if not root.is_dir():
        raise InputError("there is no such folder or CSV file", where=root)
    sides = _sides(root, split)
    if sides is not None:
        return _with_patients(pair_folders(*sides, target=target), root)
    found = FoundPairs([], [])
    for folder in list_folders(root):
        sides = _sides(folder, split)
        if sides is not None:
            # Published stains share file names; the stain keeps them apart in results.
            part = _with_patients(pair_folders(*sides, stain=folder.name, target=target), folder)
            pairs = [replace(pair, name=f"{folder.name}_{pair.name}") for pair in part.pairs]
            found = FoundPairs(found.pairs + pairs, found.alone + part.alone)
    if not found.pairs and not found.alone:
        refuse_aligned(root, split)
        raise InputError(
            f"there is no {split}A with {split}B in this folder",
            where=root,
            fix=f"Expected <root>/TrainValAB/{split}A (H&E) and {split}B (IHC), <root>/<stain>/…, HE/{split} and "
            f"IHC/{split}, or a CSV file with the columns he,ihc",
        )
    return found


def refuse_aligned(root: Path, split: str) -> None:
    """Say what to do where images lie in ``<root>/<split>`` itself, as in pix2pix's aligned layout."""
    folder = root / split
    if folder.is_dir() and list_files(folder, suffixes=IMAGE_SUFFIXES):
        raise InputError(
            "the images lie in one folder, not in two",
            where=folder,
            fix=f"Where each shows H&E and IHC side by side, cut it in two: the H&E into {split}A, the IHC into "
            f"{split}B, under one name",
        )


def splits_of(root: Path | str) -> tuple[str, ...]:
    """The splits that a layout has, of which :func:`find_pairs` gives the pairs; empty for a table without splits and
    where nothing is found. A table some of whose rows have none, or an unknown one, is an error."""
    root = Path(root)
    if root.is_file():
        found = {split_name(row.text("split")) for row in pair_table(root)}
        _check_splits(found - {""}, root)
        if "" in found and len(found) > 1:
            raise InputError("some rows have no split and others do", where=root, fix="Give every row one")
        return tuple(split for split in SPLITS if split in found)
    folders = [root, *list_folders(root)]
    return tuple(split for split in SPLITS if any(_sides(folder, split) for folder in folders))


def _with_patients(found: FoundPairs, root: Path) -> FoundPairs:
    """The pairs with the patients and groups of ``patients.csv`` (name and patient, group or both), whose names may
    carry the images' suffix."""
    path = root / "patients.csv"
    if not path.is_file() or not found.pairs:
        return found
    table, pairs = read_table(path, ("name",)), found.pairs
    table.column("patient", "group")
    if "patient" in table.columns:
        told = _told(table, "patient", pairs)
        pairs = [replace(pair, patient=told.get(clean(pair.name)) or None) for pair in pairs]
    if "group" in table.columns:
        told = _told(table, "group", pairs)
        pairs = [replace(pair, group=told.get(clean(pair.name)) or None) for pair in pairs]
    return FoundPairs(pairs, found.alone)


def _told(table: Table, column: str, pairs: list[Pair]) -> dict[str, str]:
    """What a column of ``patients.csv`` says of the pairs, by name; :class:`InputError` where it knows none of them."""
    stems = {clean(pair.name) for pair in pairs}
    told = {}
    for name, value in table.by_name("name", column).items():
        told[name if name in stems else without_suffix(name, _SUFFIXES)] = value
    without = [pair.name for pair in pairs if not told.get(clean(pair.name))]
    if len(without) == len(pairs):
        raise InputError(
            f"none of the {len(without)} images has a {column} in it; the first is '{without[0]}'."
            f"{nearest(without[0], told)}",
            where=table.path,
            fix="The column name holds the images' file names",
        )
    if without:
        log.warning(
            "%s: %d of %d images have no %s, the first is '%s'",
            *(table.path, len(without), len(pairs), column, without[0]),
        )
    return told


def _sides(root: Path, split: str) -> tuple[Path, Path] | None:
    """The folders of H&E and of IHC in a root, of which one at least is there."""
    both = [(base / f"{split}A", base / f"{split}B") for base in (root / "TrainValAB", root)]
    both += _by_kind(root, split)  # BCI, HER2match
    both.append((root / split / "input", root / split / "label"))  # HEMIT
    return next((sides for sides in both if sides[0].is_dir() or sides[1].is_dir()), None)


def _by_kind(root: Path, split: str) -> list[tuple[Path, Path]]:
    """``HE/<split>`` and ``IHC/<split>``; HER2match names the magnification as well, ``HE_20x`` and ``IHC_20x``."""
    magnified = {
        folder.name.partition("_")[2]
        for folder in [*list_folders(root, "HE_*x"), *list_folders(root, "IHC_*x")]
        if (folder / split).is_dir()
    }
    if len(magnified) > 1:
        raise InputError(
            f"there are pairs at {' and at '.join(sorted(magnified))}",
            where=root,
            fix="Take one of them: a folder with its HE and IHC",
        )
    names = ["", *(f"_{each}" for each in magnified)]
    return [(root / f"HE{name}" / split, root / f"IHC{name}" / split) for name in names]


def split_name(name: str) -> str:
    """A split as a table says it, in any case; ``validation`` is ``val``."""
    return {"validation": "val", "valid": "val", "training": "train"}.get(name.lower(), name.lower())


def _check_splits(found: set[str], where: Path) -> None:
    for name in sorted(found - set(SPLITS)):
        raise InputError(
            f"unknown split '{name}'.{nearest(name, SPLITS)}", where=where, fix=f"Use {', '.join(SPLITS)}"
        )


def _from_table(path: Path, split: str, target: TargetConfig) -> FoundPairs:
    rows = list(pair_table(path))
    splits = {split_name(row.text("split")) for row in rows} - {""}
    if splits:
        _check_splits(splits, path)
        rows = [row for row in rows if split_name(row.text("split")) == split]
        if not rows:
            raise InputError(f"no row has the split '{split}', only {', '.join(sorted(splits))}", where=path)
    pairs, names = [], set()
    for row in rows:
        he, ihc = row.file("he"), row.file("ihc")
        name = path_name(row.text("name") or he.stem, "pair", suffix=".png", where=row.where)
        if name in names:
            raise InputError(
                f"the name '{name}' comes twice", where=row.where, fix="Add a column 'name' with unique names"
            )
        names.add(name)
        shift = row.integer("shift_y") or 0, row.integer("shift_x") or 0
        affine = read_affine(row.text("affine"), row.where)
        mask, nuclei = (row.file(key) if row.text(key) else None for key in ("mask", "nuclei"))
        stain = row.text("stain", "IHC")
        patient, group = (row.text(key) or None for key in ("patient", "group"))
        pairs.append(Pair(name, he, ihc, stain, patient, shift, affine, mask, nuclei, target, group))
    alone = [str(path) for pair in pairs for path in pair.files if not path.is_file()]
    here = [pair for pair in pairs if all(path.is_file() for path in pair.files)]
    return FoundPairs(here, [f"{name} (missing)" for name in alone])


def pair_table(path: Path | str) -> Table:
    """A table of pairs; :class:`InputError` when it has no ``he`` and ``ihc`` columns or no rows."""
    table = read_table(path)
    if not {"he", "ihc"} <= set(table.columns) or not table.rows:
        columns = ", ".join(table.columns) if table.rows else "no rows"
        raise InputError(f"a pair table needs the columns he and ihc, this one has {columns}", where=path)
    return table


def read_affine(text: str | None, where: object) -> tuple[float, ...] | None:
    """The six numbers ``a b tx c d ty`` of a table's cell, ``None`` when it is empty."""
    if not text:
        return None
    try:
        numbers = tuple(float(word) for word in text.replace(",", " ").split())
    except ValueError:
        numbers = ()
    if len(numbers) != 6 or not np.isfinite(numbers).all():
        raise InputError(f"'{text}' are not six numbers a b tx c d ty", where=where)
    return numbers


def stains_of(pairs: Iterable[Pair]) -> tuple[str, ...]:
    """Names of the stains of these pairs, sorted."""
    return tuple(sorted({pair.stain for pair in pairs}))
