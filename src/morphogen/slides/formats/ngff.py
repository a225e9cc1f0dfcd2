"""What the metadata of an OME-Zarr image says: that it is one, its axes, its scale."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from morphogen.slides.formats.scale import Scale, micrometres, square

_MOST_METADATA = 16 << 20


def ome_zarr_attributes(path: Path | str) -> Mapping[str, Any] | None:
    """Attributes of an OME-Zarr image on disk, of NGFF 0.4 (Zarr 2) or 0.5 (Zarr 3); ``None`` for anything else.

    Reads one small file.
    """
    for name in ("zarr.json", ".zattrs"):
        file = Path(path) / name
        try:
            if not file.is_file() or file.stat().st_size > _MOST_METADATA:
                continue
            value = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        attributes = value.get("attributes", {}) if name == "zarr.json" and isinstance(value, dict) else value
        if not isinstance(attributes, dict):
            continue
        inner = attributes.get("ome")
        merged = {**attributes, **inner} if isinstance(inner, dict) else attributes
        if isinstance(merged.get("multiscales"), list) and merged["multiscales"]:
            return merged
    return None


def is_ome_zarr(path: Path | str) -> bool:
    """Whether a folder is an OME-Zarr image."""
    return Path(path).is_dir() and ome_zarr_attributes(path) is not None


def axes_of(multiscale: Mapping[str, Any], ndim: int) -> str:
    """Axes of the arrays of a multiscale image, such as ``CYX``; :class:`ValueError` for another order than
    ``tczyx``."""
    named = multiscale.get("axes") or list("tczyx")[-ndim:]
    axes = "".join(str(each["name"] if isinstance(each, dict) else each)[:1].upper() for each in named)
    if len(axes) != ndim or len(set(axes)) != ndim or not {"Y", "X"} <= set(axes):
        raise ValueError(f"axes '{axes.lower()}' of {ndim}")
    if axes.index("Y") > axes.index("X") or ("C" in axes and axes.index("C") > axes.index("Y")):
        raise ValueError(f"its axes '{axes.lower()}' are in another order than c, y, x")
    return axes


def scale_of(multiscale: Mapping[str, Any], axes: str) -> Scale:
    """µm/px of the full resolution, where the axes have a unit of length."""
    named = multiscale.get("axes") or []
    units = {
        str(each.get("name", ""))[:1].upper(): micrometres(str(each.get("unit", "")))
        for each in named
        if isinstance(each, dict)
    }
    factor = dict.fromkeys("YX", 1.0)
    both = [
        multiscale["datasets"][0].get("coordinateTransformations"),
        multiscale.get("coordinateTransformations"),
    ]
    for step in (step for steps in both for step in steps or []):
        if isinstance(step, dict) and step.get("type") == "scale":
            for axis in "YX":
                factor[axis] *= float(step["scale"][axes.index(axis)])
    if any(units.get(axis) is None for axis in "YX"):
        return Scale()
    return square(factor["X"] * units["X"], factor["Y"] * units["Y"], "OME-Zarr scale")  # type: ignore[operator]
