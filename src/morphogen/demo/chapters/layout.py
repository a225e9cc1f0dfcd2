"""Labelled images of simulated tissue: annotated images in the styles of patients that were never annotated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
ROWS = 4  # synthetic images shown


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


def make_images(found: Any, model: Any, out: Path, count: int) -> None:
    from morphogen.layout import SynthesisConfig, synthesize

    config = SynthesisConfig(count=count)
    synthesize(model, found.annotated, found.unannotated, config, out, data=model_data(model))


def run(work: Workspace, report: Report) -> None:
    """Train for a minute or two on two annotated patients, and make images of their layouts in the styles of others."""
    from morphogen.demo import write_segmentation
    from morphogen.layout import SynthesisConfig
    from morphogen.layout.scoring.pages import coloured
    from morphogen.layout.scoring.synthetic import MEASURES, style_match
    from morphogen.layout.synthesis.plan import Plan, name_of
    from morphogen.slides.images import read_image

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
    out = work.place("layout", "synthetic", "x").parent
    make_images(found, model, out, work.size(20, 2))
    report.text(
        "Two simulated patients are annotated; the others, from other laboratories, are not: their stain, focus, "
        f"nuclei and compression differ. After {steps} steps of training, annotated images are made anew in the style "
        "of each of the others: pixels whose labels are known, as those patients would show them."
    )
    config = SynthesisConfig(count=ROWS)
    told = model.config
    plan = Plan(
        found.annotated,
        found.unannotated,
        model_data(model),
        config,
        told.network.classes,
        images=told.style_images,
    )
    for number in range(work.size(ROWS, 1)):
        pair = plan[number]
        made = read_image(out / "images" / f"{name_of(number)}.png")
        report.images(
            [
                pair.layout.image,
                coloured(pair.layout.labels),
                pair.style[0],
                made,
            ],
            [
                f"annotated: {pair.layout.sheet.patient}",
                "its labels",
                f"never annotated: {pair.patient}",
                f"made: these labels in the style of {pair.patient}",
            ],
        )
    matched = style_match(model, found.annotated, found.unannotated, work.size(40, 2), seed=work.seed)
    report.text(
        "Of outputs in one of two styles, this share is nearer to its own patient than to the other (chance 0.5): "
        + ", ".join(f"{name} {matched[name]:.2f}" for name in MEASURES)
        + ". How far such images help a segmentation network, against simpler ways, is what `morphogen layout "
        "evaluate` answers."
    )
    report.code(shown(train_layout), "python", "The Python that trained it")
    report.code(shown(make_images), "python", "The Python that made the images")
    report.code(COMMANDS, "bash", "The same from the command line, and the segmentation network")
    work.headlines["synthetic images nearer to their own style (colour)"] = f"{matched['colour']:.0%}"


def model_data(model: Any) -> Any:
    """How the model reads images."""
    from morphogen.layout import DataConfig

    return DataConfig(**model.facts["data"])
