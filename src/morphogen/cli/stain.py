"""``morphogen stain``: train a virtual stain, apply it to images and slides, evaluate it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from morphogen.cli.common import (
    Compile,
    ConfigFile,
    Device,
    PrecisionOption,
    Seed,
    Settings,
    load_config,
    say,
)
from morphogen.cli.options import (
    Data,
    Encoder,
    Mpp,
    Out,
    SkipBad,
    Split,
    Stain,
    Weights,
    started,
)

if TYPE_CHECKING:
    from morphogen.stain.evaluate import Evaluation

app = App(name="stain", help="Virtual staining, H&E to IHC (HistDiST): register, train, apply, evaluate.")


@app.command
def register(
    data: Data,
    /,
    *,
    out: Annotated[Path, Parameter(name="--out", help="CSV file to write: the pairs with their maps.")],
    motion: Annotated[
        Literal["shift", "rigid", "affine"],
        Parameter(
            name="--motion",
            help="shift: whole pixels (re-stained sections). rigid: turn and shift (serial sections). affine: with "
            "stretch and shear up to 15 %.",
        ),
    ] = "rigid",
    max_shift: Annotated[int, Parameter(name="--max-shift", help="Largest --motion shift in pixels.")] = 32,
    drop_unmatched: Annotated[
        bool,
        Parameter(name="--drop-unmatched", negative=(), help="Leave pairs out whose images do not match."),
    ] = False,
    skip_bad: SkipBad = False,
    workers: Annotated[
        int | None,
        Parameter(name="--workers", help="Pairs looked at at a time. Default: as many as cores."),
    ] = None,
) -> int:
    """Register the images, or the whole slides, of every pair; train and evaluate read the table that is written.

    A run that was killed goes on with the pairs it had not come to.
    """
    from morphogen.stain.registration.table import register_table

    table = register_table(
        data,
        out,
        motion,
        max_shift=max_shift,
        drop_unmatched=drop_unmatched,
        skip_bad=skip_bad,
        workers=workers,
    )
    sure = table.pairs - (0 if drop_unmatched else len(table.unsure))
    say(f"{sure} of {sure + len(table.unsure)} pairs registered: {table.path}")
    if table.unsure:
        more = f" and {len(table.unsure) - 5} more" if len(table.unsure) > 5 else ""
        say(
            f"Without a clear match, left {'out' if drop_unmatched else 'as they were'}: "
            f"{', '.join(table.unsure[:5])}{more}. "
            "Do they show the same tissue?"
        )
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
    precision: PrecisionOption = "fp32",
    compile: Compile = False,
    config: ConfigFile = None,
    settings: Settings = (),
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
    found = read_pairs(data, split, out, tile=tile, mpp=resolved.data.mpp)
    held = read_pairs(data, validation, out, tile=tile, mpp=resolved.data.mpp) if validation else None
    result = train_model(
        found,
        resolved,
        out,
        validation=held,
        where=data,
        device=device,
        precision=precision,
        compile=compile,
    )
    figures = ", ".join(f"{key} {value:.4g}" for key, value in sorted(result.run.metrics.items()))
    around = "" if result.model.mean is None else f" around the regression of {resolved.mean or out / 'mean'}"
    say(
        f"Trained {result.run.step} steps{around} on {result.model.facts['pairs']} pairs: {figures}",
        f"Model: {result.folder}",
    )
    return 0


@app.command
def apply(
    model: Annotated[str, Parameter(help="Stain model or published HistDiST folder, or hub id.")],
    sources: Annotated[list[Path], Parameter(help="Images, slides, or folders of them.")],
    /,
    *,
    out: Out,
    solver: Annotated[
        str | None,
        Parameter(
            name="--solver",
            help="fast (default): a few second-order steps. reference: HistDiST's inversion and 100-step translation. "
            "mean: the expected stain in one step.",
        ),
    ] = None,
    steps: Annotated[int | None, Parameter(name="--steps", help="Translation steps.")] = None,
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
    encoder: Encoder = None,
    weights: Weights = None,
    mpp: Mpp = None,
    batch: Annotated[
        int | None, Parameter(name="--batch", help="Windows through the network together.")
    ] = None,
    seed: Seed = None,
    device: Device = "auto",
    precision: PrecisionOption = "fp32",
    compile: Compile = False,
    config: ConfigFile = None,
    settings: Settings = (),
) -> int:
    """Stain images (PNG of the same names) and whole slides (pyramidal OME-TIFF at the slide's own µm/px)."""
    from morphogen.stain.config import ApplyConfig
    from morphogen.stain.model import StainTransfer
    from morphogen.stain.predict import stain_sources
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
    sort_sources(sources)  # what is not there is told before a model is loaded
    transfer = StainTransfer.from_pretrained(model, encoder=encoder, encoder_weights=weights, device=device)
    if compile:
        transfer.compile()
    whole = True
    for outcome in stain_sources(
        transfer, sources, out, resolved, precision=precision, keep_samples=keep_samples
    ):
        whole &= outcome.whole
        if outcome.error:
            say(f"failed: {outcome.error}")
        for path in outcome.written:
            say(f"{outcome.source} → {path} ({outcome.note})")
    return 0 if whole else 1


@app.command
def evaluate(
    predicted: Annotated[Path, Parameter(help="Folder of predicted images, named like the pairs.")],
    data: Annotated[
        Path, Parameter(help="Pairs as in `train`, or (with or without --he) a plain folder of real stains.")
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
    other: Annotated[
        list[str] | None,
        Parameter(name="--other", help="Another method's images to score beside, NAME=FOLDER; repeatable."),
    ] = None,
    baselines: Annotated[
        bool, Parameter(name="--baselines", help="Score H&E and colour deconvolution too.")
    ] = True,
    encoder: Encoder = None,
    weights: Weights = None,
    resnet_weights: Annotated[
        Path | None, Parameter(name="--resnet-weights", help="torchvision resnet50 file: adds PHV.")
    ] = None,
    skip_bad: SkipBad = False,
    seed: Seed = None,
    config: ConfigFile = None,
    settings: Settings = (),
) -> int:
    """Score virtual stains: DAB first, then retrieval, features and pixels; table, CSV, JSON and an HTML
    page.
    """
    from morphogen.core.errors import ConfigError
    from morphogen.stain.config import EvaluateConfig
    from morphogen.stain.data import find_pairs
    from morphogen.stain.evaluate import as_pairs, evaluate_folder
    from morphogen.stain.scoring.pages import write_page

    resolved = load_config(
        EvaluateConfig,
        config,
        settings,
        encoder=encoder,
        encoder_weights=str(weights) if weights is not None else None,
        resnet_weights=str(resnet_weights) if resnet_weights is not None else None,
        seed=seed,
    )
    others = {}
    for text in other or []:
        name, found_equals, folder = text.partition("=")
        if not found_equals:
            raise ConfigError(f"'{text}' is not of the form NAME=FOLDER", where="--other")
        others[name] = Path(folder)
    plain = data.is_dir() and not any(data.rglob(f"{split}A"))
    found = as_pairs(data, he, predicted) if plain or he is not None else find_pairs(data, split)
    evaluations = evaluate_folder(
        predicted,
        found,
        out,
        resolved,
        method=method,
        others=others,
        baselines=baselines and (he is not None or not plain),
        skip_bad=skip_bad,
        where=data,
    )
    page = write_page(out, evaluations)
    for line in _lines(evaluations):
        say(line)
    say(f"Results: {out / 'metrics.json'}, {out / 'summary.csv'}, {out / 'images.csv'}, {page}")
    return 0


def _lines(evaluations: list[Evaluation]) -> list[str]:
    """A short table for the terminal; the files hold everything."""
    columns = {
        "dab_tile_correlation": "DAB tile r",
        "dab_tile_correlation_pooled": "pooled r",
        "dab_tile_mae": "DAB MAE",
        "mra_top1": "MRA-1",
        "ssim": "SSIM",
        "sharpness": "sharpness",
    }
    lines = ["".join([f"{'method':24}", *(f"{title:>12}" for title in columns.values())])]
    for evaluation in evaluations:
        scores = evaluation.scores
        cells = [f"{evaluation.method[:23]:24}"]
        for key in columns:
            interval = scores.intervals.get(key)
            value: Any = interval.value if interval is not None else scores.figures.get(key)
            cells.append(f"{'–' if value is None else format(value, '.3f'):>12}")
        lines.append("".join(cells))
    return lines
