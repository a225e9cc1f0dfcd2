"""The page in a real browser, without a screen: loads, zooms, switches a gene, reads a value, draws a region.

Needs playwright and a Chromium (``MORPHOGEN_CHROMIUM``, or one on the path); skips without them.
"""

from __future__ import annotations

import json
import os
import shutil

import pytest

from morphogen.view import export_view, open_view, start

from .conftest import GENES, WIDTH

pytestmark = pytest.mark.slow
CHROMIUM = (
    os.environ.get("MORPHOGEN_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium (set MORPHOGEN_CHROMIUM)")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def page_of(browser):
    """Opens an address; whatever the browser complains of fails the test."""
    complaints: list[str] = []
    contexts = []

    def opened(address: str, width: int = 1280, height: int = 800, **how):
        context = browser.new_context(viewport={"width": width, "height": height}, **how)
        contexts.append(context)
        page = context.new_page()
        page.on(
            "console",
            lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None,
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        page.wait_for_selector("body[data-ready]", timeout=120_000)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not complaints


@pytest.fixture
def server(results, tmp_path):
    names = (
        "slide.ome.tif",
        "slide_ER.ome.tif",
        "slide_uncertainty.ome.tif",
        "slide_mask.ome.tif",
        "genes.h5ad",
        "cells.geojson",
    )
    running = start(open_view([results / name for name in names]), regions=tmp_path / "regions.geojson")
    yield running
    running.stop()


def world(page, x: float, y: float) -> tuple[float, float]:
    """Where a place of the world is on the screen, as the scale bar and the link say."""
    shown = dict(part.split("=") for part in page.evaluate("location.hash.slice(1)").split("&"))
    box = page.locator("#pane-a").bounding_box()
    scale = box["width"] / float(shown["w"])
    left = float(shown["x"]) - box["width"] / 2 / scale
    top = float(shown["y"]) - box["height"] / 2 / scale
    return box["x"] + (x - left) * scale, box["y"] + (y - top) * scale


def settled(page) -> None:
    """The view stands still: what the link says does not change any more."""
    before = None
    for _ in range(60):
        page.wait_for_timeout(600)
        now = page.evaluate("location.hash")
        if now == before:
            return
        before = now


def reads(page, text: str, selector: str = "#values") -> None:
    """Wait until a part of the page says something."""
    page.wait_for_function(
        "([where, text]) => document.querySelector(where).innerText.includes(text)",
        arg=[selector, text],
        timeout=60_000,
    )


def test_a_value_of_a_gene_is_read_under_the_pointer(page_of, server):
    page = page_of(server.address)
    settled(page)
    page.click("#modes button[value=one]")
    table = page.locator(".pane-controls").first.locator(".spots select").first
    table.select_option(label="genes (108)")
    gene = page.locator(".pane-controls").first.locator("input[type=text]")
    gene.fill("mki67")  # any case
    settled(page)
    value = float(server.site.view.spots(4).values(1, GENES.index("MKI67"))[2 * 12 + 3])
    reads(page, "MKI67, predicted mean", "#pane-a .legend")
    page.mouse.move(*world(page, 60 + 120 * 3, 60 + 120 * 2))
    reads(page, f"MKI67, predicted mean: {value:.2f}")
    assert "RGB" in page.inner_text("#values")
    gene.fill(GENES[2])
    reads(page, GENES[2], "#pane-a .legend")
    assert page.locator(".legend b, .chip img, datalist b").count() == 0  # names are text, never markup


def test_zoom_pan_and_the_link_come_back(page_of, server):
    page = page_of(server.address)
    settled(page)
    page.mouse.move(*world(page, 700, 500))
    page.mouse.wheel(0, -600)
    settled(page)
    page.click("#modes button[value=side]")
    settled(page)
    link = page.evaluate("location.href")
    shown = dict(part.split("=") for part in link.partition("#")[2].split("&"))
    assert shown["show"] == "side" and float(shown["w"]) < WIDTH
    frames = page.evaluate("[...document.querySelectorAll('.openseadragon-container')].length")
    assert frames >= 2
    again = page_of(link)
    settled(again)
    back = dict(part.split("=") for part in again.evaluate("location.hash.slice(1)").split("&"))
    assert back["show"] == "side"
    for key in ("x", "y", "w"):
        assert float(back[key]) == pytest.approx(float(shown[key]), abs=12)


def test_a_region_is_drawn_saved_and_read_again(page_of, server):
    page = page_of(server.address)
    settled(page)
    page.click("text=Draw box")
    page.mouse.move(*world(page, 300, 200))
    page.mouse.down()
    page.mouse.move(*world(page, 600, 400), steps=4)
    page.mouse.up()
    page.click("text=Save regions")
    reads(page, "1 region was saved", "#hint")
    (feature,) = json.loads(server.site.regions.read_text())["features"]
    ring = feature["geometry"]["coordinates"][0]
    assert min(x for x, _ in ring) == pytest.approx(300, abs=8) and max(y for _, y in ring) == pytest.approx(
        400, abs=8
    )
    assert feature["properties"]["name"] == "Region 1"
    assert "mm²" in page.inner_text(".region-list") or "µm²" in page.inner_text(".region-list")
    assert page_of(server.address).locator(".region-list li").count() == 1


def test_what_is_drawn_is_the_slide(page_of, server):
    """The canvas shows the slide's own colours where the pointer says they are."""
    page = page_of(server.address)
    settled(page)
    page.click("#modes button[value=one]")
    page.locator("input[type=checkbox]").uncheck()
    settled(page)
    x, y = world(page, 710, 510)  # the middle of a square of 20 px
    box = page.locator("#pane-a .openseadragon-canvas canvas").first.bounding_box()
    seen = page.evaluate(
        """([x, y]) => { const c = document.querySelector('#pane-a .openseadragon-canvas canvas');
        const r = window.devicePixelRatio;
        return [...c.getContext('2d').getImageData(x * r, y * r, 1, 1).data].slice(0, 3); }""",
        [x - box["x"], y - box["y"]],
    )
    wanted = server.site.view.image(0).value(710, 510)["rgb"]
    assert seen == pytest.approx(wanted, abs=30)


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_nothing_overflows_and_everything_has_a_name(page_of, server, width, height):
    page = page_of(server.address, width, height)
    for mode in ("one", "side", "slider", "blend"):
        page.click(f"#modes button[value={mode}]")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("#stage").bounding_box()["height"] > 0.4 * height
    if width < 760:
        page.click("#toggle")
    nameless = page.evaluate(
        """[...document.querySelectorAll('button, input, select')].filter((e) => {
          const named = e.getAttribute('aria-label') || e.textContent.trim() || (e.labels && e.labels.length);
          return !named && !e.closest('.openseadragon-container');
        }).map((e) => e.outerHTML)"""
    )
    assert nameless == []


def test_the_divider_moves_by_keyboard(page_of, server):
    page = page_of(server.address)
    page.click("#modes button[value=slider]")
    page.focus("#divider")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("#divider", "aria-valuenow") == "52"


def test_an_exported_copy_opens_from_disk_and_reads_values(page_of, results, tmp_path):
    view = open_view([results / "slide.ome.tif", results / "genes.h5ad", results / "cells.geojson"])
    made = export_view(view, tmp_path / "copy", region=(200, 200, 700, 500), genes=["ESR1"])
    page = page_of(made.page.resolve().as_uri())
    settled(page)
    value = float(view.spots(1).values(1, GENES.index("ESR1"))[3 * 12 + 4])
    reads(page, "ESR1, predicted mean", "#pane-a .legend")
    page.mouse.move(*world(page, 60 + 120 * 4, 60 + 120 * 3))
    reads(page, f"ESR1, predicted mean: {value:.2f}")
