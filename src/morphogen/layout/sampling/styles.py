"""Where the style images of an item come from: the four samplings of STEDM, for every source."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from morphogen.layout.config import DataConfig
from morphogen.layout.sampling.augment import flipped, random_affine, warped
from morphogen.layout.sources.sheets import Sheet


class StyleSampler:
    """``sampler(sheet, top, left, generator)`` → (n, crop, crop, 3) uint8.

    none: black. augmented: the crop itself, flipped and deformed. nearby: the same sheet with the corner moved by up
    to ``relative_distance`` crops per axis. mp: tissue cells of all sheets of the sheet's patient, without a cell
    twice unless there are fewer than n.
    """

    def __init__(self, sheets: Sequence[Sheet], config: DataConfig, images: int | None = None) -> None:
        self.config, self.images = config, images or config.style_images
        self.groups: dict[str, list[Sheet]] = defaultdict(list)
        for sheet in sheets:
            self.groups[sheet.patient].append(sheet)
        self._cells: dict[str, np.ndarray] = {}

    def __call__(self, sheet: Sheet, top: int, left: int, random: np.random.Generator) -> np.ndarray:
        side, kind = self.config.crop, self.config.sampling
        if kind == "none":
            return np.zeros((1, side, side, 3), np.uint8)
        if kind == "augmented":
            (image,) = flipped(random, sheet.image(top, left, side))
            return warped(image, random_affine(random, side))[None]
        if kind == "nearby":
            reach = round(self.config.relative_distance * side)
            height, width = sheet.size
            row, column = (
                int(np.clip(at + random.integers(-reach, reach + 1), 0, max(0, size - side)))
                for at, size in ((top, height), (left, width))
            )
            return np.stack(flipped(random, sheet.image(row, column, side)))
        return self.of_patient(sheet.patient, random)

    def of_patient(self, patient: str, random: np.random.Generator) -> np.ndarray:
        """(n, crop, crop, 3): tissue cells of a patient, moved by up to half a cell within the sheet."""
        side = self.config.crop
        found = []
        for index, top, left in self.chosen(patient, random):
            sheet = self.groups[patient][index]
            height, width = sheet.size
            row, column = (
                int(np.clip(at + random.integers(-side // 2, side // 2 + 1), 0, max(0, size - side)))
                for at, size in ((top, height), (left, width))
            )
            found.append(flipped(random, sheet.image(row, column, side))[0])
        return np.stack(found)

    def chosen(self, patient: str, random: np.random.Generator) -> np.ndarray:
        """(n, 3): number of the sheet, row and column of n tissue cells."""
        cells = self.cells(patient)
        return cells[random.choice(len(cells), self.images, replace=len(cells) < self.images)]

    def cells(self, patient: str) -> np.ndarray:
        """(N, 3): all tissue cells of a patient."""
        if patient not in self._cells:
            parts = []
            for number, sheet in enumerate(self.groups[patient]):
                corners = sheet.tissue(self.config.crop)
                parts.append(np.concatenate([np.full((len(corners), 1), number), corners], axis=1))
            self._cells[patient] = np.concatenate(parts)
        return self._cells[patient]
