"""Segmentation of all that is named on a command line: slides, image files, folders of either."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from morphogen.core.errors import InputError
from morphogen.core.running.cohort import run_cohort
from morphogen.core.running.spread import Spread
from morphogen.core.running.work import Item
from morphogen.layout.data import SLIDE_SUFFIXES
from morphogen.layout.segmenter.apply import SegmentedImages, SegmentedSlide, segment_images, segment_slide
from morphogen.layout.segmenter.model import Segmenter
from morphogen.slides import open_slide
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


@dataclass(frozen=True)
class SegmentRoom:
    """A segmenter by where it is, and how it is applied: what goes to the processes that segment."""

    model: str
    windows: WindowConfig
    mpp: float | None = None
    device: str = "auto"
    format: Format = "tiff"

    def load(self) -> Segmenter:
        return Segmenter.on_all(self.model, self.device)

    def __call__(self, loaded: Segmenter, item: Item, path: Path | None) -> SegmentedSlide | SegmentedImages:
        source, out = item.more
        if item.path is None:
            how: dict[str, Any] = {"windows": self.windows, "mpp": self.mpp, "format": self.format}
            return segment_images(loaded, source, out, **how)
        with open_slide(source, mpp=self.mpp, staged=path) as slide:
            return segment_slide(loaded, slide, out, windows=self.windows, format=self.format)


def segment_sources(
    segmenter: Segmenter | Path | str,
    sources: Sequence[Path],
    out: Path | str,
    *,
    windows: WindowConfig | None = None,
    mpp: float | None = None,
    format: Format = "tiff",
    device: str = "auto",
    spread: Spread | None = None,
) -> Segmented:
    """Label slides and images; a bad one is told and the rest goes on. Raises :class:`InputError` for a source that is
    not there, before anything is made, and what went wrong where there is one source alone. ``segmenter`` is loaded, or
    its folder, which each process of a ``spread`` loads for itself."""
    out, spread = Path(out), spread or Spread()
    for source in sources:
        if not source.exists():
            raise InputError("there is no such file or folder", where=source)
    slides, files, folders = sorted_out(sources)
    sets: list[tuple[Path, Path | list[Path]]] = [(folder, folder) for folder in folders]
    if files:
        sets.append((Path("images"), files))
    places = [name.name for name, _ in sets]
    if twice := [name for name in places if places.count(name) > 1]:
        raise InputError(
            f"the label maps of {places.count(twice[0])} sources would lie in it",
            where=out / twice[0],
            fix="Segment them one after the other, each with an --out of its own",
        )
    items = [Item(str(path), path, (path, out)) for path in slides]
    items += [
        Item(str(name), None, (source, out if len(sets) == 1 else out / name.name)) for name, source in sets
    ]
    loaded, folder = (segmenter, "") if isinstance(segmenter, Segmenter) else (None, str(segmenter))
    room = SegmentRoom(folder, windows or WindowConfig(), mpp, device, format)
    replies = run_cohort(
        room,
        items,
        spread,
        out=out,
        what="layout segment",
        loaded=loaded,
        workers=spread.processes(len(items)) if spread.gpus else 1,
        facts={"model": folder, "windows": room.windows.to_dict(), "mpp": mpp},
        written=lambda found: (
            [found.mask, found.polygons] if isinstance(found, SegmentedSlide) else [found.folder]
        ),
        unit="sources",
    )
    result = Segmented()
    for index, reply in sorted(replies, key=lambda pair: pair[0]):
        place = items[index].path
        name = items[index].name if place is None else place.name
        if reply.error:
            result.failed[name] = reply.error
        elif isinstance(reply.value, SegmentedSlide):
            result.slides[name] = reply.value
        else:
            result.images.append(reply.value)
            result.failed |= reply.value.failed
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
