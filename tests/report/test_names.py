"""Names of others on pages and in figures: no formula, no escape sequence, no byte that is no text."""

from __future__ import annotations

import os

import numpy as np
import pytest

from morphogen.report import Report
from morphogen.report.figures import calibration
from morphogen.report.images import picture
from morphogen.report.style import plain_labels, subplots

NAMES = ["$\\frac{1}{2$", "a$b$c", "GENE\x1b[31m", os.fsdecode(b"S\xff1"), "$\\nosuch$", "l\nm"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_can_be_drawn(name):
    figure, axes = subplots(1, 2)
    axes[0, 0].plot([1, 2], [1, 10], label=name)
    axes[0, 0].set(title=name, xlabel=name, yscale="log")
    axes[0, 0].legend()
    axes[0, 1].set_yticks([0, 1], [name, "other"])
    plain_labels(figure)
    assert picture(figure).width > 0
    shown = [t.get_text() for t in axes[0, 1].get_yticklabels()]
    assert shown[0] == name.replace("\x1b", r"\x1b").replace("\udcff", r"\xff").replace("\n", r"\n")
    assert not axes[0, 0].title.get_parse_math() and "\x1b" not in axes[0, 0].title.get_text()
    figure.canvas.draw()
    assert any(
        "mathdefault" in t.get_text() for t in axes[0, 0].get_yticklabels()
    )  # powers of ten stay formulas


def test_figures_of_the_package_take_any_name():
    rng = np.random.default_rng(0)
    nominal = np.linspace(0.1, 0.9, 5)
    picture(calibration({name: (nominal, rng.random(5)) for name in NAMES}).figure)


def test_a_page_shows_what_cannot_be_seen(tmp_path):
    page = Report("Title \x1b[2J").chapter("Gene \x1b]0;x\x07").text("**b** name \x1b[31m " + NAMES[3])
    path = page.table([{"gene\x1b": "v\x1b[0m", "n": 1}]).save(tmp_path / "page.html")
    text = path.read_text("utf-8")
    assert "\x1b" not in text and "\x07" not in text
    assert r"\x1b[31m" in text and r"S\xff1" in text and r"v\x1b[0m" in text and "<strong>b</strong>" in text
