"""What a user names: images, slides, folders of them, and lists with µm/px; and the loop over them.

A room says what it does with image files and with one slide; :func:`run_sources` does it to all that is named.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from morphogen.core.errors import ConfigError, InputError, MorphogenError, OutputError
from morphogen.core.reading.listing import list_files, list_folders
from morphogen.slides.batch import collect
from morphogen.slides.formats.ngff import is_ome_zarr
from morphogen.slides.formats.tiff import main_series
from morphogen.slides.images import (
    IMAGE_SUFFIXES,
    SLIDE_SUFFIXES,
    TIFF_SUFFIXES,
    VENDOR_SUFFIXES,
    list_images,
    name_of,
    open_tiff,
    sniff,
)
from morphogen.tasks.folders import FolderResult

LARGE = 8192  # px; a TIFF with a longer side than this is treated as a slide
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
    """Whether a file is to be opened as a whole slide: a vendor's format, OME-Zarr, or a TIFF with a
    pyramid or of great size.
    """
    path = Path(path)
    if is_ome_zarr(path):
        return True
    suffix = path.suffix.lower()
    if suffix in VENDOR_SUFFIXES:
        return True
    if suffix not in TIFF_SUFFIXES:
        return False
    try:
        if sniff(path) != "TIFF":
            return False
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

    @property
    def whole(self) -> bool:
        """Whether nothing was left out."""
        return not (self.failed or self.error)


def run_sources(
    sources: Iterable[Path | str],
    images: Callable[[Mapping[str, Path]], FolderResult],
    slide: Callable[[Path, float | None], tuple[list[Path], str]],
    *,
    mpp: float | None = None,
) -> Iterator[Outcome]:
    """Everything that is named, images before slides, an outcome as each is finished.

    ``images`` translates image files; ``slide`` one slide with its µm/px, and gives the files and a few words. A source
    that fails among several is an outcome and the others go on; one alone raises its error, and what concerns all of
    them (the place is full or not writable) does so always.
    """
    folders, slides = sort_sources(sources, mpp=mpp)
    alone = len(folders) + len(slides) == 1
    for folder in folders:
        try:
            result = images(folder.files)
            there, whole = len(folder.files) - len(result.failed), len(folder.files)
            note = f"{whole} images" if there == whole else f"{there} of {whole} images"
            yield Outcome(folder.where, [result.out], note, failed=result.failed)
        except MorphogenError as error:
            if alone or concerns_all(error):
                raise
            yield Outcome(folder.where, [], error=str(error))
    for source in slides:
        try:
            yield Outcome(source.path, *slide(source.path, source.mpp))
        except MorphogenError as error:
            if alone or concerns_all(error):
                raise
            yield Outcome(source.path, [], error=str(error))


def concerns_all(error: MorphogenError) -> bool:
    """Whether an error at one item would meet all others too: a wrong setting, a full disk."""
    cause = error.__cause__
    full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, ConfigError) or (isinstance(error, OutputError) and full)
