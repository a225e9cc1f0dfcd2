"""The HTML page: well formed, self-contained, escaped, atomic; and its behaviour in a browser."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from morphogen.core.errors import InputError, OutputError
from morphogen.report import Report, figures

VOID = {"meta", "link", "img", "input", "br"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Checker(HTMLParser):
    """Balanced tags, unique ids, alternative texts, and every address the page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.problems: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        values = dict(attrs)
        if "id" in values:
            self.ids.append(values["id"])
        self.links += [values[k] for k in ("src", "href", "action", "data", "srcset") if k in values]
        if tag == "img" and "alt" not in values:
            self.problems.append("img without alt")
        if len(attrs) != len(values):
            self.problems.append(f"{tag} has an attribute twice")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        if not self.open or self.open[-1] != tag:
            self.problems.append(f"</{tag}> closes {self.open[-1:]}")
        else:
            self.open.pop()

    def handle_data(self, data) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)


def check(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    assert checker.problems == [] and checker.open == []
    assert len(set(checker.ids)) == len(checker.ids)
    return checker


def photo(height: int = 150, width: int = 200, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def full_report() -> Report:
    """Everything that a page can hold."""
    report = Report("Stain & genes", "a *subtitle*")
    report.numbers({"spots": 176, "macro PCC": 0.5714}).text("Before the first chapter.")
    report.chapter("Maps", "A **lead**.")
    xy = np.stack(np.meshgrid(np.arange(8), np.arange(6)), -1).reshape(-1, 2) * 100.0
    report.figure(
        figures.gene_maps(xy, {"ERBB2": {"measured": xy[:, 0], "predicted": xy[:, 1], "sd": xy.sum(1)}}),
        "Maps of `ERBB2`.",
    )
    report.chapter("Scores")
    report.table([{"method": f"m{k}", "PCC": k / 10} for k in range(3)], "Scores.", best={"PCC": "max"})
    report.table(pd.DataFrame(np.eye(3), columns=[f"a long column name {k}" for k in range(3)]))
    report.table({f"metric {k}": [0.123456] for k in range(20)}, "Wide.")
    report.note("Optimistic.", "warning")
    report.chapter("Pictures")
    report.images([photo(), photo(seed=1), photo(seed=2)], ["H&E", "predicted", "real"], "A row.")
    report.images([photo(), photo(seed=1)], ["left", "right"], "A slider.", compare=True)
    report.section("Code")
    report.code("from morphogen.report import Report\nprint('<b>')").code("morphogen demo --out x", "bash")
    report.provenance({"seed": 1, "nested": {"a": [1, 2], "b": None}, "long": "x" * 300})
    return report


def test_page_is_well_formed_and_needs_nothing_from_outside(tmp_path) -> None:
    path = full_report().save(tmp_path / "report.html")
    html = path.read_text(encoding="utf-8")
    checker = check(html)
    assert all(link.startswith(("data:", "#")) for link in checker.links)
    anchors = {link[1:] for link in checker.links if link.startswith("#")}
    assert anchors <= set(checker.ids) and {"maps", "scores", "pictures"} <= anchors
    assert "default-src 'none'" in html and "://" not in re.sub(r"data:image[^\"]*", "", html)


@pytest.mark.parametrize("evil", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a & b < c"])
def test_everything_given_is_escaped(evil) -> None:
    report = Report(evil, evil)
    report.chapter(evil, evil).section(evil).text(f"{evil}\n\n- {evil}\n- `{evil}` **{evil}**").note(evil)
    report.numbers({evil: evil}).table([{evil: evil}], evil).figure(photo(), evil, alt=evil)
    report.images([photo(), photo()], [evil, evil], evil).images(
        [photo(), photo()], [evil, evil], compare=True
    )
    report.code(evil, caption=evil).provenance({evil: {evil: evil}}, evil)
    html = report.html()
    checker = check(html)
    assert html.count("<script") == 1 and "onerror=alert(1)>" not in re.sub(r"&quot;&gt;[^<]*", "", html)
    assert checker.text.count(evil) >= 5


def test_the_same_report_is_the_same_page() -> None:
    assert full_report().html() == full_report().html()


def test_chapters_with_one_title_have_their_own_anchors() -> None:
    report = Report("t")
    for _ in range(3):
        report.chapter("Scores & more")
    report.chapter("基因")
    assert {"scores-more", "scores-more-2", "scores-more-3", "chapter"} <= set(check(report.html()).ids)


def test_saving_is_atomic(tmp_path) -> None:
    path = tmp_path / "a" / "report.html"
    Report("one").save(path)
    broken = Report("two")
    broken._chapters[0].blocks.append({"kind": "table"})  # rendering fails
    with pytest.raises(Exception, match="no attribute"):
        broken.save(path)
    assert "<title>one</title>" in path.read_text() and list(path.parent.iterdir()) == [path]
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        Report("x").save(tmp_path / "file" / "report.html")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda r: r.images([]), "at least one"),
        (lambda r: r.images([photo()], ["a", "b"]), "1 pictures but 2"),
        (lambda r: r.images([photo()], compare=True), "two pictures"),
        (lambda r: r.images([photo(100, 200), photo(200, 100)], compare=True), "one shape"),
        (lambda r: r.code("x", "klingon"), "klingon"),
        (lambda r: r.note("x", "shout"), "shout"),
    ],
)
def test_bad_input_is_named(call, words) -> None:
    with pytest.raises(InputError, match=words):
        call(Report("t"))


def embedded(html: str) -> list[Image.Image]:
    return [
        Image.open(io.BytesIO(base64.b64decode(data)))
        for data in re.findall(r"data:image/\w+;base64,([^\"]+)", html)
    ]


def test_pictures_in_the_page_are_the_pictures_given() -> None:
    mask = np.zeros((300, 200), bool)
    mask[50:90, 20:150] = True
    ramp = np.repeat(np.linspace(0, 1, 400)[None, :, None], 300, 0).repeat(3, 2)
    images = embedded(Report("t").images([mask, ramp, ramp.transpose(2, 0, 1).astype(np.float32)]).html())
    np.testing.assert_array_equal(np.asarray(images[0].convert("L")) > 127, mask)
    for image in images[1:]:
        assert image.size == (400, 300)
        assert np.abs(np.asarray(image.convert("RGB")) / 255 - ramp).max() < 0.03


_PROBE = """
<script>
addEventListener("load", () => setTimeout(async () => {
  const out = {}, q = s => document.querySelector(s), wait = ms => new Promise(r => setTimeout(r, ms));
  out.overflow = document.documentElement.scrollWidth - innerWidth;
  out.folded = !q(".contents details").open;
  const viewer = q("#viewer"), image = viewer.querySelector("img"), stage = q(".stage");
  const buttons = [...document.querySelectorAll(".zoom")];
  buttons[1].click();
  for (let k = 0; k < 40 && !image.style.transform; k++) await wait(50);
  out.open = viewer.open; out.same = image.src === buttons[1].querySelector("img").src;
  const scale = () => Number(image.style.transform.match(/scale\\(([^)]+)\\)/)[1]);
  const fitted = scale();
  stage.dispatchEvent(new WheelEvent("wheel", {deltaY: -400, clientX: 100, clientY: 100, cancelable: true}));
  out.wheel = scale() / fitted;
  stage.dispatchEvent(new MouseEvent("dblclick"));
  out.refit = scale() / fitted;
  viewer.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));
  await wait(300);
  out.next = image.src === buttons[2].querySelector("img").src;
  out.legend = q(".legend").textContent;
  q("[data-do=close]").click();
  out.closed = !viewer.open;
  const input = q(".pair input");
  input.value = 20; input.dispatchEvent(new Event("input"));
  out.slider = q(".pair").style.getPropertyValue("--at");
  // The real clipboard answers in its own time, which the virtual time of this window does not wait for.
  Object.defineProperty(navigator, "clipboard", { value: { writeText: async text => { out.text = text; } } });
  out.code = q(".copy").parentElement.querySelector("code").textContent;
  q(".copy").click();
  out.copied = q(".copy").textContent;
  for (let k = 0; k < 40 && out.copied === "Copy"; k++) { await wait(50); out.copied = q(".copy").textContent; }
  out.scrolls = [...document.querySelectorAll(".scroll")].some(e => e.scrollWidth > e.clientWidth);
  const report = document.createElement("pre");
  report.id = "probe"; report.textContent = JSON.stringify(out);
  document.body.append(report);
}, 300));
</script>
"""


def browse(page: Path, width: int) -> tuple[dict, str]:
    """What the probe found at a window width, and the browser's console."""
    import json

    frame = page.with_name(f"frame-{width}.html")
    # A headless window has a least width; a frame has not.
    frame.write_text(
        f'<iframe src="{page.name}" style="width:{width}px;height:900px;border:0"></iframe><pre id="out"></pre>'
        "<script>onmessage = e => { document.getElementById('out').textContent = e.data; };</script>"
    )
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom",
            f"--user-data-dir={page.parent / 'profile'}", "--window-size=1400,1000", "--virtual-time-budget=8000",
            f"file://{frame}",
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    found = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.S)
    assert found and found[1], done.stderr[-2000:]
    return json.loads(found[1].replace("&amp;", "&").replace("&gt;", ">").replace("&lt;", "<")), console


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(tmp_path, width) -> None:
    page = tmp_path / "report.html"
    probe = _PROBE.replace(
        "document.body.append(report);",
        "document.body.append(report); parent.postMessage(report.textContent, '*');",
    )
    page.write_text(full_report().html().replace("</body>", probe + "</body>"))
    seen, console = browse(page, width)
    assert console == ""
    assert seen["overflow"] <= 0, "the page scrolls sideways"
    assert seen["folded"] == (width < 1100)
    assert seen["open"] and seen["same"] and seen["next"] and seen["closed"]
    assert seen["wheel"] > 1.5 and seen["refit"] == pytest.approx(1, abs=1e-6)
    assert seen["legend"] == "predicted"
    assert seen["slider"] == "20%" and seen["copied"] == "Copied" and seen["scrolls"]
    assert seen["text"] == seen["code"] != ""
