"""What a user names: images, slides, folders of them, and lists with µm/px; and the loop over them.

A room says what it does with image files and with one slide. :func:`spread_sources` does it to all that is named, here
or over processes, GPUs, a cluster or the shards of a job array, for which the room is a frozen dataclass that can be
pickled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from morphogen.core.errors import InputError
from morphogen.core.reading.listing import list_files, list_folders
from morphogen.core.running.cohort import run_cohort
from morphogen.core.running.spread import Spread
from morphogen.core.running.work import Item
from morphogen.slides.batch import collect
from morphogen.slides.formats.ngff import is_ome_zarr
from morphogen.slides.formats.tiff import main_series
from morphogen.slides.images import (
    IMAGE_SUFFIXES,
    SLIDE_SUFFIXES,
    VENDOR_SUFFIXES,
    image_size,
    list_images,
    name_of,
    open_tiff,
    sniff,
)
from morphogen.tasks.folders import FolderResult

LARGE = 8192  # px; an image with a longer side than this is treated as a slide: in bands, without its glass
LISTS = (".csv", ".tsv", ".txt")


@dataclass(frozen=True)
class Images:
    """Image files that are translated into one folder, ``name → path``; ``where`` they were named."""

    where: Path
    files: dict[str, Path]


@dataclass(frozen=True)
class SlideSource:
    """A slide, and its µm/px where the user said it."""

    path: Path
    mpp: float | None = None


def is_slide(path: Path | str) -> bool:
    """Whether a file is to be opened as a whole slide: a vendor's format, OME-Zarr, a TIFF with a pyramid, or any
    image of great size.
    """
    path = Path(path)
    if is_ome_zarr(path):
        return True
    suffix = path.suffix.lower()
    if suffix in VENDOR_SUFFIXES:
        return True
    if suffix not in IMAGE_SUFFIXES:
        return False
    try:
        if sniff(path) != "TIFF":
            return max(image_size(path)) > LARGE
        with open_tiff(path) as file:
            series = main_series(file)
            return len(series.levels) > 1 or len(file.pages) > 3 or max(series.shape) > LARGE
    except InputError:
        return False


def sort_sources(
    sources: Iterable[Path | str], *, mpp: float | None = None
) -> tuple[list[Images], list[SlideSource]]:
    """Images and slides of what a user names: files, folders (which may hold both) and lists.

    A ``.csv``, ``.tsv`` or ``.txt`` names files as in :func:`morphogen.slides.batch.collect`; its column ``mpp`` counts
    for slides. :class:`InputError` for what is not there, or a folder with neither.
    """
    images: list[Images] = []
    slides: list[SlideSource] = []
    for source in map(Path, sources):
        if not source.exists():
            raise InputError("there is no such file or folder", where=source)
        if is_ome_zarr(source):
            slides.append(SlideSource(source, mpp))
            continue
        if source.is_dir():
            there = list_files(source, suffixes=SLIDE_SUFFIXES)
            inside = [path for path in there if is_slide(path)]
            inside += [path for path in list_folders(source, "*.zarr") if is_ome_zarr(path)]
            slides += [SlideSource(path, mpp) for path in inside]
            if any(path.suffix.lower() in IMAGE_SUFFIXES and path not in inside for path in there):
                images.append(Images(source, list_images(source, leave_out=inside)))
            elif not inside:
                raise InputError("there are no images and no slides in this folder", where=source)
            continue
        if source.suffix.lower() not in LISTS:
            if is_slide(source):
                slides.append(SlideSource(source, mpp))
            else:
                images.append(Images(source, {name_of(source): source}))
            continue
        listed: dict[str, Path] = {}
        for job in collect([source], mpp=mpp):
            path = Path(job.path)
            if is_slide(path):
                slides.append(SlideSource(path, job.mpp))
            elif name_of(path) in listed:
                raise InputError(f"two images are named '{name_of(path)}'", where=source)
            else:
                listed[name_of(path)] = path
        if listed:
            images.append(Images(source, listed))
    return images, slides


@dataclass(frozen=True)
class Outcome:
    """What became of one source.

    written: files or folder of the result. note: a few words on it. failed: images that were left out, by name and why.
    error: why the source failed as a whole.
    """

    source: Path
    written: list[Path]
    note: str = ""
    failed: Mapping[str, str] = field(default_factory=dict)
    error: str = ""

    @classmethod
    def of_images(cls, source: Images, result: FolderResult) -> Outcome:
        """What became of image files: how many were made is said."""
        whole = len(source.files)
        note = f"{whole - len(result.failed)} of {whole} images" if result.failed else f"{whole} images"
        return cls(source.where, [result.out], note, failed=dict(result.failed))

    @property
    def whole(self) -> bool:
        """Whether nothing was left out."""
        return not (self.failed or self.error)


# -- spread over processes, GPUs, machines


class Room(Protocol):
    """What a room says of its model and of one source. It can be pickled where it goes to other processes."""

    def load(self) -> Any:
        """The model, loaded once in each process."""
        ...

    def images(self, model: Any, files: Mapping[str, Path]) -> FolderResult:
        """Image files by name through the model."""
        ...

    def slide(self, model: Any, source: SlideSource, path: Path) -> tuple[list[Path], str]:
        """One slide, its file at ``path`` (a copy where it is staged): files of the result, and a few words."""
        ...


@dataclass(frozen=True)
class _Work:
    room: Room

    def load(self) -> Any:
        return self.room.load()

    def __call__(self, loaded: Any, item: Item, path: Path | None) -> Outcome:
        source: Images | SlideSource = item.more
        if isinstance(source, Images):
            return Outcome.of_images(source, self.room.images(loaded, source.files))
        return Outcome(source.path, *self.room.slide(loaded, source, path or source.path))


def spread_sources(
    room: Room,
    sources: Iterable[Path | str],
    spread: Spread | None = None,
    *,
    out: Path | str,
    what: str,
    model: Any = None,
    mpp: float | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Iterator[Outcome]:
    """Everything that is named, images before slides, an outcome as each is finished.

    A source that fails among several is an outcome and the others go on; one alone raises its error, and what concerns
    all of them does so always.

    Parameters
    ----------
    out:
        Folder of the results and of the report on the run.
    what, facts:
        The command and its settings, for the report.
    model:
        What ``room.load()`` would give, where it is loaded here already; other processes load their own.
    """
    spread = spread or Spread()
    folders, slides = sort_sources(sources, mpp=mpp)
    slides = _once(slides)
    items = [Item(str(folder.where), None, folder) for folder in folders]
    items += [Item(str(slide.path), slide.path, slide) for slide in slides]
    workers = spread.processes(len(items)) if spread.gpus else 1
    replies = run_cohort(
        _Work(room),
        items,
        spread,
        out=Path(out),
        what=what,
        loaded=model,
        workers=workers,
        facts=facts,
        written=lambda outcome: outcome.written,
        unit="sources",
    )
    for index, reply in replies:
        if reply.error:
            source = items[index].more
            where = source.where if isinstance(source, Images) else source.path
            yield Outcome(where, [], error=reply.error)
        else:
            yield reply.value


def _once(slides: list[SlideSource]) -> list[SlideSource]:
    """Each slide once, whatever lists name it; :class:`InputError` for two µm/px of one, or two of one name."""
    found: dict[Path, SlideSource] = {}
    names: dict[str, Path] = {}
    for slide in slides:
        real = slide.path.resolve()
        known = found.setdefault(real, slide)
        if known.mpp != slide.mpp and None not in (known.mpp, slide.mpp):
            raise InputError(f"is named with {known.mpp:g} and with {slide.mpp:g} µm/px", where=slide.path)
        if known.mpp is None and slide.mpp is not None:
            found[real] = replace(known, mpp=slide.mpp)
        first = names.setdefault(name_of(slide.path), real)
        if first != real:
            raise InputError(
                f"has the name of {first}, and so would their results",
                where=slide.path,
                fix="Rename one, or run them with different --out folders",
            )
    return list(found.values())
