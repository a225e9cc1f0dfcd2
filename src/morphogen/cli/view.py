"""``morphogen view``: slides and results in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from morphogen.cli.common import AsJson, ConfigFile, Settings, load_config, print_json, result, say
from morphogen.cli.options import Mpp, Names, Region, names

app = App(
    name="view", help="Slides, stains, genes and outlines in the browser, over one another or side by side."
)


@app.default
def view(
    results: Annotated[
        list[Path],
        Parameter(
            help="Slides, images, pyramids, .h5ad, GeoJSON, or folders of them; the first image is the ground."
        ),
    ],
    /,
    *,
    mpp: Mpp = None,
    host: Annotated[
        str,
        Parameter(
            name="--host", help="Address that is served; others than this machine reach it only if asked for."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, Parameter(name="--port", help="Port; 0 takes a free one.")] = 0,
    regions: Annotated[
        Path | None,
        Parameter(
            name="--regions", help="GeoJSON file that regions drawn on the page are read from and saved to."
        ),
    ] = None,
    at: Annotated[
        str | None, Parameter(name="--at", help="A view to begin with: what a copied link holds after its #.")
    ] = None,
    browser: Annotated[bool, Parameter(name="--browser", help="Open the page in the browser.")] = True,
    export: Annotated[
        Path | None,
        Parameter(name="--export", help="Write a copy into this folder that needs no server, and end."),
    ] = None,
    region: Region = None,
    genes: Annotated[
        Names,
        Parameter(name="--genes", help="Genes that the copy holds; those that vary most when not said."),
    ] = None,
    config: ConfigFile = None,
    settings: Settings = (),
    json: AsJson = False,
) -> int:
    """Look at slides and results in the browser. Nothing is converted; only what is named here can be reached.

    The address holds a secret token and is that of this machine alone. Ctrl-C ends it.
    """
    from morphogen.view import ViewConfig, open_view
    from morphogen.view.export import export_view, parse_region
    from morphogen.view.serving import serve

    resolved = load_config(ViewConfig, config, settings)
    shown = open_view(results, resolved, mpp=mpp)
    if export is not None:
        written = export_view(shown, export, resolved, region=parse_region(region, shown), genes=names(genes))
        result(
            json,
            {"page": written.page.resolve(), "files": written.files, "bytes": written.bytes},
            f"{written.files} files, {written.bytes / 1e6:.1f} MB",
            f"Open {written.page.resolve()} in a browser.",
        )
        return 0

    def ready(address: str) -> None:
        if json:
            print_json({"address": address})
        else:
            say(f"The viewer is at {address}", "Ctrl-C ends it.")

    serve(shown, resolved, ready, host=host, port=port, regions=regions, at=at, browser=browser)
    return 0 if not shown.failed else 3
