"""Whole slides: tissue windows stained in batches, written as a pyramid at the slide's own µm/px,
resumable.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from morphogen.core.files import atomic_path, read_json, writable_folder, write_json
from morphogen.core.fingerprints import fingerprint
from morphogen.core.jobs import Job, kept_facts
from morphogen.core.progress import progress
from morphogen.metrics.seams import SeamMeter, SeamScore
from morphogen.slides import Slide, open_slide
from morphogen.slides.pyramid.writer import PyramidWriter
from morphogen.stain.config import ApplyConfig
from morphogen.stain.model import StainTransfer
from morphogen.stain.predict import run_facts
from morphogen.stain.recipes.translator import MEAN, SAMPLE, UNCERTAINTY, StainTranslator
from morphogen.tasks.bands import Band, make_bands
from morphogen.tasks.glass import glass_of
from morphogen.tasks.windows import WindowPlan, plan_windows, scale_between

log = logging.getLogger("morphogen.stain")

JPEG_GRID = 16  # source pixels after which the block structure of a JPEG repeats, in colour too
UNCERTAINTY_STEP = 0.002  # DAB optical density per grey level of the uncertainty pyramid (255 = 0.51)


@dataclass(frozen=True)
class StainedSlide:
    """Files of a stained slide and what is known of it.

    image: pyramid of the stain. uncertainty: pyramid of the SD of DAB optical density, with several samples.
    windows: number stained. seams: seam score over tissue windows, NaN when there is one window only.
    """

    image: Path
    uncertainty: Path | None
    windows: int
    seams: SeamScore | None
    facts: dict[str, Any]


def stain_slide(
    model: StainTransfer,
    slide: Slide | Path | str,
    out: Path | str,
    config: ApplyConfig | None = None,
    *,
    precision: str = "fp32",
    tissue: Sequence[Any] | None = None,
) -> StainedSlide:
    """Stain a slide into ``out/<slide>_<stain>.ome.tif``, with ``…_uncertainty.ome.tif`` for several samples.

    Slides are read at the model's µm/px (where both are known and differ by more than 10 %) and written at their own.
    Glass stays white; the stain fades along the contour of the tissue (:mod:`morphogen.tasks.glass`). A run that was
    killed goes on with the band it was at, to the same bytes; a finished one is recognised and left as it is. Memory is
    bounded by a batch and a band of windows.

    Parameters
    ----------
    tissue:
        Polygons in level-0 pixels that are stained. Default: the tissue in the slide's store, else what is
        found in it; with ``windows.tissue_only=False`` the whole slide is stained and nothing fades.

    Raises
    ------
    SlideError
        The slide cannot be read, or its µm/px is not known (give ``config.mpp``).
    OutputError
        The place cannot be written, or holds the stain of another run.
    """
    config = config or ApplyConfig()
    slide = slide if isinstance(slide, Slide) else open_slide(slide, mpp=config.mpp)
    mpp = slide.require_mpp()
    out = writable_folder(out)
    stain = config.stain or model.stains[0]
    model.label(config.stain)
    stem = f"{slide.path.stem.removesuffix('.ome')}_{stain}"
    translator = StainTranslator(model, config, precision=precision)
    ratio = scale_between(mpp, model.mpp)
    plan = plan_windows(translator, config.windows, slide.width, slide.height, ratio)
    facts = run_facts(model, config, precision) | {
        "slide": slide.path.name,
        "slide_bytes": slide.path.stat().st_size,
        "slide_fingerprint": fingerprint(slide.path),
        "size": [slide.width, slide.height],
        "mpp": mpp,
        "window": plan.window,
        "overlap": plan.window - plan.columns[1] if len(plan.columns) > 1 else 0,
        "read_mpp": mpp * plan.ratio,
    }
    glass = glass_of(slide, tissue, config.windows.tissue_only)
    facts["tissue"] = None if glass is None else glass.identity
    job = _Job(out, stem, facts, plan, config)
    if job.complete():
        log.info("%s is there already.", job.image)
        return job.result()
    places = [(x, y) for y in plan.rows for x in plan.columns]
    wanted = {(x, y) for x, y in places if glass is None or glass.wants(x, y, plan.side)}
    if not wanted:
        log.warning("%s: no tissue was found; the stained slide is white.", slide.path)
    with job.writers(slide) as (writer, second):
        first = job.resume()
        total = len(wanted)
        done = sum(y < plan.bands()[first][0] for _, y in wanted) if first < len(plan.rows) else total
        with progress.bar(total, "staining windows", done=done) as bar:
            for band in make_bands(
                translator,
                plan,
                _reader(slide, plan),
                name=slide.path.stem,
                batch=config.windows.batch,
                wanted=lambda x, y, side: (x, y) in wanted,
                first=first,
                advance=bar.advance,
            ):
                job.write(band if glass is None else glass.over(band), writer, second, config)
    return job.finish(total)


def _reader(slide: Slide, plan: WindowPlan) -> Callable[[int, int, int, int], np.ndarray]:
    if plan.side == plan.window:
        return lambda x, y, side, model_side: slide.read_region(x, y, side, side)
    return lambda x, y, side, model_side: slide.read_box(x, y, side, side, model_side, model_side)


class _Job:
    """Where a slide's results and its progress are kept."""

    def __init__(
        self, out: Path, stem: str, facts: dict[str, Any], plan: WindowPlan, config: ApplyConfig
    ) -> None:
        self.facts, self.plan = facts, plan
        self.image = out / f"{stem}.ome.tif"
        self.uncertainty = out / f"{stem}_uncertainty.ome.tif" if config.samples > 1 else None
        self.report = out / f"{stem}.json"
        self.state = out / f".{stem}.state.npz"
        self.job = Job(facts, newer=("slide_fingerprint",))
        self.mark = self.job.mark
        self.quality = config.quality
        columns, rows = plan.borders()
        self.meter = (
            SeamMeter(plan.width, plan.height, columns, rows, period=JPEG_GRID) if columns or rows else None
        )
        self._band = 0
        self._start: dict[str, np.ndarray] | None = None

    def complete(self) -> bool:
        """Whether this very job is done; :class:`OutputError` when another one has left its results here."""
        files = [self.report, self.image] + ([self.uncertainty] if self.uncertainty is not None else [])
        if not self.report.is_file():
            return False
        self.job.check(kept_facts(self.report) or {}, "the stained slide", self.image)
        return all(path.is_file() for path in files)

    def result(self) -> StainedSlide:
        values = read_json(self.report)
        seams = values.get("seam_score")
        score = SeamScore(_number(seams["vertical"]), _number(seams["horizontal"])) if seams else None
        return StainedSlide(self.image, self.uncertainty, values["windows"], score, self.facts)

    @contextmanager
    def writers(self, slide: Slide) -> Iterator[tuple[PyramidWriter, PyramidWriter | None]]:
        """The pyramids of the stain and of the uncertainty, open for writing; whole when the block ends
        well.
        """
        self._start = self._saved()
        size = slide.width, slide.height
        common: dict[str, Any] = {"mpp": self.facts["mpp"], "resume": self._start is not None}
        notes = {"stain": self.facts["stain"], "model": self.facts["model"][:16], "source": slide.path.name}
        with PyramidWriter(
            self.image,
            *size,
            quality=self.quality,
            magnification=slide.magnification,
            facts=notes | {"made by": "virtual staining, not a real immunostain"},
            **common,
        ) as first:
            if self.uncertainty is None:
                yield first, None
                return
            notes["unit"] = f"SD of DAB optical density, {UNCERTAINTY_STEP} per grey level"
            with PyramidWriter(
                self.uncertainty, *size, channels=1, codec="deflate", background=0, facts=notes, **common
            ) as second:
                yield first, second

    def _saved(self) -> dict[str, np.ndarray] | None:
        if not self.state.is_file():
            return None
        try:
            with np.load(self.state, allow_pickle=False) as file:
                values = {key: file[key] for key in file.files}
        except (OSError, ValueError):
            return None
        # Without its scratch file a pyramid holds nothing of what the state says is written.
        images = [self.image] + ([self.uncertainty] if self.uncertainty is not None else [])
        whole = all(path.with_name(f".{path.name}.scratch").is_file() for path in images)
        return values if whole and str(values.get("mark")) == self.mark else None

    def resume(self) -> int:
        """Number of the first band that is not written yet."""
        saved = self._start
        if saved is None:
            return 0
        self._band = int(saved["band"])
        if self.meter is not None:
            self.meter.restore({key: saved[key] for key in self.meter.state()})
        log.info("%s: going on with band %d of %d.", self.image.name, self._band + 1, len(self.plan.rows))
        return self._band

    def write(
        self, band: Band, writer: PyramidWriter, second: PyramidWriter | None, config: ApplyConfig
    ) -> None:
        pixels = band.picture(MEAN if config.show == "mean" else SAMPLE)
        writer.write(pixels, band.top)
        writer.flush()
        if second is not None:
            levels = np.clip(np.rint(band.values(UNCERTAINTY) / UNCERTAINTY_STEP), 0, 255).astype(np.uint8)
            second.write(levels, band.top)
            second.flush()
        self._band += 1
        state: dict[str, Any] = {}
        if self.meter is not None:
            self.meter.add(pixels, (pixels < 250).any(axis=2))  # tissue: glass has no seams to show
            state = self.meter.state()
        # The state follows the pixels: a band may be written twice, never left out.
        with atomic_path(self.state) as temporary:
            with open(temporary, "wb") as file:
                np.savez(file, mark=np.array(self.mark), band=np.array(self._band), **state)

    def finish(self, windows: int) -> StainedSlide:
        score = self.meter.score() if self.meter is not None else None
        plain = self.meter.plain() if self.meter is not None else None
        scores = {
            name: None if each is None else {"vertical": each.vertical, "horizontal": each.horizontal}
            for name, each in (("seam_score", score), ("seam_score_all_positions", plain))
        }
        write_json(self.report, self.facts | {"mark": self.mark, "windows": windows} | scores)
        self.state.unlink(missing_ok=True)
        return StainedSlide(self.image, self.uncertainty, windows, score, self.facts)


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
