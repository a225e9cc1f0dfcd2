"""Outlines: GeoJSON as QuPath and this package write it, in pixels of the slide from the corner of its bounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from morphogen.core.errors import InputError

_MOST_BYTES = 256 << 20
_MOST = 200_000  # outlines that are shown
_KINDS = {"Polygon", "MultiPolygon", "LineString", "Point", "MultiPoint", "MultiLineString"}


class OutlineLayer:
    """Outlines as the viewer sees them: rings of points, a class, a name and measurements each.

    ``features`` are ``{"rings": [[x, y, x, y, …], …], "class": …, "name": …, "values": {…}}``; ``left_out`` says how
    many of the file are not among them. ``place`` is where their pixels lie: ``(1, 0, 0)`` as the file has them.
    """

    kind = "outlines"

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        self.features: list[dict[str, Any]] = []
        self.left_out = 0
        for feature in _features(path):
            if len(self.features) >= _MOST:
                self.left_out += 1
                continue
            self._add(feature)
        if not self.features:
            raise InputError("holds no outline that can be shown", where=path)

    def _add(self, feature: Any) -> None:
        properties = feature.get("properties") or {}
        rings, closed = _rings(feature.get("geometry"))
        if not rings or not isinstance(properties, dict):
            self.left_out += 1
            return
        kind = properties.get("classification")
        name = kind.get("name") if isinstance(kind, dict) else kind
        values = properties.get("measurements")
        if isinstance(values, list):  # as older QuPath writes them
            values = {each.get("name"): each.get("value") for each in values if isinstance(each, dict)}
        values = values if isinstance(values, dict) else {}
        numbers = {
            str(key)[:80]: float(value)
            for key, value in values.items()
            if isinstance(value, int | float) and np.isfinite(value)
        }
        self.features.append(
            {
                "rings": rings,
                "closed": closed,
                "class": str(name)[:80] if name else "",
                "name": str(properties.get("name") or "")[:80],
                "values": dict(list(numbers.items())[:64]),
            }
        )

    def described(self) -> dict[str, Any]:
        """What the page must know of it, plain values."""
        classes = list(dict.fromkeys(each["class"] for each in self.features))
        values = list(dict.fromkeys(key for each in self.features[:1000] for key in each["values"]))
        return {
            "kind": self.kind,
            "name": self.name,
            "count": len(self.features),
            "left_out": self.left_out,
            "classes": classes[:64],
            "values": values[:256],
        }


def _features(path: Path) -> list[Any]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"is larger than {_MOST_BYTES >> 20} MB", where=path)
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("there is no such file", where=path) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"is not GeoJSON ({' '.join(str(error).split())[:80]})", where=path) from None
    if isinstance(value, dict) and value.get("type") == "Feature":
        value = [value]
    found = value.get("features") if isinstance(value, dict) else value
    if not isinstance(found, list):
        raise InputError("is not GeoJSON: it has no features", where=path)
    return [each for each in found if isinstance(each, dict)]


def _rings(geometry: Any) -> tuple[list[list[float]], bool]:
    """Flat rings of a geometry, and whether they are closed; none for what is not understood."""
    if not isinstance(geometry, dict) or str(geometry.get("type")) not in _KINDS:
        return [], False
    kind = geometry["type"]
    value: Any = geometry.get("coordinates")
    try:
        if kind == "Point":
            lines = [[value]]
        elif kind == "MultiPoint":
            lines = [[each] for each in value]
        elif kind == "LineString":
            lines = [value]
        elif kind == "MultiPolygon":
            lines = [ring for polygon in value for ring in polygon]
        else:
            lines = list(value)
        rings = [np.asarray(line, dtype=np.float64)[:, :2] for line in lines]
    except (TypeError, ValueError, IndexError):
        return [], False
    good = [ring for ring in rings if ring.ndim == 2 and len(ring) and np.isfinite(ring).all()]
    return [np.round(ring, 2).ravel().tolist() for ring in good], "Polygon" in kind
