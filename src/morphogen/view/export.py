"""A copy of a view that needs no server: a folder that opens from disk, on a stick or on any web space.

It holds the tiles of a region at all levels, the spots with the values of some genes, and the outlines, at the very
addresses at which the server gives them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from morphogen.core.errors import ConfigError, InputError, OutputError, nearest
from morphogen.core.files import atomic_path
from morphogen.core.progress import progress
from morphogen.view.cache import Cache
from morphogen.view.config import ViewConfig
from morphogen.view.layers.images import ImageLayer
from morphogen.view.layers.outlines import OutlineLayer
from morphogen.view.layers.spots import SpotLayer
from morphogen.view.site import PARTS, Site, asset, script
from morphogen.view.view import View

Box = tuple[float, float, float, float]
_MOST_TILES = 60_000


@dataclass(frozen=True)
class Exported:
    """A copy: its page, and how many files and bytes it has."""

    page: Path
    files: int
    bytes: int


def parse_region(text: str | None, view: View) -> Box | None:
    """``x,y,width,height`` in pixels of the first image; :class:`ConfigError` for anything else."""
    if text is None:
        return None
    try:
        x, y, width, height = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"'{text[:40]}' is not x,y,width,height", where="--region") from None
    inside = 0 <= x < view.size[0] and 0 <= y < view.size[1] and width > 0 and height > 0
    if not inside:
        raise ConfigError(
            f"{text[:60]} lies outside of {view.size[0]} × {view.size[1]} px (width × height)",
            where="--region",
        )
    return x, y, min(width, view.size[0] - x), min(height, view.size[1] - y)


def export_view(
    view: View,
    out: Path | str,
    config: ViewConfig | None = None,
    *,
    region: Box | None = None,
    genes: Sequence[str] | None = None,
) -> Exported:
    """Write the copy into a new folder ``out``, whole or not at all.

    Parameters
    ----------
    region:
        ``(x, y, width, height)`` in pixels of the first image; the whole when ``None``.
    genes:
        Whose values the copy holds; of every table the dozen that varies most when ``None``.

    Raises
    ------
    OutputError
        There is something at ``out`` that is no earlier copy, or it cannot be written.
    InputError
        A gene that no table has; more than 60,000 tiles.
    """
    out, config = Path(out), config or ViewConfig()
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / "view.js").is_file())):
        raise OutputError("there is something else here already", where=out, fix="Choose another --export")
    site = Site(view, Cache(1 << 20))
    chosen = _genes(view, genes)
    tiles = [path for layer in range(len(view.layers)) for path in _tiles(view, layer, region)]
    if len(tiles) > _MOST_TILES:
        raise InputError(
            f"the copy would have {len(tiles)} tiles, more than {_MOST_TILES}",
            fix="Name a smaller --region x,y,width,height",
        )
    count = size = 0
    with atomic_path(out) as folder, progress.bar(len(tiles), "writing tiles") as bar:
        for path, body in _files(site, view, chosen, region, tiles):
            place = folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(body)
            count, size = count + 1, size + len(body)
            if path.startswith("tiles/"):
                bar.advance(1)
    return Exported(out / "index.html", count, size)


def _files(
    site: Site, view: View, genes: dict[int, list[int]], region: Box | None, tiles: Sequence[str]
) -> Iterator[tuple[str, bytes]]:
    yield "index.html", asset("index.html")
    for name in (*PARTS, "openseadragon.LICENSE.txt"):
        yield name, asset(name)
    for path in tiles:
        yield path, _body(site, path)
    for number, layer in enumerate(view.layers):
        if isinstance(layer, SpotLayer):
            paths = [f"points/{number}.f32"]
            paths += [f"labels/{number}/{k}.f32" for k in range(len(layer.labels))]
            paths += [
                f"values/{number}/{quantity}/{k}.f32"
                for quantity in range(len(layer.quantities))
                for k in range(len(genes[number]))
            ]
            for path in paths:
                yield (
                    f"{path}.js",
                    script(path, base64.b64encode(_numbers(site, path, genes[number])).decode()),
                )
        elif isinstance(layer, OutlineLayer):
            path = f"outlines/{number}.json"
            yield f"{path}.js", script(path, json.loads(_body(site, path)))
    # Last, because a folder with it is a copy.
    yield "view.js", script("view", _description(site, genes, region))


def _description(site: Site, genes: dict[int, list[int]], region: Box | None) -> dict[str, Any]:
    """What the page is told: only the genes that are there, numbered anew."""
    described = site.description() | {"static": True, "region": list(region) if region else None}
    for layer in described["layers"]:
        if layer["kind"] == "spots":
            kept = genes[layer["id"]]
            layer["genes"] = [layer["genes"][k] for k in kept]
            layer["varied"] = list(range(min(12, len(kept))))
        if layer["kind"] == "image":
            layer["modes"] = layer["modes"][:1]
    return described


def _numbers(site: Site, path: str, genes: Sequence[int]) -> bytes:
    if path.startswith("values/"):
        _, number, quantity, gene = path.removesuffix(".f32").split("/")
        path = f"values/{number}/{quantity}/{genes[int(gene)]}.f32"
    return _body(site, path)


def _body(site: Site, path: str) -> bytes:
    answer = site.get(path)
    if answer.status != 200:
        raise InputError(answer.body.decode())
    return answer.body


def _tiles(view: View, number: int, region: Box | None) -> Iterator[str]:
    """Addresses of the tiles of a layer that lie in the region, in the usual way to show it."""
    layer = view.layers[number]
    if not isinstance(layer, ImageLayer):
        return
    scale, dx, dy = view.places[number]
    x, y, width, height = region or (0.0, 0.0, *map(float, view.size))
    if region is None:
        left, top, right, bottom = 0.0, 0.0, float(layer.width), float(layer.height)
    else:
        left, top = (x - dx) / scale, (y - dy) / scale
        right, bottom = (x + width - dx) / scale, (y + height - dy) / scale
    for level in range(layer.levels):
        w, h = layer.level_size(level)
        side = layer.tile * 2 ** (layer.levels - 1 - level)
        for row in range(-(-h // layer.tile)):
            for column in range(-(-w // layer.tile)):
                inside = column * side < right and (column + 1) * side > left
                if inside and row * side < bottom and (row + 1) * side > top:
                    suffix = "png" if layer.grey else "jpg"
                    yield f"tiles/{number}/{layer.modes[0]}/{level}/{column}_{row}.{suffix}"


def _genes(view: View, names: Sequence[str] | None) -> dict[int, list[int]]:
    """Numbers of the genes that are kept of every table."""
    tables = {k: layer for k, layer in enumerate(view.layers) if isinstance(layer, SpotLayer)}
    if names is None:
        return {k: list(layer.varied) for k, layer in tables.items()}
    known = {name for layer in tables.values() for name in layer.genes}
    for name in names:
        if name not in known:
            raise InputError(f"no table has the gene '{name[:40]}'.{nearest(name, known)}", where="--genes")
    return {
        k: [layer.genes.index(name) for name in names if name in layer.genes] for k, layer in tables.items()
    }
