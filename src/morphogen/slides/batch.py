"""Many slides: what to work on, in parallel, one outcome per slide whatever happens to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morphogen.core.errors import InputError, SlideError, shortened
from morphogen.core.files import writable_folder
from morphogen.core.progress import progress
from morphogen.core.reading.cells import path_in
from morphogen.core.reading.listing import list_files, list_folders
from morphogen.core.reading.tables import read_table
from morphogen.core.reading.text import read_lines
from morphogen.core.running.cohort import run_cohort
from morphogen.core.running.spread import Spread
from morphogen.core.running.work import Item
from morphogen.core.writing.locks import file_lock
from morphogen.slides.config import EncodeConfig, TileConfig
from morphogen.slides.encode import NO_TISSUE, Outcome, encode_slide
from morphogen.slides.formats.ngff import is_ome_zarr
from morphogen.slides.images import SLIDE_SUFFIXES, name_of
from morphogen.slides.slide import open_slide, store_name
from morphogen.slides.tiles import tile_slide

if TYPE_CHECKING:
    from morphogen.slides.encoders.registry import Encoder

_PATH_COLUMNS = ("path", "slide", "wsi", "file", "filename", "image", "slide_id")


@dataclass(frozen=True)
class Job:
    """One slide and what to do with it; sent to workers as it is."""

    path: str
    mpp: float | None = None
    out: str | None = None
    tiles: TileConfig | None = None
    encode: EncodeConfig | None = None
    overwrite: bool = False


def collect(inputs: Iterable[str | Path], *, recursive: bool = False, mpp: float | None = None) -> list[Job]:
    """Slides named by files, folders, and lists, in order, each once.

    A folder gives its slides and images sorted by name; ``.csv`` and ``.tsv`` files are read by a path column (one of
    path, slide, wsi, file, filename, image, and CLAM's slide_id, which may lack the suffix) and an optional ``mpp``
    column, ``.txt`` files one path a line. Paths in a list are relative to the list. Raises :class:`InputError` when
    nothing is found.
    """
    jobs: list[Job] = []
    for item in map(Path, inputs):
        if item.is_dir() and item.suffix != ".zarr":
            paths = list_files(item, suffixes=SLIDE_SUFFIXES, recursive=recursive)
            paths = sorted([*paths, *(each for each in list_folders(item, "*.zarr") if is_ome_zarr(each))])
            if not paths:
                raise InputError("there are no slides in this folder", where=item, fix="Try --recursive")
            jobs += [Job(str(path), mpp) for path in paths]
        elif item.suffix.lower() in {".csv", ".tsv", ".txt"}:
            jobs += list(_listed(item, mpp))
        else:
            jobs.append(Job(str(item), mpp))
    unique = {job.path: job for job in jobs}
    if not unique:
        raise InputError("no slides were named", fix="Name slides, folders or a list of slides")
    return list(unique.values())


def _listed(path: Path, mpp: float | None) -> Iterator[Job]:
    if path.suffix.lower() == ".txt":
        yield from (Job(str(path_in(path, line)), mpp) for line in read_lines(path))
        return
    table = read_table(path)
    column = table.column(*_PATH_COLUMNS)
    if not table.rows:
        raise InputError("the list names no slides", where=path)
    first: dict[Path, tuple[float | None, int]] = {}
    for row in table:
        slide, own = row.file(column), row.micrometres("mpp")
        if column == "slide_id" and not slide.exists():
            slide = _with_suffix(slide)
        known, line = first.setdefault(slide, (own, row.line))
        if known != own:
            raise InputError(f"the slide of line {line} comes again with another mpp", where=row.where)
        yield Job(str(slide), own or mpp)


def _with_suffix(slide: Path) -> Path:
    """The one slide or image beside it that has this name and a suffix; itself where there is none."""
    if not slide.parent.is_dir():
        return slide
    there = [
        path for path in list_files(slide.parent, suffixes=SLIDE_SUFFIXES) if name_of(path) == slide.name
    ]
    if len(there) > 1:
        names = ", ".join(path.name for path in there)
        raise InputError(
            f"several slides have this name: {names}", where=slide, fix="Add the suffix in the list"
        )
    return there[0] if there else slide


def run_jobs(
    jobs: list[Job],
    *,
    out: Path | None = None,
    tiles: TileConfig | None = None,
    encode: EncodeConfig | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    scheduler: str | None = None,
    isolated: bool = False,
    spread: Spread | None = None,
) -> list[Outcome]:
    """Tile (and encode, when ``encode`` is given) slides; one :class:`Outcome` each, in their order.

    A slide that fails is reported and the others go on; a full disk stops everything. Finished slides are kept, so
    the same call goes on after a kill. ``workers`` processes of this machine work in parallel, each on a slide (one
    per GPU, else by cores and memory, when ``None``); ``isolated`` gives a single worker a process of its own too, so
    that a file that crashes a library fails alone. ``scheduler`` is the address of a dask cluster that sees the same
    files. ``spread`` says all of that and more (GPUs, shards, retries) in the place of both; a shard gives the outcomes
    of the slides it worked on. With ``out`` the run is reported in ``out/runs``.

    Raises
    ------
    MorphogenError
        For what concerns all slides: an encoder that cannot be loaded, an output folder that cannot be written,
        equally named slides in one output folder; and, when there is one slide, for its own failure.
    """
    spread = spread or Spread(workers=workers, scheduler=scheduler)
    if out is not None:
        writable_folder(out)
        _refuse_equal_names(jobs)
    jobs = [
        replace(job, out=str(out) if out else None, tiles=tiles, encode=encode, overwrite=overwrite)
        for job in jobs
    ]
    if encode is not None:
        from morphogen.slides.encoders.registry import encoder_spec

        encoder_spec(encode.encoder)  # an unknown name is told before any work
    if len(jobs) == 1 and spread.shard is None and spread.scheduler is None:
        with _tile_bar() as advance:
            return [_work(jobs[0], advance)]
    on_gpu = encode is not None and encode.device in ("auto", "cuda") and encode.encoder != "texture"
    replies = run_cohort(
        _Slides(encode),
        [Item(job.path, Path(job.path), job) for job in jobs],
        spread,
        out=out,
        what="slide tile" if encode is None else "slide encode",
        workers=spread.processes(len(jobs), on_gpu=on_gpu),
        isolated=isolated,
        facts={"tiles": tiles and tiles.to_dict(), "encode": encode and encode.to_dict()},
        written=lambda outcome: [outcome.store] if outcome.store else [],
    )
    outcomes = {
        index: Outcome(jobs[index].path, "failed", seconds=reply.seconds, message=shortened(reply.error, 300))
        if reply.error
        else reply.value
        for index, reply in replies
    }
    return [outcomes[i] for i in sorted(outcomes)]


@dataclass(frozen=True)
class _Slides:
    """Tiling or encoding, as the engine of many items takes it."""

    encode: EncodeConfig | None

    def load(self) -> Encoder | bool:
        return True if self.encode is None else _encoder(self.encode)

    def __call__(self, loaded: Encoder | bool, item: Item, path: Path | None) -> Outcome:
        return _work(item.more, None, None if isinstance(loaded, bool) else loaded, path)


def _work(
    job: Job,
    advance: Callable[[int, int], None] | None,
    encoder: Encoder | None = None,
    staged: Path | None = None,
) -> Outcome:
    began = time.perf_counter()
    with open_slide(job.path, job.mpp, job.out, staged=staged) as slide, file_lock(slide.store):
        if job.encode is not None:
            encoder = encoder or _encoder(job.encode)
            return encode_slide(
                slide, encoder, job.encode, job.tiles, overwrite=job.overwrite, advance=advance
            )
        tiles, new = tile_slide(slide, job.tiles, overwrite=job.overwrite)
        status = ("done" if new else "kept") if len(tiles) else "blank"
        return Outcome(
            str(slide.path),
            status,
            tiles=len(tiles),
            seconds=time.perf_counter() - began,
            store=str(slide.store),
            message="" if len(tiles) else NO_TISSUE,
        )


@lru_cache(maxsize=1)
def _encoder(config: EncodeConfig) -> Encoder:
    """The encoder, loaded once in each process."""
    from morphogen.slides.encoders.registry import get_encoder

    return get_encoder(
        config.encoder,
        config.weights,
        device=config.device,
        precision=config.precision,
        compile=config.compile,
        trust_remote_code=config.trust_remote_code,
    )


@contextmanager
def _tile_bar() -> Iterator[Callable[[int, int], None]]:
    state: dict[str, Any] = {"done": 0}

    def advance(done: int, total: int) -> None:
        if "bar" not in state:
            state["context"] = progress.bar(total, "tiles", done=done)
            state["bar"] = state["context"].__enter__()
        else:
            state["bar"].advance(done - state["done"])
        state["done"] = done

    try:
        yield advance
    finally:
        if "context" in state:
            state["context"].__exit__(None, None, None)


def _refuse_equal_names(jobs: list[Job]) -> None:
    seen: dict[str, str] = {}
    for job in jobs:
        name = store_name(Path(job.path))
        if name in seen:
            raise SlideError(
                f"would share its store with {seen[name]}",
                where=job.path,
                fix="Rename one, or keep their results in different --out folders",
            )
        seen[name] = job.path
