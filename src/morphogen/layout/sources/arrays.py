"""Sheets of arrays in memory: images that were made, with their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from morphogen.core.errors import InputError
from morphogen.core.files import content_hash
from morphogen.layout.sources.sheets import ImageSheet, Sheet


def in_memory(
    name: str, patient: str, image: np.ndarray, labels: np.ndarray, *, balanced: bool = False
) -> ImageSheet:
    """A sheet of an image (H, W, 3) and its labels (H, W), both uint8; it has no file."""
    if image.shape[:2] != labels.shape:
        raise InputError(f"labels of {labels.shape} do not fit an image of {image.shape}", where=name)
    return _Array(name, patient, None, lambda: image, lambda: labels, balanced=balanced)  # type: ignore[arg-type]


class _Array(ImageSheet):
    """An image sheet without a file."""

    def identity(self, labels: bool = True) -> list[object]:
        drawn = ["balanced"] if labels and self.balanced else []
        return [self.name, self.patient, content_hash(self.pixels, self.classes), *drawn]


def as_style(sheets: Sequence[Sheet]) -> list[Sheet]:
    """The same sheets without their labels."""
    return [replace(s, read_labels=None) if isinstance(s, ImageSheet) else s for s in sheets]
