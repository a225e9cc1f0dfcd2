"""Apply a stain model to images and folders; whole slides are in :mod:`morphogen.stain.wholeslide`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from morphogen.core.errors import InputError, OutputError
from morphogen.core.files import Manifest, atomic_path, read_json, writable_folder
from morphogen.core.jobs import Job
from morphogen.core.progress import progress
from morphogen.slides.images import IMAGE_SUFFIXES, image_size, list_images, name_of, read_raw
from morphogen.stain.config import ApplyConfig
from morphogen.stain.data import read_image
from morphogen.stain.model import StainTransfer
from morphogen.stain.pairs.checks import magenta_share
from morphogen.stain.recipes.translator import MEAN, SAMPLE, SAMPLES, UNCERTAINTY, StainTranslator
from morphogen.tasks.bands import Band, make_images, together

log = logging.getLogger("morphogen.stain")

RUN = "run.json"
LEAST_MAGENTA = 0.11  # see checks.py: H&E lies above, haematoxylin with DAB below
UNCERTAINTY_UNIT = 1e-4  # DAB optical density per grey level of the 16-bit uncertainty images


@dataclass(frozen=True)
class Stained:
    """A stained image of the size of its H&E.

    sample, mean: (H, W, 3) uint8. uncertainty: (H, W) float32, SD of the DAB optical density over the
    samples. samples: (K, H, W, 3) uint8.
    """

    sample: np.ndarray
    mean: np.ndarray
    uncertainty: np.ndarray
    samples: np.ndarray


def stain_image(
    model: StainTransfer,
    image: np.ndarray,
    config: ApplyConfig | None = None,
    *,
    name: str = "image",
    precision: str = "fp32",
) -> Stained:
    """Stain one H&E image (H, W, 3) uint8 of any size in memory.

    ``name`` and ``config.seed`` decide the noise: the same pair gives the same image, alone or in a folder.
    """
    config = config or ApplyConfig()
    translator = StainTranslator(model, config, precision=precision, keep_samples=True)
    (band,) = make_images(translator, [image], [name], config.windows, mpp=config.mpp)
    return _stained(band)


def _stained(band: Band) -> Stained:
    kept = [band.picture(plane) for plane in range(SAMPLES, len(band.planes), 3)]
    return Stained(band.picture(SAMPLE), band.picture(MEAN), band.values(UNCERTAINTY), np.stack(kept))


def stain_folder(
    model: StainTransfer,
    source: Path | str,
    out: Path | str,
    config: ApplyConfig | None = None,
    *,
    precision: str = "fp32",
    keep_samples: bool = False,
) -> Path:
    """Stain every image of a folder (or one image) into ``out``, PNG files of the same names.

    With several samples there are ``mean/`` and ``uncertainty/`` too (16-bit grey PNG, 0.0001 DAB optical
    density per level), and ``samples/00/`` … with ``keep_samples``. Finished images are skipped when the
    run is taken up again; a folder that holds another run's images is refused.
    """
    config = config or ApplyConfig()
    source, out = Path(source), writable_folder(out)
    files = {name_of(source): source} if source.is_file() else _flat_images(source)
    if any(path.parent.resolve() == out.resolve() for path in files.values()):
        raise OutputError("the output folder is the input folder", where=out, fix="Choose another --out")
    model.label(config.stain)
    goes_on = start_run(out, model, config, precision)
    failed: dict[str, str] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for name, path in files.items():
        with _one_of_many(name, failed):
            height, width = image_size(path)
            sizes[name] = width, height
    translator = StainTranslator(model, config, precision=precision, keep_samples=True)
    waiting, doubtful = 0, []
    with progress.bar(len(files), "staining images") as bar:
        for group in together(translator, sizes, config.windows, mpp=config.mpp):
            if goes_on and all(_finished(out, name, config, keep_samples) for name in group):
                bar.advance(len(group))
                waiting += len(group)
                continue
            read = {}
            for name in group:
                with _one_of_many(name, failed):
                    read[name] = read_image(files[name])
            bar.advance(len(group) - len(read))
            group, images = list(read), list(read.values())
            if not group:
                continue
            doubtful += [name for name, image in zip(group, images, strict=True) if not looks_like_he(image)]
            made = make_images(translator, images, group, config.windows, mpp=config.mpp)
            for name, band in zip(group, made, strict=True):
                save_stained(out, name, _stained(band), config, keep_samples)
                bar.advance(1)
    if failed and (len(failed) == len(files) or source.is_file()):
        raise InputError(
            next(iter(failed.values()))
            if len(files) == 1
            else f"none of the {len(files)} images can be read; the first: {next(iter(failed.values()))}"
        )
    if failed:
        names = "; ".join(list(failed.values())[:3]) + (" …" if len(failed) > 3 else "")
        log.warning("%d of %d images are left out: %s", len(failed), len(files), names)
    if doubtful:
        log.warning(
            "%d of %d images do not look like H&E (brown or blue rather than pink): %s.",
            len(doubtful),
            len(files),
            ", ".join(doubtful[:5]) + (" …" if len(doubtful) > 5 else ""),
        )
    if waiting:
        log.info("%d of %d images were there already.", waiting, len(files))
    Manifest.write(
        out,
        kind="stained images",
        images=sorted(set(files) - set(failed)),
        failed=failed,
        run=read_json(out / RUN),
        uncertainty_unit=UNCERTAINTY_UNIT if config.samples > 1 else None,
    )
    return out


def _flat_images(folder: Path) -> dict[str, Path]:
    from morphogen.stain.pairs.slides import is_slide

    return {name: path for name, path in list_images(folder).items() if not is_slide(path)}


def looks_like_he(image: np.ndarray) -> bool:
    """Whether the stained parts of an image (H, W, 3) uint8 have the colours of H&E; blank images pass."""
    step = max(1, max(image.shape[:2]) // 512)
    share = magenta_share(np.ascontiguousarray(image[::step, ::step]))
    return share is None or share > LEAST_MAGENTA


def run_facts(model: StainTransfer, config: ApplyConfig, precision: str) -> dict[str, Any]:
    """What decides a result: part of every result file."""
    return {
        "model": model.identity,
        "stain": config.stain or model.stains[0],
        "apply": config.model_dump(mode="json"),
        "precision": precision,
        "encoder": model.config.encoder,
        "model_mpp": model.mpp,
        "evaluations": _evaluations(model, config),
    }


def _evaluations(model: StainTransfer, config: ApplyConfig) -> float:
    """Of networks, for all samples of a window."""
    if model.config.regression:
        return 1
    return config.samples * config.sampler.steps + config.sampler.inversion_steps + (model.mean is not None)


def start_run(out: Path, model: StainTransfer, config: ApplyConfig, precision: str) -> bool:
    """Whether this very run was begun in ``out`` before (``run.json``); if not, it is now."""
    return Job(run_facts(model, config, precision)).begin(out / RUN, "images")


@contextmanager
def _one_of_many(name: str, failed: dict[str, str]) -> Iterator[None]:
    """An image that cannot be read is noted, and the others go on."""
    try:
        yield
    except InputError as error:
        failed[name] = str(error)


def _outputs(out: Path, name: str, config: ApplyConfig, keep_samples: bool) -> dict[str, Path]:
    paths = {"main": out / f"{name}.png"}
    if config.samples > 1:
        paths["mean"] = out / "mean" / f"{name}.png"
        paths["uncertainty"] = out / "uncertainty" / f"{name}.png"
        if keep_samples:
            for k in range(config.samples):
                paths[f"sample {k}"] = out / "samples" / f"{k:02d}" / f"{name}.png"
    return paths


def _finished(out: Path, name: str, config: ApplyConfig, keep_samples: bool) -> bool:
    return all(path.is_file() for path in _outputs(out, name, config, keep_samples).values())


def save_stained(
    out: Path, name: str, stained: Stained, config: ApplyConfig, keep_samples: bool = False
) -> None:
    """Write the files of one image, each atomically."""
    for kind, path in _outputs(out, name, config, keep_samples).items():
        if kind == "main":
            pixels = stained.mean if config.show == "mean" else stained.sample
        elif kind == "mean":
            pixels = stained.mean
        elif kind == "uncertainty":
            pixels = np.clip(np.rint(stained.uncertainty / UNCERTAINTY_UNIT), 0, 65535).astype(np.uint16)
        else:
            pixels = stained.samples[int(kind.split()[1])]
        save_png(path, pixels)


def save_png(path: Path, pixels: np.ndarray) -> None:
    """(H, W, 3) uint8 or (H, W) uint8/uint16, atomically."""
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", compress_level=3)


def read_uncertainty(path: Path | str) -> np.ndarray:
    """(H, W) float32 SD of the DAB optical density from a file of ``uncertainty/``."""
    return read_raw(path).astype(np.float32) * UNCERTAINTY_UNIT


def sort_sources(sources: Sequence[Path | str]) -> tuple[list[Path], list[Path]]:
    """``(folders or images, slides)`` of what a user names; a folder may hold both.

    :class:`InputError` for what is not there, or a folder with neither.
    """
    from morphogen.stain.pairs.slides import is_slide

    plain: list[Path] = []
    slides: list[Path] = []
    for source in map(Path, sources):
        if not source.exists():
            raise InputError("there is no such file or folder", where=source)
        if source.is_file():
            (slides if is_slide(source) else plain).append(source)
            continue
        inside = sorted(path for path in source.iterdir() if path.is_file() and is_slide(path))
        slides += inside
        images = [
            path for path in source.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path not in inside
        ]
        if images:
            plain.append(source)
        elif not inside:
            raise InputError("there are no images and no slides in this folder", where=source)
    return plain, slides
