"""Labelled images of simulated tissue: one layout in the styles of patients that were never annotated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from morphogen.demo.workspace import Workspace, shown
from morphogen.report import Report

TITLE = "Labelled images in the style of other patients"
COMMANDS = """
morphogen layout train labelled --annotated P01 P02 --classes tumour lymphoid --crop 64 --out layout
morphogen layout synthesize labelled --annotated P01 P02 --model layout/model --count 100 --out synthetic
morphogen layout segmenter labelled --annotated P01 P02 --classes tumour lymphoid --crop 64 \\
    --synthetic synthetic --out segmenter
"""
ANNOTATED = ("P01", "P02")
CLASSES = ("tumour", "lymphoid")


def train_layout(tissue: Path, out: Path, steps: int, device: str) -> tuple[Any, Any]:
    from morphogen.layout import DataConfig, TrainConfig, read_sources, train_model

    data = DataConfig(
        crop=64, classes=CLASSES, annotated=ANNOTATED, sampling="mp", style_images=2, stain_shift=0.15
    )
    found = read_sources([tissue], data)  # masks of the other patients are not looked at
    config = TrainConfig(data=data)
    loop = config.training.replace(steps=steps, batch_size=10, lr=4e-4, ema_decay=0.99, lr_schedule="cosine")
    model = train_model(found, config.replace(training=loop), out, device=device).model
    return found, model


def in_styles(model: Any, layouts: np.ndarray, styles: np.ndarray) -> np.ndarray:
    """Every layout in every style, (L, S, H, W, 3)."""
    import torch

    labels = torch.from_numpy(layouts.repeat(len(styles), axis=0))  # a layout with every style in turn
    images = torch.from_numpy(np.concatenate([styles] * len(layouts)))
    keys = [number // len(styles) for number in range(len(labels))]  # one layout, one noise
    made = model(labels, images, seed=0, keys=keys)
    return made.cpu().numpy().reshape(len(layouts), len(styles), *made.shape[1:])


def run(work: Workspace, report: Report) -> None:
    """Train for a minute or two on two annotated patients, and make their layouts in the styles of three others."""
    from morphogen.demo import write_segmentation
    from morphogen.layout.sampling.styles import StyleSampler
    from morphogen.layout.scoring.pages import coloured
    from morphogen.layout.scoring.synthetic import MEASURES, style_match

    tissue = work.place("data", "labelled", "x").parent
    patients, side = work.size(10, 4), work.size(192, 96)
    write_segmentation(
        tissue,
        work.size(4, 1) * patients,
        side,
        patients=patients,
        mpp=2.0,
        seed=work.seed,
        laboratories=True,
    )
    steps = work.size(500, 2)
    found, model = train_layout(tissue, work.place("layout", "x").parent, steps, work.device)
    random = np.random.default_rng(work.seed)
    styles = StyleSampler(found.unannotated, model_data(model))
    names = sorted(styles.groups)[:3]
    lent = np.stack([styles.of_patient(name, random) for name in names])
    sheets = [sheet for sheet in found.annotated if len(sheet.present) > 1][:3] or list(found.annotated)[:3]
    layouts = np.stack([_layout(sheet, random) for sheet in sheets])
    made = in_styles(model, layouts, lent)
    report.text(
        "Two simulated patients are annotated; the others, from other laboratories, are not: their stain, focus, "
        f"nuclei and compression differ. After {steps} steps of training the model is told a layout and two images of "
        "a patient, and makes an image of that layout in that style: pixels whose labels are known."
    )
    pictures = [images[0] for images in lent]
    report.images(pictures, [f"a style image of {name}" for name in names])
    for number, row in enumerate(made):
        report.images(
            [coloured(layouts[number]), *row],
            ["layout", *(f"in the style of {name}" for name in names)],
        )
    matched = style_match(model, found.annotated, found.unannotated, work.size(40, 2), seed=work.seed)
    report.text(
        "Of outputs in one of two styles, this share is nearer to its own patient than to the other (chance 0.5): "
        + ", ".join(f"{name} {matched[name]:.2f}" for name in MEASURES)
        + ". How far such images help a segmentation network, against simpler ways, is what `morphogen layout "
        "evaluate` answers."
    )
    report.code(shown(train_layout), "python", "The Python that trained it")
    report.code(COMMANDS, "bash", "The same from the command line, and the segmentation network")
    work.headlines["synthetic images nearer to their own style (colour)"] = f"{matched['colour']:.0%}"


def model_data(model: Any) -> Any:
    """How the model reads images."""
    from morphogen.layout import DataConfig

    return DataConfig(**model.facts["data"])


def _layout(sheet: Any, random: np.random.Generator) -> np.ndarray:
    """A crop of a sheet's labels around a foreground pixel."""
    label = max(sheet.present)
    places = sheet.places(label)
    row, column = places[random.integers(len(places))] - 32
    top, left = (int(np.clip(at, 0, size - 64)) for at, size in zip((row, column), sheet.size, strict=True))
    labels: np.ndarray = sheet.labels(top, left, 64)
    return labels
