"""The arms of the comparison: what a segmenter is trained on when there are few labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from morphogen.core.errors import InputError
from morphogen.layout.config import DataConfig, SynthesisConfig
from morphogen.layout.segmenter.apply import labelled
from morphogen.layout.segmenter.model import Segmenter
from morphogen.layout.sources.sheets import ImageSheet, Sheet
from morphogen.layout.synthesis.plan import Plan, name_of

REAL = "real only"
AUGMENTED = "real + stain augmentation"
RECOLOURED = "real + recolouring"
RESTYLED = "real + recolouring and focus"
PSEUDO = "real + pseudo-labels"
SYNTHETIC = "synthetic only"
BOTH = "real + synthetic"
ALL = "all labels"
ORDER = (REAL, AUGMENTED, RECOLOURED, RESTYLED, PSEUDO, SYNTHETIC, BOTH, ALL)
STAIN = 0.15  # size of the stain augmentation, where the settings have none


def recoloured_sheets(
    annotated: Sequence[Sheet],
    unannotated: Sequence[Sheet],
    count: int,
    data: DataConfig,
    classes: int,
    seed: int = 0,
    *,
    focus: bool = False,
) -> list[ImageSheet]:
    """``count`` annotated crops, turned and scaled, in the stain colours of unannotated patients, who take turns. With
    ``focus`` they are as sharp or blurred as those, too: what synthetic images begin at, so that the two differ by what
    the diffusion model does to them."""
    if not unannotated:
        return []
    data = data.replace(sampling="mp", style_images=1)
    plan = Plan(annotated, unannotated, data, SynthesisConfig(count=count, seed=seed, focus=focus), classes)
    return [
        in_memory(f"{name_of(pair.number)}_as_{pair.patient}", pair.patient, pair.begin, pair.layout.labels)
        for pair in (plan[number] for number in range(count))
    ]


def pseudo_sheets(segmenter: Segmenter, unannotated: Sequence[Sheet], crop: int) -> list[ImageSheet]:
    """The unannotated tissue with the labels that a segmenter gives it."""
    made = []
    for sheet in unannotated:
        if isinstance(sheet, ImageSheet):
            made.append(in_memory(sheet.name, sheet.patient, sheet.pixels, labelled(segmenter, sheet.pixels)))
            continue
        for top, left in sheet.tissue(4 * crop)[:16]:
            image = np.ascontiguousarray(sheet.image(int(top), int(left), 4 * crop))
            made.append(
                in_memory(f"{sheet.name}_{top}_{left}", sheet.patient, image, labelled(segmenter, image))
            )
    return made


def in_memory(name: str, patient: str, image: np.ndarray, labels: np.ndarray) -> ImageSheet:
    """A sheet of arrays; it has no file."""
    if image.shape[:2] != labels.shape:
        raise InputError(f"labels of {labels.shape} do not fit an image of {image.shape}", where=name)
    return _Array(name, patient, None, lambda: image, lambda: labels)  # type: ignore[arg-type]


class _Array(ImageSheet):
    """An image sheet without a file."""

    def identity(self, labels: bool = True) -> list[object]:
        from morphogen.core.files import content_hash

        return [self.name, self.patient, content_hash(self.pixels, self.classes)]


def as_style(sheets: Sequence[Sheet]) -> list[Sheet]:
    """The same sheets without their labels."""
    return [replace(s, read_labels=None) if isinstance(s, ImageSheet) else s for s in sheets]
