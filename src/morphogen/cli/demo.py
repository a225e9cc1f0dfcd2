"""``morphogen demo``: every task on small data, one HTML report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from morphogen.cli.common import AsJson, Device, Seed, result

app = App(name="demo", help="Every task on small data, in one HTML report.")


@app.default
def demo(
    *,
    out: Path = Path("demo-report"),
    only: Annotated[str | None, Parameter(help="Chapters to run, separated by commas.")] = None,
    quick: Annotated[bool, Parameter(help="A smoke run at cut-down sizes.", negative=())] = False,
    device: Device = "auto",
    seed: Seed = None,
    json: AsJson = False,
) -> None:
    """Run every task on small data and write one report that opens in a browser.

    Parameters
    ----------
    out
        Folder of the report.
    """
    from morphogen.demo.run import run_demo

    chapters = [name.strip() for name in only.split(",")] if only else None
    page = run_demo(out, chapters=chapters, device=device, seed=seed or 0, quick=quick)
    result(
        json,
        {"report": page.resolve()},
        "",
        f"The report is at {page.resolve()}: open it in a browser.",
    )
