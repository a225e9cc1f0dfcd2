"""Registration of pairs: a shift in whole pixels, found here, or a turn, a shift and a stretch (:mod:`.motion`)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from morphogen.core.errors import InputError, nearest
from morphogen.core.files import content_hash
from morphogen.core.fingerprints import fingerprint
from morphogen.core.running.spread import Spread
from morphogen.core.writing.journal import Journal, journalled
from morphogen.slides.colour import optical_density
from morphogen.slides.images import image_size
from morphogen.stain.data import Pair
from morphogen.stain.pairs.geometry import align, pair_map, shared_box
from morphogen.stain.registration.motion import estimate_motion
from morphogen.stain.targets.files import read_image

MOTIONS = ("shift", "rigid", "affine")

log = logging.getLogger("morphogen.stain")

_SMOOTH = 2.0  # px, SD of the blur before edges are taken: nuclei stay, stain texture goes
_LEAST_PEAK = 5.0  # SDs of the correlation surface that a true shift stands out by
_LEAST_INNER = (
    16  # px of the image beyond four times the largest shift: what is compared of a quadrant, twice
)
_AGREE = 3.0  # px within which the four quadrants must confirm it


@dataclass(frozen=True)
class Shift:
    """IHC pixel ``p + (dy, dx)`` shows what H&E pixel ``p`` shows. ``sure`` is False when none was found
    (then 0).
    """

    dy: int
    dx: int
    sure: bool


def estimate_shift(he: np.ndarray, ihc: np.ndarray, max_shift: int = 32) -> Shift:
    """The whole-pixel shift between two images ``(H, W, 3)`` uint8 of the same tissue in two stains.

    Normalised cross-correlation of edge strength in total optical density, which the stains share although
    their colours differ, over shifts up to ``max_shift``. It is accepted only when its peak stands out and
    at least three of the four quadrants, each searched alone, find the same place; repeated structure or
    serial sections fail that, and give no shift.
    """
    if he.shape != ihc.shape:
        raise InputError(
            f"images of one size are needed, not {he.shape[:2]} and {ihc.shape[:2]}", where="registration"
        )
    if max_shift < 1:
        raise InputError(f"shifts up to {max_shift} px are none", where="registration", fix="Use 1 or more")
    height, width = he.shape[:2]
    if min(height, width) < 4 * max_shift + _LEAST_INNER:
        raise InputError(
            f"images of {width} × {height} px are too small for shifts up to {max_shift} px",
            where="registration",
            fix="Use a smaller max_shift",
        )
    a, b = _edges(he), _edges(ihc)
    dy, dx, height_of_peak = _peak(a, b, max_shift)
    middle = height // 2, width // 2
    votes = 0
    for rows in (slice(0, middle[0]), slice(middle[0], height)):
        for columns in (slice(0, middle[1]), slice(middle[1], width)):
            y, x, _ = _peak(a[rows, columns], b[rows, columns], max_shift)
            votes += abs(y - dy) <= _AGREE and abs(x - dx) <= _AGREE
    if height_of_peak < _LEAST_PEAK or votes < 3:
        return Shift(0, 0, False)
    return Shift(dy, dx, True)


def _edges(image: np.ndarray) -> np.ndarray:
    from scipy.ndimage import gaussian_gradient_magnitude

    density = optical_density(image[None])[0].mean(dim=0).numpy()
    return gaussian_gradient_magnitude(density, _SMOOTH)


def _peak(a: np.ndarray, b: np.ndarray, most: int) -> tuple[int, int, float]:
    """Best (dy, dx) and how many SDs its correlation lies above the mean over all shifts."""
    inner = a[most:-most, most:-most]
    surface = _ncc(inner.astype(np.float64), b.astype(np.float64))
    dy, dx = np.unravel_index(int(surface.argmax()), surface.shape)
    score = float((surface.max() - surface.mean()) / max(float(surface.std()), 1e-9))
    return int(dy) - most, int(dx) - most, score


def _ncc(template: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Normalised cross-correlation of ``template`` at every place where it fits into ``field``."""
    from scipy.fft import irfft2, next_fast_len, rfft2

    template = template - template.mean()
    rows, columns = field.shape[0] - template.shape[0] + 1, field.shape[1] - template.shape[1] + 1
    shape = [next_fast_len(n, real=True) for n in field.shape]
    product = irfft2(rfft2(field, shape) * rfft2(template, shape).conj(), shape)[:rows, :columns]
    mean, square = (_window_sums(x, template.shape) / template.size for x in (field, field**2))
    spread = np.sqrt(np.maximum(square - mean**2, 1e-12))
    return product / (template.size * spread * max(float(template.std()), 1e-9))


def _window_sums(field: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Sums over every window of ``size``, from a summed-area table."""
    table = np.pad(field, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    h, w = size
    return table[h:, w:] - table[:-h, w:] - table[h:, :-w] + table[:-h, :-w]


@dataclass(frozen=True)
class Registered:
    """A pair with what was found added to its map; ``sure`` is False where nothing was, and it is as it came.
    ``score`` is that of :class:`~morphogen.stain.registration.motion.Alignment`; a shift has none."""

    pair: Pair
    sure: bool
    score: float | None = None


def register_pair(pair: Pair, motion: str = "rigid", max_shift: int = 32) -> Registered:
    """Register the files of a pair, from where its map leaves them.

    motion: ``shift`` (whole pixels, up to ``max_shift``), or ``rigid`` or ``affine``
    (:func:`~morphogen.stain.registration.motion.estimate_motion`).
    """
    if motion not in MOTIONS:
        raise InputError(f"unknown registration '{motion}'.{nearest(motion, MOTIONS)}")
    a, b = read_image(pair.he), read_image(pair.ihc)
    he, ihc = align(pair, a, b)
    try:
        return _found(pair, he, ihc, motion, max_shift)
    except InputError as error:
        raise InputError(error.what, where=pair.name, fix=error.fix) from None


def _found(pair: Pair, he: np.ndarray, ihc: np.ndarray, motion: str, max_shift: int) -> Registered:
    if motion == "shift":
        shift = estimate_shift(he, ihc, max_shift)
        moved = replace(pair, shift=(pair.shift[0] + shift.dy, pair.shift[1] + shift.dx))
        return Registered(moved if shift.sure else pair, shift.sure)
    found = estimate_motion(he, ihc, "affine" if motion == "affine" else "rigid")
    if not found.sure:
        return Registered(pair, False, found.score)
    rows, columns = shared_box(pair, image_size(pair.he))
    affine = joined(pair_map(pair), found.matrix, (columns.start, rows.start))
    return Registered(replace(pair, affine=affine, shift=(0, 0)), True, found.score)


def register_pairs(
    pairs: Sequence[Pair],
    motion: str = "rigid",
    max_shift: int = 32,
    *,
    workers: int | None = None,
    spread: Spread | None = None,
    journal: Journal | None = None,
) -> list[Registered]:
    """:func:`register_pair` of all, ``workers`` threads at a time (default: as many as cores) or where ``spread`` says;
    what was found is logged in one line. Pairs in ``journal`` whose files are unchanged are taken from there, the
    others are added to it.
    """

    channels = next((pair for pair in pairs if not pair.target.colour), None)
    if channels is not None:
        raise InputError(
            "images of channels are not registered here: they share no stain with the H&E",
            where=channels.ihc,
            fix="Give the maps of pairs in the columns shift_x, shift_y or affine",
        )

    options: dict[str, Any] = {"workers": workers, "spread": spread}
    work = partial(_registered, motion, max_shift)
    results = journalled(work, pairs, _key, journal, what=f"{motion} registration of pairs", **options)
    found = [
        Registered(
            replace(pair, shift=tuple(shift), affine=None if affine is None else tuple(affine)), sure, score
        )
        for pair, (shift, affine, sure, score) in zip(pairs, results, strict=True)
    ]
    moved = [each.pair.name for pair, each in zip(pairs, found, strict=True) if each.pair != pair]
    unsure = [each.pair.name for each in found if not each.sure]
    log.info(
        "registration: %d of %d pairs moved%s; %d without a clear match stay as they are%s.",
        len(moved),
        len(pairs),
        f" ({', '.join(moved[:5])})" if moved else "",
        len(unsure),
        f" ({', '.join(unsure[:5])})" if unsure else "",
    )
    return found


def _registered(motion: str, max_shift: int, pair: Pair) -> tuple[Any, ...]:
    each = register_pair(pair, motion, max_shift)
    return each.pair.shift, each.pair.affine, each.sure, each.score


def _key(pair: Pair) -> str:
    """A pair as it comes, with the contents of its files."""
    return content_hash(pair.identity(), [fingerprint(path) for path in (pair.he, pair.ihc)])


def joined(first: np.ndarray, then: np.ndarray, corner: tuple[float, float]) -> tuple[float, ...]:
    """One map of six numbers: ``then`` was found between an H&E and an IHC drawn onto it by ``first``, both cut at
    ``corner`` (x, y)."""
    at = np.asarray(corner, np.float64)
    # Position in the H&E, in its cut, in the cut of the drawn IHC, in the frame of the H&E, in the IHC.
    linear = first[:, :2] @ then[:, :2]
    offset = first[:, :2] @ (then[:, 2] - then[:, :2] @ at + at) + first[:, 2]
    return tuple(round(float(value), 6) for value in np.column_stack([linear, offset]).ravel())
