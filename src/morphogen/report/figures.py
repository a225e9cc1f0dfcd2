"""Figures that every task draws, in one style. Each function draws on axes it is given or makes, and
returns them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from morphogen.core.errors import InputError
from morphogen.report.maps import gene_maps, image_map, matrix, spatial_map
from morphogen.report.style import COLOURS, STYLE, TRUTH, axes_or_new, subplots

__all__ = [
    "COLOURS",
    "STYLE",
    "calibration",
    "gene_maps",
    "image_map",
    "intervals",
    "loss_curves",
    "matrix",
    "pit_histogram",
    "scatter",
    "spatial_map",
    "subplots",
    "variation_curves",
]


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
    ax = axes_or_new(ax)
    if len(x) > 5000:
        ax.hexbin(x, y, gridsize=60, bins="log", cmap="Blues", mincnt=1, linewidths=0)
    else:
        ax.scatter(x, y, s=14, alpha=0.6, linewidths=0)
    if len(x):
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        ax.plot(ends, ends, color="#9AA3AE", linewidth=1, zorder=1)
    defined = len(x) > 1 and x.std() > 0 and y.std() > 0
    note = f"r = {np.corrcoef(x, y)[0, 1]:.3f}" if defined else "r undefined"
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.set_title(f"{title}  {note}, n = {len(x)}".strip(), loc="left")
    return ax


def calibration(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]], *, ax: Axes | None = None, title: str = "Calibration"
) -> Axes:
    """Share of truths inside the central intervals against the share that should be: name → (nominal,
    observed).

    On the diagonal the stated uncertainty is right; below it, intervals are too narrow.
    """
    ax = axes_or_new(ax, width=3.8, height=3.6)
    ax.plot([0, 1], [0, 1], color="#9AA3AE", linewidth=1, label="exact")
    for name, (nominal, observed) in curves.items():
        ax.plot(np.asarray(nominal, float), np.asarray(observed, float), marker="o", markersize=4, label=name)
    ax.set(xlabel="nominal coverage", ylabel="observed coverage", xlim=(0, 1), ylim=(0, 1))
    ax.set_title(title, loc="left")
    ax.set_aspect("equal")
    ax.legend(loc="upper left", frameon=False)
    return ax


def pit_histogram(pit: ArrayLike, *, ax: Axes | None = None, bins: int = 10, title: str = "PIT") -> Axes:
    """Ranks of the truth within its predicted distribution, in 0–1; flat when calibrated, ∪ when too sure."""
    ax = axes_or_new(ax, width=3.8, height=3.0)
    ax.hist(np.asarray(pit, float).ravel(), bins=bins, range=(0, 1), density=True, color=COLOURS[5])
    ax.axhline(1.0, color=TRUTH, linewidth=1, linestyle="--")
    ax.set(xlabel="probability integral transform", ylabel="density", xlim=(0, 1))
    ax.set_title(title, loc="left")
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
    ax = axes_or_new(ax, width=4.6, height=3.2)
    for name, value in variances.items():
        v = np.asarray(value, float)[order]
        if name == reference:
            ax.plot(v, color=TRUTH, linewidth=2.2, label=name, zorder=5)
        else:
            ax.plot(v, linewidth=1, alpha=0.85, label=name)
    ax.set(xlabel=f"genes by variance ({reference})", ylabel="variance across spots")
    ax.set_title(title, loc="left")
    ax.legend(frameon=False)
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
    ax = axes_or_new(ax, width=4.8, height=3.0)
    for k, (name, (steps, values)) in enumerate(curves.items()):
        x, y = np.asarray(steps, float), np.asarray(values, float)
        colour = COLOURS[k % len(COLOURS)]
        if smoothing and len(y) > 2:
            ax.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
            y = _average(y, smoothing)
        ax.plot(x, y, color=colour, label=name)
    if logarithmic:
        ax.set_yscale("log")
    ax.set(xlabel="step", ylabel=ylabel)
    ax.set_title(title, loc="left")
    ax.legend(frameon=False)
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
    ax = axes_or_new(ax, width=5.0, height=0.7 + 0.3 * max(len(names), 2))
    for k, name in enumerate(names):
        value, low, high = _interval(rows[name])
        colour = COLOURS[1] if name == highlight else COLOURS[0]
        if np.isfinite(low) and np.isfinite(high):
            ax.plot([low, high], [k, k], color=colour, linewidth=2.2, solid_capstyle="butt")
        ax.plot([value], [k], marker="o", markersize=6, color=colour)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(False, axis="y")
    ax.set(xlabel=xlabel)
    ax.set_title(title, loc="left")
    return ax


def _interval(row: Any) -> tuple[float, float, float]:
    if hasattr(row, "low"):
        return float(row.value), float(row.low), float(row.high)
    if isinstance(row, tuple | list):
        return float(row[0]), float(row[1]), float(row[2])
    return float(row), float("nan"), float("nan")
