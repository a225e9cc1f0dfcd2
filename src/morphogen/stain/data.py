"""H&E / IHC pairs: where they are.

Three layouts are read:

* MIST and BCI folders: ``<root>/[TrainValAB/]{train,val,test}{A,B}`` with A = H&E, B = IHC, one file name
per pair;
* two folders, one of H&E and one of IHC, likewise;
* a CSV with the columns ``he, ihc`` and, optionally, ``name, stain, patient, split, shift_x, shift_y, affine``; paths
  relative to the CSV.

A root that holds ``<stain>/TrainValAB`` folders (MIST as published: ER, HER2, Ki67, PR) gives one stain per
folder.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from morphogen.core.errors import InputError, nearest
from morphogen.slides.images import decode, list_images

SPLITS = ("train", "val", "test")
GREY = "is grey, not RGB"


@dataclass(frozen=True)
class Pair:
    """One H&E image and the IHC image of the same tissue.

    ``name`` is the file name without suffix. ``affine`` (a b tx c d ty) and then ``shift`` (dy, dx) take a pixel of
    the H&E to that of the IHC which shows the same (:mod:`morphogen.stain.pairs.geometry`).
    """

    name: str
    he: Path
    ihc: Path
    stain: str = "IHC"
    patient: str | None = None
    shift: tuple[int, int] = (0, 0)
    affine: tuple[float, ...] | None = None

    def identity(self) -> list[Any]:
        """What a cache or a run that goes on must find unchanged."""
        return [self.name, self.stain, list(self.shift), *([list(self.affine)] if self.affine else [])]

    @property
    def unit(self) -> str:
        """What is independent for intervals: the patient, else the image."""
        return self.patient or self.name


@dataclass(frozen=True)
class Found:
    """What a layout holds: ``pairs``, and names of files ``alone`` without their partner."""

    pairs: list[Pair]
    alone: list[str]


def pair_folders(he: Path | str, ihc: Path | str, stain: str = "IHC", patient: str | None = None) -> Found:
    """Pair the images of two folders by file name (without suffix)."""
    he, ihc = Path(he), Path(ihc)
    if he.resolve() == ihc.resolve():
        raise InputError("the H&E and the IHC folder are the same", where=he)
    a, b = list_images(he), list_images(ihc)
    pairs = [Pair(name, a[name], b[name], stain, patient) for name in a if name in b]
    alone = [str(a[name]) for name in a if name not in b] + [str(b[name]) for name in b if name not in a]
    return Found(pairs, alone)


def find_pairs(root: Path | str, split: str = "train") -> Found:
    """The pairs of one split (``train``, ``val`` or ``test``) in any layout of this module."""
    root = Path(root)
    if split not in SPLITS:
        raise InputError(f"unknown split '{split}'.{nearest(split, SPLITS)}", fix=f"Use {', '.join(SPLITS)}")
    if root.is_file():
        return _from_table(root, split)
    if not root.is_dir():
        raise InputError("there is no such folder or CSV file", where=root)
    base = _base(root, split)
    if base is not None:
        return _with_patients(pair_folders(base / f"{split}A", base / f"{split}B"), root)
    found = Found([], [])
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        inner = _base(folder, split)
        if inner is not None:
            part = pair_folders(inner / f"{split}A", inner / f"{split}B", stain=folder.name)
            # Published stains share file names; the stain keeps them apart in results.
            part = _with_patients(part, folder)
            pairs = [replace(pair, name=f"{folder.name}_{pair.name}") for pair in part.pairs]
            found = Found(found.pairs + pairs, found.alone + part.alone)
    if not found.pairs and not found.alone:
        raise InputError(
            f"there is no {split}A with {split}B in this folder",
            where=root,
            fix=f"Expected <root>/TrainValAB/{split}A (H&E) and {split}B (IHC), <root>/<stain>/…, or a CSV file with "
            "the columns he,ihc",
        )
    return found


def splits_of(root: Path | str) -> tuple[str, ...]:
    """The splits that a layout has, of which :func:`find_pairs` gives the pairs; empty for a table without splits and
    where nothing is found. A table some of whose rows have none, or an unknown one, is an error."""
    root = Path(root)
    if root.is_file():
        found = {row.get("split") or "" for row in read_table(root)}
        unknown = sorted(found - {"", *SPLITS})
        if unknown:
            raise InputError(
                f"unknown split '{unknown[0]}'.{nearest(unknown[0], SPLITS)}",
                where=root,
                fix=f"Use {', '.join(SPLITS)}",
            )
        if "" in found and len(found) > 1:
            raise InputError("some rows have no split and others do", where=root, fix="Give every row one")
        return tuple(split for split in SPLITS if split in found)
    folders = [root, *(path for path in sorted(root.glob("*")) if path.is_dir())]
    return tuple(split for split in SPLITS if any(_base(folder, split) for folder in folders))


def _with_patients(found: Found, root: Path) -> Found:
    path = root / "patients.csv"
    if not path.is_file():
        return found
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"name", "patient"} <= set(rows[0]):
        raise InputError("the table of patients needs the columns name and patient", where=path)
    patients = {Path(row["name"]).stem: row["patient"] for row in rows}
    return Found([replace(pair, patient=patients.get(pair.name)) for pair in found.pairs], found.alone)


def _base(root: Path, split: str) -> Path | None:
    for base in (root / "TrainValAB", root):
        if (base / f"{split}A").is_dir() or (base / f"{split}B").is_dir():
            return base
    return None


def _from_table(path: Path, split: str) -> Found:
    rows = read_table(path)
    splits = {row["split"] for row in rows if row.get("split")}
    if splits:
        rows = [row for row in rows if row.get("split") == split]
        if not rows:
            raise InputError(f"no row has the split '{split}', only {', '.join(sorted(splits))}", where=path)
    pairs, names = [], set()
    for number, row in enumerate(rows, start=2):
        he, ihc = (path.parent / row[key] for key in ("he", "ihc"))
        name = row.get("name") or he.stem
        if name in names:
            raise InputError(
                f"the name '{name}' comes twice", where=path, fix="Add a column 'name' with unique names"
            )
        names.add(name)
        try:
            shift = int(row.get("shift_y") or 0), int(row.get("shift_x") or 0)
        except ValueError:
            raise InputError(
                "a shift is a whole number of pixels",
                where=f"{path}, line {number}",
                fix="Mend shift_x, shift_y, or use the column affine",
            ) from None
        affine = read_affine(row.get("affine"), f"{path}, line {number}")
        pairs.append(
            Pair(name, he, ihc, row.get("stain") or "IHC", row.get("patient") or None, shift, affine)
        )
    here = [pair for pair in pairs if pair.he.is_file() and pair.ihc.is_file()]
    alone = [str(p) for pair in pairs for p in (pair.he, pair.ihc) if not p.is_file()]
    return Found(here, [f"{name} (missing)" for name in alone])


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a pair table, keys in lower case; :class:`InputError` when it has no ``he`` and ``ihc``
    columns.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [
                {(k or "").strip().lower(): (v or "").strip() for k, v in row.items()}
                for row in csv.DictReader(file)
            ]
    except (UnicodeDecodeError, csv.Error):
        raise InputError(
            "this is not a CSV file", where=path, fix="Give a folder or a CSV with the columns he,ihc"
        ) from None
    if not rows or not {"he", "ihc"} <= set(rows[0]):
        columns = ", ".join(rows[0]) if rows else "no rows"
        raise InputError(f"a pair table needs the columns he and ihc, this one has {columns}", where=path)
    return rows


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


def read_image(path: Path | str) -> np.ndarray:
    """A colour image as (H, W, 3) uint8 RGB: :func:`morphogen.slides.images.read_image`.

    :class:`InputError` for what cannot be read, and for a grey image, which is no stain.
    """
    picture = decode(path)
    if not picture.colour:
        raise InputError(f"the image {GREY}", where=path, fix="Save it as 8-bit RGB, or leave it out")
    return picture.pixels


def stains_of(pairs: Iterable[Pair]) -> tuple[str, ...]:
    """Names of the stains of these pairs, sorted."""
    return tuple(sorted({pair.stain for pair in pairs}))
