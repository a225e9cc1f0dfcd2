"""What images of a patient look like, and an image that looks like another patient's: stain colours and focus."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from morphogen.core.errors import MorphogenError
from morphogen.layout.sampling.focus import blur_of, refocused
from morphogen.layout.sampling.stains import recolour
from morphogen.layout.sources.sheets import Sheet
from morphogen.slides.recolouring import Stains

FAINT = 0.1  # amount of stain, as optical density, below which pixels are glass
SHEETS, CELLS = 4, 6  # sheets of a patient, and tissue cells of each, that its look is estimated from
WARPED = 1 / 6  # px²: mean variance of the blur that linear interpolation adds


@dataclass(frozen=True)
class Look:
    """Stains, and variance of the blur in px² (:func:`~morphogen.layout.sampling.focus.blur_of`)."""

    stains: Stains
    blur: float

    @classmethod
    def of(cls, images: np.ndarray) -> Look | None:
        """Of images (N, H, W, 3) uint8 together; None where they show no stain."""
        try:
            stains = Stains.of(images, robust=True)
        except MorphogenError:
            return None
        return cls(stains, blur_of(images)) if stains.amounts.max() >= FAINT else None

    @classmethod
    def of_patient(cls, sheets: Sequence[Sheet], crop: int) -> Look | None:
        """Of some tissue cells of the sheets of a patient."""
        return cls.of(np.stack(some_cells(sheets, crop)))


class Restyling:
    """``restyling(image, sheet, look)``: a crop of a sheet in other stain colours (Macenko) and, with ``focus``, as
    sharp or blurred as the look says. A crop whose patient shows no stain stays as it is.

    sources: the sheets that crops are cut from. Their look is that of their patient: one image with few nuclei would be
    stained darker than it is, one of nothing else paler, and the classes lose what tells them apart. warped: the crops
    have been interpolated since they were cut.
    """

    def __init__(
        self, sources: Sequence[Sheet], crop: int, *, focus: bool = True, warped: bool = False
    ) -> None:
        self.crop, self.focus, self.softened = crop, focus, WARPED if warped else 0.0
        self.patients: dict[str, list[Sheet]] = defaultdict(list)
        for sheet in sources:
            self.patients[sheet.patient].append(sheet)
        self._known: dict[tuple[str, float], Look | None] = {}

    def __call__(self, image: np.ndarray, sheet: Sheet, target: Look | None) -> np.ndarray:
        source = self._source(sheet.patient, 0.0)
        if source is None or target is None:
            return np.ascontiguousarray(image)
        if not self.focus:
            return recolour(np.ascontiguousarray(image), source.stains, target.stains)
        change = target.blur - source.blur
        # Blur mixes stains, so that they are estimated at the focus in which they are changed.
        there = self._source(sheet.patient, round(change, 1)) if np.isfinite(change) else source
        sharp = refocused(image, change - self.softened)
        return recolour(sharp, (there or source).stains, target.stains)

    def style(self, sheet: Sheet, target: Look | None, count: int, random: np.random.Generator) -> np.ndarray:
        """(count, crop, crop, 3) tissue cells of the patient of a sheet, restyled as its crops are: the style that
        those have then. No cell comes twice unless there are fewer."""
        patient = self.patients[sheet.patient]
        cells = [(each, int(row), int(column)) for each in patient for row, column in each.tissue(self.crop)]
        chosen = [cells[k] for k in random.choice(len(cells), count, replace=len(cells) < count)]
        return np.stack(
            [self(each.image(row, column, self.crop), each, target) for each, row, column in chosen]
        )

    def _source(self, patient: str, change: float) -> Look | None:
        """The look of a patient whose images are refocused by ``change`` px²."""
        if (patient, change) not in self._known:
            cells = some_cells(self.patients[patient], self.crop)
            self._known[patient, change] = Look.of(np.stack([refocused(cell, change) for cell in cells]))
        return self._known[patient, change]


def some_cells(sheets: Sequence[Sheet], crop: int) -> list[np.ndarray]:
    """Tissue cells (crop, crop, 3) of some sheets of a patient, spread over each."""
    found = []
    for sheet in sheets[:SHEETS]:
        corners = sheet.tissue(crop)
        chosen = np.unique(np.linspace(0, len(corners) - 1, CELLS).round().astype(int))
        found += [sheet.image(int(row), int(column), crop) for row, column in corners[chosen]]
    return found
