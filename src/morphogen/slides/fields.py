"""Fields: square crops of a wanted physical size around given centres, many at a time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from morphogen.core.errors import InputError
from morphogen.slides.resample import margin, resample

if TYPE_CHECKING:
    import torch

    from morphogen.slides.slide import Slide

_BLOCK = 2048  # pixels of the level read: fields inside one such block are cut from one read
ORIENTATIONS = 8


def crop_fields(
    slide: Slide,
    centres: np.ndarray,
    field_um: float | None = 112.0,
    px: int = 224,
    *,
    field_px: float | None = None,
    orientations: int = 1,
    threads: int = 1,
) -> np.ndarray:
    """Cut the square field around each centre.

    Parameters
    ----------
    slide:
        From :func:`morphogen.slides.open_slide`; its µm/px must be known unless ``field_px`` is given.
    centres:
        (N, 2) x, y of the field centres in level-0 pixels (fractions allowed), as in ``adata.obsm["spatial"]``.
    field_um:
        Side of the field in µm. 112 µm at 224 px is 0.5 µm/px.
    px:
        Side of the output in pixels.
    field_px:
        Side of the field in level-0 pixels instead of µm.
    orientations:
        1, or 8 for all flips and rotations by 90° in the order of :func:`dihedral`.
    threads:
        Readers at work at the same time.

    Returns
    -------
    numpy.ndarray
        (N, px, px, 3) uint8, or (N, 8, px, px, 3); rows in the order of ``centres``; white beyond the border.
    """
    centres = np.asarray(centres, dtype=np.float64).reshape(-1, 2) if len(centres) else np.zeros((0, 2))
    if not np.isfinite(centres).all():
        row = int(np.flatnonzero(~np.isfinite(centres).all(axis=1))[0])
        raise InputError(f"centre {row} is not a number", where=slide.path)
    if orientations not in (1, ORIENTATIONS):
        raise InputError(f"orientations must be 1 or {ORIENTATIONS}, not {orientations}", where="crop_fields")
    side = float(field_px) if field_px is not None else float(field_um or 0) / slide.require_mpp()
    if side <= 0 or px <= 0:
        raise InputError(f"a field of {side:g} level-0 px at {px} px cannot be cut", where="crop_fields")
    boxes = np.column_stack([centres - side / 2, np.full((len(centres), 2), side)])
    fields = read_boxes(slide, boxes, px, threads=threads)
    return fields if orientations == 1 else dihedral(fields)


def dihedral(images: np.ndarray | torch.Tensor) -> np.ndarray | torch.Tensor:
    """The 8 orientations of square images: (…, H, W, C) → (…, 8, H, W, C), array or tensor.

    Index k = 0…3: turned counter-clockwise by k·90°, so 0 is the image itself. Index 4…7: the image mirrored left
    to right, then turned counter-clockwise by (k − 4)·90°.
    """
    if images.shape[-2] != images.shape[-3]:
        raise InputError(f"images must be square, not {tuple(images.shape[-3:-1])}", where="dihedral")
    if isinstance(images, np.ndarray):
        mirrored = images[..., ::-1, :]
        turned = [np.rot90(i, k, axes=(-3, -2)) for i in (images, mirrored) for k in range(4)]
        return np.stack(turned, axis=-4)
    import torch

    pair = (images, torch.flip(images, (-2,)))
    return torch.stack([torch.rot90(i, k, (-3, -2)) for i in pair for k in range(4)], dim=-4)


def read_boxes(slide: Slide, boxes: np.ndarray, px: int, *, threads: int = 1) -> np.ndarray:
    """Read level-0 rectangles (N, 4: x, y, w, h; all of one size) as (N, px, px, 3) uint8, white beyond the border.

    Boxes near one another are cut from one read of the pyramid level that fits, so overlapping ones decode once.
    """
    out = np.empty((len(boxes), px, px, 3), dtype=np.uint8)
    if not len(boxes):
        return out
    if np.ptp(boxes[:, 2]) > 1e-6 or np.ptp(boxes[:, 3]) > 1e-6:
        raise InputError("boxes must have one size", where="read_boxes")
    level = slide.level_for(min(boxes[0, 2], boxes[0, 3]) / px)
    d = slide.level_downsamples[level]
    around = margin(max(boxes[0, 2], boxes[0, 3]) / px / d)

    def cut(rows: np.ndarray) -> None:
        part = boxes[rows]
        block, left, top = slide.read_block(
            level,
            part[:, 0].min(),
            part[:, 1].min(),
            (part[:, 0] + part[:, 2]).max(),
            (part[:, 1] + part[:, 3]).max(),
            around,
        )
        for row, (x, y, w, h) in zip(rows, part, strict=True):
            out[row] = resample(
                block, (x / d - left, y / d - top, (x + w) / d - left, (y + h) / d - top), px, px
            )

    groups = list(_groups(boxes, d))
    if threads <= 1 or len(groups) == 1:
        for rows in groups:
            cut(rows)
        return out
    slide.reader.reader  # noqa: B018  opened once here, not by every thread
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(cut, groups))
    return out


def reading_order(slide: Slide, boxes: np.ndarray, px: int) -> np.ndarray:
    """Row order of boxes (N, 4), read at ``px`` pixels each, that decodes every tile of the file about once."""
    if not len(boxes):
        return np.zeros(0, dtype=np.int64)
    level = slide.level_for(min(boxes[0, 2], boxes[0, 3]) / px)
    return locality_order(boxes, _BLOCK * slide.level_downsamples[level])


def locality_order(boxes: np.ndarray, block: float) -> np.ndarray:
    """Row order that visits blocks of ``block`` level-0 px one after another, serpentine, so reads share tiles."""
    column = np.floor(boxes[:, 0] / block).astype(np.int64)
    row = np.floor(boxes[:, 1] / block).astype(np.int64)
    snake = np.where(row % 2 == 0, column, -column)
    return np.lexsort((boxes[:, 0], boxes[:, 1], snake, row))


def _groups(boxes: np.ndarray, downsample: float) -> Iterator[np.ndarray]:
    """Row numbers of boxes to be cut from one read; sparse neighbours are read one by one."""
    side = _BLOCK * downsample
    order = locality_order(boxes, side)
    key = np.floor(boxes[order, :2] / side).astype(np.int64)
    starts = np.flatnonzero(np.r_[True, (np.diff(key, axis=0) != 0).any(axis=1)])
    for start, stop in zip(starts, np.r_[starts[1:], len(order)], strict=True):
        rows = order[start:stop]
        part = boxes[rows]
        corner, far = part[:, :2].min(axis=0), (part[:, :2] + part[:, 2:]).max(axis=0)
        union, each = float(np.prod(far - corner)), float((part[:, 2] * part[:, 3]).sum())
        if union <= 2 * each:
            yield rows
        else:
            yield from (rows[i : i + 1] for i in range(len(rows)))
