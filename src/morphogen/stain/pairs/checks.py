"""Pairs checked up front, all of them, in one report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from morphogen.core.errors import InputError
from morphogen.slides.colour import optical_density
from morphogen.slides.images import decode
from morphogen.stain.data import GREY, FoundPairs, Pair
from morphogen.stain.pairs.geometry import shared_box
from morphogen.tasks.checks import CheckReport, inspected, shortened, usable

_TISSUE_DENSITY = 0.1  # mean optical density above which a pixel holds stain
_SWAP_MARGIN = 0.03  # in magenta share; in the pairs at hand H&E has 0.13 to 0.29, immunostains −0.01 to 0.10
_OVERVIEW = 512  # px of the longer side that stain statistics are taken from


@dataclass(frozen=True)
class ImageFacts:
    """One image file: (width, height), what is wrong with it, and its magenta share (``None`` when blank)."""

    size: tuple[int, int] | None
    problem: str | None
    magenta: float | None


def magenta_share(image: np.ndarray) -> float | None:
    """How much more green light stained tissue absorbs than red and blue, over all it absorbs.

    Eosin takes green and little else, haematoxylin red and green, DAB mostly blue; so H&E lies near 0.2 and
    haematoxylin with DAB near 0.03. ``image`` is (H, W, 3) uint8; ``None`` when it holds next to no tissue.
    """
    density = optical_density(np.array(image)[None])[0].numpy().reshape(3, -1)
    tissue = density.mean(axis=0) > _TISSUE_DENSITY
    if tissue.sum() < 50:
        return None
    red, green, blue = density[:, tissue].sum(axis=1)
    return float((green - (red + blue) / 2) / (red + green + blue))


def inspect_image(path: Path) -> ImageFacts:
    """Decode an image once (JPEG at reduced size) and say what it is."""
    if not path.is_file():
        return ImageFacts(None, "the file is missing", None)
    try:
        picture = decode(path, longest=_OVERVIEW)
    except InputError as error:
        unreadable = error.what.startswith(("cannot be", "is empty", "is not an image"))
        return ImageFacts(
            None, "the file cannot be read as an image" if unreadable else f"the image {error.what}", None
        )
    size = picture.size[1], picture.size[0]
    if not picture.colour:
        return ImageFacts(size, f"the image {GREY}", None)
    step = max(1, round(max(picture.pixels.shape) / _OVERVIEW))
    return ImageFacts(size, None, magenta_share(np.ascontiguousarray(picture.pixels[::step, ::step])))


def check_pairs(found: FoundPairs, *, crop: int = 0, threads: int = 8) -> CheckReport[Pair]:
    """Look at every image of every pair; nothing is raised, everything is in the report.

    Checked: a partner for each file; readable 8-bit RGB; one size per pair, at least ``crop``; and that the
    H&E is redder than the IHC (a pair that looks swapped is kept and warned about).
    """
    report: CheckReport[Pair] = CheckReport()
    for name in found.alone:
        report.add("without a partner", name)
    facts = inspected(
        inspect_image, [path for pair in found.pairs for path in (pair.he, pair.ihc)], threads=threads
    )
    swapped = []
    for pair, a, b in zip(found.pairs, facts[::2], facts[1::2], strict=True):
        problem = _problem(pair, a, b, crop)
        if problem is not None:
            report.add(*problem)
            continue
        report.good.append(pair)
        if a.magenta is not None and b.magenta is not None and a.magenta < b.magenta - _SWAP_MARGIN:
            swapped.append(pair.name)
    if swapped:
        report.warnings.append(
            f"{len(swapped)} of {len(report.good)} pairs look swapped (the H&E image is brown and blue, the IHC image "
            f"pink): {shortened(swapped)}. Check that the IHC is in the B folder."
        )
    return report


def _problem(pair: Pair, a: ImageFacts, b: ImageFacts, crop: int) -> tuple[str, str] | None:
    for path, facts in ((pair.he, a), (pair.ihc, b)):
        if facts.problem is not None:
            return f"where {facts.problem}", str(path)
    assert a.size is not None and b.size is not None
    if a.size != b.size:
        return "of two sizes", f"{pair.name}: {a.size[0]} × {a.size[1]} and {b.size[0]} × {b.size[1]} px"
    rows, columns = shared_box(pair, (a.size[1], a.size[0]))
    width, height = columns.stop - columns.start, rows.stop - rows.start
    if min(width, height) < max(crop, 1):
        moved = pair.affine is not None or any(pair.shift)
        return (
            f"smaller than the crop of {crop} px" if min(width, height) else "that share nothing",
            f"{pair.name}: {width} × {height} px" + (" in both images" if moved else ""),
        )
    return None


def usable_pairs(
    found: FoundPairs, *, crop: int = 0, skip_bad: bool = False, where: object = None
) -> tuple[list[Pair], CheckReport[Pair]]:
    """Checked pairs, with warnings logged.

    :class:`InputError` with one report of all problems, unless ``skip_bad``; or when no pair is left.
    """
    report = check_pairs(found, crop=crop)
    return usable(report, skip_bad=skip_bad, where=where, what="pairs"), report
