"""Masks: label maps, palettes, colours with a table, instance maps; and what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from morphogen.core.errors import InputError
from morphogen.core.files import read_json
from morphogen.core.reading.tables import read_table as read_rows
from morphogen.layout.sources.sheets import Classes
from morphogen.slides.images import open_flat, open_tiff, sniff

TABLES = ("labels.json", "labels.csv")


def read_mask(path: Path | str) -> np.ndarray:
    """A mask file as it is: (H, W) integers (label maps, palette indices, instances) or (H, W, 3) colours.

    :class:`InputError` for a JPEG: its compression makes labels that nobody drew.
    """
    kind = sniff(path)
    if kind == "JPEG":
        raise InputError(
            "this mask is a JPEG, whose compression changes labels at every border",
            where=path,
            fix="Export masks as PNG or TIFF",
        )
    if kind == "TIFF":
        with open_tiff(path) as file:
            values = np.asarray(file.asarray())
    else:
        with open_flat(path) as image:
            if image.mode in ("RGBA", "LA"):
                image = image.convert("RGB")
            values = np.asarray(image)
    values = values.squeeze()
    if values.dtype == bool:
        values = values.astype(np.uint8)
    if (
        values.ndim not in (2, 3)
        or (values.ndim == 3 and values.shape[2] != 3)
        or values.dtype.kind not in "ui"
    ):
        raise InputError(
            f"this is not a mask: its values are {values.dtype} of shape {values.shape}", where=path
        )
    return values


def classes_in(values: np.ndarray, classes: Classes, where: object = None) -> np.ndarray:
    """(H, W) uint8 classes of a mask; :class:`InputError` that says which values are not in the table, and how many
    pixels have them."""
    if values.ndim == 3:
        if not classes.colours:
            raise InputError(
                "this mask is in colour, and no table says what its colours mean",
                where=where,
                fix="Put a labels.csv with the columns name, r, g, b beside the masks",
            )
        packed = (values.astype(np.int64) * (65536, 256, 1)).sum(2)
        table = {65536 * r + 256 * g + b: label for (r, g, b), label in classes.colours.items()}
        return _looked_up(packed, table, where, lambda v: f"({v >> 16}, {v >> 8 & 255}, {v & 255})")
    if classes.instances:
        return (values > 0).astype(np.uint8)
    return _looked_up(values.astype(np.int64), dict(classes.values), where, str)


def _looked_up(
    values: np.ndarray, table: dict[int, int], where: object, said: Callable[[int], str]
) -> np.ndarray:
    found, back, counts = np.unique(values, return_inverse=True, return_counts=True)
    unknown = [k for k, value in enumerate(found.tolist()) if value not in table]
    if unknown:
        shown = ", ".join(f"{said(int(found[k]))} ({counts[k]} px)" for k in unknown[:4])
        more = f" and {len(unknown) - 4} more" if len(unknown) > 4 else ""
        raise InputError(
            f"the mask holds values that are no label: {shown}{more}",
            where=where,
            fix="Name them in labels.json or labels.csv beside the masks",
        )
    lookup = np.array([table[int(value)] for value in found], np.uint8)
    return lookup[back].reshape(values.shape)


def read_table(folder: Path) -> Classes | None:
    """The table of a folder of masks: ``labels.json`` ({"0": "stroma", …}) or ``labels.csv`` with the columns name and
    value, or name and r, g, b; None where there is none. The first is the background."""
    path = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    if path is None:
        return None
    if path.suffix == ".json":
        named = read_json(path)
        if not isinstance(named, dict) or len(named) < 2 or not all(str(k).isdigit() for k in named):
            raise InputError(
                'this must hold values and names, such as {"0": "stroma", "1": "tumour"}', where=path
            )
        order = sorted(named, key=int)
        return Classes(tuple(str(named[key]) for key in order), {int(k): i for i, k in enumerate(order)})
    table = read_rows(path, ["name"], {"class": "name", "label": "name"})
    names: list[str] = []
    values: dict[int, int] = {}
    colours: dict[tuple[int, int, int], int] = {}
    for row in table:
        name = row.need("name")
        if name not in names:
            names.append(name)
        value, (r, g, b) = row.integer("value"), (row.integer(key) for key in "rgb")
        if value is not None:
            values[value] = names.index(name)
        elif r is not None and g is not None and b is not None:
            colours[r, g, b] = names.index(name)
        else:
            raise InputError(f"'{name}' has neither a value nor r, g and b", where=row.where)
    if len(names) < 2:
        raise InputError("the table names fewer than two classes", where=path)
    return Classes(tuple(names), values, colours)


def guessed(masks: Iterable[Path], limit: int = 12) -> Classes:
    """Classes from the values that the masks hold, where no table names them; more than 24 values are instances."""
    found: set[int] = set()
    for path in list(masks)[:limit]:
        values = read_mask(path)
        if values.ndim == 3:
            if (values[..., :1] != values).any():
                return Classes(("background",))  # says of itself what is missing when it is applied
            values = values[..., 0]
        found |= {int(value) for value in np.unique(values)}
        if len(found) > 24:
            return Classes(("background", "object"), instances=True)
    if found <= {0, 255} or found <= {0, 1}:
        return Classes(("background", "foreground"), {0: 0, 1: 1, 255: 1})
    order = sorted(found)
    return Classes(tuple(f"label {value}" for value in order), {value: k for k, value in enumerate(order)})
