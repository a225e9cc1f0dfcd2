"""Figures that every task draws, in one style. Each function draws on axes it is given or makes, and
returns them.

No pyplot: figures are plain :class:`matplotlib.figure.Figure` objects on the Agg canvas, with nothing
global, so they can be made in threads, on machines without a screen, and beside a user's own plots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from morphogen.core.errors import InputError

#: Okabe and Ito's palette, told apart by the colour-blind; the first is for the method in question.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
TRUTH = "#3A3A3A"

STYLE = {
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E3E6EA",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "image.cmap": "magma",
    "image.interpolation": "nearest",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def subplots(
    rows: int = 1, columns: int = 1, *, width: float = 4.2, height: float = 3.4
) -> tuple[Figure, np.ndarray]:
    """A figure with ``rows × columns`` axes of ``width × height`` inches each: ``(figure, axes (rows,
    columns))``."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False)
    return figure, axes


def _axes(ax: Axes | None, **size: float) -> Axes:
    if ax is not None:
        return ax
    return subplots(**size)[1][0, 0]  # type: ignore[arg-type]


def spatial_map(
    coordinates: ArrayLike,
    values: ArrayLike,
    *,
    ax: Axes | None = None,
    image: np.ndarray | None = None,
    title: str = "",
    label: str = "",
    cmap: str = "magma",
    limits: tuple[float, float] | None = None,
    size: float | None = None,
    colorbar: bool = True,
) -> Axes:
    """Values at spots of a section.

    ``coordinates`` (N, 2) are x, y with y downwards, in pixels of ``image`` (drawn pale below) where one is
    given; ``values`` (N,) numbers, NaN drawn grey, or labels. ``size`` is the spots' diameter in the units
    of the coordinates; by default nine tenths of the usual distance between neighbours.
    """
    xy = np.asarray(coordinates, dtype=float)
    v = np.asarray(values)
    if xy.ndim != 2 or xy.shape[1] != 2 or len(xy) != len(v):
        raise InputError(f"a map needs coordinates (N, 2) and N values, not {xy.shape} and {v.shape}")
    ax = _axes(ax, width=4.2, height=4.0)
    if image is not None:
        ax.imshow(image, alpha=0.45, zorder=0)
    diameter = size if size is not None else 0.9 * _spacing(xy)
    _frame(ax, xy, diameter)
    style: dict[str, Any] = {"linewidths": 0, "zorder": 2}
    if v.dtype.kind in "OUSb":
        for k, name in enumerate(sorted({str(item) for item in v})):
            chosen = np.array([str(item) == name for item in v])
            x, y = xy[chosen].T
            spots = ax.scatter(x, y, color=COLOURS[k % len(COLOURS)], label=name, **style)
            _to_scale(ax, spots, diameter)
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), markerscale=1.5, title=label or None)
    else:
        number = v.astype(float)
        known = np.isfinite(number)
        if not known.all():
            x, y = xy[~known].T
            _to_scale(ax, ax.scatter(x, y, color="#C9CDD2", **style), diameter)
        low, high = limits or _limits(number)
        x, y = xy[known].T
        spots = ax.scatter(x, y, c=number[known], cmap=cmap, vmin=low, vmax=high, **style)
        _to_scale(ax, spots, diameter)
        if colorbar:
            ax.figure.colorbar(spots, ax=ax, shrink=0.8, pad=0.02, label=label)
    ax.set_title(title)
    return ax


def _frame(ax: Axes, xy: np.ndarray, diameter: float) -> None:
    low, high = (xy.min(0), xy.max(0)) if len(xy) else (np.zeros(2), np.ones(2))
    ax.set_xlim(low[0] - diameter, high[0] + diameter)
    ax.set_ylim(high[1] + diameter, low[1] - diameter)
    ax.set_aspect("equal")
    ax.grid(False)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def _to_scale(ax: Axes, spots: Any, diameter: float) -> None:
    # Markers are sized in points; the axes' box gives points per unit of the coordinates.
    box = ax.get_position()
    figure = ax.get_figure(root=True).get_size_inches()
    width = abs(np.subtract(*ax.get_xlim()))
    height = abs(np.subtract(*ax.get_ylim()))
    points = 72.0 * 0.85 * min(box.width * figure[0] / width, box.height * figure[1] / height)
    spots.set_sizes([max(2.0, (diameter * points) ** 2)])


def _spacing(xy: np.ndarray) -> float:
    from scipy.spatial import cKDTree

    if len(xy) < 2:
        return 1.0
    distance = cKDTree(xy).query(xy, k=2)[0][:, 1]
    return float(np.median(distance)) or 1.0


def _limits(values: np.ndarray) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    if not known.size:
        return 0.0, 1.0
    low, high = np.quantile(known, [0.01, 0.99])
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1.0)


def gene_maps(
    coordinates: ArrayLike,
    rows: Mapping[str, Mapping[str, ArrayLike]],
    *,
    image: np.ndarray | None = None,
    label: str = "",
    uncertainty: Sequence[str] = ("uncertainty", "sd"),
) -> Figure:
    """Maps of several genes: a row per gene, a column per kind, e.g. ``{"ERBB2": {"measured": …,
    "predicted": …}}``.

    The columns of a row share their colour limits, except those named in ``uncertainty``, which have their
    own.
    """
    genes = list(rows)
    kinds = list(dict.fromkeys(kind for row in rows.values() for kind in row))
    if not genes or not kinds:
        raise InputError("gene maps need at least one gene with one map")
    figure, axes = subplots(len(genes), len(kinds), width=3.6, height=3.2)
    for i, gene in enumerate(genes):
        shared = [np.asarray(rows[gene][k], float) for k in rows[gene] if k not in uncertainty]
        limits = _limits(np.concatenate(shared)) if shared else None
        for j, kind in enumerate(kinds):
            ax = axes[i, j]
            if kind not in rows[gene]:
                ax.set_axis_off()
                continue
            own = kind in uncertainty
            spatial_map(
                coordinates,
                rows[gene][kind],
                ax=ax,
                image=image,
                title=f"{gene} {kind}",
                label=label,
                cmap="viridis" if own else "magma",
                limits=None if own else limits,
            )
    return figure


def scatter(
    truth: ArrayLike,
    prediction: ArrayLike,
    *,
    ax: Axes | None = None,
    xlabel: str = "measured",
    ylabel: str = "predicted",
    title: str = "",
) -> Axes:
    """Predicted against measured values with the line of identity; the title tells Pearson's r and n."""
    x, y = np.asarray(truth, float).ravel(), np.asarray(prediction, float).ravel()
    if len(x) != len(y):
        raise InputError(f"{len(x)} measured but {len(y)} predicted values")
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    ax = _axes(ax)
    if len(x) > 5000:
        ax.hexbin(x, y, gridsize=60, bins="log", cmap="Blues", mincnt=1, linewidths=0)
    else:
        ax.scatter(x, y, s=14, alpha=0.6, linewidths=0)
    if len(x):
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        ax.plot(ends, ends, color="#9AA3AE", linewidth=1, zorder=1)
    defined = len(x) > 1 and x.std() > 0 and y.std() > 0
    note = f"r = {np.corrcoef(x, y)[0, 1]:.3f}" if defined else "r undefined"
    ax.set(xlabel=xlabel, ylabel=ylabel, title=f"{title}  {note}, n = {len(x)}".strip())
    return ax


def calibration(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]], *, ax: Axes | None = None, title: str = "Calibration"
) -> Axes:
    """Share of truths inside the central intervals against the share that should be: name → (nominal,
    observed).

    On the diagonal the stated uncertainty is right; below it, intervals are too narrow.
    """
    ax = _axes(ax, width=3.8, height=3.6)
    ax.plot([0, 1], [0, 1], color="#9AA3AE", linewidth=1, label="exact")
    for name, (nominal, observed) in curves.items():
        ax.plot(np.asarray(nominal, float), np.asarray(observed, float), marker="o", markersize=4, label=name)
    ax.set(xlabel="nominal coverage", ylabel="observed coverage", title=title, xlim=(0, 1), ylim=(0, 1))
    ax.set_aspect("equal")
    ax.legend(loc="upper left")
    return ax


def pit_histogram(pit: ArrayLike, *, ax: Axes | None = None, bins: int = 10, title: str = "PIT") -> Axes:
    """Ranks of the truth within its predicted distribution, in 0–1; flat when calibrated, ∪ when too sure."""
    ax = _axes(ax, width=3.8, height=3.0)
    ax.hist(np.asarray(pit, float).ravel(), bins=bins, range=(0, 1), density=True, color=COLOURS[5])
    ax.axhline(1.0, color=TRUTH, linewidth=1, linestyle="--")
    ax.set(xlabel="probability integral transform", ylabel="density", title=title, xlim=(0, 1))
    return ax


def variation_curves(
    variances: Mapping[str, ArrayLike],
    *,
    reference: str,
    ax: Axes | None = None,
    title: str = "Gene variation",
) -> Axes:
    """Variance of every gene, genes ordered by the variance of ``reference`` (the measured counts); name →
    (G,)."""
    if reference not in variances:
        raise InputError(f"there is no curve '{reference}'; curves: {', '.join(variances)}")
    order = np.argsort(np.asarray(variances[reference], float))[::-1]
    ax = _axes(ax, width=4.6, height=3.2)
    for name, value in variances.items():
        v = np.asarray(value, float)[order]
        if name == reference:
            ax.plot(v, color=TRUTH, linewidth=2.2, label=name, zorder=5)
        else:
            ax.plot(v, linewidth=1, alpha=0.85, label=name)
    ax.set(xlabel=f"genes by variance ({reference})", ylabel="variance across spots", title=title)
    ax.legend()
    return ax


def loss_curves(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    ax: Axes | None = None,
    smoothing: float = 0.0,
    logarithmic: bool = False,
    ylabel: str = "loss",
    title: str = "",
) -> Axes:
    """Losses or scores against the training step: name → (steps, values).

    ``smoothing`` in [0, 1) draws an exponential moving average over the pale raw curve.
    """
    ax = _axes(ax, width=4.8, height=3.0)
    for k, (name, (steps, values)) in enumerate(curves.items()):
        x, y = np.asarray(steps, float), np.asarray(values, float)
        colour = COLOURS[k % len(COLOURS)]
        if smoothing and len(y) > 2:
            ax.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
            y = _average(y, smoothing)
        ax.plot(x, y, color=colour, label=name)
    if logarithmic:
        ax.set_yscale("log")
    ax.set(xlabel="step", ylabel=ylabel, title=title)
    ax.legend()
    return ax


def _average(values: np.ndarray, smoothing: float) -> np.ndarray:
    out, state, weight = np.empty_like(values), 0.0, 0.0
    for k, value in enumerate(values):
        if np.isfinite(value):
            state = smoothing * state + (1 - smoothing) * value
            weight = smoothing * weight + (1 - smoothing)
        out[k] = state / weight if weight else np.nan
    return out


def intervals(
    rows: Mapping[str, Any],
    *,
    ax: Axes | None = None,
    xlabel: str = "",
    title: str = "",
    highlight: str | None = None,
) -> Axes:
    """Scores of several methods with their intervals: name → number, (value, low, high), or an interval
    object."""
    names = list(rows)
    ax = _axes(ax, width=5.0, height=0.7 + 0.3 * max(len(names), 2))
    for k, name in enumerate(names):
        value, low, high = _interval(rows[name])
        colour = COLOURS[1] if name == highlight else COLOURS[0]
        if np.isfinite(low) and np.isfinite(high):
            ax.plot([low, high], [k, k], color=colour, linewidth=2.2, solid_capstyle="butt")
        ax.plot([value], [k], marker="o", markersize=6, color=colour)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(False, axis="y")
    ax.set(xlabel=xlabel, title=title)
    return ax


def _interval(row: Any) -> tuple[float, float, float]:
    if hasattr(row, "low"):
        return float(row.value), float(row.low), float(row.high)
    if isinstance(row, tuple | list):
        return float(row[0]), float(row[1]), float(row[2])
    return float(row), float("nan"), float("nan")


def matrix(
    values: ArrayLike,
    *,
    ax: Axes | None = None,
    title: str = "",
    label: str = "",
    cmap: str = "RdBu_r",
    limits: tuple[float, float] | None = (-1.0, 1.0),
    names: Sequence[str] | None = None,
) -> Axes:
    """A matrix as colours, for example a gene–gene correlation; ``names`` label its rows and columns if
    few."""
    x = np.asarray(values, float)
    ax = _axes(ax, width=3.8, height=3.4)
    low, high = limits if limits is not None else _limits(x.ravel())
    shown = ax.imshow(x, cmap=cmap, vmin=low, vmax=high)
    ax.figure.colorbar(shown, ax=ax, shrink=0.85, label=label)
    ax.grid(False)
    if names is not None and len(names) <= 40:
        ax.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        ax.set_yticks(range(len(names)), names, fontsize=7)
    else:
        ax.set_xticks([])
        ax.set_yticks([])
    ax.set_title(title)
    return ax


def image_map(
    values: ArrayLike,
    *,
    ax: Axes | None = None,
    title: str = "",
    label: str = "",
    cmap: str = "magma",
    limits: tuple[float, float] | None = None,
) -> Axes:
    """One number per pixel (H, W) with its colour bar: DAB density, uncertainty, error."""
    x = np.asarray(values, float)
    if x.ndim != 2:
        raise InputError(f"a map of pixels has shape (H, W), not {x.shape}")
    ax = _axes(ax, width=4.2, height=3.6)
    low, high = limits or _limits(x.ravel())
    shown = ax.imshow(x, cmap=cmap, vmin=low, vmax=high)
    ax.figure.colorbar(shown, ax=ax, shrink=0.85, label=label)
    ax.set_axis_off()
    ax.set_title(title)
    return ax
