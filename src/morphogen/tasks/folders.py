"""Folders of images through a model, one file per image and layer, resumable; an image that cannot be read is left out
and named, and the others go on.

A room says what is written of an image (:class:`~morphogen.tasks.layers.Layer`) and of what job the folder is::

    result = translate_images(translator, files, out, layers, facts, windows=config.windows)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from morphogen.core.errors import InputError, OutputError
from morphogen.core.files import Manifest, atomic_path, read_json, writable_folder
from morphogen.core.jobs import Job
from morphogen.core.names import path_name
from morphogen.core.progress import progress
from morphogen.core.running.threads import in_lanes
from morphogen.core.writing.locks import locks_folder
from morphogen.slides.formats.channels import save_channels
from morphogen.slides.images import image_size, read_image
from morphogen.slides.pyramid.ngff import write_image
from morphogen.tasks.bands import Band, Translator, make_images, together
from morphogen.tasks.config import WindowConfig
from morphogen.tasks.layers import SUFFIXES, Format, Layer

log = logging.getLogger("morphogen.tasks")

RUN = "run.json"  # what the images of a folder were made of


@dataclass
class FolderResult:
    """What became of the images of a folder: names made now, names that were there already, and why others failed."""

    out: Path
    made: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


@locks_folder()
def translate_images(
    model: Translator,
    files: Mapping[str, Path],
    out: Path | str,
    layers: Sequence[Layer],
    facts: Mapping[str, Any],
    *,
    windows: WindowConfig,
    mpp: float | None = None,
    read: Callable[[Path], np.ndarray] = read_image,
    look: Callable[[str, np.ndarray], object] = lambda name, image: None,
    kind: str = "translated images",
    notes: Mapping[str, Any] | None = None,
    doing: str = "translating images",
    newer: Sequence[str] = (),
    format: Format = "tiff",
) -> FolderResult:
    """Translate image files (``name → path``) into ``out``, PNG files of the same names.

    Parameters
    ----------
    layers:
        The main one (no name) is ``out/<name>.png``, others are ``out/<layer>/<name>.png``; several named channels
        are ``.ome.tif``.
    facts:
        What decides the images besides themselves. A folder of another job is refused; finished images are skipped when
        the same job is taken up again.
    mpp:
        µm/px of the images, where it is known.
    read, look:
        How a file becomes (H, W, 3) uint8; what is told of every image that is made.
    kind, notes:
        Of the manifest.
    newer:
        Facts that folders of earlier versions do not have.
    format:
        ``zarr`` writes OME-Zarr (``<name>.ome.zarr``) instead of PNG.

    Raises
    ------
    OutputError
        The folder cannot be written, is that of the images, or holds another job's.
    InputError
        No image can be read.
    """
    out = writable_folder(out)
    if any(path.parent.resolve() == out.resolve() for path in files.values()):
        raise OutputError("the output folder is the input folder", where=out, fix="Choose another --out")
    goes_on = Job(facts, newer=newer).begin(out / RUN, "images")
    result = FolderResult(out)
    sizes: dict[str, tuple[int, int]] = {}
    for name, path in files.items():
        with _one_of_many(name, result.failed):
            path_name(name, "image", suffix=".ome.zarr", where=path)
            height, width = image_size(path)
            sizes[name] = width, height
    groups = list(together(model, sizes, windows, mpp=mpp))

    def there(group: list[str]) -> bool:
        return goes_on and all(_path(out, layer, name, format).exists() for layer in layers for name in group)

    def made(group: list[str]) -> tuple[dict[str, np.ndarray], list[Band], dict[str, str]]:
        images: dict[str, np.ndarray] = {}
        failed: dict[str, str] = {}
        for name in group:
            with _one_of_many(name, failed):
                images[name] = read(files[name])
        found = make_images(model, list(images.values()), list(images), windows, mpp=mpp) if images else ()
        return images, list(found), failed

    result.kept += [name for group in groups if there(group) for name in group]
    todo = [group for group in groups if not there(group)]
    done = len(result.failed) + len(result.kept)
    count = min(getattr(model, "lanes", 1), len(todo))
    with progress.bar(len(files), doing, done=done) as bar, closing(in_lanes(made, todo, count)) as finished:
        for images, bands, failed in finished:
            result.failed |= failed
            bar.advance(len(failed))
            for (name, image), band in zip(images.items(), bands, strict=True):
                look(name, image)
                save_layers(out, name, layers, band, format, mpp)
                result.made.append(name)
                bar.advance(1)
    _say(result, files)
    Manifest.write(
        out,
        kind=kind,
        images=sorted(set(files) - set(result.failed)),
        failed=result.failed,
        run=read_json(out / RUN),
        **(notes or {}),
    )
    return result


def _say(result: FolderResult, files: Mapping[str, Path]) -> None:
    sentences = list(result.failed.values())
    if sentences and len(sentences) == len(files):
        if len(files) == 1:
            raise InputError(sentences[0])
        raise InputError(f"none of the {len(files)} images can be read; the first: {sentences[0]}")
    if sentences:
        names = "; ".join(sentences[:3]) + (" …" if len(sentences) > 3 else "")
        log.warning("%d of %d images are left out: %s", len(sentences), len(files), names)
    if result.kept:
        log.info("%d of %d images were there already.", len(result.kept), len(files))


@contextmanager
def _one_of_many(name: str, failed: dict[str, str]) -> Iterator[None]:
    """An image that cannot be read is noted, and the others go on."""
    try:
        yield
    except InputError as error:
        failed[name] = str(error)


def _path(out: Path, layer: Layer, name: str, format: Format = "tiff") -> Path:
    suffix = layer.suffix if format == "tiff" else SUFFIXES[format]
    path_name(name, "image", suffix=suffix)
    return out / layer.name / f"{name}{suffix}" if layer.name else out / f"{name}{suffix}"


def save_layers(
    out: Path,
    name: str,
    layers: Sequence[Layer],
    band: Band,
    format: Format = "tiff",
    mpp: float | None = None,
) -> None:
    """Write the files of one image, each atomically: PNG, or OME-Zarr with the ``format`` ``zarr``."""
    for layer in layers:
        path, pixels = _path(out, layer, name, format), layer.pixels(band)
        if format == "tiff" and layer.suffix == ".png":
            save_png(path, pixels)
        elif format == "tiff":
            save_channels(path, pixels, layer.names, colours=layer.colours, mpp=mpp, facts=layer.facts)
        else:
            with atomic_path(path) as temporary:
                write_image(
                    temporary,
                    pixels,
                    mpp=mpp,
                    labels=layer.labels,
                    facts=layer.facts,
                    name=path.name,
                    names=layer.names,
                    colours=layer.colours,
                )


def save_png(path: Path, pixels: np.ndarray) -> None:
    """(H, W, 3) uint8 or (H, W) uint8/uint16, atomically."""
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", compress_level=3)
