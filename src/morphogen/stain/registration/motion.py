"""Rigid or affine registration of two stains of one tissue, with a measure of whether they match at all.

Serial sections are turned and moved against each other by degrees and by a fifth of a field of view. What they share
is where tissue is dense and where haematoxylin lies, in the large and in the small; brown is not shared. Rotations
are tried one by one, shifts by masked normalised cross-correlation (Padfield, IEEE Trans. Image Process. 21, 2012), and
the best is refined by maximising the enhanced correlation coefficient (Evangelidis and Psarakis, IEEE TPAMI 30, 2008).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from morphogen.core.errors import InputError
from morphogen.slides.colour import optical_density

Motion = Literal["rigid", "affine"]

# Tissue of different patients reaches 0.15, serial sections 0.22 to 0.70, a re-stained one 0.66.
LEAST_SCORE = 0.2
MAX_TURN = 16.0  # degrees
MAX_SHIFT = 0.22  # of each side, where the middles come to lie
_COARSE = 256  # px of the longer side where rotations and shifts are searched
_SIDES = (256, 512)  # px of the longer side where the best is refined
_STEP = 2.0  # degrees between rotations; then quarters of it around the best
_FINE = 12.0  # px at the coarse side: structure below is matched apart from the lie of the tissue
_LEAST_OVERLAP = 0.4
_STRETCH = 1.15  # largest scale factor, either way, that an affine map may have


@dataclass(frozen=True)
class Alignment:
    """``matrix`` (2, 3) takes positions in the H&E to those in the IHC (:mod:`morphogen.stain.pairs.geometry`).

    ``score`` is the mean correlation of the structures that both stains show, where the images overlap. ``sure`` says
    whether it is at least :data:`LEAST_SCORE`; if not, the two need not show the same tissue.
    """

    matrix: np.ndarray
    score: float
    sure: bool

    @property
    def turn(self) -> float:
        """Degrees, clockwise on the screen."""
        return float(np.degrees(np.arctan2(self.matrix[1, 0], self.matrix[0, 0])))


def estimate_motion(he: np.ndarray, ihc: np.ndarray, motion: Motion = "rigid") -> Alignment:
    """The rotation and shift (``rigid``), with shear and stretch up to 15 % (``affine``), between two stains.

    Parameters
    ----------
    he, ihc:
        (H, W, 3) uint8 of the same tissue at the same µm/px; sizes may differ. :class:`InputError` below 96 px.

    Turns up to :data:`MAX_TURN` degrees and shifts up to :data:`MAX_SHIFT` of a side are searched. A step of the
    refinement that lowers the score is not taken.
    """
    for image in (he, ihc):
        if min(image.shape[:2]) < 96:
            raise InputError(
                f"images of {image.shape[1]} × {image.shape[0]} px are too small to be registered (96 px)",
                where="registration",
            )
    longer = max(*he.shape[:2], *ihc.shape[:2])
    fixed, moving = _structures(he), _structures(ihc)
    factor = max(1.0, longer / _COARSE)
    planes = _planes(fixed, factor), _planes(moving, factor)
    matrix = _scaled(_search(*planes), factor)
    best = _score(*planes, _scaled(matrix, 1 / factor))
    for side in _SIDES:
        finer = max(1.0, longer / side)
        a, b = (_haematoxylin(structures, finer) for structures in (fixed, moving))
        for kind in ("rigid",) if motion == "rigid" else ("rigid", "affine"):
            tried = _refined(a, b, _scaled(matrix, 1 / finer), kind)
            if tried is None:
                continue
            tried = _scaled(tried, finer)
            score = _score(*planes, _scaled(tried, 1 / factor))
            if score >= best - 0.01:  # a finer scale may see what the coarse one does not
                matrix, best = tried, score
    return Alignment(matrix, best, best >= LEAST_SCORE)


def _structures(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Total optical density and haematoxylin, (H, W) each, without their extremes."""
    from skimage.color import rgb2hed

    density = optical_density(image[None])[0].mean(dim=0).numpy()
    return np.clip(density, 0, 1.5), np.clip(rgb2hed(image)[..., 0], -0.02, 0.4).astype(np.float32)


def _planes(structures: tuple[np.ndarray, np.ndarray], factor: float) -> np.ndarray:
    """What is compared, (5, h, w): density and haematoxylin as they are and without what is coarse, and edges."""
    from scipy.ndimage import gaussian_filter, gaussian_gradient_magnitude

    density, haematoxylin = structures
    small = [_ranged(gaussian_filter(_shrunk(plane, factor), 1.5)) for plane in (density, haematoxylin)]
    edges = _ranged(gaussian_filter(_shrunk(gaussian_gradient_magnitude(density, 2.0), factor), 1.5))
    fine = [plane - gaussian_filter(plane, _FINE) for plane in (*small, edges)]
    return np.stack([*small, *fine]).astype(np.float32)


def _haematoxylin(structures: tuple[np.ndarray, np.ndarray], factor: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return _ranged(gaussian_filter(_shrunk(structures[1], factor), 1.5))


def _shrunk(plane: np.ndarray, factor: float) -> np.ndarray:
    import cv2

    if factor == 1:
        return plane
    size = max(1, round(plane.shape[1] / factor)), max(1, round(plane.shape[0] / factor))
    return cv2.resize(np.ascontiguousarray(plane, np.float32), size, interpolation=cv2.INTER_AREA)


def _ranged(plane: np.ndarray) -> np.ndarray:
    low, high = np.quantile(plane, (0.01, 0.99))
    return np.clip((plane - low) / max(float(high - low), 1e-6), 0, 1).astype(np.float32)


def _scaled(matrix: np.ndarray, factor: float) -> np.ndarray:
    """The same map in pixels ``factor`` times smaller."""
    return np.column_stack([matrix[:, :2], matrix[:, 2] * factor])


def _drawn(
    plane: np.ndarray, matrix: np.ndarray, size: tuple[int, int], *, nearest: bool = False
) -> np.ndarray:
    """A moving plane (h, w) on the fixed one's pixels, zero outside."""
    import cv2

    indices = matrix.copy()
    indices[:, 2] += indices[:, :2] @ np.array([0.5, 0.5]) - 0.5
    how = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    return cv2.warpAffine(plane, indices, size[::-1], flags=how | cv2.WARP_INVERSE_MAP)


def _search(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """The best rotation and whole-pixel shift between planes (P, h, w), as a matrix at their scale."""
    size = fixed.shape[1], fixed.shape[2]
    correlation = _MaskedCorrelation(fixed, tuple(int(MAX_SHIFT * n) for n in size))
    middle = np.array([size[1], size[0]]) / 2
    theirs = np.array([moving.shape[2], moving.shape[1]]) / 2

    def at(turn: float) -> tuple[float, np.ndarray]:
        angle = np.radians(turn)
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix = np.column_stack([rotation, theirs - rotation @ middle])
        mask = _drawn(np.ones(moving.shape[1:], np.float32), matrix, size, nearest=True)
        drawn = np.stack([_drawn(plane, matrix, size) for plane in moving])
        score, dy, dx = correlation.peak(drawn, mask)
        matrix[:, 2] += rotation @ np.array([dx, dy])
        return score, matrix

    turns = np.arange(-MAX_TURN, MAX_TURN + 1e-9, _STEP)
    found = [at(turn) for turn in turns]
    best = float(turns[int(np.argmax([score for score, _ in found]))])
    found += [at(best + quarter * _STEP / 4) for quarter in (-3, -2, -1, 1, 2, 3)]
    return max(found, key=lambda each: each[0])[1]


class _MaskedCorrelation:
    """Mean normalised cross-correlation of planes (P, h, w) with others that are known in part, over shifts up to
    ``reach`` (rows, columns)."""

    def __init__(self, fixed: np.ndarray, reach: tuple[int, ...]) -> None:
        from scipy.fft import next_fast_len

        self.reach = reach
        self.size = fixed.shape[1:]
        self.shape = [next_fast_len(n + r, real=True) for n, r in zip(self.size, reach, strict=True)]
        self.planes = self._forward(fixed).conj()
        self.squares = self._forward(fixed**2).conj()
        self.ones = self._forward(np.ones(self.size, np.float32)).conj()

    def _forward(self, planes: np.ndarray) -> np.ndarray:
        from scipy.fft import rfft2

        return rfft2(planes.astype(np.float64), self.shape)

    def _back(self, spectrum: np.ndarray) -> np.ndarray:
        """Sums at every shift, (…, 2 ry + 1, 2 rx + 1)."""
        from scipy.fft import irfft2

        sums = np.roll(irfft2(spectrum, self.shape), self.reach, axis=(-2, -1))
        return sums[..., : 2 * self.reach[0] + 1, : 2 * self.reach[1] + 1]

    def peak(self, drawn: np.ndarray, mask: np.ndarray) -> tuple[float, int, int]:
        """Best mean correlation and its (dy, dx): pixel ``p + (dy, dx)`` of ``drawn`` matches ``p`` of the fixed."""
        there = self._forward(mask)
        moving, squares = self._forward(drawn * mask), self._forward(drawn**2 * mask)
        n = np.maximum(self._back(there * self.ones), 1.0)
        x, xx = self._back(there * self.planes), self._back(there * self.squares)
        y, yy = self._back(moving * self.ones), self._back(squares * self.ones)
        xy = self._back(moving * self.planes)
        spread = np.maximum(xx - x * x / n, 1e-6) * np.maximum(yy - y * y / n, 1e-6)
        score = ((xy - x * y / n) / np.sqrt(spread)).mean(axis=0)
        score[n < _LEAST_OVERLAP * self.size[0] * self.size[1]] = -1
        row, column = np.unravel_index(int(score.argmax()), score.shape)
        return float(score[row, column]), int(row) - self.reach[0], int(column) - self.reach[1]


def _score(fixed: np.ndarray, moving: np.ndarray, matrix: np.ndarray) -> float:
    """Mean correlation of all planes under a map, where the images overlap; −1 when they hardly do."""
    size = fixed.shape[1], fixed.shape[2]
    mask = _drawn(np.ones(moving.shape[1:], np.float32), matrix, size, nearest=True) > 0.5
    if mask.mean() < _LEAST_OVERLAP:
        return -1.0
    found = []
    for a, b in zip(fixed, moving, strict=True):
        x, y = a[mask], _drawn(b, matrix, size)[mask]
        x, y = x - x.mean(), y - y.mean()
        found.append(float(x @ y) / max(float(np.sqrt((x @ x) * (y @ y))), 1e-9))
    return float(np.mean(found))


def _refined(fixed: np.ndarray, moving: np.ndarray, start: np.ndarray, kind: str) -> np.ndarray | None:
    """A map that correlates better, or ``None`` where the search does not converge or leaves its bounds."""
    import cv2

    indices = start.copy()
    indices[:, 2] += indices[:, :2] @ np.array([0.5, 0.5]) - 0.5
    model = cv2.MOTION_EUCLIDEAN if kind == "rigid" else cv2.MOTION_AFFINE
    until = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 200, 1e-6)
    everywhere = np.full(moving.shape, 255, np.uint8)
    try:
        _, found = cv2.findTransformECC(
            fixed, moving, indices.astype(np.float32), model, until, everywhere, 5
        )
    except cv2.error:  # it says so when the images stop to overlap or to correlate
        return None
    matrix = found.astype(np.float64)
    matrix[:, 2] += 0.5 - matrix[:, :2] @ np.array([0.5, 0.5])
    stretch = np.linalg.svd(matrix[:, :2], compute_uv=False)
    turn = np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0]))
    middle = np.array([fixed.shape[1], fixed.shape[0]]) / 2
    moved = np.abs(matrix[:, :2] @ middle + matrix[:, 2] - np.array(moving.shape[::-1]) / 2)
    bounded = (
        stretch.max() <= _STRETCH
        and stretch.min() >= 1 / _STRETCH
        and abs(turn) <= MAX_TURN + _STEP
        and (moved <= (MAX_SHIFT + 0.03) * np.array(moving.shape[::-1])).all()
    )
    return matrix if bounded else None
