"""The viewer on a slide of 100,000 px, as a user has it: the command in a process of its own, a browser beside it.

Needs playwright and a Chromium (``MORPHOGEN_CHROMIUM``, or one on the path).
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import Row
from morphogen.core.errors import DependencyError
from morphogen.demo import TissueSimulator
from morphogen.slides.pyramid import write_pyramid

# The share of a grid of points of the canvas that nothing was drawn to.
_BLANK = """(across, down) => {
  const canvas = document.querySelector('#pane-a .openseadragon-canvas canvas');
  if (!canvas) return 1;
  const {width, height} = canvas;
  const data = canvas.getContext('2d', {willReadFrequently: true}).getImageData(0, 0, width, height).data;
  let blank = 0, all = 0;
  for (let y = 10; y < height; y += Math.floor(height / down))
    for (let x = 10; x < width; x += Math.floor(width / across)) {
      all++; if (data[4 * (y * width + x) + 3] === 0) blank++; }
  return blank / all; }"""
_WATCH = f"""() => {{ const blank = {_BLANK}; window.frames_seen = [];
  const look = () => {{ window.frames_seen.push([performance.now(), blank(16, 12)]);
    window.looking = requestAnimationFrame(look); }}; look(); }}"""


def wide_slide(folder: Path, width: int, height: int) -> Path:
    """A pyramid of simulated tissue, one picture over and over."""
    side = 1024
    he = TissueSimulator(1).render(0, 0, 2 * side, side, ihc=False).he
    band = np.tile(he, (1, -(-width // he.shape[1]), 1))[:, :width]
    bands = (band[: min(side, height - y)] for y in range(0, height, side))
    return write_pyramid(folder / "wide.ome.tif", bands, width, height, mpp=0.25)


@contextmanager
def served(slide: Path) -> Iterator[tuple[str, float]]:
    """The address that ``morphogen view`` prints, and after how many seconds."""
    command = [sys.executable, "-u", "-m", "morphogen.cli.main", "view", str(slide), "--no-browser"]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        assert running.stdout is not None
        try:
            for line in running.stdout:
                if found := re.search(r"http://\S+", line):
                    yield found[0], time.perf_counter() - began
                    break
        finally:
            running.terminate()


def run(quick: bool) -> list[Row]:
    """Opening and panning."""
    chromium = os.environ.get("MORPHOGEN_CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        raise DependencyError("the viewer's times need a Chromium (set MORPHOGEN_CHROMIUM)")
    from playwright.sync_api import sync_playwright

    width, height = (20_000, 4_096) if quick else (100_000, 12_288)
    with tempfile.TemporaryDirectory() as folder:
        slide = wide_slide(Path(folder), width, height)
        with served(slide) as (address, started), sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            first, ready = [], []
            for _ in range(3 if quick else 7):
                # The page forbids scripts that are not its own; those that watch it here are no part of it.
                context = browser.new_context(viewport={"width": 1280, "height": 800}, bypass_csp=True)
                page = context.new_page()
                page.goto("about:blank")
                began = time.perf_counter()
                page.goto(address)
                page.wait_for_function(f"({_BLANK})(24, 16) < 0.9", polling=20, timeout=60_000)
                first.append(time.perf_counter() - began)
                page.wait_for_selector("body[data-ready]")
                ready.append(time.perf_counter() - began)
                page.wait_for_timeout(1000)
            frames = panned(page, 4 if quick else 12)
            browser.close()
    blanks, longest = longest_of(frames)
    what = f"{width:,} × {height:,} px, Chromium without a GPU beside the server, 1280 × 800"
    return [
        Row("view: command to address", started * 1e3, "ms", detail="imports and the slide's header"),
        Row("view: page to first pixels", statistics.median(first) * 1e3, "ms", min(first) * 1e3, max(first) * 1e3,
            detail=what),
        Row("view: page to ready", statistics.median(ready) * 1e3, "ms", min(ready) * 1e3, max(ready) * 1e3,
            goal="< 1000", detail=what),
        Row("view: longest blank while panning", blanks, "ms", goal="< 300",
            detail=f"{len(frames)} frames looked at, full resolution"),
        Row("view: longest frame while panning", longest, "ms", detail="looking at every frame included"),
    ]  # fmt: skip


def panned(page: Any, drags: int) -> list[tuple[float, float]]:
    """``(ms, share that is blank)`` of every frame while the slide is dragged at full resolution."""
    page.select_option("#power", "40")
    page.wait_for_timeout(2500)
    page.evaluate(_WATCH)
    for k in range(drags):
        page.mouse.move(900, 400 + k % 3 * 40)
        page.mouse.down()
        page.mouse.move(150, 380 - k % 3 * 40, steps=8)
        page.mouse.up()
        page.wait_for_timeout(350)
    found: list[tuple[float, float]] = page.evaluate(
        "(cancelAnimationFrame(window.looking), window.frames_seen)"
    )
    return found


def longest_of(frames: list[tuple[float, float]], share: float = 0.02) -> tuple[float, float]:
    """Longest time in ms with more than ``share`` blank, and longest frame."""
    blank = longest = 0.0
    since: float | None = None
    for (at, empty), (then, _) in zip(frames, frames[1:], strict=False):
        longest = max(longest, then - at)
        since = (at if since is None else since) if empty > share else None
        if since is not None:
            blank = max(blank, then - since)
    return blank, longest
