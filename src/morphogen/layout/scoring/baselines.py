"""The arms of the comparison: what a segmenter is trained on when there are few labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from morphogen.core.errors import InputError
from morphogen.core.seeds import numpy_generator
from morphogen.layout.segmenter.apply import labelled
from morphogen.layout.segmenter.model import Segmenter
from morphogen.layout.sources.sheets import ImageSheet, Sheet
from morphogen.slides.colour import deconvolve, estimate_stains, reconstruct

REAL = "real only"
AUGMENTED = "real + stain augmentation"
RECOLOURED = "real + recolouring"
PSEUDO = "real + pseudo-labels"
SYNTHETIC = "synthetic only"
BOTH = "real + synthetic"
ALL = "all labels"
ORDER = (REAL, AUGMENTED, RECOLOURED, PSEUDO, SYNTHETIC, BOTH, ALL)
STAIN = 0.15  # size of the stain augmentation


@dataclass(frozen=True)
class Stains:
    """How an image is stained: Macenko's matrix and the 99th percentile of the amounts of its two stains."""

    matrix: np.ndarray
    amounts: np.ndarray

    @classmethod
    def of(cls, images: np.ndarray) -> Stains:
        """Of images (N, H, W, 3) uint8 together."""
        matrix = estimate_stains(images)
        amounts = deconvolve(images, matrix)[:, :2].permute(1, 0, 2, 3).flatten(1)
        high = np.quantile(amounts.numpy(), 0.99, axis=1)
        return cls(matrix.numpy(), np.maximum(high, 1e-3))


def recolour(image: np.ndarray, source: Stains, target: Stains) -> np.ndarray:
    """An image (H, W, 3) with its amounts of stain laid out in another's colours (Macenko et al. 2009)."""
    amounts = deconvolve(image[None], source.matrix)
    ratio = torch.tensor([*(target.amounts / source.amounts), 1.0], dtype=amounts.dtype)
    made = reconstruct(amounts * ratio[None, :, None, None], target.matrix, dtype="uint8")
    return made[0].permute(1, 2, 0).numpy()


def recoloured_sheets(
    annotated: Sequence[Sheet], unannotated: Sequence[Sheet], count: int, crop: int, seed: int = 0
) -> list[ImageSheet]:
    """``count`` annotated crops in the stain colours of unannotated patients, who take turns."""
    groups: dict[str, list[Sheet]] = {}
    for sheet in unannotated:
        groups.setdefault(sheet.patient, []).append(sheet)
    if not groups:
        return []
    stains: dict[str, Stains] = {}
    made = []
    for number in range(count):
        random = numpy_generator(seed, "recolour", number)
        sheet = annotated[int(random.integers(len(annotated)))]
        patient = sorted(groups)[number % len(groups)]
        for key, sheets in ((f"of {patient}", groups[patient]), (f"sheet {sheet.name}", [sheet])):
            if key not in stains:
                cells = [
                    sheet_.image(int(r), int(c), crop)
                    for sheet_ in sheets[:4]
                    for r, c in sheet_.tissue(crop)[:6]
                ]
                stains[key] = Stains.of(np.stack(cells))
        height, width = sheet.size
        top, left = (int(random.integers(max(1, size - crop + 1))) for size in (height, width))
        image, labels = sheet.image(top, left, crop), sheet.labels(top, left, crop)
        change = partial(
            recolour, np.ascontiguousarray(image), stains[f"sheet {sheet.name}"], stains[f"of {patient}"]
        )
        made.append(in_memory(f"{sheet.name}_as_{patient}_{number}", patient, change(), labels))
    return made


def _cells(sheets: Sequence[Sheet], crop: int) -> np.ndarray:
    """A few tissue crops of a few sheets, (N, crop, crop, 3)."""
    return np.stack(
        [s.image(int(row), int(column), crop) for s in sheets[:4] for row, column in s.tissue(crop)[:6]]
    )


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

    def identity(self) -> list[object]:
        from morphogen.core.files import content_hash

        return [self.name, self.patient, content_hash(self.pixels, self.classes)]


def as_style(sheets: Sequence[Sheet]) -> list[Sheet]:
    """The same sheets without their labels."""
    return [replace(s, read_labels=None) if isinstance(s, ImageSheet) else s for s in sheets]
