"""Pseudo-labels: images without labels, with those that a segmenter gives them (Lee 2013)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from morphogen.layout.segmenter.apply import labelled
from morphogen.layout.segmenter.model import Segmenter
from morphogen.layout.sources.arrays import in_memory
from morphogen.layout.sources.sheets import ImageSheet, Sheet

FIELD, FIELDS = 4, 16  # crops a side of a field of a slide, and fields of each slide at most


def pseudo_sheets(segmenter: Segmenter, unannotated: Sequence[Sheet], crop: int) -> list[ImageSheet]:
    """The unannotated tissue with the labels that a segmenter gives it: whole images, and fields of slides."""
    made = []
    for sheet in unannotated:
        if isinstance(sheet, ImageSheet):
            made.append(in_memory(sheet.name, sheet.patient, sheet.pixels, labelled(segmenter, sheet.pixels)))
            continue
        for top, left in sheet.tissue(FIELD * crop)[:FIELDS]:
            image = np.ascontiguousarray(sheet.image(int(top), int(left), FIELD * crop))
            made.append(
                in_memory(f"{sheet.name}_{top}_{left}", sheet.patient, image, labelled(segmenter, image))
            )
    return made
