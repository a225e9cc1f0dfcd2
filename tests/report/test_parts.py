"""Markup, tables, pictures and figures, each on its own."""

from __future__ import annotations

import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from morphogen.core.errors import InputError
from morphogen.report import figures
from morphogen.report.images import picture
from morphogen.report.markup import block, inline
from morphogen.report.tables import table


class Scored(NamedTuple):
    value: float
    low: float
    high: float


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("a **b** *c* `d*e*`", "a <strong>b</strong> <em>c</em> <code>d*e*</code>"),
        ("2 * 3 * 4 and x_y_z", "2 * 3 * 4 and x_y_z"),
        ("[t](https://x.org/?a=1&b=2)", '<a href="https://x.org/?a=1&amp;b=2">t</a>'),
        ("[t](javascript:alert(1))", "[t](javascript:alert(1))"),
        ("[t](#maps)", '<a href="#maps">t</a>'),
        ("a < b & `<c>`", "a &lt; b &amp; <code>&lt;c&gt;</code>"),
    ],
)
def test_inline_markup(text, html) -> None:
    assert inline(text) == html


def test_paragraphs_and_lists() -> None:
    assert block("one\ntwo\n\nthree") == "<p>one two</p>\n<p>three</p>"
    assert block("a:\n- x\n  y\n- z\n\nb") == "<p>a:</p>\n<ul><li>x y</li><li>z</li></ul>\n<p>b</p>"
    assert block("1. x\n2. y\n- z") == "<ol><li>x</li><li>y</li></ol>\n<ul><li>z</li></ul>"


def texts(made) -> list[list[str]]:
    return [[cell.text for cell in row] for row in made.rows]


def test_numbers_in_tables_are_rounded_alike() -> None:
    values = [0.12345, 12.0, 0.00001, -3.5, float("nan"), float("inf"), 123456.0, None]
    made = table({"x": values, "n": [1, 20, 300, -4, 12345, 6, 7, 8]}, digits=3)
    assert [row[0] for row in texts(made)] == [
        "0.123", "12.000", "1.00×10⁻⁵", "−3.500", "–", "∞", "123\u202f456.0", "–",
    ]  # fmt: skip
    assert [row[1] for row in texts(made)][3:5] == ["−4", "12\u202f345"]
    assert made.numeric == [True, True]


@pytest.mark.parametrize(
    "data",
    [
        [{"a": 1, "b": "x"}, {"a": 2, "b": None}],
        {"a": [1, 2], "b": ["x", None]},
        pd.DataFrame({"a": [1, 2], "b": ["x", None]}),
    ],
)
def test_tables_from_anything(data) -> None:
    made = table(data)
    assert made.header == ["a", "b"] and texts(made) == [["1", "x"], ["2", "–"]]
    assert made.numeric == [True, False]


def test_rows_with_a_header_and_an_index() -> None:
    assert texts(table([[1, 2], [3, 4]], header=["a", "b"])) == [["1", "2"], ["3", "4"]]
    frame = pd.DataFrame({"a": [1]}, index=pd.Index(["g"], name="gene"))
    assert table(frame).header == ["gene", "a"] and table(frame, index=False).header == ["a"]


def test_intervals_and_the_best_of_a_column() -> None:
    rows = [
        {"m": "a", "PCC": Scored(0.6, 0.5, 0.7), "CRPS": 0.3},
        {"m": "b", "PCC": Scored(0.7, float("nan"), float("nan")), "CRPS": 0.2},
        {"m": "c", "PCC": float("nan"), "CRPS": 0.2},
    ]
    made = table(rows, best={"PCC": "max", "CRPS": "min"})
    assert made.rows[0][1].interval == "[0.500, 0.700]" and made.rows[1][1].interval == ""
    assert [[cell.best for cell in row[1:]] for row in made.rows] == [
        [False, False],
        [True, True],
        [False, True],
    ]


def test_long_tables_are_cut_and_counted() -> None:
    made = table({"x": range(30)}, longest=10)
    assert len(made.rows) == 10 and made.more == 20


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: table({"a": [1]}, best={"b": "max"}), "no column 'b'"),
        (lambda: table({"a": [1]}, best={"a": "most"}), "'most'"),
        (lambda: table([[1, 2], [1]]), "same length"),
        (lambda: picture(np.zeros((4, 4, 2), np.uint8)), "shape|H, W"),
        (lambda: picture(np.full((4, 4), 7.0)), "0-1"),
        (lambda: picture(np.zeros((4, 4), np.int64)), "int64"),
        (lambda: picture("no/such.png"), "no such picture"),
        (lambda: figures.spatial_map(np.zeros((3, 2)), np.zeros(4)), "N values"),
        (lambda: figures.variation_curves({"a": [1.0]}, reference="b"), "no curve"),
        (lambda: figures.gene_maps(np.zeros((3, 2)), {}), "at least one"),
        (lambda: figures.scatter([1, 2], [1]), "2 measured but 1"),
        (lambda: figures.image_map(np.zeros((2, 2, 3))), "H, W"),
    ],
)
def test_bad_input_is_named(call, words) -> None:
    with pytest.raises(InputError, match=words):
        call()


def test_pictures_are_bounded_in_size(tmp_path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 2600, 3), dtype=np.uint8)
    made = picture(noise, longest=1000, largest=60_000)
    assert max(made.width, made.height) <= 1000 and len(made.uri) < 60_000 * 4 / 3 + 50
    assert made.width / made.height == pytest.approx(2600 / 900, rel=0.02)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    assert picture(tmp_path / "a.jpg").width == 1800
    (tmp_path / "b.png").write_text("no picture")
    with pytest.raises(InputError, match="cannot be read"):
        picture(tmp_path / "b.png")


def test_tensors_are_pictures() -> None:
    assert picture(torch.rand(3, 200, 150)).width == 150
    assert picture(torch.zeros(200, 150, dtype=torch.uint8)).height == 200


def test_spots_are_drawn_to_scale() -> None:
    xy = np.stack(np.meshgrid(np.arange(5), np.arange(4)), -1).reshape(-1, 2) * 270.0
    values = np.arange(20.0)
    values[3] = np.nan
    ax = figures.spatial_map(xy, values, title="t")
    grey, spots = ax.collections
    np.testing.assert_allclose(spots.get_widths(), 0.9 * 270)  # nine tenths of the pitch
    assert len(spots.get_array()) == 19 and len(grey.get_offsets()) == 1
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # y downwards, as in the image
    labels = figures.spatial_map(xy, np.array(["a", "b"] * 10)).get_legend().get_texts()
    assert [t.get_text() for t in labels] == ["a", "b"]


def test_gene_maps_share_limits_within_a_gene() -> None:
    xy = np.random.default_rng(0).uniform(0, 100, (30, 2))
    measured = np.arange(30.0)
    figure = figures.gene_maps(
        xy, {"g": {"measured": measured, "predicted": measured * 0.5, "sd": measured * 0.01}}
    )
    limits = [
        ax.collections[0].get_clim() for ax in figure.axes if ax.collections and ax.get_title(loc="left")
    ]
    assert limits[0] == limits[1] != limits[2]


def test_variation_curves_follow_the_reference_order() -> None:
    ax = figures.variation_curves(
        {"measured": [1.0, 3.0, 2.0], "mean": [10.0, 30.0, 20.0]}, reference="measured"
    )
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [3, 2, 1])
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [30, 20, 10])


def test_smoothed_losses_start_unbiased() -> None:
    ax = figures.loss_curves({"a": (range(50), np.full(50, 2.0))}, smoothing=0.9)
    np.testing.assert_allclose(ax.lines[1].get_ydata(), 2.0)


def test_other_figures_draw_what_they_are_given() -> None:
    ax = figures.intervals({"a": Scored(0.5, 0.4, 0.6), "b": (0.3, 0.2, 0.4), "c": 0.1}, highlight="a")
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b", "c"]
    ax = figures.calibration({"m": ([0.5, 0.9], [0.4, 0.8])})
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [0.4, 0.8])
    assert "r = 1.000, n = 3" in figures.scatter([1, 2, 3], [2, 4, 6]).get_title(loc="left")
    assert "undefined" in figures.scatter([1, 1], [2, 3]).get_title(loc="left")
    assert len(figures.pit_histogram(np.linspace(0, 1, 100)).patches) == 10
    assert figures.matrix(np.eye(3), names=["a", "b", "c"]).images[0].get_clim() == (-1, 1)
    assert figures.image_map(np.eye(5)).images[0].get_array().shape == (5, 5)


def test_figures_leave_pyplot_alone() -> None:
    script = (
        "import sys; from morphogen.report import figures; figures.pit_histogram([0.1, 0.2]);"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
