"""``morphogen expression``: spatial gene expression from H&E."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

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

app = App(name="expression", help="Spatial gene expression from H&E: prepare, train, predict, evaluate.")

Out = Annotated[Path, Parameter(name="--out", help="Where results go.")]
Names = Annotated[
    list[str] | None, Parameter(help="Sections by name (repeat, or separate by commas).", negative=())
]


@app.command
def prepare(
    folder: Path,
    /,
    *,
    out: Out,
    sections: Names = None,
    encoder: Annotated[
        str | None, Parameter(help="Encoder of the spot fields; texture needs no weights.")
    ] = None,
    weights: Annotated[Path | None, Parameter(help="Weights of the encoder on disk.")] = None,
    patients: Annotated[Path | None, Parameter(help="CSV with columns section,patient.")] = None,
    config: ConfigFile = None,
    settings: Settings = (),
    device: Device = "auto",
    precision: PrecisionOption = "fp32",
) -> None:
    """Read measured sections and embed their spots: one .h5ad per section.

    Parameters
    ----------
    folder
        HEST-1k, Space Ranger, ST tables with images, .h5ad with images, or a folder with Stem's or HisDiff's
        processed_data.
    """
    from morphogen.expression.config import PrepareConfig
    from morphogen.expression.data import facts
    from morphogen.expression.sections.prepare import load_section, prepare_sections, save_section
    from morphogen.expression.sections.processed import is_processed, read_processed

    chosen = load_config(
        PrepareConfig,
        config,
        settings,
        encoder=encoder,
        weights=str(weights) if weights else None,
        data__patients=str(patients) if patients else None,
    )
    if is_processed(folder):
        written = [
            save_section(s, out / f"{facts(s).section}.h5ad") for s in read_processed(folder, chosen.data)
        ]
    else:
        written = prepare_sections(
            folder, out, chosen, sections=_names(sections), device=device, precision=precision
        )
    for path in written:
        section = load_section(path)
        f = facts(section)
        patient = f"patient {f.patient}" if f.patient else "patient not known"
        say(
            f"{f.section}: {section.n_obs} spots, {section.n_vars} genes, {f.mpp:.3f} µm/px ({f.mpp_source}), {patient}"
        )
    say(f"Written to {out}")


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
    test: Annotated[
        list[str] | None, Parameter(help="Sections held out; all others are trained on.", negative=())
    ] = None,
    sections: Annotated[
        list[str] | None, Parameter(help="Sections to train on, when not all others.", negative=())
    ] = None,
    by: Annotated[
        Literal["patient", "section"],
        Parameter(
            help="patient: no patient on both sides, or it stops. section: siblings are allowed and named."
        ),
    ] = "patient",
    genes: Annotated[int | None, Parameter(help="Genes in the panel.")] = None,
    config: ConfigFile = None,
    settings: Settings = (),
    device: Device = "auto",
    precision: PrecisionOption = "fp32",
    compile: Compile = False,
    seed: Seed = None,
) -> None:
    """Train on prepared sections and write a model folder.

    Parameters
    ----------
    store
        Folder written by `morphogen expression prepare`.
    """
    from morphogen.expression.config import ExpressionConfig
    from morphogen.expression.data import facts
    from morphogen.expression.sections.prepare import load_sections
    from morphogen.expression.sections.splits import split_sections
    from morphogen.expression.train import train_model

    chosen = load_config(
        ExpressionConfig, config, settings, recipe=recipe, size=size, panel__size=genes, training__seed=seed
    )
    everything = load_sections(store)
    held, named = _names(test), _names(sections)
    split = split_sections(everything, held, named, by) if held else None
    wanted = split.train if split is not None else named
    used = [s for s in everything if wanted is None or facts(s).section in set(wanted)]
    if named is not None and len(used) < len(named):
        load_sections(store, named)  # says which name is unknown
    model = train_model(used, chosen, out, split=split, device=device, precision=precision, compile=compile)
    label = f" ({split.label})" if split is not None else ""
    say(
        f"Trained {chosen.recipe} on {', '.join(model.training['sections'])}{label}",
        f"Model: {out / 'model'}",
    )


@app.command
def predict(
    what: Path,
    /,
    *,
    model: Annotated[Path, Parameter(help="Model folder or hub id.")],
    out: Annotated[Path, Parameter(name="--out", help="Result, an .h5ad file.")],
    samples: Annotated[int | None, Parameter(help="Samples per spot; 0 = the mean alone.")] = None,
    solver: Annotated[Literal["fast", "reference"] | None, Parameter(help="fast or reference.")] = None,
    mpp: Annotated[float | None, Parameter(help="µm per pixel of a slide whose file does not say.")] = None,
    weights: Annotated[Path | None, Parameter(help="Weights of the encoder on disk.")] = None,
    geojson: Annotated[Path | None, Parameter(help="Also write GeoJSON for QuPath.")] = None,
    config: ConfigFile = None,
    settings: Settings = (),
    device: Device = "auto",
    precision: Annotated[
        str, Parameter(help="auto (bf16 where it pays, with the fast solver), fp32, bf16 or fp16.")
    ] = "auto",
    compile: Compile = False,
    seed: Seed = None,
) -> None:
    """Predict a prepared section, or any H&E slide or image on a grid over its tissue.

    Parameters
    ----------
    what
        A prepared .h5ad, or a slide (SVS, NDPI, TIFF, PNG, JPEG …).
    """
    from morphogen.expression.config import PredictConfig
    from morphogen.expression.model import ExpressionModel
    from morphogen.expression.sections.grid import slide_section, write_geojson
    from morphogen.expression.sections.prepare import load_section

    chosen = load_config(PredictConfig, config, settings, samples=samples, solver=solver, seed=seed)
    loaded = ExpressionModel.from_pretrained(model)
    if what.suffix == ".h5ad":
        section = load_section(what)
    else:
        given = str(weights) if weights else None
        section = slide_section(
            what, loaded, chosen, mpp=mpp, weights=given, device=device, precision=precision
        )
    if compile:
        loaded.compile()
    result = loaded(section, chosen, device=device, precision=precision, out=out)
    say(f"{result.n_obs} spots × {result.n_vars} genes, {chosen.samples} samples", f"Written to {out}")
    if geojson is not None:
        write_geojson(result, geojson, chosen.geojson_genes)
        say(f"QuPath: {geojson}")


@app.command
def evaluate(
    store: Path,
    /,
    *,
    model: Annotated[list[Path], Parameter(help="Model folders, one or several (repeat).", negative=())],
    test: Annotated[list[str], Parameter(help="Held-out sections.", negative=())],
    out: Out,
    prediction: Annotated[
        list[Path] | None,
        Parameter(
            help="Predictions of another method, .h5ad with layer pred_mean in log1p counts.", negative=()
        ),
    ] = None,
    by: Annotated[
        Literal["patient", "section"],
        Parameter(
            help="patient: no patient on both sides, or it stops. section: siblings are allowed and named."
        ),
    ] = "patient",
    samples: Annotated[int | None, Parameter(help="Samples per spot.")] = None,
    solver: Annotated[Literal["fast", "reference"] | None, Parameter(help="fast or reference.")] = None,
    config: ConfigFile = None,
    settings: Settings = (),
    device: Device = "auto",
    precision: PrecisionOption = "fp32",
    compile: Compile = False,
    seed: Seed = None,
) -> None:
    """Score models on held-out sections beside all baselines: JSON, CSV, figures, HTML.

    Parameters
    ----------
    store
        Folder of prepared sections, training and test.
    """
    from morphogen.expression.config import EvaluateConfig
    from morphogen.expression.evaluate import evaluate_models
    from morphogen.expression.model import ExpressionModel
    from morphogen.expression.sections.prepare import load_sections

    chosen = load_config(
        EvaluateConfig, config, settings, predict__samples=samples, predict__solver=solver, seed=seed
    )
    models: dict[str, ExpressionModel] = {}
    for folder in model:
        loaded = ExpressionModel.from_pretrained(folder)
        if compile:
            loaded.compile()
        name: str = loaded.config.recipe
        while name in models:
            name += "′"
        models[name] = loaded
    given = None
    if prediction:
        from morphogen.expression.sections.h5ad import open_h5ad

        given = {path.stem: [open_h5ad(path)] for path in prediction}
    found = evaluate_models(
        models,
        load_sections(store),
        _names(test) or [],
        chosen,
        by=by,
        predictions=given,
        device=device,
        precision=precision,
    )
    found.save(out)
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


def _names(values: list[str] | None) -> list[str] | None:
    if not values:
        return None
    return [name.strip() for value in values for name in value.split(",") if name.strip()]
