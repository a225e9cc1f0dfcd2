"""The look of all figures: fonts, colours, and axes without pyplot.

Figures are plain :class:`matplotlib.figure.Figure` objects on the Agg canvas, with nothing global, so they
can be made in threads, on machines without a screen, and beside a user's own plots.
"""

from __future__ import annotations

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FixedLocator

from morphogen.core.printing import printable

#: Okabe and Ito's palette, told apart by the colour-blind; the first is for the method in question.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
TRUTH = "#3A3A3A"

STYLE = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E3E6EA",
    "grid.linewidth": 0.7,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def subplots(
    rows: int = 1, columns: int = 1, *, width: float = 4.2, height: float = 3.4
) -> tuple[Figure, np.ndarray]:
    """A figure with ``rows × columns`` axes of ``width × height`` inches each: ``(figure, axes (rows,
    columns))``."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(width * columns, height * rows), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)
        )
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False)
    return figure, axes


def axes_or_new(ax: Axes | None, **size: float) -> Axes:
    """The axes given, or those of a new figure of this ``width`` and ``height``."""
    if ax is not None:
        return ax
    return subplots(**size)[1][0, 0]  # type: ignore[arg-type]


def plain_labels(figure: Figure) -> Figure:
    """The figure with its texts as they are: names of genes, sections and methods are no formulas (``$``), and what is
    not a visible character is written as an escape. Ticks that matplotlib itself words (powers of ten) stay."""
    worded = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            labels = [*axis.get_ticklabels(), *axis.get_ticklabels(minor=True), axis.get_offset_text()]
            if isinstance(axis.get_major_locator(), FixedLocator):  # ticks named by us
                names = [printable(label.get_text()) for label in axis.get_ticklabels()]
                axis.set_major_formatter(FixedFormatter(names))
                for label in labels:
                    label.set_parse_math(False)
            worded |= set(labels)
    for text in figure.findobj(Text):
        if text not in worded:
            text.set_parse_math(False)
            text.set_text(printable(text.get_text(), keep="\n"))
    return figure


def usual_limits(values: np.ndarray) -> tuple[float, float]:
    """Colour limits: the 1 and 99 % quantiles of what is known."""
    known = values[np.isfinite(values)]
    if not known.size:
        return 0.0, 1.0
    low, high = np.quantile(known, [0.01, 0.99])
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1.0)
