"""``morphogen slide``: look at slides, tile them, encode their tiles, exchange features with other tools."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from morphogen.cli.common import (
    FAILED,
    AsJson,
    Compile,
    ConfigFile,
    Settings,
    cell,
    load_config,
    print_json,
    say,
)
from morphogen.cli.options import Encoder, Spreading, Weights, spread_of

if TYPE_CHECKING:
    from rich.console import Console

    from morphogen.slides.encode import Outcome

app = App(name="slide", help="Open, tile and encode slides; import and export tile features.")

Slides = Annotated[
    list[Path], Parameter(help="Slides, folders of slides, or lists (.txt, .csv with an mpp column).")
]
Out = Annotated[
    Path | None, Parameter(name="--out", help="Folder of the stores; beside each slide when absent.")
]
Mpp = Annotated[
    float | None,
    Parameter(
        name="--mpp", help="µm per pixel of the slide itself, where the file does not say or says it wrong."
    ),
]
TilePx = Annotated[int | None, Parameter(name="--tile-px", help="Side of a tile in pixels.")]
TileMpp = Annotated[float | None, Parameter(name="--tile-mpp", help="µm per pixel of the tiles.")]
Overlap = Annotated[int | None, Parameter(name="--overlap", help="Pixels that neighbouring tiles share.")]
MinTissue = Annotated[
    float | None, Parameter(name="--min-tissue", help="Least share of a tile that must be tissue, 0 to 1.")
]
Tissue = Annotated[
    Literal["entropy", "otsu", "all"] | None,
    Parameter(
        name="--tissue", help="How tissue is found; `all` takes the whole slide (smears, cropped images)."
    ),
]
Overwrite = Annotated[
    bool, Parameter(name="--overwrite", negative=(), help="Replace results made with other settings.")
]
Recursive = Annotated[bool, Parameter(name="--recursive", negative=(), help="Look into subfolders too.")]
Format = Literal["trident", "clam", "hest"]


@app.command
def info(
    slides: Slides, /, *, mpp: Mpp = None, out: Out = None, recursive: Recursive = False, json: AsJson = False
) -> int:
    """Size, levels, µm/px and where it comes from, vendor, associated images, results."""
    from morphogen.core.errors import MorphogenError
    from morphogen.slides import open_slide
    from morphogen.slides.batch import collect
    from morphogen.slides.info import slide_info

    jobs, rows, failed = collect(slides, recursive=recursive, mpp=mpp), [], 0
    for job in jobs:
        try:
            with open_slide(job.path, job.mpp, out) as slide:
                rows.append(slide_info(slide))
        except MorphogenError as error:
            if len(jobs) == 1:
                raise
            failed += 1
            rows.append({"path": job.path, "error": str(error)})
    if json:
        print_json(rows if len(jobs) > 1 else rows[0])
    else:
        for row in rows:
            _print_info(row)
    return FAILED if failed else 0


@app.command
def tile(
    slides: Slides,
    /,
    *,
    tile_px: TilePx = None,
    tile_mpp: TileMpp = None,
    overlap: Overlap = None,
    min_tissue: MinTissue = None,
    tissue: Tissue = None,
    mpp: Mpp = None,
    out: Out = None,
    overwrite: Overwrite = False,
    recursive: Recursive = False,
    config: ConfigFile = None,
    spread: Spreading = None,
    settings: Settings = (),
    json: AsJson = False,
) -> int:
    """Find tissue and lay tiles over it (224 px at 0.5 µm/px when not said otherwise)."""
    from morphogen.slides.batch import collect, run_jobs
    from morphogen.slides.config import TileConfig

    tiles = load_config(
        TileConfig,
        config,
        settings,
        tile_px=tile_px,
        tile_mpp=tile_mpp,
        overlap=overlap,
        min_tissue=min_tissue,
        tissue=tissue,
    )
    outcomes = run_jobs(
        collect(slides, recursive=recursive, mpp=mpp),
        out=out,
        tiles=tiles,
        overwrite=overwrite,
        spread=spread_of(spread),
        isolated=True,
    )
    return _report(outcomes, json)


@app.command
def encode(
    slides: Slides,
    /,
    *,
    encoder: Encoder = None,
    weights: Weights = None,
    tile_px: TilePx = None,
    tile_mpp: TileMpp = None,
    overlap: Overlap = None,
    min_tissue: MinTissue = None,
    tissue: Tissue = None,
    mpp: Mpp = None,
    out: Out = None,
    overwrite: Overwrite = False,
    recursive: Recursive = False,
    batch_size: Annotated[int | None, Parameter(help="Tiles through the encoder at once.")] = None,
    readers: Annotated[int | None, Parameter(help="Threads that decode tiles of one slide.")] = None,
    device: Annotated[str | None, Parameter(name="--device", help="auto, cpu, cuda, cuda:1 or mps.")] = None,
    precision: Annotated[str | None, Parameter(name="--precision", help="fp32, bf16 or fp16.")] = None,
    compile: Compile = None,
    trust_remote_code: Annotated[
        bool, Parameter(negative=(), help="Run Python code that comes with the weights.")
    ] = False,
    config: ConfigFile = None,
    spread: Spreading = None,
    settings: Settings = (),
    json: AsJson = False,
) -> int:
    """Encode tiles into the table `<encoder>_tiles` of each slide's store; tiles are made first where there are none.

    Finished slides and finished parts of a slide are kept: run the same command again after an interruption.
    Exit status 3 when some of several slides failed.
    """
    from morphogen.slides.batch import collect, run_jobs
    from morphogen.slides.config import EncodeRun

    chosen = load_config(
        EncodeRun,
        config,
        settings,
        encode__encoder=encoder,
        encode__weights=None if weights is None else str(weights),
        encode__device=device,
        encode__precision=precision,
        encode__compile=compile,
        encode__batch_size=batch_size,
        encode__readers=readers,
        encode__trust_remote_code=trust_remote_code or None,
        tiles__tile_px=tile_px,
        tiles__tile_mpp=tile_mpp,
        tiles__overlap=overlap,
        tiles__min_tissue=min_tissue,
        tiles__tissue=tissue,
    )
    outcomes = run_jobs(
        collect(slides, recursive=recursive, mpp=mpp),
        out=out,
        tiles=chosen.tiles,
        encode=chosen.encode,
        overwrite=overwrite,
        spread=spread_of(spread),
        isolated=True,
    )
    return _report(outcomes, json)


@app.command
def encoders(*, json: AsJson = False) -> None:
    """Every encoder: width, tile, licence, and whether it loads here without network."""
    from morphogen.slides import list_encoders

    rows = list_encoders()
    if json:
        print_json([{**row.spec.to_dict(), "offline": row.offline, "advice": row.advice} for row in rows])
        return
    from rich.table import Table

    table = Table("encoder", "width", "tile", "tokens", "licence", "here", box=None)
    for row in rows:
        spec = row.spec
        table.add_row(
            spec.name,
            str(spec.width or "?"),
            f"{spec.input_px} px, {spec.mpp:g} µm/px",
            "yes" if spec.tokens else "",
            spec.licence + (" (gated)" if spec.gated else ""),
            "ready" if row.offline else str(row.advice),
        )
    _wide_console().print(table)
    say("Also timm:NAME (timm's models) and transformers:FOLDER_OR_ID (vision transformers).")


@app.command(name="import")
def import_(
    slides: Slides,
    /,
    *,
    format: Annotated[Format, Parameter(help="Layout of the files.")],
    source: Annotated[Path, Parameter(name="--from", help="Folder (or file) of the other tool.")],
    encoder: Annotated[
        str | None, Parameter(help="Name of the encoder, where the files do not say; chooses one of several.")
    ] = None,
    mpp: Mpp = None,
    out: Out = None,
    overwrite: Overwrite = False,
    recursive: Recursive = False,
    json: AsJson = False,
) -> int:
    """Read tiles and features of TRIDENT, CLAM or HEST into the slides' stores, matched by slide name."""
    from morphogen.slides.exchange.transfer import import_slides

    outcomes = import_slides(
        slides, format, source, encoder=encoder, mpp=mpp, out=out, overwrite=overwrite, recursive=recursive
    )
    return _report(outcomes, json)


@app.command
def export(
    slides: Slides,
    /,
    *,
    format: Annotated[Format, Parameter(help="Layout of the files.")],
    to: Annotated[Path, Parameter(name="--to", help="Folder to write to.")],
    encoder: Annotated[str | None, Parameter(help="Features to export; all, when absent.")] = None,
    mpp: Mpp = None,
    out: Annotated[
        Path | None, Parameter(name="--out", help="Folder of the stores, if not beside the slides.")
    ] = None,
    recursive: Recursive = False,
    json: AsJson = False,
) -> int:
    """Write the tiles and features in the slides' stores as TRIDENT, CLAM or HEST files."""
    from morphogen.slides.exchange.transfer import export_slides

    outcomes = export_slides(slides, format, to, encoder=encoder, mpp=mpp, out=out, recursive=recursive)
    return _report(outcomes, json)


def _report(outcomes: list[Outcome], json: bool) -> int:
    """Print one line per slide and a summary; exit status 3 when some failed."""
    failed = [o for o in outcomes if o.status == "failed"]
    if json:
        from dataclasses import asdict

        print_json([asdict(o) for o in outcomes])
        return FAILED if failed else 0
    from rich.table import Table

    table = Table("slide", "status", "tiles", "features", "seconds", "tiles/s", "time spent", box=None)
    for o in outcomes:
        total = sum(o.stages.values())
        shares = ", ".join(f"{name} {value / total:.0%}" for name, value in o.stages.items()) if total else ""
        rate = f"{o.tiles / o.seconds:.0f}" if o.status == "done" and o.seconds else ""
        width = str(o.width) if o.width else ""
        table.add_row(
            cell(Path(o.slide).name), cell(o.status), str(o.tiles), width, f"{o.seconds:.1f}", rate, shares
        )
    _wide_console().print(table)
    for o in outcomes:
        if o.message and o.status != "failed":
            say(f"{Path(o.slide).name}: {o.message}")
    places = sorted({str(Path(o.store).parent) for o in outcomes if o.store and o.status != "failed"})
    if places:
        say(f"Results: {', '.join(places)}")
    if failed:
        say(f"{len(failed)} of {len(outcomes)} slides failed:")
        for o in failed:
            say(f"  {o.message}" if Path(o.slide).name in o.message else f"  {o.slide}: {o.message}")
    return FAILED if failed else 0


def _wide_console() -> Console:
    """The terminal, or 160 columns where output goes to a file, so that rows stay on one line."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160)


def _print_info(row: dict) -> None:
    if "error" in row:
        say(row["error"])
        return
    mpp = "unknown; give it with --mpp" if row["mpp"] is None else f"{row['mpp']:g} ({row['mpp_source']})"
    say(row["path"])
    say(f"  format         {row['vendor']}, read by {row['reader']}, {row['bytes'] / 2**20:,.1f} MiB")
    size = "" if row["size_mm"] is None else " ({:.2f} × {:.2f} mm)".format(*row["size_mm"])
    say(f"  size           {row['width']} × {row['height']} px{size}")
    say(f"  µm/px          {mpp}{'; ' + row['mpp_note'] if row['mpp_note'] else ''}")
    if row["damage"]:
        say(f"  damage         {row['damage']}")
    say(f"  magnification  {row['magnification'] or 'unknown'}")
    for number, level in enumerate(row["levels"]):
        say(f"  level {number}        {level['width']} × {level['height']} px, 1/{level['downsample']:.4g}")
    say(f"  images         {', '.join(row['associated_images']) or 'none'}")
    if row["store"]:
        say(f"  store          {row['store']}: {', '.join([*row['shapes'], *row['tables']]) or 'empty'}")
