"""What the page may ask for, and the answer: no sockets here, so that it can be tested and exported as it is.

Nothing of an address becomes a path of the file system: layers are asked for by their number, parts of the page by
their name in a fixed list. So only what was named on the command line can be reached.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from morphogen._version import __version__
from morphogen.core.errors import InputError, MorphogenError
from morphogen.core.files import plain, write_text
from morphogen.core.printing import printable
from morphogen.view.cache import Cache
from morphogen.view.layers.display import MAPS, lookup
from morphogen.view.view import View

PARTS = {
    "view.css": "text/css",
    "openseadragon.min.js": "text/javascript",
    "base.js": "text/javascript",
    "spots.js": "text/javascript",
    "outlines.js": "text/javascript",
    "pane.js": "text/javascript",
    "regions.js": "text/javascript",
    "controls.js": "text/javascript",
    "main.js": "text/javascript",
}
_NUMBER = r"(\d{1,6})"
_LARGEST = 32 << 20  # bytes of regions that are taken


@dataclass(frozen=True)
class Answer:
    """What is sent back."""

    status: int
    kind: str
    body: bytes
    keep: bool = False  # whether the browser may keep it


class Site:
    """The page and its data for one :class:`~morphogen.view.view.View`.

    regions: GeoJSON file that outlines drawn on the page are read from and saved to; ``None``: the page offers a
    download instead.
    """

    def __init__(self, view: View, cache: Cache, *, regions: Path | None = None) -> None:
        self.view, self.cache, self.regions = view, cache, regions
        self._routes: list[tuple[re.Pattern[str], Callable[..., Answer]]] = [
            (re.compile(pattern + r"\Z"), made)
            for pattern, made in (
                ("", self._page),
                (r"view\.js", self._view),
                (
                    rf"tiles/{_NUMBER}/([A-Za-z]{{1,20}})/{_NUMBER}/{_NUMBER}_{_NUMBER}\.(?:jpg|png)",
                    self._tile,
                ),
                (rf"points/{_NUMBER}\.f32", self._points),
                (rf"values/{_NUMBER}/{_NUMBER}/{_NUMBER}\.f32", self._values),
                (rf"labels/{_NUMBER}/{_NUMBER}\.f32", self._labels),
                (rf"outlines/{_NUMBER}\.json", self._outlines),
                (rf"at/{_NUMBER}/([A-Za-z]{{1,20}})/(-?\d{{1,9}})/(-?\d{{1,9}})\.json", self._at),
                (r"regions\.geojson", self._regions),
                (r"([a-z.]{1,40})", self._part),
            )
        ]

    def get(self, path: str) -> Answer:
        """The answer to ``GET path``, relative to the page's own address."""
        for pattern, made in self._routes:
            found = pattern.match(path)
            if found is not None:
                try:
                    return made(*found.groups())
                except InputError as error:
                    return failure(404, str(error))
                except MorphogenError as error:
                    return failure(500, str(error))
        return failure(404, "There is nothing here.")

    def save(self, path: str, body: bytes) -> Answer:
        """The answer to ``POST path``: the regions drawn on the page are written to their file."""
        if path != "regions.geojson":
            return failure(404, "There is nothing here.")
        if self.regions is None:
            return failure(403, "No file for regions was named: start with --regions FILE.")
        try:
            value = json.loads(body.decode("utf-8"))
            features = value["features"]
            good = value["type"] == "FeatureCollection" and all(
                each["type"] == "Feature" for each in features
            )
        except (ValueError, KeyError, TypeError, RecursionError):
            good = False
        if not good:
            return failure(400, "This is no GeoJSON of regions.")
        try:
            write_text(self.regions, json.dumps(value, ensure_ascii=False, indent=1) + "\n")
        except MorphogenError as error:
            return failure(500, str(error))
        return _json({"saved": len(features)})

    def description(self) -> dict[str, Any]:
        """Everything that the page is made from."""
        return {
            **self.view.described(),
            "version": __version__,
            "maps": {name: lookup(name).ravel().tolist() for name in MAPS},
            "failed": self.view.failed,
            "regions": self.regions is not None,
        }

    # ------------------------------------------------------------------ answers

    def _page(self) -> Answer:
        return Answer(200, "text/html; charset=utf-8", asset("index.html"))

    def _part(self, name: str) -> Answer:
        if name not in PARTS:
            return failure(404, "There is nothing here.")
        return Answer(200, f"{PARTS[name]}; charset=utf-8", asset(name), keep=True)

    def _view(self) -> Answer:
        made = self.cache.get("view", lambda: script("view", self.description()))
        return Answer(200, "text/javascript; charset=utf-8", made)

    def _tile(self, number: str, mode: str, level: str, column: str, row: str) -> Answer:
        layer = self.view.image(int(number))
        key = int(number), mode, int(level), int(column), int(row)
        body = self.cache.get(key, lambda: layer.tile_bytes(mode, *key[2:]))
        return Answer(200, "image/png" if layer.grey else "image/jpeg", body, keep=True)

    def _points(self, number: str) -> Answer:
        return _floats(self.view.spots(int(number)).points)

    def _values(self, number: str, quantity: str, gene: str) -> Answer:
        layer, key = self.view.spots(int(number)), ("values", int(number), int(quantity), int(gene))
        made = self.cache.get(key, lambda: layer.values(int(quantity), int(gene)).astype("<f4").tobytes())
        return Answer(200, "application/octet-stream", made, keep=True)

    def _labels(self, number: str, column: str) -> Answer:
        return _floats(self.view.spots(int(number)).label_values(int(column)))

    def _outlines(self, number: str) -> Answer:
        return _json(self.view.outlines(int(number)).features)

    def _at(self, number: str, mode: str, x: str, y: str) -> Answer:
        return _json(self.view.image(int(number)).value(int(x), int(y), mode))

    def _regions(self) -> Answer:
        if self.regions is None or not self.regions.is_file():
            return _json({"type": "FeatureCollection", "features": []})
        if self.regions.stat().st_size > _LARGEST:
            return failure(500, "The file of regions is too large.")
        return Answer(200, "application/json", self.regions.read_bytes())


def script(name: str, value: Any) -> bytes:
    """A script that hands a value to the page: it works from a server and from a folder alike."""
    text = json.dumps(plain(value), ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    return f"morphogenData({json.dumps(name)},{text});\n".encode("ascii")


def failure(status: int, sentence: str) -> Answer:
    """An answer that says what is wrong, as plain text."""
    return Answer(status, "text/plain; charset=utf-8", printable(sentence).encode())


@cache
def asset(name: str) -> bytes:
    """A part of the page as it is packaged."""
    return (files("morphogen.view") / "assets" / name).read_bytes()


def _floats(values: np.ndarray) -> Answer:
    return Answer(200, "application/octet-stream", np.ascontiguousarray(values, "<f4").tobytes(), keep=True)


def _json(value: Any) -> Answer:
    text = json.dumps(plain(value), ensure_ascii=True, separators=(",", ":"))
    return Answer(200, "application/json", text.encode())
