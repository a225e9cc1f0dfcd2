"""``morphogen layout``: labelled images in the style of unlabelled slides, and the segmentation network they feed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from morphogen.cli.common import (
    AsJson,
    Compile,
    ConfigFile,
    Device,
    PrecisionOption,
    Seed,
    Settings,
    load_config,
    print_json,
    say,
)
from morphogen.cli.layout_options import (
    AnnotatedPatients,
    Classes,
    Crop,
    Inputs,
    Mpp,
    Out,
    Patient,
    SegmenterFolder,
    Steps,
    Test,
    Unannotated,
    data_of,
    data_settings,
    read,
    synthetic_sheets,
)
from morphogen.cli.options import ImageFormat, Spreading, spread_of

app = App(
    name="layout",
    help="Labelled images in new styles (STEDM) and segmentation: train, synthesize, segmenter, segment, evaluate.",
)


@app.command
def train(
    inputs: Inputs,
    /,
    *,
    out: Out,
    unannotated: Unannotated = None,
    annotated: AnnotatedPatients = None,
    test: Test = None,
    patient: Patient = None,
    classes: Classes = None,
    size: Annotated[
        Literal["paper", "base", "small", "tiny"] | None,
        Parameter(name="--size", help="small: a CPU. base: one GPU. paper: STEDM's network."),
    ] = None,
    start: Annotated[
        str | None,
        Parameter(
            name="--start", help="A layout model to go on from, or CompVis' landscape.ckpt (size paper)."
        ),
    ] = None,
    sampling: Annotated[
        Literal["none", "augmented", "nearby", "mp"] | None,
        Parameter(name="--style-sampling", help="Where style images come from."),
    ] = None,
    steps: Steps = None,
    crop: Crop = None,
    mpp: Mpp = None,
    seed: Seed = None,
    device: Device = "auto",
    precision: PrecisionOption = "auto",
    compile: Compile = None,
    config: ConfigFile = None,
    settings: Settings = (),
) -> int:
    """Train the model on annotated images and on images that lend their style; the model is OUT/model."""
    from morphogen.layout.config import TrainConfig
    from morphogen.layout.train import train_model

    resolved = load_config(
        TrainConfig,
        config,
        settings,
        size=size,
        start=start,
        training__steps=steps,
        training__seed=seed,
        data__sampling=sampling,
        **data_settings(annotated, test, patient, classes, crop, mpp),
    )
    found = read(inputs, resolved.data, unannotated)
    result = train_model(found, resolved, out, device=device, precision=precision, compile=compile)
    figures = ", ".join(f"{key} {value:.4g}" for key, value in sorted(result.run.metrics.items()))
    say(
        f"Trained {result.run.step} steps on {len(found.annotated)} annotated and {len(found.unannotated)} other "
        f"images: {figures}",
        f"Model: {result.folder}",
    )
    return 0


@app.command
def synthesize(
    inputs: Inputs,
    /,
    *,
    model: Annotated[Path, Parameter(name="--model", help="The model, or a checkpoint of STEDM's code.")],
    out: Out,
    unannotated: Unannotated = None,
    annotated: AnnotatedPatients = None,
    test: Test = None,
    patient: Patient = None,
    classes: Classes = None,
    layouts: Annotated[
        list[Path] | None,
        Parameter(
            name="--layouts",
            consume_multiple=True,
            negative=(),
            help="Other folders of masks to take layouts from (of the same classes), such as simulated tissue.",
        ),
    ] = None,
    count: Annotated[int | None, Parameter(name="--count", help="Images to make.")] = None,
    pairing: Annotated[
        Literal["quota", "random", "density"] | None,
        Parameter(name="--pairing", help="Which layout meets which style."),
    ] = None,
    solver: Annotated[
        Literal["fast", "reference"],
        Parameter(name="--solver", help="fast: 24 evaluations at most. reference: 286."),
    ] = "fast",
    segmenter: SegmenterFolder = None,
    held_out: Annotated[
        list[str] | None,
        Parameter(
            name="--held-out",
            consume_multiple=True,
            negative=(),
            help="Annotated patients that the segmenter did not see.",
        ),
    ] = None,
    seed: Seed = None,
    device: Device = "auto",
    precision: PrecisionOption = "auto",
    compile: Compile = None,
    config: ConfigFile = None,
    settings: Settings = (),
) -> int:
    """Make labelled images: annotated layouts in the styles of the other patients, as a folder of images and masks.

    A run that was killed goes on with the batches that are not there.
    """
    from morphogen.layout.config import SynthesisConfig
    from morphogen.layout.model import LayoutDiffusion
    from morphogen.layout.predict import synthesize as make
    from morphogen.layout.segmenter.model import Segmenter

    resolved = load_config(SynthesisConfig, config, settings, count=count, pairing=pairing, seed=seed)
    diffusion = LayoutDiffusion.from_pretrained(model, device=device).compile(compile)
    data = data_of(diffusion, annotated, test, patient, classes)
    found = read(inputs, data, unannotated)
    diffusion.check_classes(found.classes.names)
    given = read(layouts, data.replace(annotated=(), test=())).annotated if layouts else found.annotated
    result = make(
        diffusion,
        given,
        found.unannotated or found.annotated,
        resolved,
        out,
        sampler=solver,
        data=data,
        segmenter=Segmenter.from_pretrained(segmenter, device=device) if segmenter else None,
        held_out=[s for s in found.annotated if held_out and s.patient in held_out],
        precision=precision,
    )
    kept = (
        f", {result.kept} kept (agreement ≥ {result.threshold:.2f})" if result.threshold is not None else ""
    )
    say(f"{result.made} images in the styles of {len(result.shares)} patients{kept}: {result.folder}")
    if result.flagged:
        say(f"Style not learned, nearly all left out: {', '.join(result.flagged)}")
    return 0


@app.command
def segmenter(
    inputs: Inputs,
    /,
    *,
    out: Out,
    synthetic: Annotated[
        list[Path] | None,
        Parameter(
            name="--synthetic", consume_multiple=True, negative=(), help="Folders made by `synthesize`."
        ),
    ] = None,
    ratio: Annotated[
        list[float] | None,
        Parameter(
            name="--ratio",
            consume_multiple=True,
            negative=(),
            help="Share of synthetic crops; several: one network each.",
        ),
    ] = None,
    annotated: AnnotatedPatients = None,
    test: Test = None,
    patient: Patient = None,
    classes: Classes = None,
    architecture: Annotated[
        str | None,
        Parameter(name="--architecture", help="small, or a network of segmentation-models-pytorch (Unet …)."),
    ] = None,
    steps: Steps = None,
    crop: Crop = None,
    mpp: Mpp = None,
    seed: Seed = None,
    device: Device = "auto",
    precision: PrecisionOption = "auto",
    config: ConfigFile = None,
    settings: Settings = (),
) -> int:
    """Train a segmentation network on annotated and synthetic images; a sweep over --ratio trains one for each."""
    from morphogen.layout.config import SegmentConfig
    from morphogen.layout.segmenter.train import sweep, train_segmenter

    several = ratio is not None and len(ratio) > 1
    resolved = load_config(
        SegmentConfig,
        config,
        settings,
        network__architecture=architecture,
        synthetic_ratio=ratio[0] if ratio and not several else None,
        ratios=list(ratio) if ratio and several else None,
        training__steps=steps,
        training__seed=seed,
        **data_settings(annotated, test, patient, classes, crop, mpp),
    )
    found = read(inputs, resolved.data)
    made = synthetic_sheets(synthetic, found)
    options: dict[str, Any] = {"device": device, "precision": precision}
    if resolved.ratios:
        results = sweep(found.annotated, made, found.classes.names, resolved, out, **options)
        for share, result in results.items():
            say(f"{share:.0%} synthetic: {result.folder}")
        return 0
    result = train_segmenter(found.annotated, found.classes.names, resolved, out, synthetic=made, **options)
    say(f"Trained {result.run.step} steps. Segmenter: {result.folder}")
    return 0


@app.command(alias="apply")
def segment(
    inputs: Annotated[list[Path], Parameter(help="Slides, image files or folders of images.")],
    /,
    *,
    model: Annotated[Path, Parameter(name="--model", help="Folder of a segmenter.")],
    out: Out,
    mpp: Annotated[
        float | None, Parameter(name="--mpp", help="µm per pixel of the inputs, where they do not say.")
    ] = None,
    format: ImageFormat = "tiff",
    device: Device = "auto",
    config: ConfigFile = None,
    settings: Settings = (),
    spread: Spreading = None,
) -> int:
    """Label images and whole slides: label maps as PNG; of slides a mask pyramid and polygons for QuPath."""
    from morphogen.layout.segmenter.batch import segment_sources
    from morphogen.tasks import WindowConfig

    windows = load_config(WindowConfig, config, settings)
    how: dict[str, Any] = {"format": format, "device": device, "spread": spread_of(spread)}
    result = segment_sources(model, inputs, out, windows=windows, mpp=mpp, **how)
    say(*result.lines())
    return 3 if result.failed else 0


@app.command
def evaluate(
    inputs: Inputs,
    /,
    *,
    synthetic: Annotated[
        list[Path],
        Parameter(
            name="--synthetic", consume_multiple=True, negative=(), help="Folders made by `synthesize`."
        ),
    ],
    out: Out,
    test: Test = None,
    annotated: AnnotatedPatients = None,
    unannotated: Unannotated = None,
    patient: Patient = None,
    classes: Classes = None,
    model: Annotated[
        Path | None,
        Parameter(
            name="--model", help="The model that made them: adds style match, agreement, memorisation."
        ),
    ] = None,
    pairs: Annotated[
        int, Parameter(name="--pairs", help="Pairs of images of the style match, with --model.")
    ] = 200,
    instances: Annotated[
        bool,
        Parameter(name="--instances", negative=(), help="Score objects, too (PQ after a watershed): nuclei."),
    ] = False,
    steps: Steps = None,
    crop: Crop = None,
    mpp: Mpp = None,
    seed: Seed = None,
    device: Device = "auto",
    config: ConfigFile = None,
    settings: Settings = (),
    as_json: AsJson = False,
) -> int:
    """Compare segmenters on held-out patients: real + synthetic against real only, stain augmentation, recolouring,
    pseudo-labels, synthetic only, and all labels. Trains each for the same steps; OUT/report.html.
    """
    from morphogen.layout.config import SegmentConfig
    from morphogen.layout.evaluate import compare
    from morphogen.layout.model import LayoutDiffusion
    from morphogen.layout.scoring.synthetic import evaluate_synthetic
    from morphogen.layout.segmenter.model import Segmenter

    resolved = load_config(
        SegmentConfig,
        config,
        settings,
        training__steps=steps,
        training__seed=seed,
        **data_settings(annotated, test, patient, classes, crop, mpp),
    )
    found = read(inputs, resolved.data, unannotated)
    made = synthetic_sheets(synthetic, found)
    everything = list(read(inputs, resolved.data.replace(annotated=())).annotated)
    names = {sheet.name for sheet in found.annotated}
    rest = [sheet for sheet in everything if sheet.name not in names]
    result = compare(found, made, resolved, out, everything=rest, instances=instances, device=device)
    figures: dict[str, float] = {}
    if model is not None:
        diffusion = LayoutDiffusion.from_pretrained(model, device=device)
        real = Segmenter.from_pretrained(result.folder / "segmenters" / "real-only" / "model", device=device)
        figures = evaluate_synthetic(
            diffusion,
            made,
            found.annotated,
            found.unannotated,
            found.test,
            out / "synthetic",
            segmenter=real,
            pairs=pairs,
        ).figures
    if as_json:
        print_json(
            {
                "verdict": result.verdict,
                "iou": {e.method: e.scores.intervals["iou"]._asdict() for e in result.evaluations},
                "synthetic": figures,
            }
        )
        return 0
    for evaluation in result.evaluations:
        iou = evaluation.scores.intervals["iou"]
        say(f"{evaluation.method:28} IoU {iou.value:.3f} [{iou.low:.3f}, {iou.high:.3f}]")
    for name, value in figures.items():
        say(f"{name:28} {value:.3f}")
    say(result.verdict, f"Report: {result.folder / 'report.html'}")
    return 0


@app.command(name="import-config")
def import_config(
    source: Annotated[
        Path, Parameter(help="config.yaml of STEDM's code (hydra, composed), or a checkpoint that holds it.")
    ],
    /,
    *,
    out: Annotated[Path, Parameter(name="--out", help="YAML file to write.")],
) -> int:
    """Translate the options of STEDM's code into a configuration for `train` or `segmenter`."""
    from morphogen.layout.imported import imported_config

    config, taken, left = imported_config(source)
    config.save(out)
    say(f"{len(taken)} options taken: {', '.join(taken)}")
    if left:
        say(f"Left out: {', '.join(left)}")
    verb = "train" if type(config).__name__ == "TrainConfig" else "segmenter"
    say(f"Configuration: {out}", f"Next: morphogen layout {verb} INPUT --config {out} --out FOLDER")
    return 0
