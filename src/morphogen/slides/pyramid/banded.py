"""A pyramid in one go, from bands of rows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from morphogen.core.errors import OutputError
from morphogen.slides.pyramid.writer import PyramidWriter


def write_pyramid(
    path: Path | str,
    bands: Iterable[np.ndarray],
    width: int,
    height: int,
    *,
    mpp: float | tuple[float, float],
    **how: Any,
) -> Path:
    """Write an image from bands of rows, top to bottom; ``how`` as for :class:`PyramidWriter`.

    ``bands`` are (h, width, 3) or (h, width) uint8 of any heights that add up to ``height``. Raises
    :class:`OutputError` when they do not; then no file is left.
    """
    writer = PyramidWriter(path, width, height, mpp=mpp, **{"resume": False, **how})
    row = 0
    try:
        for band in bands:
            if band.shape[1] != width or row + band.shape[0] > height:
                raise OutputError(
                    f"a band of {band.shape[0]} rows × {band.shape[1]} columns does not fit at row {row} of an image "
                    f"of {width} × {height} px",
                    where=path,
                )
            writer.write(band, row)
            row += band.shape[0]
        if row != height:
            raise OutputError(f"the bands end at row {row} of {height}", where=path)
        return writer.close()
    except BaseException:
        writer.abandon(delete=True)
        raise
