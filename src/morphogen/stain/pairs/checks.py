"""Pairs checked up front, all of them, in one report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from morphogen.core.errors import InputError
from morphogen.slides.colour import optical_density
from morphogen.slides.formats.channels import channel_facts, read_channels
from morphogen.slides.images import decode
from morphogen.stain.data import FoundPairs, Pair
from morphogen.stain.pairs.geometry import shared_box
from morphogen.stain.targets.config import TargetConfig
from morphogen.stain.targets.files import GREY
from morphogen.tasks.checks import CheckReport, inspected, shortened, usable

_TISSUE_DENSITY = 0.1  # mean optical density above which a pixel holds stain
_SWAP_MARGIN = 0.03  # in magenta share; in the pairs at hand H&E has 0.13 to 0.29, immunostains −0.01 to 0.10
_SATURATED = 0.05  # share of pixels at the largest value from which a channel is cut off
_TOPS = [2**bits - 1 for bits in (8, 10, 12, 14, 16)]  # of detectors; files of 16 bits hold those of fewer
_DARK = 40  # median level of a picture below which it was not taken in transmitted light
_OVERVIEW = 512  # px of the longer side that stain statistics are taken from


@dataclass(frozen=True)
class ImageFacts:
    """One image file: (width, height), what is wrong with it, and its magenta share (``None`` when blank); of channels
    their type, which are ``empty``, ``saturated`` or ``negative``, and what the file calls them when it has other
    names; whether a picture lies on black."""

    size: tuple[int, int] | None
    problem: str | None
    magenta: float | None
    dtype: str | None = None
    empty: tuple[str, ...] = ()
    saturated: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    renamed: tuple[str, ...] = ()
    dark: bool = False


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
    pixels = np.ascontiguousarray(picture.pixels[::step, ::step])
    return ImageFacts(size, None, magenta_share(pixels), dark=bool(np.median(pixels) < _DARK))


def inspect_channels(path: Path, target: TargetConfig) -> ImageFacts:
    """Read an image of named channels once and say what it is."""
    if not path.is_file():
        return ImageFacts(None, "the file is missing", None)
    try:
        facts = channel_facts(path)
        size = facts.size[1], facts.size[0]
        pixels = read_channels(path, target.channels).reshape(-1, target.width)
    except InputError as error:
        return ImageFacts(None, f"the image {error.what}", None)
    top = pixels.max(axis=0)
    full = (pixels == top).mean(axis=0) > _SATURATED
    full &= np.isin(top, _TOPS) if pixels.dtype.kind == "u" else False
    below = (pixels < 0).mean(axis=0) > _SATURATED
    pixels = np.maximum(pixels, 0)  # as it is learned
    flat = ~(pixels != pixels[0]).any(axis=0)
    empty, saturated, negative = (
        tuple(name for name, found in zip(target.channels, each, strict=True) if found)
        for each in (flat, full & ~flat, below & ~flat)
    )
    renamed = facts.names if facts.renamed(target.channels) else ()
    return ImageFacts(size, None, None, facts.dtype, empty, saturated, negative, renamed)


def inspect_target(path: Path, target: TargetConfig) -> ImageFacts:
    """The second image of a pair; where it is taken for a picture in colour and holds channels, the problem says so."""
    if not target.colour:
        return inspect_channels(path, target)
    facts = inspect_image(path)
    if facts.problem is None or not path.is_file():
        return facts
    try:
        found = channel_facts(path)
    except InputError:
        return facts
    count = f"{found.channels} channels" if found.channels > 1 else "one channel"
    called = f" ({shortened(found.names)})" if found.names else ""
    return replace(facts, problem=f"the image holds {count}{called} that no target.yaml names")


def _inspect(item: tuple[Path, TargetConfig | None]) -> ImageFacts:
    path, target = item
    return inspect_image(path) if target is None else inspect_target(path, target)


def _channel_warnings(pairs: Sequence[Pair], facts: Sequence[ImageFacts]) -> list[str]:
    """Channels that show nothing or are cut off, by name and image."""
    warnings = []
    for word, kind in (
        ("the same value everywhere", "empty"),
        ("saturated pixels", "saturated"),
        ("values below 0, which count as 0,", "negative"),
    ):
        found: dict[str, list[str]] = {}
        for pair, each in zip(pairs, facts, strict=True):
            for channel in getattr(each, kind):
                found.setdefault(channel, []).append(pair.name)
        warnings += [
            f"channel '{channel}' has {word} in {len(names)} of {len(pairs)} images: {shortened(names)}."
            for channel, names in found.items()
        ]
    others = [(pair, each.renamed) for pair, each in zip(pairs, facts, strict=True) if each.renamed]
    if others:
        (pair, names), target = others[0], pairs[0].target
        warnings.append(
            f"{len(others)} of {len(pairs)} targets have other names for their channels, the first is {pair.name} with "
            f"{shortened(names)}: they are taken in their order as {shortened(target.channels)}."
        )
    return warnings


def check_pairs(
    found: FoundPairs, *, crop: int = 0, threads: int = 8, learned: bool = False
) -> CheckReport[Pair]:
    """Look at every image of every pair; nothing is raised, everything is in the report.

    Checked: a partner for each file; readable 8-bit RGB; one size per pair, at least ``crop``; and that the
    H&E is redder than the IHC (a pair that looks swapped is kept and warned about). Of targets that are channels: their
    number, one type, finite values; and, where they are to be ``learned``, some signal of each in some pair.
    """
    report: CheckReport[Pair] = CheckReport()
    for name in found.alone:
        report.add("without a partner", name)
    items = [item for pair in found.pairs for item in ((pair.he, None), (pair.ihc, pair.target))]
    facts = inspected(_inspect, items, threads=threads)
    swapped = []
    kinds = Counter(each.dtype for each in facts if each.dtype is not None and each.problem is None)
    stated: list[str] = [pair.target.dtype for pair in found.pairs if pair.target.dtype is not None]
    usual = next(iter([*stated, *(kind for kind, _ in kinds.most_common(1))]), None)
    targets = []
    for pair, a, b in zip(found.pairs, facts[::2], facts[1::2], strict=True):
        problem = _problem(pair, a, b, crop)
        if problem is None and b.dtype != usual and b.dtype is not None:
            problem = f"of {b.dtype} beside {usual}", str(pair.ihc)
        if problem is not None:
            report.add(*problem)
            continue
        report.good.append(pair)
        targets.append(b)
        if a.magenta is not None and b.magenta is not None and a.magenta < b.magenta - _SWAP_MARGIN:
            swapped.append(pair.name)
    report.warnings += _channel_warnings(report.good, targets)
    silent = [
        name
        for name in (report.good[0].target.channels if report.good and learned else ())
        if all(name in each.empty for each in targets)
    ]
    if silent:
        told = "channel" if len(silent) == 1 else "channels"
        kind = f"whose {told} '{shortened(silent)}' shows the same everywhere in all of them"
        report.bad[kind], report.good, targets = [pair.name for pair in report.good], [], []
    dark = [pair.name for pair, each in zip(report.good, targets, strict=True) if each.dark]
    if len(dark) > len(report.good) / 2:
        report.warnings.append(
            f"{len(dark)} of {len(report.good)} targets lie on black, as fluorescence does: {shortened(dark)}. "
            "They are read as pictures in colour; a target.yaml beside them (channels: [DAPI, …]) makes them channels."
        )
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
    found: FoundPairs,
    *,
    crop: int = 0,
    skip_bad: bool = False,
    where: object = None,
    learned: bool = False,
) -> tuple[list[Pair], CheckReport[Pair]]:
    """Checked pairs, with warnings logged.

    :class:`InputError` with one report of all problems, unless ``skip_bad``; or when no pair is left.
    """
    report = check_pairs(found, crop=crop, learned=learned)
    return usable(report, skip_bad=skip_bad, where=where, what="pairs"), report
