"""What is looked at together: the layers of everything that was named, laid over one another.

All lie in the world of the first image: its pixels, from the corner of its bounds. Another image is laid over it by
µm/px where both are known, else by its size where the two have one shape; spots by the µm/px of their slide.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from morphogen.core.errors import InputError, MorphogenError
from morphogen.core.reading.listing import list_files, list_folders
from morphogen.slides.formats.ngff import is_ome_zarr
from morphogen.slides.images import SLIDE_SUFFIXES, name_of
from morphogen.view.config import ViewConfig
from morphogen.view.layers.images import ImageLayer, open_image, picture
from morphogen.view.layers.outlines import OutlineLayer
from morphogen.view.layers.spots import SpotLayer

log = logging.getLogger("morphogen.view")

Layer: TypeAlias = ImageLayer | SpotLayer | OutlineLayer
OUTLINES = (".geojson", ".json")
TABLES = (".h5ad",)
SHOWN = (*SLIDE_SUFFIXES, *TABLES, ".geojson")
_MOST = 500  # layers


class View:
    """Layers and where they lie.

    Attributes
    ----------
    layers:
        In the order in which they were named, images first.
    places:
        For each layer ``(scale, x, y)``: world = scale × own pixel + (x, y).
    size, mpp:
        Width and height of the world in its pixels; µm of one or ``None``.
    failed:
        What was named and cannot be shown, a sentence each.
    """

    def __init__(self, layers: Sequence[Layer], failed: Sequence[str] = ()) -> None:
        rank = {"image": 0, "spots": 1, "outlines": 2}
        self.layers: list[Layer] = sorted(layers, key=lambda layer: rank[layer.kind])
        self.failed = list(failed)
        first = next((each for each in self.layers if isinstance(each, ImageLayer)), None)
        self.size = (first.width, first.height) if first is not None else _extent(self.layers)
        self.mpp = first.mpp if first is not None else None
        self.places = [_placed(layer, first) for layer in self.layers]

    def described(self) -> dict[str, Any]:
        """What the page must know, plain values."""
        return {
            "width": self.size[0],
            "height": self.size[1],
            "mpp": self.mpp,
            "layers": [
                {"id": number, "place": list(place), **layer.described()}
                for number, (layer, place) in enumerate(zip(self.layers, self.places, strict=True))
            ],
        }

    def image(self, number: int) -> ImageLayer:
        """An image by its number; :class:`InputError` when there is none."""
        return self._of(number, ImageLayer)

    def spots(self, number: int) -> SpotLayer:
        """A table of spots by its number; :class:`InputError` when there is none."""
        return self._of(number, SpotLayer)

    def outlines(self, number: int) -> OutlineLayer:
        """Outlines by their number; :class:`InputError` when there are none."""
        return self._of(number, OutlineLayer)

    def _of(self, number: int, kind: type[Any]) -> Any:
        if not 0 <= number < len(self.layers) or not isinstance(self.layers[number], kind):
            raise InputError(f"there is no layer {number} of this kind", where="view")
        return self.layers[number]

    def close(self) -> None:
        """Let go of all files."""
        for layer in self.layers:
            if isinstance(layer, ImageLayer):
                layer.slide.close()


def open_view(
    results: Iterable[Path | str], config: ViewConfig | None = None, *, mpp: float | None = None
) -> View:
    """Everything that is named, and what is in named folders: slides, images, pyramids, ``.h5ad``, GeoJSON.

    ``mpp``: µm/px of images that do not say it. What cannot be opened is named in the log and left out; raises
    :class:`InputError` when nothing can be shown, or the only thing named cannot be opened.

    >>> view = open_view(["slide.svs", "map.h5ad"])  # doctest: +SKIP
    """
    config = config or ViewConfig()
    paths = _named(results)
    layers: list[Layer] = []
    failed: list[str] = []
    names = _names(paths)
    for path, name in zip(paths, names, strict=True):
        try:
            layers.append(_opened(path, name, config, mpp))
        except MorphogenError as error:
            if len(paths) == 1:
                raise
            failed.append(str(error))
            log.warning("left out: %s", error)
    if not layers:
        raise InputError(f"nothing of what was named can be shown; the first: {failed[0]}")
    if not any(isinstance(each, ImageLayer) for each in layers):
        layers += _pictures(layers, config)
    return View(layers, failed)


def _named(results: Iterable[Path | str]) -> list[Path]:
    paths: list[Path] = []
    for each in map(Path, results):
        if not each.exists():
            raise InputError("there is no such file or folder", where=each)
        if not each.is_dir() or is_ome_zarr(each):
            paths.append(each)
            continue
        inside = list_files(each, suffixes=SHOWN)
        inside = sorted([*inside, *(path for path in list_folders(each, "*.zarr") if is_ome_zarr(path))])
        if not inside:
            raise InputError("there are no images, .h5ad or GeoJSON files in this folder", where=each)
        paths += inside
    paths = list(dict.fromkeys(paths))
    if not paths:
        raise InputError("nothing was named", fix="Name slides, images, .h5ad or GeoJSON files")
    if len(paths) > _MOST:
        raise InputError(f"{len(paths)} files are more than the {_MOST} that are shown at a time")
    return paths


def _names(paths: Sequence[Path]) -> list[str]:
    """Names of files without suffix, with as much of it or of their folder as tells them apart."""
    for name in (name_of, lambda path: path.name, lambda path: f"{path.parent.name}/{path.name}"):
        names = [name(path) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{number + 1} {path.name}" for number, path in enumerate(paths)]


def _opened(path: Path, name: str, config: ViewConfig, mpp: float | None) -> Layer:
    suffix = path.suffix.lower()
    if suffix in TABLES:
        return SpotLayer(name, path)
    if suffix in OUTLINES:
        return OutlineLayer(name, path)
    return open_image(path, name, mpp=mpp, tile=config.tile, quality=config.quality)


def _pictures(layers: Sequence[Layer], config: ViewConfig) -> list[Layer]:
    """Pictures that tables bring with them, where no image was named."""
    out: list[Layer] = []
    for layer in layers:
        if isinstance(layer, SpotLayer) and layer.picture is not None:
            mpp = layer.mpp / layer.scale if layer.mpp else None
            slide = picture(layer.path, layer.picture, mpp)
            out.append(
                ImageLayer(
                    f"{layer.name} (picture)", layer.path, slide, tile=config.tile, quality=config.quality
                )
            )
            break  # one table, one picture: others have places of their own
    return out


def _placed(layer: Layer, first: ImageLayer | None) -> tuple[float, float, float]:
    """Where a layer lies in the world of the first image."""
    if first is None or layer is first:
        return 1.0, 0.0, 0.0
    if isinstance(layer, ImageLayer):
        return _scale(layer, first), 0.0, 0.0
    if isinstance(layer, SpotLayer):
        if first.path == layer.path:  # the table's own picture
            return layer.scale, 0.0, 0.0
        if layer.mpp and first.mpp and abs(layer.mpp / first.mpp - 1) > 0.01:
            return layer.mpp / first.mpp, 0.0, 0.0
    return 1.0, 0.0, 0.0


def _scale(layer: ImageLayer, first: ImageLayer) -> float:
    if (layer.width, layer.height) == (first.width, first.height):
        return 1.0
    across, down = first.width / layer.width, first.height / layer.height
    alike = abs(across / down - 1) < 0.01
    if layer.mpp and first.mpp:
        by_size = layer.mpp / first.mpp
        # Sizes are whole pixels and say it more exactly than rounded µm/px.
        return across if alike and abs(across / by_size - 1) < 0.02 else by_size
    return across if alike else 1.0


def _extent(layers: Sequence[Layer]) -> tuple[int, int]:
    """Size of a world without an image: as far as spots and outlines reach."""
    right = bottom = 1.0
    for layer in layers:
        if isinstance(layer, SpotLayer):
            right, bottom = max(right, layer.points[:, 0].max()), max(bottom, layer.points[:, 1].max())
        elif isinstance(layer, OutlineLayer):
            for feature in layer.features:
                for ring in feature["rings"]:
                    right, bottom = max(right, *ring[0::2]), max(bottom, *ring[1::2])
    return int(right * 1.02) + 1, int(bottom * 1.02) + 1
