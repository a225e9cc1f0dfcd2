"""Seams of an image that was made window by window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from morphogen.core.errors import InputError


@dataclass(frozen=True)
class SeamScore:
    """Mean absolute difference across window borders over that elsewhere; 1.00 means that no seam shows.

    ``vertical`` judges borders between columns, ``horizontal`` between rows; ``worst`` is the larger one.
    NaN where an axis has no border, or none that counts.
    """

    vertical: float
    horizontal: float

    @property
    def worst(self) -> float:
        scores = [score for score in (self.vertical, self.horizontal) if score == score]
        return max(scores, default=float("nan"))


class SeamMeter:
    """Seam score of an image that comes in bands of rows, top to bottom, and is never in memory whole.

    Parameters
    ----------
    width, height:
        Size of the image.
    columns, rows:
        Border positions: position ``p`` is the border between pixel ``p − 1`` and pixel ``p``, 0 < p < size.
    period:
        Compare borders with other positions of the same phase ``p mod period`` alone (1 = with all). A source
        that was a JPEG has larger differences at every 8th position (16th for colour), and windows begin at
        such positions: without this they would be blamed for the blocks of the file.
    """

    def __init__(
        self,
        width: int,
        height: int,
        columns: Sequence[int] = (),
        rows: Sequence[int] = (),
        *,
        period: int = 1,
    ) -> None:
        if not len(columns) and not len(rows):
            raise InputError("no border positions are given", where="seam score")
        if period < 1:
            raise InputError(f"the period is {period}, but must be 1 or more", where="seam score")
        self.period = period
        self._columns, self._rows = _flags(columns, width), _flags(rows, height)
        self._width, self._row = width, 0
        self._last: np.ndarray | None = None
        self._last_mask: np.ndarray | None = None
        # Sums and counts of differences by phase: across borders and elsewhere, between columns and rows.
        names = ("across x", "elsewhere x", "across y", "elsewhere y")
        self.totals = {name: np.zeros((2, period)) for name in names}

    def add(self, band: Any, mask: Any = None) -> None:
        """The next rows ``(h, width)`` or ``(h, width, C)``; ``mask`` (h, width) bool keeps pixels that
        count.

        A difference counts when both its pixels do.
        """
        pixels = np.asarray(band)
        pixels = pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if pixels.ndim != 3 or pixels.shape[1] != self._width:
            raise InputError(
                f"a band must be (h, {self._width}) or (h, {self._width}, C), not {pixels.shape}"
            )
        keep = np.ones(pixels.shape[:2], bool) if mask is None else np.asarray(mask, bool)
        if keep.shape != pixels.shape[:2]:
            raise InputError(f"the mask is {keep.shape}, the image {pixels.shape[:2]}", where="seam score")
        if self._row + len(pixels) > len(self._rows):
            raise InputError("there are more rows than the image has", where="seam score")
        both = keep[:, 1:] & keep[:, :-1]
        sums = _differences(pixels[:, 1:], pixels[:, :-1], both, axis=0)
        self._count("x", sums, both.sum(axis=0), np.arange(1, self._width))
        if self._last is not None and self._last_mask is not None:
            pixels = np.concatenate([self._last[None], pixels])
            keep = np.concatenate([self._last_mask[None], keep])
        first = self._row if self._last is not None else self._row + 1
        both = keep[1:] & keep[:-1]
        sums = _differences(pixels[1:], pixels[:-1], both, axis=1)
        self._count("y", sums, both.sum(axis=1), np.arange(first, first + len(sums)))
        self._row += len(np.asarray(band))
        self._last, self._last_mask = pixels[-1], keep[-1]

    def _count(self, axis: str, sums: np.ndarray, counts: np.ndarray, positions: np.ndarray) -> None:
        border = (self._columns if axis == "x" else self._rows)[positions]
        for name, chosen in ((f"across {axis}", border), (f"elsewhere {axis}", ~border)):
            phases = positions[chosen] % self.period
            for row, values in enumerate((sums, counts)):
                self.totals[name][row] += np.bincount(phases, values[chosen], minlength=self.period)

    def state(self) -> dict[str, np.ndarray]:
        """Everything a later meter needs to go on, as arrays."""
        last = np.zeros(0, np.float32) if self._last is None else self._last
        mask = np.zeros(0, bool) if self._last_mask is None else self._last_mask
        totals = np.stack(list(self.totals.values()))
        return {"row": np.array(self._row), "last": last, "mask": mask, "totals": totals}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on from :meth:`state`."""
        self._row = int(state["row"])
        if state["last"].size:
            self._last, self._last_mask = state["last"], state["mask"]
        for name, values in zip(self.totals, state["totals"], strict=True):
            self.totals[name] = np.array(values, dtype=np.float64)

    def score(self) -> SeamScore:
        """The score of the rows so far."""
        return SeamScore(vertical=self._ratio("x"), horizontal=self._ratio("y"))

    def plain(self) -> SeamScore:
        """The score against all other positions, whatever ``period`` is."""
        return SeamScore(vertical=self._ratio("x", True), horizontal=self._ratio("y", True))

    def _ratio(self, axis: str, plain: bool = False) -> float:
        across, elsewhere = self.totals[f"across {axis}"], self.totals[f"elsewhere {axis}"]
        if plain:
            across, elsewhere = across.sum(1, keepdims=True), elsewhere.sum(1, keepdims=True)
        # Phases without any other position have nothing to be compared with.
        usable = (across[1] > 0) & (elsewhere[1] > 0)
        if not usable.any():
            return float("nan")
        found = across[0, usable].sum()
        expected = (across[1, usable] * elsewhere[0, usable] / elsewhere[1, usable]).sum()
        if expected == 0:
            return 1.0 if found == 0 else float("inf")
        return float(found / expected)


def _differences(a: np.ndarray, b: np.ndarray, both: np.ndarray, axis: int) -> np.ndarray:
    """Sums along ``axis`` of the mean absolute difference of the channels, where both pixels count."""
    total: Any = 0
    for k in range(a.shape[2]):
        x, y = a[..., k], b[..., k]
        # Of bytes without a detour: the larger minus the smaller one.
        total = total + (
            (np.maximum(x, y) - np.minimum(x, y)).astype(np.uint16) if x.dtype == np.uint8 else np.abs(x - y)
        )
    counted = total * both
    return counted.sum(axis=axis, dtype=np.uint64 if total.dtype.kind == "u" else np.float64) / a.shape[2]


def seam_score(
    image: Any,
    columns: Sequence[int] = (),
    rows: Sequence[int] = (),
    mask: Any = None,
    *,
    period: int = 1,
) -> SeamScore:
    """Seam score of a whole image ``(H, W)`` or ``(H, W, C)`` of any numeric type; see :class:`SeamMeter`.

    Raises :class:`InputError` for positions outside the image or when no border is given.
    """
    shape = np.shape(image)
    if len(shape) not in (2, 3):
        raise InputError(f"an image must be (H, W) or (H, W, C), not {shape}", where="seam score")
    meter = SeamMeter(shape[1], shape[0], columns, rows, period=period)
    meter.add(image, mask)
    return meter.score()


def _flags(borders: Sequence[int], size: int) -> np.ndarray:
    flags = np.zeros(size, bool)
    positions = np.asarray(borders, dtype=np.int64)
    if len(positions) and (positions.min() < 1 or positions.max() >= size):
        raise InputError(f"border positions must lie in 1…{size - 1}", where="seam score")
    flags[positions] = True
    return flags
