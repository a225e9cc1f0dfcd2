"""Apply a stain model to images, folders and whole slides."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from morphogen.core.devices import chosen_precision
from morphogen.core.running.spread import Spread
from morphogen.metrics.seams import SeamScore
from morphogen.slides import Slide, open_slide
from morphogen.slides.images import list_images, name_of
from morphogen.slides.recolouring import Normalise, normalised, normaliser
from morphogen.stain.config import ApplyConfig
from morphogen.stain.model import StainTransfer
from morphogen.stain.outputs import UNCERTAINTY_UNIT, Stained, image_layers, slide_layers
from morphogen.stain.pairs.checks import magenta_share
from morphogen.stain.recipes.translator import StainTranslator
from morphogen.stain.targets.files import read_image
from morphogen.tasks.bands import make_images
from morphogen.tasks.checks import shortened
from morphogen.tasks.folders import FolderResult, translate_images
from morphogen.tasks.layers import Format
from morphogen.tasks.pyramids import make_slide
from morphogen.tasks.sources import Outcome, SlideSource, is_slide, spread_sources

log = logging.getLogger("morphogen.stain")

NEWER = (  # settings that results of earlier versions do not name; their defaults are what was done then
    *("apply.mean_weight", "apply.sample_spread", "apply.effect_spread"),
    *(
        f"apply.sampler.{name}"
        for name in ("steps_offset", "variance", "guidance_scale", "guidance_interval", "guidance_rescale")
    ),
)
LEAST_MAGENTA = 0.11  # see checks.py: H&E lies above, haematoxylin with DAB below


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
    image = normalised(image, model.config.seen)
    (band,) = make_images(translator, [image], [name], config.windows, mpp=config.mpp)
    return Stained.of(band, model.config.target)


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
    run is taken up again; a folder that holds another run's images is refused; images that cannot be read are left
    out and named in the manifest.
    """
    source = Path(source)
    if source.is_file():
        files = {name_of(source): source}
    else:
        files = {name: path for name, path in list_images(source).items() if not is_slide(path)}
    return stain_files(model, files, out, config, precision=precision, keep_samples=keep_samples).out


def stain_files(
    model: StainTransfer,
    files: Mapping[str, Path],
    out: Path | str,
    config: ApplyConfig | None = None,
    *,
    precision: str = "fp32",
    keep_samples: bool = False,
    format: Format = "tiff",
) -> FolderResult:
    """:func:`stain_folder` for image files by name; what became of each."""
    config = config or ApplyConfig()
    model.label(config.stain)
    target = model.config.target
    unit = UNCERTAINTY_UNIT if target.colour else target.step
    doubtful: list[str] = []

    def look(name: str, image: np.ndarray) -> None:
        if not looks_like_he(image):
            doubtful.append(name)

    result = translate_images(
        StainTranslator(model, config, precision=precision, keep_samples=keep_samples),
        files,
        out,
        image_layers(config, keep_samples, target),
        run_facts(model, config, precision),
        windows=config.windows,
        mpp=config.mpp,
        read=partial(_read_as, model.config.seen),
        look=look,
        kind="stained images",
        notes={"uncertainty_unit": unit if config.samples > 1 else None},
        doing="staining images",
        newer=NEWER,
        format=format,
    )
    if doubtful:
        log.warning(
            "%d of %d images do not look like H&E (brown or blue rather than pink): %s.",
            *(len(doubtful), len(files), shortened(doubtful)),
        )
    return result


def _read_as(how: Normalise, path: Path) -> np.ndarray:
    return normalised(read_image(path), how)


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
        "precision": chosen_precision(precision, model.device),
        "encoder": model.config.encoder,
        "model_mpp": model.mpp,
        **({} if model.config.target.colour else {"target": model.config.target.to_dict()}),
        "evaluations": _evaluations(model, config),
    }


def _evaluations(model: StainTransfer, config: ApplyConfig) -> float:
    """Of networks, for all samples of a window."""
    if model.config.regression:
        return 1
    return config.samples * config.sampler.steps + config.sampler.inversion_steps + (model.mean is not None)


# -- whole slides
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StainedSlide:
    """Files of a stained slide and what is known of it.

    image: pyramid of the stain. uncertainty: pyramid of the SD of DAB optical density, with several samples.
    windows: number stained. seams: seam score over tissue windows, ``None`` when there is one window only.
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
    format: Format = "tiff",
) -> StainedSlide:
    """Stain a slide into ``out/<slide>_<stain>.ome.tif``, with ``…_uncertainty.ome.tif`` for several samples; with the
    ``format`` ``zarr`` into OME-Zarr (``.ome.zarr``).

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
    model.label(config.stain)
    stain = config.stain or model.stains[0]
    notes = {"stain": stain, "model": model.identity[:16], "source": slide.path.name}
    seen = model.config.seen
    light = normaliser(slide.thumbnail(), seen) if seen != "none" else None
    made = make_slide(
        StainTranslator(model, config, precision=precision, light=light),
        slide,
        out,
        f"{name_of(slide.path)}_{stain}",
        slide_layers(config, notes, model.config.target),
        run_facts(model, config, precision),
        windows=config.windows,
        tissue=tissue,
        quality=config.quality,
        what="the stained slide",
        doing="staining windows",
        newer=NEWER,
        format=format,
    )
    return StainedSlide(made.images[""], made.images.get("uncertainty"), made.windows, made.seams, made.facts)


@dataclass(frozen=True)
class StainRoom:
    """A stain model by where it is, and how it is applied: what goes to the processes that stain.

    Attributes
    ----------
    model, encoder, weights, device, compile:
        As for :meth:`StainTransfer.from_pretrained`.
    out, config, precision, keep_samples, format:
        As for :func:`stain_sources`.
    """

    out: Path | str
    config: ApplyConfig
    model: str = ""
    encoder: str | None = None
    weights: str | None = None
    device: str = "auto"
    precision: str = "fp32"
    compile: bool | None = False
    keep_samples: bool = False
    format: Format = "tiff"

    def load(self) -> StainTransfer:
        return StainTransfer.on_all(
            self.model, self.device, encoder=self.encoder, encoder_weights=self.weights
        ).compile(self.compile)

    def images(self, model: StainTransfer, files: Mapping[str, Path]) -> FolderResult:
        options = {"precision": self.precision, "keep_samples": self.keep_samples, "format": self.format}
        return stain_files(model, files, self.out, self.config, **options)  # type: ignore[arg-type]

    def slide(self, model: StainTransfer, source: SlideSource, path: Path) -> tuple[list[Path], str]:
        with open_slide(source.path, source.mpp, staged=path) as opened:
            made = stain_slide(
                model, opened, self.out, self.config, precision=self.precision, format=self.format
            )
        seams = f", seam score {made.seams.worst:.3f}" if made.seams is not None else ""
        written = [made.image, *([made.uncertainty] if made.uncertainty is not None else [])]
        return written, f"{made.windows} windows{seams}"


def stain_sources(
    model: StainTransfer | None,
    sources: Sequence[Path | str],
    out: Path | str,
    config: ApplyConfig | None = None,
    *,
    precision: str = "fp32",
    keep_samples: bool = False,
    format: Format = "tiff",
    room: StainRoom | None = None,
    spread: Spread | None = None,
) -> Iterator[Outcome]:
    """Stain all that is named: images, slides, folders of them and lists; an outcome for each folder and slide as it
    is finished, whatever happens to one of several. A ``room`` says how other processes load the model, for a
    ``spread`` over them; its settings are then the ones that count."""
    config = config or ApplyConfig()
    room = room or StainRoom(out, config, precision=precision, keep_samples=keep_samples, format=format)
    facts = {"model": room.model, "apply": room.config.to_dict(), "precision": room.precision}
    return spread_sources(
        room,
        sources,
        spread,
        out=room.out,
        what="stain predict",
        model=model,
        mpp=room.config.mpp,
        facts=facts,
    )
