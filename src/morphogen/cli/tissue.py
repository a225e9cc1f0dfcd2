"""``morphogen tissue``: images of any size from the embeddings of a pathology encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    result,
)
from morphogen.cli.options import (
    Encoder,
    GridColumns,
    GridSide,
    HoldOut,
    Init,
    Inputs,
    Mpp,
    Names,
    Out,
    Preset,
    Region,
    Steps,
    TileMpp,
    TissueModel,
    TissueSize,
    TrainingImages,
    TwinCanvas,
    Updates,
    UseImages,
    Weights,
    WorkerOptions,
    Working,
    spread_of,
)

app = App(
    name="tissue",
    help="Tissue images from embeddings: train, patches, canvas, prior, evaluate, import-samples.",
)


def _read(
    encoder: str | None, weights: Path | None, mpp: float | None, spread: WorkerOptions | None
) -> dict[str, Any]:
    """How the tiles of a verb's inputs are read."""
    return {"encoder": encoder, "weights": weights, "mpp": mpp, "spread": spread_of(spread)}


@app.command
def train(
    inputs: Inputs,
    /,
    *,
    out: Out,
    size: TissueSize = None,
    encoder: Encoder = None,
    weights: Weights = None,
    tile: Annotated[int | None, Parameter(name="--tile", help="Side of a tile in pixels.")] = None,
    tile_mpp: TileMpp = None,
    mpp: Mpp = None,
    init: Init = None,
    hold_out: HoldOut = None,
    steps: Updates = None,
    seed: Seed = None,
    device: Device = "auto",
    precision: PrecisionOption = "auto",
    compile: Compile = None,
    config: ConfigFile = None,
    settings: Settings = (),
    spread: Working = None,
    json: AsJson = False,
) -> int:
    """Train on tiles and their embeddings; the model is written to OUT/model. A run found in OUT goes on."""
    from morphogen.tissue.config import TrainConfig
    from morphogen.tissue.train import train_model

    resolved = load_config(
        TrainConfig,
        config,
        settings,
        model__size=size,
        data__encoder=encoder,
        data__encoder_weights=str(weights) if weights is not None else None,
        data__tile_px=tile,
        data__tile_mpp=tile_mpp,
        data__mpp=mpp,
        data__hold_out_groups=hold_out,
        init=init,
        training__steps=steps,
        training__seed=seed,
    )
    made = train_model(
        inputs, resolved, out, device=device, precision=precision, compile=compile, spread=spread_of(spread)
    )
    figures = ", ".join(f"{key} {value:.4g}" for key, value in sorted(made.run.metrics.items()))
    return result(
        json,
        {"model": made.folder, "tiles": made.tiles, "held_out": made.held_out, "metrics": made.run.metrics},
        f"Trained {made.run.step} steps on {made.tiles} tiles ({made.held_out} held out): {figures}",
        f"Model: {made.folder}",
        failed=made.failed,
    )


@app.command
def patches(
    inputs: Inputs,
    /,
    *,
    model: TissueModel,
    out: Out,
    solver: Preset = None,
    steps: Steps = None,
    samples: Annotated[int | None, Parameter(name="--samples", help="Patches per tile.")] = None,
    most: Annotated[int | None, Parameter(name="--most", help="Tiles at most, spread over all.")] = None,
    encoder: Encoder = None,
    weights: Weights = None,
    mpp: Mpp = None,
    seed: Seed = None,
    device: Device = "auto",
    precision: PrecisionOption = "auto",
    compile: Compile = None,
    config: ConfigFile = None,
    settings: Settings = (),
    spread: Working = None,
    json: AsJson = False,
) -> int:
    """Draw variations of tiles from their embeddings: PNG files, and manifest.csv with what each was made of."""
    from morphogen.tissue.config import PatchesConfig
    from morphogen.tissue.model import TissueDiffusion
    from morphogen.tissue.predict import draw_patches
    from morphogen.tissue.train import tiles_for

    resolved = load_config(
        PatchesConfig,
        config,
        settings,
        sampler__preset=solver,
        sampler__steps=steps,
        samples=samples,
        seed=seed,
        most=most,
    )
    loaded = TissueDiffusion.from_pretrained(model, device=device).compile(compile)
    table = tiles_for(loaded, inputs, out, most=resolved.most, **_read(encoder, weights, mpp, spread))
    made = draw_patches(
        loaded,
        table,
        out,
        resolved.sampler,
        samples=resolved.samples,
        seed=resolved.seed,
        batch=resolved.batch,
        precision=precision,
    )
    line = f"{len(made.files)} patches: {made.table}"
    return result(json, {"patches": len(made.files), "table": made.table}, line, failed=table.failed)


@app.command
def canvas(
    *,
    model: TissueModel,
    out: Out,
    like: Annotated[
        Path | None, Parameter(name="--like", help="Slide or image whose region is drawn again: a twin.")
    ] = None,
    region: Region = None,
    grid: Annotated[
        Path | None, Parameter(name="--grid", help="Grid of embeddings (.npz), or of tile names (.csv).")
    ] = None,
    tiles: Annotated[
        list[Path] | None,
        Parameter(
            name="--tiles",
            consume_multiple=True,
            negative=(),
            help="Where the tiles that a .csv grid names lie.",
        ),
    ] = None,
    prior: Annotated[
        Path | None, Parameter(name="--prior", help="Prior that draws the grid (`morphogen tissue prior`).")
    ] = None,
    label: Annotated[
        str | None, Parameter(name="--label", help="Class of tissue that the prior draws.")
    ] = None,
    rows: Annotated[int | None, Parameter(name="--rows", help="Rows of cells the prior draws.")] = None,
    columns: GridColumns = None,
    width: Annotated[
        int | None, Parameter(name="--width", help="Pixels; the grid's width by default.")
    ] = None,
    height: Annotated[
        int | None, Parameter(name="--height", help="Pixels; the grid's height by default.")
    ] = None,
    solver: Preset = None,
    steps: Steps = None,
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
    settings: Settings = (),
    json: AsJson = False,
) -> int:
    """Draw an image of any size as OUT/canvas.ome.tif: a twin of a region, from a grid, or from a prior."""
    from morphogen.tissue.canvases.config import CanvasConfig
    from morphogen.tissue.canvases.draw import draw_canvas
    from morphogen.tissue.canvases.sources import grid_from
    from morphogen.tissue.model import TissueDiffusion

    resolved = load_config(
        CanvasConfig,
        config,
        settings,
        sampler__preset="reference-canvas" if solver == "reference" else solver,
        sampler__steps=steps,
        batch=batch,
        mpp=mpp,
        seed=seed,
    )
    loaded = TissueDiffusion.from_pretrained(model, device=device).compile(compile)
    source = grid_from(
        loaded,
        like=like,
        region=region,
        grid=grid,
        tiles=tiles,
        prior=prior,
        label=label,
        shape=(rows, columns),
        encoder=encoder,
        weights=weights,
        mpp=mpp,
        seed=resolved.seed,
        cache=out / "features",
    )
    made = draw_canvas(loaded, source, out, resolved, width=width, height=height, precision=precision)
    result(
        json,
        vars(made),
        f"{made.width} × {made.height} px, {made.evaluations} windows ({made.cost:.1f} network Mpx per Mpx), seam "
        f"score {made.seams:.3f}, {made.seconds:.0f} s: {made.image}",
    )
    return 0


@app.command
def prior(
    inputs: Inputs,
    /,
    *,
    model: TissueModel,
    out: Out,
    side: GridSide = None,
    steps: Updates = None,
    hold_out: HoldOut = None,
    encoder: Encoder = None,
    weights: Weights = None,
    mpp: Mpp = None,
    seed: Seed = None,
    device: Device = "auto",
    config: ConfigFile = None,
    settings: Settings = (),
    spread: Working = None,
    json: AsJson = False,
) -> int:
    """Train a prior over grids of embeddings of regions, to draw canvases without a slide; OUT/model and a check."""
    from morphogen.core.files import read_json
    from morphogen.tissue.model import TissueDiffusion
    from morphogen.tissue.priors.check import compared
    from morphogen.tissue.priors.config import PriorConfig
    from morphogen.tissue.priors.train import train_prior
    from morphogen.tissue.train import tiles_for

    resolved = load_config(
        PriorConfig,
        config,
        settings,
        side=side,
        training__steps=steps,
        training__seed=seed,
        data__hold_out_groups=hold_out,
    )
    loaded = TissueDiffusion.from_pretrained(model)
    options = _read(encoder, weights, mpp, spread)
    table = tiles_for(loaded, inputs, out, group=resolved.data.group, **options)
    made = train_prior(table, resolved, out, device=device)
    check: dict[str, Any] = read_json(out / "check.json") if (out / "check.json").is_file() else {}
    return result(
        json,
        {"model": out / "model", "grids": made.facts["grids"], "check": check},
        f"Trained on {made.facts['grids']} grids{compared(check)}",
        f"Prior: {out / 'model'}",
        failed=table.failed,
    )


@app.command
def evaluate(
    inputs: Inputs,
    /,
    *,
    model: TissueModel,
    out: Out,
    canvas: TwinCanvas = None,
    region: Region = None,
    training: TrainingImages = None,
    use: UseImages = None,
    encoders: Names = None,
    solver: Preset = None,
    steps: Steps = None,
    encoder: Encoder = None,
    weights: Weights = None,
    mpp: Mpp = None,
    seed: Seed = None,
    device: Device = "auto",
    precision: PrecisionOption = "auto",
    compile: Compile = None,
    config: ConfigFile = None,
    settings: Settings = (),
    spread: Working = None,
    json: AsJson = False,
) -> int:
    """Draw held-out tiles again and score them in several encoders, beside real against real; table and HTML page."""
    from morphogen.cli.options import names
    from morphogen.tissue.canvases.sources import parse_region
    from morphogen.tissue.config import EvaluateConfig, UseConfig
    from morphogen.tissue.evaluate import evaluate_model, evaluate_twin
    from morphogen.tissue.model import TissueDiffusion
    from morphogen.tissue.train import tiles_for
    from morphogen.tissue.use import evaluate_use

    given: dict[str, Any] = {
        "sampler__preset": solver,
        "sampler__steps": steps,
        "encoders": names(encoders),
        "seed": seed,
    }
    options = _read(encoder, weights, mpp, spread)
    if use:
        asked = load_config(UseConfig, config, settings, **given)
        loaded = TissueDiffusion.from_pretrained(model, device=device)
        labelled, test = (tiles_for(loaded, sources, out, **options) for sources in (inputs, use))
        answer = evaluate_use(loaded, labelled, test, out, asked, precision=precision)
        failed = (*labelled.failed, *test.failed)
        where = f"Results: {out / 'use.json'}"
        return result(json, {"gains": answer.gains}, answer.lead, where, failed=failed)
    resolved = load_config(EvaluateConfig, config, settings, **given)
    loaded = TissueDiffusion.from_pretrained(model, device=device)
    if canvas is not None:
        twin = evaluate_twin(
            loaded, canvas, inputs[0], out, region=parse_region(region), mpp=mpp, config=resolved
        )
        lines = [f"{key}: {value}" for key, value in twin.items()]
        result(json, twin, *lines, f"Results: {out / 'twin.json'}")
        return 0
    table = tiles_for(loaded, inputs, out, **options)
    seen = tiles_for(loaded, training, out, **options) if training else None
    made = evaluate_model(loaded, table, out, resolved, training=seen, precision=precision)
    failed = (*table.failed, *(seen.failed if seen else ()))
    places = f"Results: {out / 'metrics.json'}, {out / 'report.html'}"
    return result(json, made.scores, *made.lines(), places, failed=failed)


@app.command(name="import-samples")
def import_samples(
    file: Annotated[Path, Parameter(help="Sample pickle of the published code.")],
    /,
    *,
    out: Out,
    trust: Annotated[
        bool,
        Parameter(name="--trust", negative=(), help="Read the pickle, by a reader that imports nothing."),
    ] = False,
    json: AsJson = False,
) -> int:
    """Write a published sample pickle as tiles and features.h5 (the grids of large samples put right)."""
    from morphogen.tissue.reading.samples import import_sample_file

    count = import_sample_file(file, out, trust=trust)
    result(json, {"samples": count, "out": out}, f"{count} samples: {out}")
    return 0
