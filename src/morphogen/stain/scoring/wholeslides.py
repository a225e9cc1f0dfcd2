"""Scores of whole slides: fields of what was made and of the real slide, scored as pairs, and every slide as one.

A table of slides is cut into fields where the H&E shows tissue (:func:`morphogen.stain.pairs.slides.cut_slide_pairs`);
what a method made of the H&E is cut at the same places. The tiles of all fields of a slide then make one correlation,
and one mean signal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from morphogen.core.errors import InputError
from morphogen.core.files import Manifest, content_hash, write_json
from morphogen.core.fingerprints import fingerprint
from morphogen.core.jobs import kept_facts
from morphogen.core.progress import progress
from morphogen.core.reading.tables import Row
from morphogen.metrics.intervals import moments, moments_correlation
from morphogen.slides import open_slide
from morphogen.slides.images import name_of
from morphogen.stain.data import COLOUR, pair_table, stated_target
from morphogen.stain.pairs.slides import (
    BOX,
    SlidePair,
    channels_of,
    cut_slide_pairs,
    open_pair,
    read_warped,
    save_tile,
    tile_suffix,
)
from morphogen.stain.scoring.channels import ChannelScores
from morphogen.stain.scoring.config import EvaluateConfig
from morphogen.stain.scoring.scores import ImageScores
from morphogen.stain.targets.config import TargetConfig
from morphogen.tasks.evaluation import Evaluation, ItemScores, mean_intervals

SUFFIXES = (".ome.tif", ".ome.tiff", ".tif", ".tiff", ".svs")
CORRELATION, MADE, REAL = "slide_correlation", "mean", "mean_real"


@dataclass(frozen=True)
class Fields:
    """Fields of slides: the table of their pairs, a folder of what each method made, and the slide of every field."""

    table: Path
    made: dict[str, Path]
    slides: dict[str, str]


def cut_fields(
    slides: Sequence[SlidePair],
    made: Mapping[str, Path],
    out: Path,
    config: EvaluateConfig,
    *,
    split: str,
    data: Path | str,
) -> Fields:
    """Cut real slides, and those that lie in the folders ``made`` by method, into fields under ``out``.

    A method's slide is named ``<H&E>_<stain>`` as ``predict`` names it, or like the H&E. Finished folders are used as
    they are. :class:`InputError` for a slide that is not there.
    """
    target = config.target or stated_target(data) or COLOUR
    wanted = [pair for pair in slides if pair.split in ("", split)]
    if not wanted:
        found = ", ".join(sorted({pair.split for pair in slides}))
        raise InputError(f"no row has the split '{split}', only {found}", where=data)
    files = {
        name: {name_of(pair.he): _made_slide(folder, pair) for pair in wanted}
        for name, folder in made.items()
    }
    size = {"tile": config.field, "mpp": config.mpp or 0.5}
    table = cut_slide_pairs(wanted, out / "fields", target=target, **size)  # type: ignore[arg-type]
    rows = pair_table(table).rows
    if target != COLOUR:
        write_json(table.parent / "target.yaml", target.to_dict())  # JSON is YAML
    by_name = {name_of(pair.he): pair for pair in wanted}
    folders = {}
    for number, (name, paths) in enumerate(files.items()):
        folders[name] = out / f"fields-{number}"
        _cut_made(by_name, paths, rows, folders[name], config.field, target, Manifest.read(table.parent))
    return Fields(table, folders, {row.text("name"): row.text("slide") for row in rows})


def _made_slide(folder: Path, pair: SlidePair) -> Path:
    stem = name_of(pair.he)
    names = [f"{stem}_{pair.stain}", stem]
    for path in (folder / f"{name}{suffix}" for name in names for suffix in SUFFIXES):
        if path.is_file():
            return path
    raise InputError(
        f"no slide of {stem} is here",
        where=folder,
        fix=f"Name it {names[0]}{SUFFIXES[0]} or {stem}{SUFFIXES[0]}",
    )


def _cut_made(
    pairs: Mapping[str, SlidePair],
    paths: Mapping[str, Path],
    rows: Sequence[Row],
    out: Path,
    tile: int,
    target: TargetConfig,
    real: Mapping[str, Any] | None,
) -> None:
    """What was made of every field, with its uncertainty where channels have one, into ``out``."""
    mark = content_hash([(real or {}).get("mark"), {name: fingerprint(path) for name, path in paths.items()}])
    if (Manifest.read(out) or {}).get("mark") == mark:
        return
    facts: dict[str, Any] = {}
    for name, path in paths.items():
        doubt = path.with_name(f"{name_of(path)}_uncertainty.ome.tif")
        sources = {out: path}
        if not target.colour and doubt.is_file():
            sources[out / "uncertainty"] = doubt
        facts = facts or kept_facts(path.with_name(f"{name_of(path)}.json")) or {}
        own = [row for row in rows if row.text("slide") == name]
        for folder, source in sources.items():
            with (
                open_pair(pairs[name], "he") as he,
                open_slide(source) if target.colour else channels_of(source, target) as slide,
            ):
                width = slide.width if target.colour else slide.size[1]  # type: ignore[union-attr]
                affine = np.array([[1.0, 0, 0], [0, 1, 0]]) * (width / he.width)
                for row in progress(own, what=f"{source.name}: cutting fields"):
                    x, y, side = (row.number(key) or 0.0 for key in BOX)
                    pixels = read_warped(slide, affine, x, y, side, tile)
                    save_tile(folder / f"{row.text('name')}{tile_suffix(target)}", pixels, target)
    write_json(out / "run.json", facts)
    Manifest.write(out, kind="fields of slides", mark=mark)


def slide_rows(evaluation: Evaluation, slides: Mapping[str, str]) -> list[ItemScores]:
    """Of one method, for every slide: r over the tiles of all its fields, and the mean signal made and real; of several
    channels each by itself, ``CHANNEL KEY``, and their mean."""
    groups: dict[str, list[Any]] = {}
    for item in evaluation.items:
        groups.setdefault(slides[item.name], []).append(item)
    return [ItemScores(name, name, _of_slide(items)) for name, items in groups.items()]


def _of_slide(items: Sequence[ItemScores]) -> dict[str, float]:
    first = items[0]
    if isinstance(first, ImageScores):
        return _values(sum(moments(*item.tiles) for item in items))  # type: ignore[attr-defined,misc]
    assert isinstance(first, ChannelScores)
    names = first.target.channels
    each = [_values(sum(item.tiles[k] for item in items)) for k in range(len(names))]  # type: ignore[attr-defined]
    values = {key: float(np.mean([found[key] for found in each])) for key in each[0]}
    if len(names) > 1:
        values |= {
            f"{name} {key}": v for name, found in zip(names, each, strict=True) for key, v in found.items()
        }
    return values


def _values(sums: Any) -> dict[str, float]:
    """From the moments of made and real tiles."""
    count, made, real = (float(value) for value in sums[:3])
    return {CORRELATION: float(moments_correlation(sums)), MADE: made / count, REAL: real / count}


def slide_facts(
    evaluations: Sequence[Evaluation], slides: Mapping[str, str], config: EvaluateConfig
) -> dict[str, Any]:
    """By method: every slide's scores, and their mean over slides with its interval."""
    found = {}
    for each in evaluations:
        rows = slide_rows(each, slides)
        intervals, _ = mean_intervals(
            rows,
            list(rows[0].values),
            unit="slide",
            seed=config.seed,
            purpose="stain slides",
            resamples=config.resamples,
        )
        found[each.method] = {
            "slides": {row.name: row.values for row in rows},
            "intervals": {key: interval._asdict() for key, interval in intervals.items()},
        }
    return found
