"""Which layout meets which style: the list of images to make, a function of the seed alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from morphogen.core.errors import ConfigError, InputError
from morphogen.core.seeds import numpy_generator
from morphogen.layout.config import DataConfig, SynthesisConfig
from morphogen.layout.sampling.augment import random_affine, random_flip, reach, warped
from morphogen.layout.sampling.crops import Places
from morphogen.layout.sampling.looks import Look, Restyling
from morphogen.layout.sampling.styles import StyleSampler
from morphogen.layout.sources.sheets import Sheet
from morphogen.tasks.streams.turns import turned

CANDIDATES = 8  # layouts that the pairing by density chooses from


@dataclass(frozen=True)
class Drawn:
    """A layout as it was drawn: (side, side) uint8, the image (side, side, 3) that shows it, where from, how both were
    turned (:func:`~morphogen.tasks.streams.turns.turned`), and the affine map that was laid on them after that."""

    labels: np.ndarray
    image: np.ndarray
    sheet: Sheet
    top: int
    left: int
    turn: int
    matrix: tuple[float, ...]


@dataclass(frozen=True)
class Pair:
    """One image to make: number, layout, style images (n, side, side, 3) uint8 of one patient, and the image of the
    layout in the stain colours and the focus of that patient."""

    number: int
    layout: Drawn
    patient: str
    style: np.ndarray
    sources: tuple[str, ...]
    begin: np.ndarray


def name_of(number: int) -> str:
    """Of an image and of its mask, without suffix."""
    return f"syn_{number:05d}"


class Plan:
    """``plan[k]`` is the k-th image to make; any k, in any order.

    Parameters
    ----------
    layouts:
        Labelled sheets that give layouts.
    styles:
        Sheets that give styles, by patient.
    share:
        Share of foreground in an image, for the pairing by density.
    """

    def __init__(
        self,
        layouts: Sequence[Sheet],
        styles: Sequence[Sheet],
        data: DataConfig,
        config: SynthesisConfig,
        classes: int,
        *,
        images: int = 1,
        share: Callable[[np.ndarray], float] | None = None,
    ) -> None:
        if not layouts or not styles:
            missing = "layouts" if not layouts else "unannotated images to take styles from"
            raise InputError(f"there are no {missing}", where="synthesis")
        if config.pairing == "density" and share is None:
            raise ConfigError(
                "pairing by density needs a segmenter", where="pairing", fix="Give --segmenter, or use quota"
            )
        self.config, self.data, self.share = config, data, share
        self.places = Places(layouts, data.crop, data.balance, classes)
        self.styles = StyleSampler(styles, data, images)
        self.patients = sorted(self.styles.groups)
        self.restyling = Restyling(layouts, data.crop, focus=config.focus, warped=config.layouts == "affine")
        self._looks: dict[str, Look | None] = {}

    def __len__(self) -> int:
        return self.config.count

    def __getitem__(self, number: int) -> Pair:
        random = numpy_generator(self.config.seed, "synthesize", number)
        patient = self._patient(number, random)
        chosen, images = self._style(patient, random)
        # Of its own: the same layouts come whatever is drawn of the styles, so that arms can be compared by image.
        random = numpy_generator(self.config.seed, "layouts", number)
        layout = self._layout(random)
        if self.config.pairing == "density" and self.share is not None:
            wanted = float(np.mean([self.share(image) for image in images]))
            others = [layout, *(self._layout(random) for _ in range(CANDIDATES - 1))]
            layout = min(others, key=lambda each: abs(float((each.labels > 0).mean()) - wanted))
        told = self.data.sampling != "none"
        look = self._look(patient) if told else None
        begin = self.restyling(layout.image, layout.sheet, look)
        return Pair(number, layout, patient, images, chosen, begin)

    def own(self, pair: Pair) -> np.ndarray:
        """(n, side, side, 3) uint8 style images of the patient that the layout of a pair is of, in the stain colours
        and the focus that its image was given: the style of ``pair.begin``."""
        random = numpy_generator(self.config.seed, "own styles", pair.number)
        return self.restyling.style(pair.layout.sheet, self._look(pair.patient), len(pair.style), random)

    def _look(self, patient: str) -> Look | None:
        if patient not in self._looks:
            self._looks[patient] = Look.of_patient(self.styles.groups[patient], self.data.crop)
        return self._looks[patient]

    def _patient(self, number: int, random: np.random.Generator) -> str:
        if self.config.pairing == "random":
            return self.patients[random.integers(len(self.patients))]
        # Every patient once in each round, in an order of the round's own.
        round_, at = divmod(number, len(self.patients))
        order = numpy_generator(self.config.seed, "styles", round_).permutation(len(self.patients))
        return self.patients[order[at]]

    def _style(self, patient: str, random: np.random.Generator) -> tuple[tuple[str, ...], np.ndarray]:
        if self.data.sampling == "none":
            return (), np.zeros((1, self.data.crop, self.data.crop, 3), np.uint8)
        cells = self.styles.chosen(patient, random)
        group, side = self.styles.groups[patient], self.data.crop
        images = np.stack([group[number].image(int(row), int(column), side) for number, row, column in cells])
        return tuple(f"{group[n].name}:{row}:{column}" for n, row, column in cells.tolist()), images

    def _layout(self, random: np.random.Generator) -> Drawn:
        sheet, top, left = self.places.draw(random)
        side = self.data.crop
        turn, matrix, beyond = random_flip(random), np.eye(2, 3), 0
        affine = self.config.layouts == "affine"
        if affine:
            matrix = random_affine(random, side)
            beyond = reach(matrix, side)
        window = top - beyond, left - beyond, side + 2 * beyond
        labels, image = turned(sheet.labels(*window), turn), turned(sheet.image(*window), turn)
        if affine:
            labels, image = warped(labels, matrix, True, beyond), warped(image, matrix, beyond=beyond)
        flat = tuple(round(float(value), 6) for value in matrix.ravel())
        return Drawn(np.ascontiguousarray(labels), image, sheet, top, left, turn, flat)
