"""H&E / IHC pairs: where they are, and random crops of them.

Three layouts are read:

* MIST and BCI folders: ``<root>/[TrainValAB/]{train,val,test}{A,B}`` with A = H&E, B = IHC, one file name
per pair;
* two folders, one of H&E and one of IHC, likewise;
* a CSV with the columns ``he, ihc`` and, optionally, ``stain, patient, split``; paths relative to the CSV.

A root that holds ``<stain>/TrainValAB`` folders (MIST as published: ER, HER2, Ki67, PR) gives one stain per
folder.
"""

from __future__ import annotations

import csv
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from morphogen.core.errors import InputError, nearest

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Pair:
    """One H&E image and the IHC image of the same tissue.

    ``name`` is the file name without suffix; ``shift`` (dy, dx) moves an H&E pixel onto its IHC pixel.
    """

    name: str
    he: Path
    ihc: Path
    stain: str = "IHC"
    patient: str | None = None
    shift: tuple[int, int] = (0, 0)

    @property
    def unit(self) -> str:
        """What is independent for intervals: the patient, else the image."""
        return self.patient or self.name


@dataclass(frozen=True)
class Found:
    """What a layout holds: ``pairs``, and names of files ``alone`` without their partner."""

    pairs: list[Pair]
    alone: list[str]


def list_images(folder: Path | str) -> dict[str, Path]:
    """Image files of a folder by name without suffix, sorted; :class:`InputError` when there is none.

    Two files of one name (``a.png`` and ``a.jpg``) are an error, because a partner could not be told.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError("there is no such folder", where=folder)
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in files:
            raise InputError(
                f"'{path.name}' and '{files[path.stem].name}' have the same name",
                where=folder,
                fix="Keep one of them",
            )
        files[path.stem] = path
    if not files:
        raise InputError(
            f"there are no images in this folder ({', '.join(s[1:] for s in IMAGE_SUFFIXES)})", where=folder
        )
    return files


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
    for row in rows:
        he, ihc = (path.parent / row[key] for key in ("he", "ihc"))
        name = row.get("name") or he.stem
        if name in names:
            raise InputError(
                f"the name '{name}' comes twice", where=path, fix="Add a column 'name' with unique names"
            )
        names.add(name)
        shift = int(row.get("shift_y") or 0), int(row.get("shift_x") or 0)
        pairs.append(Pair(name, he, ihc, row.get("stain") or "IHC", row.get("patient") or None, shift))
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


def read_image(path: Path | str) -> np.ndarray:
    """An 8-bit RGB image as (H, W, 3) uint8. Opaque alpha is dropped.

    :class:`InputError` for anything else: unreadable, 16-bit, grey, palette, transparent.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            problem = mode_problem(image)
            if problem is None:
                array = np.array(image)
    except FileNotFoundError:
        raise InputError("there is no such image", where=path) from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        line = " ".join(str(error).split()).replace(str(path), "the file")
        raise InputError(
            f"the image cannot be read ({line})", where=path, fix="Copy it again or leave it out"
        ) from None
    if problem is not None:
        raise InputError(problem, where=path, fix="Save it as 8-bit RGB")
    if array.shape[-1] == 4:
        if int(array[..., 3].min()) < 255:
            raise InputError("the image has transparent pixels", where=path, fix="Save it as 8-bit RGB")
        array = np.ascontiguousarray(array[..., :3])
    return array


def mode_problem(image: object) -> str | None:
    """Why a PIL image is no 8-bit colour image, or ``None``."""
    mode = getattr(image, "mode", "?")
    if mode in ("RGB", "RGBA"):
        tags = getattr(image, "tag_v2", None)
        bits = tags.get(258) if tags is not None else None
        return f"the image has {max(bits)} bits per channel" if bits and max(bits) > 8 else None
    if mode.startswith("I") or mode == "F":
        return "the image has 16 or more bits per channel and no colour"
    names = {"L": "grey", "1": "black and white", "P": "palette", "LA": "grey with alpha", "CMYK": "CMYK"}
    return f"the image is {names.get(mode, mode)}, not RGB"


def aligned(he: np.ndarray, ihc: np.ndarray, shift: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Both images cut to what they share when IHC pixel ``p + shift`` shows what H&E pixel ``p`` shows."""
    height, width = he.shape[:2]
    dy, dx = shift
    rows = slice(max(0, -dy), height - max(0, dy))
    columns = slice(max(0, -dx), width - max(0, dx))
    there = slice(rows.start + dy, rows.stop + dy), slice(columns.start + dx, columns.stop + dx)
    return he[rows, columns], ihc[there]


def orient(image: Tensor, index: int) -> Tensor:
    """One of the 8 orientations of ``(H, W, C)``: ``index & 3`` quarter turns after a mirror when ``index &
    4``.
    """
    if index & 4:
        image = image.flip(1)
    return torch.rot90(image, index & 3, (0, 1))


def balanced(labels: Sequence[int]) -> list[int]:
    """Positions of ``labels`` so that each label comes as often as the most frequent one; the rarer in turns."""
    groups: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        groups.setdefault(label, []).append(position)
    most = max(map(len, groups.values()), default=0)
    return [group[k % len(group)] for group in groups.values() for k in range(most)]


class PairDataset(Dataset):
    """Random crops of pairs, the same place and orientation for both images of a pair.

    ``draw(i, generator)`` cuts pair ``i`` where the generator says; ``[i]`` cuts its middle, unturned. An
    item is ``{"he": (crop, crop, 3) uint8, "ihc": likewise, "label": int64 stain index, "index": int64}``.

    Parameters
    ----------
    pairs:
        Checked pairs (:func:`morphogen.stain.checks.check_pairs`).
    stains:
        Label order.
    crop, orient:
        See :class:`~morphogen.stain.config.DataConfig`.
    memory_gib:
        Decoded images kept, the last used first to stay.
    balance:
        Every stain has as many items: pairs of rarer stains come several times, each time to be cut elsewhere.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        stains: Sequence[str],
        *,
        crop: int = 256,
        orient: bool = True,
        memory_gib: float = 2.0,
        balance: bool = False,
    ) -> None:
        self.pairs, self.crop, self.orient = list(pairs), crop, orient
        unknown = sorted({pair.stain for pair in pairs} - set(stains))
        if unknown:
            raise InputError(
                f"pairs of stain '{unknown[0]}', but the model knows {', '.join(stains)}.{nearest(unknown[0], stains)}"
            )
        self.labels = [list(stains).index(pair.stain) for pair in pairs]
        self._items = balanced(self.labels) if balance else list(range(len(self.pairs)))
        self._budget = int(memory_gib * 2**30)
        self._kept: OrderedDict[int, tuple[Tensor, Tensor]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    def images(self, index: int) -> tuple[Tensor, Tensor]:
        """Both whole images ``(H, W, 3)`` uint8 of a pair, aligned."""
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        pair = self.pairs[index]
        a, b = aligned(read_image(pair.he), read_image(pair.ihc), pair.shift)
        both = torch.from_numpy(np.ascontiguousarray(a)), torch.from_numpy(np.ascontiguousarray(b))
        self._bytes += both[0].numel() * 2
        self._kept[index] = both
        while self._bytes > self._budget and self._kept:
            _, old = self._kept.popitem(last=False)
            self._bytes -= old[0].numel() * 2
        return both

    def draw(self, index: int, generator: torch.Generator) -> dict[str, Tensor]:
        he, ihc = self.images(self._items[index])
        top, left = (
            int(torch.randint(0, size - self.crop + 1, (), generator=generator)) for size in he.shape[:2]
        )
        turn = int(torch.randint(0, 8, (), generator=generator)) if self.orient else 0
        return self._item(index, he, ihc, top, left, turn)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        he, ihc = self.images(self._items[index])
        top, left = ((size - self.crop) // 2 for size in he.shape[:2])
        return self._item(index, he, ihc, top, left, 0)

    def _item(self, index: int, he: Tensor, ihc: Tensor, top: int, left: int, turn: int) -> dict[str, Tensor]:
        place = slice(top, top + self.crop), slice(left, left + self.crop)
        return {
            "he": orient(he[place], turn).contiguous(),
            "ihc": orient(ihc[place], turn).contiguous(),
            "label": torch.tensor(self.labels[self._items[index]]),
            "index": torch.tensor(index),
        }


def stains_of(pairs: Iterable[Pair]) -> tuple[str, ...]:
    """Names of the stains of these pairs, sorted."""
    return tuple(sorted({pair.stain for pair in pairs}))
