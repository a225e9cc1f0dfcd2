"""The eight ways a square can lie, of one picture on the host and of a whole batch on any device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# (rows mirrored, columns mirrored, axes swapped after that), by number: ``number & 3`` quarter turns against the clock,
# after a mirror of the columns where ``number & 4``.
_MOVES = (
    (False, False, False),
    (False, True, True),
    (True, True, False),
    (True, False, True),
    (False, True, False),
    (False, False, True),
    (True, False, False),
    (True, True, True),
)
TURNS = len(_MOVES)


def turn_of(rows: bool, columns: bool, swapped: bool = False) -> int:
    """The number of a turn: rows and columns mirrored, then the axes swapped.

    >>> turn_of(False, False), turn_of(True, True), turn_of(False, True, swapped=True)
    (0, 2, 1)
    """
    return _MOVES.index((bool(rows), bool(columns), bool(swapped)))


def turned(image: np.ndarray, turn: int, out: np.ndarray | None = None) -> np.ndarray:
    """A picture (H, W) or (H, W, C) turned, contiguous; into ``out`` where it is given, else in memory of its own.

    >>> turned(np.array([[1, 2], [3, 4]], np.uint8), 1)
    array([[2, 4],
           [1, 3]], dtype=uint8)
    """
    rows, columns, swapped = _MOVES[turn]
    if image.dtype == np.uint8 and (image.ndim == 2 or image.shape[2] == 3):
        found = _turned_pixels(image, rows, columns, swapped)
    else:
        found = image[:: -1 if rows else 1, :: -1 if columns else 1]
        found = found.swapaxes(0, 1) if swapped else found
    if out is None:
        return np.array(found, order="C") if found.base is not None or found is image else found
    out[...] = found
    return out


def _turned_pixels(image: np.ndarray, rows: bool, columns: bool, swapped: bool) -> np.ndarray:
    """By OpenCV, which moves pixels of three bytes several times as fast as NumPy."""
    import cv2

    if rows or columns:
        image = cv2.flip(image, -1 if rows and columns else 0 if rows else 1)
    return cv2.transpose(image) if swapped else image


def turned_batch(images: Tensor, turns: Tensor) -> Tensor:
    """Squares (B, side, side) or (B, side, side, C), each turned by its number in ``turns`` (B,); on their device,
    where all are moved by one gather."""
    count, side = images.shape[:2]
    if images.device.type == "cpu":
        out = torch.empty_like(images)
        made, given = out.numpy(), images.numpy()
        for k, turn in enumerate(turns.tolist()):
            turned(given[k], turn, made[k])
        return out
    starts = torch.arange(count, device=images.device) * side * side
    corners = torch.zeros(count, 2, dtype=torch.int64, device=images.device)
    flat = images.reshape(count * side * side, *images.shape[3:])
    return squares(flat, starts, torch.full_like(starts, side), corners, turns, side)


def squares(
    flat: Tensor, starts: Tensor, widths: Tensor, corners: Tensor, turns: Tensor, side: int
) -> Tensor:
    """Squares cut out of pictures and turned, by one gather on their device.

    Parameters
    ----------
    flat:
        (P,) or (P, C), the pixels of all pictures, row by row, one picture after another.
    starts, widths:
        (B,) int64, first pixel in ``flat`` and width of the picture of each square.
    corners:
        (B, 2) int64, its top row and left column there.
    turns:
        (B,) int64.

    Returns
    -------
    (B, side, side) or (B, side, side, C).
    """
    moves = torch.tensor(_MOVES).to(flat.device, non_blocking=True)[turns]
    at = torch.arange(side, device=flat.device)
    rows = torch.where(moves[:, :1], side - 1 - at, at) + corners[:, :1]
    columns = torch.where(moves[:, 1:2], side - 1 - at, at) + corners[:, 1:]
    lines = rows * widths[:, None] + starts[:, None]
    places = torch.where(
        moves[:, 2, None, None],
        lines[:, None, :] + columns[:, :, None],
        lines[:, :, None] + columns[:, None, :],
    )
    return flat.index_select(0, places.reshape(-1)).reshape(*places.shape, *flat.shape[1:])
