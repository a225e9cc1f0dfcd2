"""A sheet: one image or slide with its labels, read by window. What every source gives and every draw reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from morphogen.core.errors import InputError
from morphogen.core.fingerprints import fingerprint

COARSE = 8  # pixels per cell of the maps that places are drawn from
WHITE = 235  # grey level of the darkest colour channel above which a cell is glass


@dataclass(frozen=True)
class Classes:
    """Names of the classes, background first, and what a mask's values or colours mean.

    values: mask value → class. colours: RGB → class, for masks in colour. instances: every value above 0 is class 1.
    """

    names: tuple[str, ...]
    values: Mapping[int, int] = field(default_factory=dict)
    colours: Mapping[tuple[int, int, int], int] = field(default_factory=dict)
    instances: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def kept(self, wanted: Sequence[str]) -> Classes:
        """Only the classes named, in that order; all others become background."""
        if not wanted:
            return self
        for name in wanted:
            if name not in self.names:
                raise InputError(
                    f"there is no class '{name}', only {', '.join(self.names)}", where="data.classes"
                )
        chosen = [name for name in wanted if name != self.names[0]]
        number = {self.names.index(name): at + 1 for at, name in enumerate(chosen)}
        return Classes(
            (self.names[0] if self.names[0] in wanted else "background", *chosen),
            {value: number.get(index, 0) for value, index in self.values.items()},
            {colour: number.get(index, 0) for colour, index in self.colours.items()},
            self.instances,
        )


class Sheet(Protocol):
    """One image or slide at the resolution of the crops."""

    @property
    def name(self) -> str: ...

    @property
    def patient(self) -> str:
        """Whom it is of; the name where that is not known."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        ...

    @property
    def labelled(self) -> bool: ...

    @property
    def balanced(self) -> bool:
        """Whether it was cut out by class when it was made: to draw it by class again would be once too often."""
        ...

    @property
    def present(self) -> tuple[int, ...]:
        """Classes it shows; empty without labels."""
        ...

    def image(self, top: int, left: int, side: int) -> np.ndarray:
        """(side, side, 3) uint8; mirrored where the window overhangs an image, white beside a slide."""
        ...

    def labels(self, top: int, left: int, side: int) -> np.ndarray:
        """(side, side) uint8 classes."""
        ...

    def places(self, label: int) -> np.ndarray:
        """(N, 2) int64 rows and columns where a class is, one per cell of its coarse map."""
        ...

    def tissue(self, side: int) -> np.ndarray:
        """(N, 2) int64 top-left corners of the cells of ``side`` px that are tissue, on a grid."""
        ...

    def identity(self, labels: bool = True) -> list[Any]:
        """What the sheet is, for the run's record: contents of the image and, with ``labels``, of what labels it."""
        ...


@dataclass(frozen=True)
class ImageSheet:
    """An image file with its mask, both in memory once they were read.

    read: gives (H, W, 3) uint8; read_labels: (H, W) uint8 classes, or None without labels; mask: their file.
    """

    name: str
    patient: str
    path: Path
    read: Callable[[], np.ndarray]
    read_labels: Callable[[], np.ndarray] | None = None
    kind: str = ""  # class of the whole image, where the source has one (flowers)
    mask: Path | None = None
    balanced: bool = False  # cut out by class when it was made

    @property
    def labelled(self) -> bool:
        return self.read_labels is not None

    @cached_property
    def pixels(self) -> np.ndarray:
        """The image, (H, W, 3) uint8."""
        return self.read()

    @cached_property
    def classes(self) -> np.ndarray:
        """The label map, (H, W) uint8; :class:`InputError` where it has another size."""
        if self.read_labels is None:
            raise InputError("this image has no mask", where=self.path)
        found = self.read_labels()
        if found.shape != self.pixels.shape[:2]:
            raise InputError(
                f"its mask has {found.shape[1]} × {found.shape[0]} px, the image "
                f"{self.pixels.shape[1]} × {self.pixels.shape[0]}",
                where=self.path,
                fix="Give the mask of this image, at its size",
            )
        return found

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.shape[0], self.pixels.shape[1]

    @cached_property
    def present(self) -> tuple[int, ...]:
        return tuple(int(value) for value in np.unique(self.classes)) if self.labelled else ()

    def image(self, top: int, left: int, side: int) -> np.ndarray:
        return _window(self.pixels, top, left, side)

    def labels(self, top: int, left: int, side: int) -> np.ndarray:
        return _window(self.classes, top, left, side)

    def places(self, label: int) -> np.ndarray:
        return self._places[label] if label in self._places else np.zeros((0, 2), np.int64)

    @cached_property
    def _places(self) -> dict[int, np.ndarray]:
        return places_of(self.classes, 1, COARSE)

    def tissue(self, side: int) -> np.ndarray:
        if side not in self._tissue:
            self._tissue[side] = tissue_cells(self.pixels, side)
        return self._tissue[side]

    @cached_property
    def _tissue(self) -> dict[int, np.ndarray]:
        return {}  # crop side → its cells

    def identity(self, labels: bool = True) -> list[Any]:
        mask = fingerprint(self.mask) if labels and self.labelled and self.mask is not None else ""
        drawn = ["balanced"] if labels and self.balanced else []
        return [self.name, self.patient, fingerprint(self.path), mask, *drawn]


def _window(values: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
    """A square of an array, mirrored beyond its edges."""
    height, width = values.shape[:2]
    if 0 <= top <= height - side and 0 <= left <= width - side:
        return values[top : top + side, left : left + side]
    rows, columns = (
        mirrored(np.arange(top, top + side), height),
        mirrored(np.arange(left, left + side), width),
    )
    return values[rows[:, None], columns[None]]


def mirrored(positions: np.ndarray, size: int) -> np.ndarray:
    """Positions outside 0 … size − 1 reflected into it."""
    around = positions % (2 * size)
    return np.where(around < size, around, 2 * size - 1 - around)


def places_of(labels: np.ndarray, scale: int, cell: int) -> dict[int, np.ndarray]:
    """Class → (N, 2) positions of the cells of ``cell`` px that hold it at their middle; ``scale`` px per label."""
    middle = labels[cell // 2 :: cell, cell // 2 :: cell]
    found = {}
    for label in np.unique(labels):
        rows, columns = np.nonzero(middle == label)
        at = np.stack([rows, columns], 1) * cell + cell // 2
        if not len(at):  # smaller than a cell: its own pixels
            at = np.argwhere(labels == label)
        found[int(label)] = at.astype(np.int64) * scale
    return found


def tissue_cells(pixels: np.ndarray, side: int) -> np.ndarray:
    """(N, 2) corners of the cells of ``side`` px whose darkest channel is below white on the mean; all cells where
    none is. The last row and column of cells end with the image."""
    height, width = pixels.shape[:2]
    rows, columns = (_starts(size, side) for size in (height, width))
    dark = cv2.boxFilter(pixels.min(2).astype(np.float32), -1, (1, 1))
    total = cv2.integral(dark)
    corners = np.array([(r, c) for r in rows for c in columns], np.int64)
    bottom = np.minimum(corners[:, 0] + side, height)
    right = np.minimum(corners[:, 1] + side, width)
    sums = (
        total[bottom, right]
        - total[corners[:, 0], right]
        - total[bottom, corners[:, 1]]
        + total[corners[:, 0], corners[:, 1]]
    )
    means = sums / ((bottom - corners[:, 0]) * (right - corners[:, 1]))
    kept = corners[means < WHITE]
    return kept if len(kept) else corners


def _starts(size: int, side: int) -> list[int]:
    if size <= side:
        return [0]
    return [*range(0, size - side, side), size - side]
