"""A result image of a whole slide while it is being written: pyramids of several layers, resumable to the same bytes.

A room says what is written (:class:`~morphogen.tasks.layers.Layer`) and of what job it is (its facts)::

    result = make_slide(translator, slide, out, "slide_ER", layers, facts, windows=config.windows)

Bands may come from anywhere else, top to bottom::

    job = PyramidJob(out, "canvas", facts, layers, width, height, mpp=mpp)
    if not job.complete():
        with job.writing() as first:
            for band in bands_from(first):
                job.write(band)
        job.finish()
    result = job.result()
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from morphogen.core.errors import MorphogenError
from morphogen.core.files import atomic_path, read_json, writable_folder, write_json
from morphogen.core.fingerprints import fingerprint
from morphogen.core.jobs import Job, kept_facts
from morphogen.core.names import path_name
from morphogen.core.progress import progress
from morphogen.core.reading.arrays import DAMAGED
from morphogen.core.running.pipeline import Behind
from morphogen.core.writing.locks import file_lock
from morphogen.metrics.seams import SeamMeter, SeamScore
from morphogen.slides import PyramidWriter, Slide
from morphogen.slides.info import size_on_disk
from morphogen.tasks.bands import Band, Translator, make_bands
from morphogen.tasks.config import WindowConfig
from morphogen.tasks.glass import Glass, glass_of
from morphogen.tasks.layers import SUFFIXES, Format, Layer
from morphogen.tasks.streams.batches import batch_for
from morphogen.tasks.streams.pixels import slide_reader
from morphogen.tasks.windows import WindowPlan, plan_windows, scale_between

log = logging.getLogger("morphogen.tasks")

JPEG_GRID = 16  # source pixels after which the block structure of a JPEG repeats, in colour too
KEEP_SECONDS = 5.0  # unfinished tiles are put on disk as often: cheap beside it, little work to do again
GLASS = 250  # grey level of all channels from which a pixel is glass, which has no seams to show


@dataclass(frozen=True)
class SlideResult:
    """Files of a finished slide and what is known of it.

    images: pyramid of every layer by its name. windows: number made. seams: seam score of the main layer over tissue,
    ``None`` when there is one window only. facts: what it was made of.
    """

    images: dict[str, Path]
    windows: int
    seams: SeamScore | None
    facts: dict[str, Any]


_WRITTEN = {
    "mark",
    "windows",
    "seam_score",
    "seam_score_all_positions",
}  # what a report says besides its facts


class PyramidJob:
    """Where a slide's results and its progress are kept.

    Parameters
    ----------
    out, stem:
        Files are ``out/<stem>.ome.tif``, ``out/<stem>_<layer>.ome.tif`` and ``out/<stem>.json``, which comes last;
        with the ``format`` ``zarr`` the images are OME-Zarr (``.ome.zarr``).
    facts:
        What decides the result; a file of another job is refused.
    layers:
        The first is the main one.
    borders:
        Columns and rows at which windows begin or end, for the seam score of a main layer in colour.
    what:
        Word for the messages.
    newer:
        Facts that results of earlier versions do not have.

    Raises
    ------
    OutputError
        The place cannot be written; from :meth:`complete`, when it holds the result of another job.
    """

    def __init__(
        self,
        out: Path | str,
        stem: str,
        facts: dict[str, Any],
        layers: Sequence[Layer],
        width: int,
        height: int,
        *,
        mpp: float,
        borders: tuple[Sequence[int], Sequence[int]] = ((), ()),
        quality: int = 90,
        magnification: float | None = None,
        what: str = "the slide",
        newer: Sequence[str] = (),
        format: Format = "tiff",
    ) -> None:
        out = writable_folder(out)
        if taken := _WRITTEN & set(facts):
            raise ValueError(f"facts may not be named {', '.join(sorted(taken))}")
        self.facts, self.layers, self.what = facts, list(layers), what
        path_name(stem, "slide", suffix="_uncertainty.ome.zarr.scratch")
        self.images = {
            layer.name: out / f"{stem}{'_' if layer.name else ''}{layer.name}{SUFFIXES[format]}"
            for layer in self.layers
        }
        self.report, self.state = out / f"{stem}.json", out / f".{stem}.state.npz"
        self._job = Job(facts, newer=newer)
        self._size, self._mpp, self._quality, self._magnification = (
            (width, height),
            mpp,
            quality,
            magnification,
        )
        columns, rows = borders
        seen = bool(columns or rows) and self.layers[0].channels == 3 and not self.layers[0].names
        self._meter = SeamMeter(width, height, columns, rows, period=JPEG_GRID) if seen else None
        self._writers: list[PyramidWriter] = []
        self._band, self._kept_at, self._midway = 0, 0.0, False

    def complete(self) -> bool:
        """Whether this very job is done; :class:`OutputError` when another one has left its results here."""
        if not self.report.is_file():
            return False
        self._job.check(kept_facts(self.report) or {}, self.what, next(iter(self.images.values())))
        return all(path.exists() for path in self.images.values())

    def result(self) -> SlideResult:
        """What a finished job made."""
        values = read_json(self.report)
        seams = values.get("seam_score")
        score = SeamScore(_number(seams["vertical"]), _number(seams["horizontal"])) if seams else None
        return SlideResult(dict(self.images), values["windows"], score, self.facts)

    @contextmanager
    def writing(self) -> Iterator[int]:
        """The number of the first band that is not written yet, with all pyramids open; whole when the block ends
        well."""
        saved = self._saved()
        self._band = 0
        if saved is not None:
            self._band = int(saved["band"])
            if self._meter is not None:
                self._meter.restore({key: saved[key] for key in self._meter.state()})
            log.info("%s: going on with band %d.", next(iter(self.images.values())).name, self._band + 1)
        with ExitStack() as stack:
            self._writers = [
                stack.enter_context(
                    PyramidWriter(
                        self.images[layer.name],
                        *self._size,
                        mpp=self._mpp,
                        channels=layer.channels,
                        names=layer.names,
                        colours=layer.colours,
                        dtype=layer.dtype,
                        codec=layer.codec,
                        quality=self._quality,
                        background=layer.background,
                        magnification=self._magnification,
                        facts=layer.facts,
                        labels=layer.labels,
                        resume=saved is not None,
                    )
                )
                for layer in self.layers
            ]
            self._kept_at = time.monotonic()
            try:
                yield self._band
            except BaseException:
                if not self._midway:  # half a band is none
                    with suppress(MorphogenError, OSError):  # the failure of the block is what is told
                        self._keep()
                raise

    def _saved(self) -> dict[str, np.ndarray] | None:
        if not self.state.is_file():
            return None
        try:
            with np.load(self.state, allow_pickle=False) as file:
                values = {key: file[key] for key in file.files}
        except DAMAGED:
            return None
        # Without its scratch file a pyramid holds nothing of what the state says is written.
        whole = all(path.with_name(f".{path.name}.scratch").is_file() for path in self.images.values())
        return values if whole and str(values.get("mark")) == self._job.mark else None

    def write(self, band: Band) -> None:
        """The next band, within :meth:`writing`; every few seconds all is put on disk, and a kill loses no more."""
        self._midway = True
        for number, (layer, writer) in enumerate(zip(self.layers, self._writers, strict=True)):
            pixels = layer.pixels(band)
            writer.write(pixels, band.top)
            if number == 0 and self._meter is not None:
                self._meter.add(pixels, (pixels < GLASS).any(axis=2))
        self._band += 1
        self._midway = False
        if time.monotonic() - self._kept_at >= KEEP_SECONDS:
            self._keep()

    def _keep(self) -> None:
        """What is written so far on disk, and where to go on."""
        for writer in self._writers:
            writer.flush()
        state: dict[str, Any] = self._meter.state() if self._meter is not None else {}
        # The state follows the pixels: a band may be written twice, never left out.
        with atomic_path(self.state) as temporary:
            with open(temporary, "wb") as file:
                np.savez(file, mark=np.array(self._job.mark), band=np.array(self._band), **state)
        self._kept_at = time.monotonic()

    def finish(self, windows: int = 0) -> SlideResult:
        """The report, after :meth:`writing` has ended well."""
        score = self._meter.score() if self._meter is not None else None
        plain = self._meter.plain() if self._meter is not None else None
        scores = {
            name: None if each is None else {"vertical": each.vertical, "horizontal": each.horizontal}
            for name, each in (("seam_score", score), ("seam_score_all_positions", plain))
        }
        write_json(self.report, self.facts | {"mark": self._job.mark, "windows": windows} | scores)
        self.state.unlink(missing_ok=True)
        return SlideResult(dict(self.images), windows, score, self.facts)


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def slide_facts(slide: Slide, plan: WindowPlan, glass: Glass | None = None) -> dict[str, Any]:
    """What a result of a slide depends on besides model and settings: the file, the windows, the tissue."""
    mpp = slide.require_mpp()
    x, y, width, height = slide.bounds
    cropped = {} if (width, height) == (slide.width, slide.height) else {"bounds": [x, y, width, height]}
    return cropped | {
        "slide": slide.path.name,
        "slide_bytes": size_on_disk(slide.path) if slide.path.is_dir() else slide.path.stat().st_size,
        "slide_fingerprint": fingerprint(slide.path),
        "size": [slide.width, slide.height],
        "mpp": mpp,
        "window": plan.window,
        "overlap": plan.window - plan.columns[1] if len(plan.columns) > 1 else 0,
        "read_mpp": mpp * plan.ratio,
        "tissue": None if glass is None else glass.identity,
    }


def make_slide(
    model: Translator,
    slide: Slide,
    out: Path | str,
    stem: str,
    layers: Sequence[Layer],
    facts: Mapping[str, Any],
    *,
    windows: WindowConfig,
    tissue: Sequence[Any] | None = None,
    quality: int = 90,
    what: str = "the slide",
    doing: str = "translating windows",
    newer: Sequence[str] = (),
    format: Format = "tiff",
) -> SlideResult:
    """A whole slide through ``model``, at the slide's own µm/px, into ``out/<stem>.ome.tif`` and its further layers.

    Slides are read at the model's µm/px where both are known and differ by more than 10 %, within the bounds that
    QuPath shows (the files say where their corner is). ``facts`` are what decides
    the result besides the slide and its windows. ``tissue``: polygons in level-0 pixels outside of which is glass;
    default as in :func:`morphogen.tasks.glass.glass_of`. Raises as :class:`PyramidJob` does, and
    :class:`~morphogen.core.errors.SlideError` where the slide's µm/px is not known.
    """
    mpp = slide.require_mpp()
    x, y, width, height = slide.bounds  # QuPath shows these alone, and the result is to lie over it
    plan = plan_windows(model, windows, width, height, scale_between(mpp, model.mpp))
    glass = glass_of(slide, tissue, windows.tissue_only)
    if (x, y) != (0, 0):
        origin = {"origin in the source": f"{x}, {y} level-0 px (OpenSlide's bounds)"}
        layers = [replace(layer, facts={**layer.facts, **origin}) for layer in layers]
    job = PyramidJob(
        out,
        stem,
        {**facts, **slide_facts(slide, plan, glass)},
        layers,
        width,
        height,
        mpp=mpp,
        borders=plan.borders(),
        quality=quality,
        magnification=slide.magnification,
        what=what,
        newer=("slide_fingerprint", *newer),
        format=format,
    )
    return translate_slide(
        model, slide, plan, job, batch=batch_for(windows, model, plan), glass=glass, doing=doing
    )


def translate_slide(
    model: Translator,
    slide: Slide,
    plan: WindowPlan,
    job: PyramidJob,
    *,
    batch: int = 8,
    glass: Glass | None = None,
    doing: str = "translating windows",
) -> SlideResult:
    """Every window of a slide that shows tissue through ``model``, into the files of ``job``.

    Glass stays white and the picture fades along the contour of the tissue. A run that was killed goes on with the
    band it was at, to the same bytes; a finished one is recognised and left as it is. Memory is bounded by a batch and
    a band of windows. What is translated is the slide within its bounds (``slide.within_bounds()``), as QuPath shows
    it: ``plan``, ``job`` and ``glass`` are of that size. :class:`~morphogen.core.errors.OutputError` while another run
    is at it.
    """
    with file_lock(job.report):
        return _translated(model, slide, plan, job, batch, glass, doing)


def _translated(
    model: Translator,
    slide: Slide,
    plan: WindowPlan,
    job: PyramidJob,
    batch: int,
    glass: Glass | None,
    doing: str,
) -> SlideResult:
    if job.complete():
        log.info("%s is there already.", next(iter(job.images.values())))
        return job.result()
    places = [(x, y) for y in plan.rows for x in plan.columns]
    wanted = {(x, y) for x, y in places if glass is None or glass.wants(x, y, plan.side)}
    if not wanted:
        log.warning("%s: no tissue was found; the result is white.", slide.path)
    total = len(wanted)
    with job.writing() as first:
        done = sum(y < plan.bands()[first][0] for _, y in wanted) if first < len(plan.rows) else total
        with progress.bar(total, doing, done=done) as bar:
            bands = make_bands(
                model,
                plan,
                slide_reader(slide.within_bounds(), plan),
                name=slide.path.stem,
                batch=batch,
                wanted=lambda x, y, side: (x, y) in wanted,
                first=first,
                advance=bar.advance,
            )

            def write(band: Band) -> None:
                job.write(band if glass is None else glass.over(band))

            with Behind(write) as behind:
                for band in bands:
                    behind.put(band)
    return job.finish(total)
