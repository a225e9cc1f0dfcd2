"""``morphogen stain``: train a virtual stain, predict images and slides with it, evaluate it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

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
    result,
    say,
)
from morphogen.cli.options import (
    Baselines,
    Data,
    Encoder,
    ImageFormat,
    Inputs,
    Model,
    Motion,
    Mpp,
    Others,
    Out,
    ResnetWeights,
    SkipBad,
    Solver,
    Split,
    Spreading,
    Stain,
    Steps,
    TrainingPairs,
    Weights,
    Working,
    needed,
    spread_of,
    started,
)

app = App(name="stain", help="Virtual staining, H&E to IHC (HistDiST): register, train, predict, evaluate.")


@app.command
def register(
    data: Data,
    /,
    *,
    out: Annotated[Path, Parameter(name="--out", help="CSV file to write: the pairs with their maps.")],
    motion: Motion = None,
    max_shift: Annotated[
        int | None, Parameter(name="--max-shift", help="Largest --motion shift in pixels.")
    ] = None,
    drop_unmatched: Annotated[
        bool,
        Parameter(name="--drop-unmatched", negative=(), help="Leave pairs out whose images do not match."),
    ] = False,
    skip_bad: SkipBad = False,
    spread: Working = None,
    config: ConfigFile = None,
    settings: Settings = (),
    json: AsJson = False,
) -> int:
    """Register the images, or the whole slides, of every pair; train and evaluate read the table that is written.

    A run that was killed goes on with the pairs it had not come to.
    """
    from morphogen.stain.registration.table import RegisterConfig, register_table

    chosen = load_config(
        RegisterConfig,
        config,
        settings,
        motion=motion,
        max_shift=max_shift,
        drop_unmatched=drop_unmatched or None,
        skip_bad=skip_bad or None,
    )
    table = register_table(
        data,
        out,
        chosen.motion,
        max_shift=chosen.max_shift,
        drop_unmatched=chosen.drop_unmatched,
        skip_bad=chosen.skip_bad,
        workers=chosen.workers,
        spread=spread_of(spread),
    )
    if json:
        print_json(
            {
                "table": table.path,
                "pairs": table.pairs,
                "unsure": table.unsure,
                "dropped": chosen.drop_unmatched,
            }
        )
        return 0
    sure = table.pairs - (0 if chosen.drop_unmatched else len(table.unsure))
    say(f"{sure} of {sure + len(table.unsure)} pairs registered: {table.path}")
    if table.unsure:
        more = f" and {len(table.unsure) - 5} more" if len(table.unsure) > 5 else ""
        left = (
            f"left {'out' if chosen.drop_unmatched else 'as they were'}: {', '.join(table.unsure[:5])}{more}"
        )
        say(f"Without a clear match, {left}. Do they show the same tissue?")
    return 0


@app.command
def train(
    data: Data,
    /,
    *,
    out: Out,
    split: Split = "train",
    validation: Annotated[
        str | None, Parameter(name="--validation", help="Split that is scored during training.")
    ] = None,
    size: Annotated[
        Literal["small", "paper"] | None,
        Parameter(name="--size", help="small: pixel space, minutes on a CPU. paper: Stable Diffusion shape."),
    ] = None,
    start: Annotated[
        str | None,
        Parameter(
            name="--start",
            help="Folder to start from: Stable Diffusion 1.5, HistDiST or a stain model; or demo, the small model "
            "of simulated tissue that comes with the package.",
        ),
    ] = None,
    residual: Annotated[
        bool | None,
        Parameter(
            name="--residual",
            negative=(),
            help="Train a regression first, into OUT/mean, then a diffusion of what it leaves over.",
        ),
    ] = None,
    mean: Annotated[
        Path | None,
        Parameter(
            name="--mean", help="The regression for --residual, trained before (--model.regression true)."
        ),
    ] = None,
    encoder: Encoder = None,
    weights: Weights = None,
    steps: Annotated[int | None, Parameter(name="--steps", help="Updates.")] = None,
    crop: Annotated[
        int | None, Parameter(name="--crop", help="Side of the training crops in pixels.")
    ] = None,
    mpp: Annotated[float | None, Parameter(name="--mpp", help="µm per pixel of the training images.")] = None,
    register: Annotated[
        Literal["none", "shift", "rigid", "affine"] | None,
        Parameter(
            name="--register",
            help="Register the images of every pair: shift (re-stained sections), rigid or affine (serial sections).",
        ),
    ] = None,
    skip_bad: SkipBad = False,
    seed: Seed = None,
    device: Device = "auto",
    precision: PrecisionOption = "auto",
    compile: Compile = None,
    config: ConfigFile = None,
    settings: Settings = (),
    json: AsJson = False,
) -> int:
    """Train on H&E / IHC pairs; the model is written to OUT/model. A run found in OUT goes on where it
    stopped.
    """
    from morphogen.stain.config import TrainConfig
    from morphogen.stain.pairs.slides import read_pairs
    from morphogen.stain.train import train_model

    resolved = load_config(
        TrainConfig,
        config,
        settings,
        model__size=size,
        model__encoder=encoder,
        model__encoder_weights=str(weights) if weights is not None else None,
        start=started(start),
        mean=str(mean) if mean is not None else None,
        model__residual=residual or (True if mean is not None else None),
        training__steps=steps,
        training__seed=seed,
        data__crop=crop,
        data__mpp=mpp,
        data__register_pairs=register,
        data__skip_bad=skip_bad or None,
    )
    tile = max(1024, resolved.data.crop)
    found = read_pairs(data, split, out, tile=tile, mpp=resolved.data.mpp, target=resolved.data.target)
    held = (
        read_pairs(data, validation, out, tile=tile, mpp=resolved.data.mpp, target=resolved.data.target)
        if validation
        else None
    )
    trained = train_model(
        found,
        resolved,
        out,
        validation=held,
        where=data,
        device=device,
        precision=precision,
        compile=compile,
    )
    figures = ", ".join(f"{key} {value:.4g}" for key, value in sorted(trained.run.metrics.items()))
    around = (
        "" if trained.model.mean is None else f" around the regression of {resolved.mean or out / 'mean'}"
    )
    result(
        json,
        {"model": trained.folder, "steps": trained.run.step, "metrics": trained.run.metrics},
        f"Trained {trained.run.step} steps{around} on {trained.model.facts['pairs']} pairs: {figures}",
        f"Model: {trained.folder}",
    )
    return 0


@app.command(name=["predict", "apply"])
def predict(
    inputs: Inputs,
    /,
    *,
    model: Model = None,
    out: Out,
    solver: Solver = None,
    steps: Steps = None,
    samples: Annotated[
        int | None, Parameter(name="--samples", help="Samples per image; 2 or more give the uncertainty too.")
    ] = None,
    show: Annotated[
        Literal["sample", "mean"] | None,
        Parameter(name="--show", help="What the main image is: one sample, or the mean of all."),
    ] = None,
    keep_samples: Annotated[
        bool, Parameter(name="--keep-samples", negative=(), help="Images: write every sample.")
    ] = False,
    stain: Stain = None,
    format: ImageFormat = "tiff",
    encoder: Encoder = None,
    weights: Weights = None,
    mpp: Mpp = None,
    batch: Annotated[
        int | None, Parameter(name="--batch", help="Windows through the network together.")
    ] = None,
    seed: Seed = None,
    device: Device = "auto",
    precision: PrecisionOption = "auto",
    compile: Compile = None,
    config: ConfigFile = None,
    spread: Spreading = None,
    settings: Settings = (),
    json: AsJson = False,
) -> int:
    """Stain images (PNG of the same names) and whole slides (pyramidal OME-TIFF at the slide's own µm/px)."""
    from morphogen.stain.config import ApplyConfig
    from morphogen.stain.predict import StainRoom, stain_sources
    from morphogen.tasks.sources import sort_sources

    resolved = load_config(
        ApplyConfig,
        config,
        settings,
        sampler__preset=solver,
        sampler__steps=steps,
        samples=samples,
        show=show,
        stain=stain,
        mpp=mpp,
        windows__batch=batch,
        seed=seed,
    )
    folder, named = needed(model, inputs, "stain predict")
    where = spread_of(spread)
    sort_sources(named)  # what is not there is told before a model is loaded
    own = str(weights) if weights is not None else None
    how = (encoder, own, device, precision, compile, keep_samples, format)
    room = StainRoom(out, resolved, str(folder), *how)
    outcomes = []
    for outcome in stain_sources(None, named, out, room=room, spread=where):
        outcomes.append(outcome)
        if json:
            continue
        if outcome.error:
            say(f"failed: {outcome.error}")
        for path in outcome.written:
            say(f"{outcome.source} → {path} ({outcome.note})")
    if json:
        print_json([asdict(outcome) for outcome in outcomes])
    return 0 if all(outcome.whole for outcome in outcomes) else 3


@app.command
def evaluate(
    predicted: Annotated[
        Path, Parameter(help="Folder of images named like the pairs, or of stained slides.")
    ],
    data: Annotated[
        Path,
        Parameter(
            help="Pairs as in `train`, slides too, or (with or without --he) a plain folder of real stains."
        ),
    ],
    /,
    *,
    out: Out,
    split: Split = "val",
    he: Annotated[
        Path | None,
        Parameter(name="--he", help="Folder of the H&E when DATA is a plain folder of real stains."),
    ] = None,
    method: Annotated[str, Parameter(name="--method", help="Name of the method in the table.")] = "predicted",
    other: Others = None,
    training: TrainingPairs = None,
    baselines: Annotated[
        bool, Parameter(name="--baselines", help="Score H&E and colour deconvolution too.")
    ] = True,
    baseline: Baselines = None,
    encoder: Encoder = None,
    weights: Weights = None,
    device: Device = "auto",
    resnet_weights: ResnetWeights = None,
    skip_bad: SkipBad = False,
    seed: Seed = None,
    config: ConfigFile = None,
    spread: Working = None,
    settings: Settings = (),
    json: AsJson = False,
) -> int:
    """Score virtual stains: DAB first, then retrieval, features and pixels; table, CSV, JSON and an HTML page."""
    from morphogen.core.files import read_json
    from morphogen.stain.data import find_pairs
    from morphogen.stain.evaluate import evaluate_folder, named_folders, real_stains
    from morphogen.stain.pairs.panels import as_pairs
    from morphogen.stain.pairs.slides import slide_table
    from morphogen.stain.scoring.config import EvaluateConfig
    from morphogen.stain.scoring.pages import short_table, write_page
    from morphogen.stain.scoring.wholeslides import cut_fields

    resolved = load_config(
        EvaluateConfig,
        config,
        settings,
        encoder=encoder,
        encoder_weights=str(weights) if weights is not None else None,
        resnet_weights=str(resnet_weights) if resnet_weights is not None else None,
        seed=seed,
    )
    others = named_folders(other or ())
    fields = None
    if (slides := slide_table(data)) is not None:
        fields = cut_fields(slides, {method: predicted, **others}, out, resolved, split=split, data=data)
        data, predicted, *rest = fields.table, *fields.made.values()
        others = dict(zip(others, rest, strict=True))
    data = as_pairs(data, split, out / "pairs" / split, resolved.target)
    if training is not None:
        training = as_pairs(training, "train", out / "pairs" / "train", resolved.target)
    found, with_he = real_stains(data, split, he, predicted)
    outside = None
    if baseline:
        from morphogen.bridges.lazyslide.baselines import stain_baselines

        outside = stain_baselines(baseline, found.pairs if with_he else (), device=device)
    evaluations = evaluate_folder(
        predicted,
        found,
        out,
        resolved,
        method=method,
        others=others,
        baselines=baselines and with_he,
        outside=outside,
        skip_bad=skip_bad,
        where=data,
        spread=spread_of(spread),
        training=find_pairs(training, "train", resolved.target) if training is not None else None,
        slides=fields.slides if fields is not None else None,
    )
    page = write_page(out, evaluations)
    if json:
        print_json({"report": page, "metrics": read_json(out / "metrics.json")})
        return 0
    for line in short_table(evaluations):
        say(line)
    say(f"Results: {out / 'metrics.json'}, {out / 'summary.csv'}, {out / 'images.csv'}, {page}")
    return 0
