"""``morphogen expression``: spatial gene expression from H&E."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from morphogen.cli.common import (
    FAILED,
    AsJson,
    Compile,
    ConfigFile,
    Device,
    EncoderPrecision,
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
    Encoder,
    Inputs,
    Model,
    Names,
    Out,
    Solver,
    Spreading,
    Steps,
    Weights,
    names,
    needed,
    spread_of,
)

app = App(name="expression", help="Spatial gene expression from H&E: prepare, train, predict, evaluate.")

By = Annotated[
    Literal["patient", "section"],
    Parameter(
        help="patient: no patient on both sides, or it stops. section: siblings are allowed and named."
    ),
]


@app.command
def prepare(
    folder: Path,
    /,
    *,
    out: Out,
    sections: Names = None,
    encoder: Encoder = None,
    weights: Weights = None,
    patients: Annotated[Path | None, Parameter(help="CSV with columns section,patient.")] = None,
    config: ConfigFile = None,
    settings: Settings = (),
    spread: Spreading = None,
    device: Device = "auto",
    precision: EncoderPrecision = "fp32",
    json: AsJson = False,
) -> int:
    """Read measured sections and embed their spots: one .h5ad per section.

    Parameters
    ----------
    folder
        HEST-1k, Space Ranger, ST tables with images, .h5ad with images, SpatialData stores, or a folder with Stem's
        or HisDiff's processed_data.
    """
    from morphogen.expression.config import PrepareConfig
    from morphogen.expression.sections.folders import prepare_folder

    chosen = load_config(
        PrepareConfig,
        config,
        settings,
        encoder=encoder,
        weights=str(weights) if weights else None,
        data__patients=str(patients) if patients else None,
    )
    failed: dict[str, str] = {}
    found = prepare_folder(
        folder,
        out,
        chosen,
        sections=names(sections),
        device=device,
        precision=precision,
        spread=spread_of(spread),
        failed=failed,
    )
    rows: list[dict[str, Any]] = [section.to_dict() for section in found]
    if json:
        print_json([*rows, *({"section": name, "error": error} for name, error in failed.items())])
        return FAILED if failed else 0
    for row in rows:
        patient = f"patient {row['patient']}" if row["patient"] else "patient not known"
        say(
            "{section}: {spots} spots, {genes} genes, {mpp:.3f} µm/px ({mpp_source}), ".format(**row)
            + patient
        )
    for error in failed.values():
        say(f"failed: {error}")
    say(f"Written to {out}")
    return FAILED if failed else 0


@app.command
def train(
    store: Path,
    /,
    *,
    out: Out,
    recipe: Annotated[
        Literal["spatial", "stem", "hisdiff"] | None, Parameter(help="Method; spatial when not said.")
    ] = None,
    size: Annotated[
        Literal["small", "paper"] | None,
        Parameter(help="small (default): minutes on a CPU. paper: as published."),
    ] = None,
    test: Annotated[Names, Parameter(help="Sections held out; all others are trained on.")] = None,
    sections: Annotated[Names, Parameter(help="Sections to train on, when not all others.")] = None,
    by: By = "patient",
    genes: Annotated[int | None, Parameter(help="Genes in the panel.")] = None,
    config: ConfigFile = None,
    settings: Settings = (),
    device: Device = "auto",
    precision: PrecisionOption = "auto",
    compile: Compile = None,
    seed: Seed = None,
    json: AsJson = False,
) -> None:
    """Train on prepared sections and write a model folder.

    Parameters
    ----------
    store
        Folder written by `morphogen expression prepare`.
    """
    from morphogen.expression.config import ExpressionConfig
    from morphogen.expression.train import choose_sections, train_model

    chosen = load_config(
        ExpressionConfig, config, settings, recipe=recipe, size=size, panel__size=genes, training__seed=seed
    )
    used, split = choose_sections(store, names(test), names(sections), by)
    model = train_model(used, chosen, out, split=split, device=device, precision=precision, compile=compile)
    label = f" ({split.label})" if split is not None else ""
    result(
        json,
        {"model": out / "model", "recipe": chosen.recipe, "training": model.training},
        f"Trained {chosen.recipe} on {', '.join(model.training['sections'])}{label}",
        f"Model: {out / 'model'}",
    )


@app.command(name=["predict", "apply"])
def predict(
    inputs: Inputs,
    /,
    *,
    model: Model = None,
    out: Annotated[
        Path, Parameter(name="--out", help="Result, an .h5ad file; a folder of them for several inputs.")
    ],
    samples: Annotated[int | None, Parameter(help="Samples per spot; 0 = the mean alone.")] = None,
    solver: Solver = None,
    steps: Steps = None,
    mpp: Annotated[float | None, Parameter(help="µm per pixel of a slide whose file does not say.")] = None,
    weights: Weights = None,
    geojson: Annotated[
        Path | None, Parameter(help="Also write GeoJSON for QuPath: a file, or a folder for several inputs.")
    ] = None,
    cells: Annotated[
        str | None,
        Parameter(
            help="Predict cells, not a grid: GeoJSON, a mask of instances, or shapes or labels of a SpatialData store."
        ),
    ] = None,
    store: Annotated[
        Path | None,
        Parameter(
            help="Also write into a SpatialData store, made when it is not there; a folder for several inputs."
        ),
    ] = None,
    table: Annotated[str, Parameter(help="Name of the table in the store.")] = "prediction",
    config: ConfigFile = None,
    settings: Settings = (),
    spread: Spreading = None,
    device: Device = "auto",
    precision: Annotated[
        str, Parameter(help="auto (bf16 where it pays, with the fast solver), fp32, bf16 or fp16.")
    ] = "auto",
    compile: Compile = None,
    seed: Seed = None,
    json: AsJson = False,
) -> int:
    """Predict prepared sections, or any H&E slides and images on a grid over their tissue.

    Parameters
    ----------
    inputs
        Prepared .h5ad files, slides (SVS, NDPI, TIFF, PNG, JPEG …), SpatialData stores, folders or lists of them.
    """
    from morphogen.expression.config import PredictConfig
    from morphogen.expression.inputs import predict_inputs

    chosen = load_config(
        PredictConfig,
        config,
        settings,
        samples=samples,
        sampler__preset=solver,
        sampler__steps=steps,
        seed=seed,
    )
    folder, named = needed(model, inputs, "expression predict")
    where = spread_of(spread)
    outcomes = []
    for outcome in predict_inputs(
        folder,
        named,
        out,
        chosen,
        mpp=mpp,
        weights=str(weights) if weights else None,
        geojson=geojson,
        cells=cells,
        store=store,
        table=table,
        device=device,
        precision=precision,
        compile=compile,
        spread=where,
    ):
        outcomes.append(outcome)
        if not json:
            say(*outcome.lines())
    if json:
        print_json([outcome.to_dict() for outcome in outcomes])
    return FAILED if any(outcome.error for outcome in outcomes) else 0


@app.command
def evaluate(
    store: Path,
    /,
    *,
    model: Annotated[
        list[Path],
        Parameter(name="--model", consume_multiple=True, negative=(), help="Model folders, one or several."),
    ],
    test: Annotated[
        list[str], Parameter(consume_multiple=True, negative=(), help="Held-out sections by name.")
    ],
    out: Out,
    prediction: Annotated[
        list[Path] | None,
        Parameter(
            consume_multiple=True,
            negative=(),
            help="Predictions of another method, .h5ad with layer pred_mean in log1p counts.",
        ),
    ] = None,
    baseline: Baselines = None,
    weights: Weights = None,
    by: By = "patient",
    samples: Annotated[int | None, Parameter(help="Samples per spot.")] = None,
    solver: Solver = None,
    steps: Steps = None,
    config: ConfigFile = None,
    settings: Settings = (),
    device: Device = "auto",
    precision: PrecisionOption = "auto",
    compile: Compile = None,
    seed: Seed = None,
    json: AsJson = False,
) -> None:
    """Score models on held-out sections beside all baselines: JSON, CSV, figures, HTML.

    Parameters
    ----------
    store
        Folder of prepared sections, training and test.
    """
    from morphogen.core.writing.locks import folder_lock
    from morphogen.expression.config import EvaluateConfig
    from morphogen.expression.evaluate import evaluate_models, load_models, read_predictions
    from morphogen.expression.sections.prepare import load_sections

    chosen = load_config(
        EvaluateConfig,
        config,
        settings,
        predict__samples=samples,
        predict__sampler__preset=solver,
        predict__sampler__steps=steps,
        seed=seed,
    )
    models, sections = load_models(model, compile=compile), load_sections(store)
    outside: list[Any] = []
    if baseline:
        from morphogen.bridges.lazyslide.baselines import gene_baselines

        genes = next(iter(models.values())).panel.genes
        outside = gene_baselines(baseline, genes, weights=str(weights) if weights else None, device=device)
    with folder_lock(out):  # before hours of work, not after them
        found = evaluate_models(
            models,
            sections,
            names(test) or [],
            chosen,
            by=by,
            predictions=read_predictions(prediction or ()),
            outside=outside,
            device=device,
            precision=precision,
        )
        found.save(out)
    if json:
        print_json({**found.summary(), "out": out})
        return
    say(f"{found.split.label}: {', '.join(found.split.test)}")
    for row in found.rows:
        v = row.values
        tail = (
            "" if v["crps"] is None else f", CRPS {v['crps']:.3f}, 90 % coverage {_percent(v['coverage90'])}"
        )
        say(f"  {row.section} {row.method}: macro PCC {v['pcc']:.3f}{tail}")
    say(f"Report: {out / 'report.html'}")


def _percent(value: float | None) -> str:
    return "not defined" if value is None else f"{100 * value:.0f} %"
