"""Maps: values at spots of a section, at pixels of an image, or between genes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from morphogen.core.errors import InputError
from morphogen.report.style import COLOURS, axes_or_new, subplots, usual_limits


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
    ax = axes_or_new(ax, width=4.2, height=4.0)
    if image is not None:
        ax.imshow(image, alpha=0.45, zorder=0)
    diameter = size if size is not None else 0.9 * _spacing(xy)
    _frame(ax, xy, diameter)
    if v.dtype.kind in "OUSb":
        names = sorted({str(item) for item in v})
        for k, name in enumerate(names):
            chosen = np.array([str(item) == name for item in v])
            _spots(ax, xy[chosen], diameter, facecolors=COLOURS[k % len(COLOURS)])
        dots = [
            Line2D([], [], marker="o", linestyle="", color=COLOURS[k % len(COLOURS)])
            for k in range(len(names))
        ]
        ax.legend(
            dots, names, loc="upper left", bbox_to_anchor=(1.0, 1.0), title=label or None, frameon=False
        )
    else:
        number = v.astype(float)
        known = np.isfinite(number)
        if not known.all():
            _spots(ax, xy[~known], diameter, facecolors="#C9CDD2")
        norm = Normalize(*(limits or usual_limits(number)))
        spots = _spots(ax, xy[known], diameter, array=number[known], cmap=cmap, norm=norm)
        if colorbar:
            ax.figure.colorbar(spots, ax=ax, shrink=0.8, pad=0.02, label=label)
    ax.set_title(title, loc="left")
    return ax


def _spots(ax: Axes, xy: np.ndarray, diameter: float, **style: Any) -> EllipseCollection:
    """Discs of a diameter in the units of the coordinates, so that they neither overlap nor part at any
    size."""
    size = np.full(len(xy), diameter)
    discs = EllipseCollection(
        size,
        size,
        np.zeros(len(xy)),
        units="xy",
        offsets=xy,
        offset_transform=ax.transData,
        linewidths=0,
        **style,
    )
    ax.add_collection(discs)
    return discs


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


def _spacing(xy: np.ndarray) -> float:
    from scipy.spatial import cKDTree

    if len(xy) < 2:
        return 1.0
    distance = cKDTree(xy).query(xy, k=2)[0][:, 1]
    return float(np.median(distance)) or 1.0


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
        limits = usual_limits(np.concatenate(shared)) if shared else None
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
    ax = axes_or_new(ax, width=3.8, height=3.4)
    low, high = limits if limits is not None else usual_limits(x.ravel())
    shown = ax.imshow(x, cmap=cmap, vmin=low, vmax=high)
    ax.figure.colorbar(shown, ax=ax, shrink=0.85, label=label)
    ax.grid(False)
    if names is not None and len(names) <= 40:
        ax.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        ax.set_yticks(range(len(names)), names, fontsize=7)
    else:
        ax.set_xticks([])
        ax.set_yticks([])
    ax.set_title(title, loc="left")
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
    ax = axes_or_new(ax, width=4.2, height=3.6)
    low, high = limits or usual_limits(x.ravel())
    shown = ax.imshow(x, cmap=cmap, vmin=low, vmax=high)
    ax.figure.colorbar(shown, ax=ax, shrink=0.85, label=label)
    ax.set_axis_off()
    ax.set_title(title, loc="left")
    return ax
