"""Register all pairs of a layout once, and write down what was found as a table of pairs."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from morphogen._version import __version__
from morphogen.core.config import Config
from morphogen.core.errors import ConfigError, InputError
from morphogen.core.files import content_hash, plain, write_text
from morphogen.core.fingerprints import fingerprint
from morphogen.core.running.spread import Spread
from morphogen.core.writing.journal import Journal, journalled
from morphogen.core.writing.locks import locks_file
from morphogen.slides import Slide
from morphogen.stain.data import Pair, find_pairs, splits_of
from morphogen.stain.pairs.checks import usable_pairs
from morphogen.stain.pairs.slides import SlidePair, open_pair, slide_table
from morphogen.stain.registration.motion import estimate_motion
from morphogen.stain.registration.shift import register_pairs

_OVERVIEW = 1024  # px of the longer side at which whole slides are registered
_MAP = ("shift_x", "shift_y", "affine", "score")
_COLUMNS = ("name", "he", "ihc", "stain", "patient", "group", "split", "mask", "nuclei", *_MAP)
_SLIDE_COLUMNS = ("he", "ihc", "stain", "patient", "group", "split", "affine", "he_mpp", "ihc_mpp", "score")
_RARE = ("group", "mask", "nuclei")  # left out where no pair has one


@dataclass(frozen=True)
class Table:
    """The table that was written, pairs in it, and names of those that did not match."""

    path: Path
    pairs: int
    unsure: list[str]


class RegisterConfig(Config):
    """A run of `morphogen stain register`."""

    motion: Literal["shift", "rigid", "affine"] = Field(
        "rigid",
        description="shift: whole pixels (re-stained sections). rigid: turn and shift (serial sections). affine: "
        "with stretch and shear up to 15 %.",
    )
    max_shift: int = Field(32, ge=1, description="Largest shift in pixels of the motion shift.")
    drop_unmatched: bool = Field(False, description="Leave pairs out whose images do not match.")
    skip_bad: bool = Field(False, description="Leave unusable pairs out (listed) instead of stopping.")
    workers: int | None = Field(
        None, ge=1, description="Pairs at a time in one process. null = as many as cores."
    )


@locks_file()
def register_table(
    data: Path | str,
    out: Path | str,
    motion: str = "rigid",
    *,
    max_shift: int = 32,
    drop_unmatched: bool = False,
    skip_bad: bool = False,
    workers: int | None = None,
    spread: Spread | None = None,
) -> Table:
    """Register every pair of ``data``, in all its splits, and write the CSV ``out`` that training and evaluation read.

    ``data`` is any layout of :mod:`morphogen.stain.data`, or a table of whole slides, which are registered from
    overviews (``rigid`` or ``affine``; an ``affine`` that the table gives stays). Pairs whose images do not match
    keep what they had, or are left out with ``drop_unmatched``; the column ``score`` says how well the others do.
    ``workers`` pairs are looked at at a time (default: as many as cores) in this process, or where ``spread`` says.
    What a killed run had found lies in ``.<out>.part`` and is not looked for again.
    """
    data, out = Path(data), Path(out)
    if out.suffix.lower() != ".csv":
        raise InputError(
            "the table of pairs is a CSV file", where=out, fix=f"Write {out.with_suffix('.csv').name}"
        )
    if out.exists() and data.exists() and out.samefile(data):
        raise InputError(
            "the table would overwrite the one it is made from", where=out, fix="Choose another name"
        )
    if workers is not None and workers < 1:
        raise ConfigError(
            f"{workers} workers cannot register anything", where="--workers", fix="Use 1 or more"
        )
    slides = slide_table(data)
    journal = Journal(out.with_name(f".{out.name}.part"), motion, max_shift, __version__)
    if slides is not None:
        return _register_slides(slides, out, motion, drop_unmatched, workers, spread, journal)
    rows, unsure = [], []
    for split in splits_of(data) or ("",):  # without splits, or with what is wrong said by find_pairs
        pairs, _ = usable_pairs(find_pairs(data, split or "train"), skip_bad=skip_bad, where=data)
        for each in register_pairs(pairs, motion, max_shift, workers=workers, spread=spread, journal=journal):
            if not each.sure:
                unsure.append(each.pair.name)
            if each.sure or not drop_unmatched:
                rows.append(_row(each.pair, split, out, each.score))
    _write(out, _COLUMNS, rows, journal)
    return Table(out, len(rows), unsure)


def _row(pair: Pair, split: str, out: Path, score: float | None) -> dict[str, Any]:
    return {
        "name": pair.name,
        "he": _relative(pair.he, out),
        "ihc": _relative(pair.ihc, out),
        "stain": pair.stain,
        "patient": pair.patient or "",
        "group": pair.group or "",
        "split": split,
        "mask": "" if pair.mask is None else _relative(pair.mask, out),
        "nuclei": "" if pair.nuclei is None else _relative(pair.nuclei, out),
        "shift_x": pair.shift[1] or "",
        "shift_y": pair.shift[0] or "",
        "affine": _numbers(pair.affine),
        "score": "" if score is None else f"{score:.3f}",
    }


def _numbers(affine: Iterable[float] | None) -> str:
    return "" if affine is None else " ".join(f"{value:.10g}" for value in affine)


def _relative(path: Path, out: Path) -> str:
    """As the table has to name it: relative to its own folder."""
    return Path(os.path.relpath(path.resolve(), out.resolve().parent)).as_posix()


def _write(out: Path, columns: tuple[str, ...], rows: list[dict[str, Any]], journal: Journal) -> None:
    if not rows:
        raise InputError(
            "no pair matches, so no table is written",
            where=out,
            fix="Leave --drop-unmatched out to keep them",
        )
    text = io.StringIO()
    shown = [column for column in columns if column not in _RARE or any(row[column] for row in rows)]
    writer = csv.DictWriter(text, shown, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    write_text(out, text.getvalue())
    journal.remove()


def _register_slides(
    pairs: list[SlidePair],
    out: Path,
    motion: str,
    drop_unmatched: bool,
    workers: int | None,
    spread: Spread | None,
    journal: Journal,
) -> Table:
    if motion == "shift":
        raise InputError(
            "whole slides are registered by rigid or affine maps", where=out, fix="Use --motion rigid"
        )

    def key(pair: SlidePair) -> str:
        files = [fingerprint(path) for path in (pair.he, pair.ihc)]
        return content_hash(files, pair.he_mpp, pair.ihc_mpp, plain(pair.affine))

    rows, unsure = [], []
    results = journalled(
        partial(_registered, motion),
        pairs,
        key,
        journal,
        workers=workers,
        spread=spread,
        what=f"{motion} registration of slides",
    )
    for pair, (affine, score, sure) in zip(pairs, results, strict=True):
        if not sure:
            unsure.append(pair.he.name)
        if sure or not drop_unmatched:
            rows.append(_slide_row(pair, out, affine, score))
    _write(out, _SLIDE_COLUMNS, rows, journal)
    return Table(out, len(rows), unsure)


def _registered(motion: str, pair: SlidePair) -> tuple[Any, float | None, bool]:
    """Its level-0 map, the score, and whether it is sure."""
    if pair.affine is not None:
        return pair.affine.ravel(), None, True
    moved, score, sure = register_slides(pair, motion)
    return None if moved.affine is None else moved.affine.ravel(), score, sure


def _slide_row(pair: SlidePair, out: Path, affine: Any, score: float | None) -> dict[str, Any]:
    return {
        "he": _relative(pair.he, out),
        "ihc": _relative(pair.ihc, out),
        "stain": pair.stain,
        "patient": pair.patient or "",
        "group": pair.group or "",
        "split": pair.split,
        "affine": _numbers(affine),
        "he_mpp": pair.he_mpp or "",
        "ihc_mpp": pair.ihc_mpp or "",
        "score": "" if score is None else f"{score:.3f}",
    }


def register_slides(pair: SlidePair, motion: str = "rigid") -> tuple[SlidePair, float, bool]:
    """Two whole slides registered from overviews at one µm/px: the pair with its level-0 map, the score
    (:class:`~morphogen.stain.registration.motion.Alignment`), and whether it is sure; if not, the pair is as it
    came."""
    with open_pair(pair, "he") as he, open_pair(pair, "ihc") as ihc:
        sides = [max(slide.width, slide.height) * slide.require_mpp() for slide in (he, ihc)]
        mpp = max(max(sides) / _OVERVIEW, *(slide.require_mpp() for slide in (he, ihc)))
        images, scales = zip(*(_overview(slide, mpp) for slide in (he, ihc)), strict=True)
    found = estimate_motion(images[0], images[1], "affine" if motion == "affine" else "rigid")
    if not found.sure:
        return pair, found.score, False
    linear = np.diag(scales[1]) @ found.matrix[:, :2] @ np.diag(1 / scales[0])
    return replace(pair, affine=np.column_stack([linear, scales[1] * found.matrix[:, 2]])), found.score, True


def _overview(slide: Slide, mpp: float) -> tuple[np.ndarray, np.ndarray]:
    """The slide at about ``mpp``, and its level-0 pixels per pixel of that, (x, y)."""
    image = slide.overview(max(1.0, mpp / slide.require_mpp()))
    return image, np.array([slide.width / image.shape[1], slide.height / image.shape[0]])
