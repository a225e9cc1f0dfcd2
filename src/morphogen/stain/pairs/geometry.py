"""Where the two images of a pair show the same tissue: a shift in whole pixels, or an affine map.

Positions are continuous, in pixels, x to the right and y down, with the centre of the first pixel at (0.5, 0.5), as in
whole slides. A map is a matrix ``(2, 3)``, rows ``a b tx`` and ``c d ty``: the H&E's (x, y) lies at
``(a x + b y + tx, c x + d y + ty)`` in the IHC image.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from morphogen.core.errors import InputError
from morphogen.slides.images import image_size
from morphogen.stain.data import Pair
from morphogen.stain.targets.files import read_image, read_labels, read_mask, read_target

Box = tuple[slice, slice]  # rows, columns

_CELL = 8  # px of the H&E that its shared part is rounded to


def pair_map(pair: Pair) -> np.ndarray:
    """The (2, 3) map of a pair; its shift is applied after its affine map."""
    matrix = np.eye(2, 3) if pair.affine is None else np.array(pair.affine, dtype=np.float64).reshape(2, 3)
    matrix[:, 2] += pair.shift[::-1]
    return matrix


def shared_box(pair: Pair, size: tuple[int, int]) -> Box:
    """Rows and columns of the H&E, (height, width) px, that the IHC of the same size shows as well.

    With an affine map it is the largest upright rectangle, to within a few pixels; it may be empty.
    """
    height, width = size
    if pair.affine is None:
        return _overlap(height, pair.shift[0]), _overlap(width, pair.shift[1])
    ys, xs = (np.append(np.arange(0, n, _CELL), n).astype(np.float64) for n in size)
    corners = np.stack(np.broadcast_arrays(xs[None, :], ys[:, None]), axis=-1)
    matrix = pair_map(pair)
    there = corners @ matrix[:, :2].T + matrix[:, 2]
    inside = ((there >= 0) & (there <= np.array([width, height]))).all(axis=-1)
    top, bottom, left, right = _largest_rectangle(inside)
    return slice(int(ys[top]), int(ys[bottom])), slice(int(xs[left]), int(xs[right]))


def _overlap(length: int, shift: int) -> slice:
    start = max(0, -shift)
    return slice(start, max(length - max(0, shift), start))


def _largest_rectangle(inside: np.ndarray) -> tuple[int, int, int, int]:
    """Rows and columns (top, bottom, left, right) between whose corners most of a convex set of grid points lies;
    zeros when there is none."""
    found = inside.any(axis=1)
    left = np.where(found, inside.argmax(axis=1), inside.shape[1])
    right = np.where(found, inside.shape[1] - 1 - inside[:, ::-1].argmax(axis=1), -1)
    # The set is convex: what lies within it in the first and in the last row does in all rows between.
    width = np.minimum(right[:, None], right) - np.maximum(left[:, None], left)
    height = np.arange(len(inside)) - np.arange(len(inside))[:, None]
    area = np.maximum(width, 0) * np.maximum(height, 0)
    top, bottom = (int(k) for k in np.unravel_index(int(area.argmax()), area.shape))
    if not area[top, bottom]:
        return 0, 0, 0, 0
    return top, bottom, int(max(left[top], left[bottom])), int(min(right[top], right[bottom]))


def align(pair: Pair, he: np.ndarray, ihc: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both images (H, W, C) of a pair, cut to what they share; the IHC is drawn onto the H&E's pixels.

    The H&E is never resampled. A map other than a shift costs the IHC one bicubic interpolation.
    """
    rows, columns = shared_box(pair, (he.shape[0], he.shape[1]))
    if pair.affine is None:
        dy, dx = pair.shift
        there = slice(rows.start + dy, rows.stop + dy), slice(columns.start + dx, columns.stop + dx)
        return he[rows, columns], ihc[there]
    import cv2

    # OpenCV counts from pixel centres: (x, y) of a pixel there is its index.
    matrix = pair_map(pair)
    matrix[:, 2] += matrix[:, :2] @ np.array([columns.start + 0.5, rows.start + 0.5]) - 0.5
    size = columns.stop - columns.start, rows.stop - rows.start
    if min(size) == 0:
        return he[rows, columns], he[rows, columns]
    parts = [ihc] if ihc.ndim == 2 or ihc.shape[2] == 3 else np.moveaxis(ihc, 2, 0)
    drawn = [
        cv2.warpAffine(
            np.ascontiguousarray(part),
            matrix,
            size,
            flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        for part in parts
    ]
    return he[rows, columns], drawn[0] if len(drawn) == 1 and ihc.ndim != 3 else np.dstack(drawn)


def cut(pair: Pair, image: np.ndarray) -> np.ndarray:
    """An image (H, W) or (H, W, C) on the pixels of a pair's whole H&E, cut as :func:`align` cuts."""
    rows, columns = shared_box(pair, (image.shape[0], image.shape[1]))
    return image[rows, columns]


def fitted(pair: Pair, image: np.ndarray, size: tuple[int, int], what: str = "image") -> np.ndarray:
    """An image (H, W) or (H, W, C) on the pixels of a pair's whole H&E, or cut already, as :func:`align` cuts to
    ``size``; :class:`InputError` for one of another size."""
    image = image if image.shape[:2] == size else cut(pair, image)
    if image.shape[:2] != size:
        raise InputError(
            f"the {what} is {image.shape[1]} × {image.shape[0]} px, the real one {size[1]} × {size[0]}",
            where=pair.name,
            fix="Score images at the size of the real ones",
        )
    return image


def read_aligned(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """H&E (H, W, 3) uint8 and target of a pair's files, cut to what they share; intensities (H, W, C) are float32."""
    he, target = read_image(pair.he), read_target(pair.ihc, pair.target)
    return align(pair, he, target if pair.target.colour else target.astype(np.float32))


def scanned(pair: Pair) -> np.ndarray | None:
    """(H, W) bool, cut like :func:`read_aligned`: where the target of a pair was scanned; ``None`` for everywhere."""
    if pair.mask is None:
        return None
    return _of_he(pair, read_mask(pair.mask), pair.mask, "mask")


def scanned_values(pair: Pair) -> np.ndarray:
    """(N, C) samples of a pair's target, in the type of its file: all of it, or where a mask says it was scanned."""
    values, mask = read_target(pair.ihc, pair.target), scanned(pair)
    if mask is None:
        return values.reshape(-1, values.shape[2])
    return np.asarray(align(pair, read_image(pair.he), values)[1][mask])


def cells_of(pair: Pair) -> np.ndarray | None:
    """(H, W) integers, cut likewise: the number of the nucleus that a pixel is of, 0 for none; ``None`` where no
    nuclei are given."""
    if pair.nuclei is None:
        return None
    return _of_he(pair, read_labels(pair.nuclei), pair.nuclei, "image of nuclei")


def _of_he(pair: Pair, image: np.ndarray, path: Path, what: str) -> np.ndarray:
    if image.shape != image_size(pair.he):
        raise InputError(
            f"the {what} is {image.shape[1]} × {image.shape[0]} px, its H&E another size",
            where=path,
            fix="Draw it on the pixels of the H&E",
        )
    return cut(pair, image)


def shared_size(pair: Pair) -> tuple[int, int]:
    """(height, width) in pixels of what both images of a pair show."""
    rows, columns = shared_box(pair, image_size(pair.he))
    return rows.stop - rows.start, columns.stop - columns.start


def shared_side(pair: Pair) -> int:
    """Its shorter side."""
    return min(shared_size(pair))
