"""Segmentation of all that is named on a command line: slides, image files, folders of either."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from morphogen.core.errors import InputError, MorphogenError
from morphogen.layout.data import SLIDE_SUFFIXES
from morphogen.layout.segmenter.apply import SegmentedImages, SegmentedSlide, segment_images, segment_slide
from morphogen.layout.segmenter.model import Segmenter
from morphogen.slides.formats.ngff import is_ome_zarr
from morphogen.tasks import WindowConfig
from morphogen.tasks.layers import Format


@dataclass
class Segmented:
    """Slides by name, sets of images, and what failed by name."""

    slides: dict[str, SegmentedSlide] = field(default_factory=dict)
    images: list[SegmentedImages] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """What to tell of it."""
        for name, slide in self.slides.items():
            shares = ", ".join(f"{label} {share:.1%}" for label, share in slide.shares.items())
            yield f"{name}: {shares}"
            yield f"Mask: {slide.mask}"
            yield f"{slide.count} polygons: {slide.polygons}"
        for found in self.images:
            yield f"{len(found.done)} label maps: {found.folder / 'masks'}"
        for name, problem in self.failed.items():
            yield f"Left out: {name}: {problem}"


def segment_sources(
    segmenter: Segmenter,
    sources: Sequence[Path],
    out: Path | str,
    *,
    windows: WindowConfig | None = None,
    mpp: float | None = None,
    format: Format = "tiff",
) -> Segmented:
    """Label slides and images; a bad one is told and the rest goes on. Raises :class:`InputError` for a source that is
    not there, before anything is made, and what went wrong where there is one slide alone."""
    from morphogen.slides import open_slide

    out = Path(out)
    for source in sources:
        if not source.exists():
            raise InputError("there is no such file or folder", where=source)
    slides, files, folders = sorted_out(sources)
    result = Segmented()
    for path in slides:
        try:
            with open_slide(path, mpp=mpp) as slide:
                result.slides[path.name] = segment_slide(
                    segmenter, slide, out, windows=windows, format=format
                )
        except MorphogenError as error:
            if len(slides) == 1 and not files and not folders:
                raise
            result.failed[path.name] = str(error)
    jobs: list[tuple[Path, Path | list[Path]]] = [(folder, folder) for folder in folders]
    if files:
        jobs.append((Path("images"), files))
    for name, job in jobs:
        found = segment_images(
            segmenter, job, out if len(jobs) == 1 else out / name.name, windows=windows, mpp=mpp
        )
        result.images.append(found)
        result.failed |= found.failed
    return result


def sorted_out(sources: Sequence[Path]) -> tuple[list[Path], list[Path], list[Path]]:
    """Slides (also those of a folder that holds some), image files, folders of images."""
    slides: list[Path] = []
    files: list[Path] = []
    folders: list[Path] = []
    for source in sources:
        if is_ome_zarr(source):
            slides.append(source)
            continue
        if source.is_file():
            (slides if source.suffix.lower() in SLIDE_SUFFIXES else files).append(source)
            continue
        inside = sorted(
            path
            for path in source.iterdir()
            if path.is_file() and not path.name.startswith(".") and path.suffix.lower() in SLIDE_SUFFIXES
        )
        if inside:
            slides += inside
        else:
            folders.append(source)
    return slides, files, folders
