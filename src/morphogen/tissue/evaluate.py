"""Evaluation: tissue drawn from held-out embeddings, and twins of regions, against the real tissue."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from morphogen.core.errors import DependencyError, InputError
from morphogen.core.files import Manifest, read_json, writable_folder, write_json
from morphogen.core.seeds import numpy_generator
from morphogen.core.writing.locks import locks_folder
from morphogen.metrics.intervals import bootstrap
from morphogen.metrics.seams import SeamMeter
from morphogen.slides import get_encoder, open_slide
from morphogen.slides.fields import read_boxes
from morphogen.tasks.evaluation import Evaluation, ItemScores, SetScores, write_page, write_results
from morphogen.tasks.layers import SUFFIXES
from morphogen.tissue import scoring
from morphogen.tissue.canvases.sources import region_boxes
from morphogen.tissue.config import EvaluateConfig, UseConfig
from morphogen.tissue.data import TileTable, spread_rows
from morphogen.tissue.model import TissueDiffusion
from morphogen.tissue.predict import draw_patches
from morphogen.tissue.reading.images import bare_glass
from morphogen.tissue.train import model_encoder

log = logging.getLogger("morphogen.tissue")

PROTOCOL = "tissue-2"
TABLES: Any = [
    (
        "Does a drawn tile show its embedding?",
        {
            "gain": ("matched − shuffled cosine", "max"),
            "top1": ("own vector nearest", "max"),
            "top5": ("among the five nearest", "max"),
            "embedding_similarity": ("plain cosine", None),
        },
    ),
    (
        "Do drawn tiles look like real ones?",
        {
            "frechet": ("Fréchet distance", "min"),
            "frechet_floor": ("real to real", None),
            "frechet_ratio": ("ratio", "min"),
            "frechet_raw_ratio": ("ratio, columns not standardised", None),
            "kernel": ("kernel distance", "min"),
            "precision": ("precision", "max"),
            "recall": ("recall", "max"),
            "density": ("density", None),
            "coverage": ("coverage", "max"),
            "precision_floor": ("precision, real to real", None),
            "recall_floor": ("recall, real to real", None),
        },
    ),
    (
        "Are training tiles copied?",
        {
            "nearer_than_held_out": ("nearer than 5 % of held-out tiles are", None),
            "c_t": ("C_T", None),
        },
    ),
]


@dataclass(frozen=True)
class TissueEvaluation:
    """Scores by encoder, and the files: metrics.json, summary.csv, tiles.csv, report.html."""

    scores: dict[str, dict[str, float]]
    folder: Path

    def lines(self) -> list[str]:
        """One line per encoder."""
        return [
            f"{name}: own vector nearest {found['top1']:.3f}, matched − shuffled {found['gain']:.3f}, Fréchet "
            f"{found['frechet']:.4g} (real to real {found['frechet_floor']:.4g})"
            for name, found in self.scores.items()
        ]


def judges(model: TissueDiffusion, config: EvaluateConfig | UseConfig) -> dict[str, Any]:
    """Encoders by name; ``model`` is the one the model's embeddings are of.

    An encoder that nobody asked for and whose package is not installed is left out, and that is said.
    """
    found = {}
    for name in config.encoders:
        try:
            encoder = model_encoder(model) if name == "model" else get_encoder(name, device="cpu")
        except DependencyError as error:
            if "encoders" in config.model_fields_set:
                raise
            log.warning("%s Without it the model's own encoder judges alone.", error)
            continue
        found[encoder.spec.name] = encoder
    return found


@locks_folder()
def evaluate_model(
    model: TissueDiffusion,
    held_out: TileTable,
    out: Path | str,
    config: EvaluateConfig | None = None,
    *,
    training: TileTable | None = None,
    precision: str = "fp32",
) -> TissueEvaluation:
    """Draw one patch from every held-out embedding and hold them against the real tiles.

    training: the tiles the model was trained on; with them copies are looked for. The drawn patches stay in
    ``out/patches``; a killed run goes on with those that are missing.
    """
    config, out = config or EvaluateConfig(), writable_folder(out)
    rows = spread_rows(len(held_out), config.tiles)
    chosen = held_out.take(rows)
    patches = draw_patches(
        model, chosen, out / "patches", config.sampler, seed=config.seed, precision=precision
    )
    drawn = np.stack([np.asarray(open_rgb(path)) for path in patches.files])
    real = chosen.read(range(len(chosen)))
    evaluations, scores = [], {}
    for name, encoder in judges(model, config).items():
        a, b = scoring.encoded(encoder, real), scoring.encoded(encoder, drawn)
        figures = scoring.set_scores(a, b, seed=config.seed, units=encoder.names is not None)
        pairs, gains = scoring.pair_scores(a, b, group=config.group, seed=config.seed)
        figures |= pairs
        if training is not None:
            figures |= scoring.copy_scores(_training_features(encoder, training, config), a, b)
        slides = len(set(chosen.groups)) > 2
        known = np.flatnonzero(np.isfinite(gains))
        interval = bootstrap(
            gains[known],
            [chosen.groups[i] if slides else str(i) for i in known],
            unit="slide" if slides else "tile",
            generator=numpy_generator(config.seed, "gain", name),
            resamples=config.resamples,
        )
        items = [ItemScores(chosen.names[i], chosen.groups[i], {"gain": float(gains[i])}) for i in known]
        plain = {key: value for key, value in figures.items() if key != "gain"}
        evaluations.append(Evaluation(name, SetScores(plain, {"gain": interval}), items))
        scores[name] = figures
    facts = {
        "model": model.identity,
        "size": model.config.size,
        "config": config.to_dict(),
        "tiles": len(chosen),
        "groups": sorted(set(chosen.groups)),
        "source": held_out.facts,
        "mpp": model.mpp,
    }
    write_results(out, evaluations, kind="tissue evaluation", protocol=PROTOCOL, facts=facts, items="tiles")
    _panels(out / "panels", real, drawn, config.pictures)
    write_page(
        out,
        evaluations,
        "Tissue from embeddings",
        f"{len(chosen)} held-out tiles of {len(set(chosen.groups))} slides; one row per encoder that judges",
        TABLES,
        lead=_lead(scores),
        notes=[
            "The floor is the distance of real tiles to real tiles at the same numbers; distances in different "
            "encoders, or of other numbers of tiles, cannot be compared. Columns with units (texture) are divided by "
            "their SD among the real tiles first.",
            *_guided_note(config),
        ],
        pictures="Above: held-out tiles. Below: what the model drew from their embeddings.",
    )
    return TissueEvaluation(scores, out)


def _guided_note(config: EvaluateConfig) -> list[str]:
    if not config.sampler.encoder_guidance:
        return []
    return [
        "The tiles were drawn under guidance by the model's own encoder, whose scores are therefore no test: the other "
        "encoders judge."
    ]


def _lead(scores: Mapping[str, Mapping[str, float]]) -> str:
    parts = [
        f"in {name}: own vector found among {found['group']:.0f} for {100 * found['top1']:.0f} %, Fréchet distance "
        f"{found['frechet_ratio']:.1f} × that of real to real"
        for name, found in scores.items()
    ]
    return "; ".join(parts) + "."


def _training_features(encoder: Any, training: TileTable, config: EvaluateConfig) -> np.ndarray:
    rows = spread_rows(len(training), 4 * config.tiles)
    return scoring.encoded(encoder, training.read(rows.tolist()))


def open_rgb(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 of an image file."""
    from morphogen.slides.images import read_image

    return read_image(path)


def _panels(folder: Path, real: np.ndarray, drawn: np.ndarray, count: int) -> None:
    """Rows of eight pairs, real above drawn, enlarged to be looked at."""
    folder = writable_folder(folder)
    rows = spread_rows(len(real), count)
    scale = max(1, 128 // real.shape[1])
    for number in range(0, len(rows), 8):
        here = rows[number : number + 8]
        sheet = np.concatenate(
            [np.concatenate(list(images[here]), axis=1) for images in (real, drawn)], axis=0
        )
        sheet = sheet.repeat(scale, 0).repeat(scale, 1)
        Image.fromarray(sheet).save(folder / f"tiles {number + 1}–{number + len(here)}.png")


# -- twins -----------------------------------------------------------------------------------------------------------


@locks_folder()
def evaluate_twin(
    model: TissueDiffusion,
    canvas: Path | str,
    slide: Path | str,
    out: Path | str,
    *,
    region: tuple[float, float, float, float] | None = None,
    mpp: float | None = None,
    config: EvaluateConfig | None = None,
) -> dict[str, Any]:
    """Hold a canvas drawn with ``--like SLIDE --region`` against that region, cell by cell.

    Per encoder: the own cell found among 64, matched − shuffled cosine; and, for 24 or more cells, the Fréchet distance
    of crops at random places, which cross the borders of cells, beside real against real. Nuclear area per cell, real
    against drawn (Pearson). Cells and crops where the region is bare glass are left out of these: one is as good as
    another. Seams at the borders of windows, by their place within a block of 8 px (JPEG's),
    and what the region itself has there.
    """
    if model.mpp is None:
        raise InputError("the model does not know its µm per pixel", where="--model")
    config, out = config or EvaluateConfig(), writable_folder(out)
    canvas = Path(canvas)
    image = _image_of(canvas)
    with open_slide(slide, mpp=mpp).within_bounds() as opened:
        boxes, shape = region_boxes(opened, region, model.tile_px, model.mpp)
        real = read_boxes(opened, boxes, model.tile_px)
        height, width = (cells * model.tile_px for cells in shape)
        left, top = float(boxes[0, 0]), float(boxes[0, 1])
        region_image = opened.read_region(left, top, width, height, mpp=model.mpp)
    with open_slide(image) as opened:
        side = float(model.tile_px)
        at, drawn_shape = region_boxes(opened, None, model.tile_px, opened.require_mpp())
        if drawn_shape != shape:
            raise InputError(
                f"the canvas has {drawn_shape[0]} × {drawn_shape[1]} cells and the region {shape[0]} × {shape[1]}",
                where=image,
                fix="Give the region that the canvas was drawn from",
            )
        drawn = read_boxes(opened, at, model.tile_px)
        whole = opened.read_region(0, 0, opened.width, opened.height)
    shown = ~bare_glass(real)
    found: dict[str, Any] = {"cells": int(shown.sum()), "bare": int((~shown).sum()), "side": side}
    if found["cells"] < 2:
        raise InputError(
            f"{found['cells']} of {len(real)} cells hold tissue, and two are needed to tell them apart",
            where=slide,
            fix="Give a region with more tissue",
        )
    pairs = [
        scoring.crops(picture, model.tile_px, len(real), config.seed) for picture in (region_image, whole)
    ]
    pairs = [each[~bare_glass(pairs[0])] for each in pairs]
    real, drawn = real[shown], drawn[shown]
    for name, encoder in judges(model, config).items():
        a, b = scoring.encoded(encoder, real), scoring.encoded(encoder, drawn)
        found[name] = scoring.twin_scores(a, b, group=min(64, len(a)), seed=config.seed)
        if len(pairs[0]) >= 2 * scoring.LEAST:
            sets = [scoring.encoded(encoder, each) for each in pairs]
            scores = scoring.set_scores(*sets, seed=config.seed, units=encoder.names is not None)
            found[name] |= {f"crop_{key}": value for key, value in scores.items() if "frechet" in key}
    area = [scoring.nuclear_area(images) for images in (real, drawn)]
    varied = min(np.std(area[0]), np.std(area[1])) > 1e-8
    found["nuclear_area_r"] = float(np.corrcoef(area[0], area[1])[0, 1]) if varied else float("nan")
    found["nuclear_area"] = [float(values.mean()) for values in area]
    found["seams"] = seams_by_phase(whole, model.tile_px)
    found["seams_of_region"] = seams_by_phase(region_image, model.tile_px)
    write_json(out / "twin.json", found)
    Manifest.write(out, kind="twin evaluation", model=model.identity)
    return found


def seams_by_phase(image: np.ndarray, tile_px: int) -> dict[str, float]:
    """Seam score of (H, W, 3) uint8 at the borders of half windows: ``score`` against positions of the same phase
    mod 8, ``plain`` against all, 1 = no seam."""
    step = max(8, tile_px // 2)
    columns, rows = (list(range(step, size, step)) for size in (image.shape[1], image.shape[0]))
    if not columns and not rows:
        return {"score": float("nan"), "plain": float("nan")}
    meter = SeamMeter(image.shape[1], image.shape[0], columns, rows, period=8)
    meter.add(image)
    return {"score": meter.score().worst, "plain": meter.plain().worst}


def read_scores(folder: Path | str) -> dict[str, dict[str, float]]:
    """Figures by encoder of an evaluation's ``metrics.json``."""
    found = read_json(Path(folder) / "metrics.json")
    return {name: method["figures"] for name, method in found["methods"].items()}


def _image_of(canvas: Path) -> Path:
    """The image of a folder of results, in whichever format it was written; an image itself."""
    if not canvas.is_dir() or canvas.suffix == ".zarr":
        return canvas
    found = [path for suffix in SUFFIXES.values() if (path := canvas / f"canvas{suffix}").exists()]
    return found[0] if found else canvas / "canvas.ome.tif"
