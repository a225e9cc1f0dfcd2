"""The demonstration: every chapter in turn, one report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from morphogen.core.errors import ConfigError, nearest
from morphogen.core.files import Manifest, writable_folder
from morphogen.core.provenance import versions
from morphogen.demo.chapters import CHAPTERS
from morphogen.demo.workspace import Chapter, Workspace
from morphogen.report import Report

LEAD = (
    "Everything below was made on this machine by the commands and the Python shown with it: a **real slide** tiled, "
    "embedded and drawn anew from its **embeddings**, then **virtual staining**, **labelled images** in other styles "
    "and **gene maps** on simulated tissue, where the right answer is known. No weights were downloaded."
)


def run_demo(
    out: Path | str = "demo-report",
    *,
    chapters: Sequence[str] | None = None,
    device: str = "auto",
    seed: int = 0,
    quick: bool = False,
) -> Path:
    """Run the demonstration and write ``<out>/index.html``; returns its path.

    Parameters
    ----------
    out:
        Folder of the report; data and results of the chapters lie below it.
    chapters:
        Names of :data:`morphogen.demo.chapters.CHAPTERS` to run; all of them when ``None``.
    quick:
        A smoke run at cut-down sizes.
    """
    chosen = tuple(chapters or CHAPTERS)
    for name in chosen:
        if name not in CHAPTERS:
            raise ConfigError(f"there is no chapter '{name}'.{nearest(name, CHAPTERS)}", where="--only")
    work = Workspace(writable_folder(out), device=device, seed=seed, quick=quick)
    modules: list[Chapter] = [import_module(f"morphogen.demo.chapters.{name}") for name in chosen]  # type: ignore[misc]
    body, seconds = Report("Morphogen", "diffusion models for computational pathology"), {}
    for name, module in zip(chosen, modules, strict=True):
        print(f"{module.TITLE} …", flush=True)
        began = time.perf_counter()
        body.chapter(module.TITLE)
        module.run(work, body)
        seconds[name] = round(time.perf_counter() - began, 1)
    body.chapter("How this was made")
    body.text(f"Seconds per chapter: {', '.join(f'{name} {s:g}' for name, s in seconds.items())}.")
    body.provenance({"seed": seed, "quick": quick, "seconds": seconds, "versions": versions()}, "Versions")
    page = _with_front(body, work).save(work.folder / "index.html")
    Manifest.write(work.folder, kind="demo", chapters=list(chosen), seconds=seconds, headlines=work.headlines)
    return page


def _with_front(body: Report, work: Workspace) -> Report:
    """The headline figures are known last and read first."""
    page = Report(body.title, body.subtitle)
    page.note(LEAD)
    if work.quick:
        page.note("This was a smoke run at cut-down sizes: the pictures show only that it runs.", "warning")
    if work.headlines:
        page.numbers(work.headlines)
    return page.extend(body)
