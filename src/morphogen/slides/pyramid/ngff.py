"""The OME-Zarr container of a pyramid: a multiscale image of OME-NGFF 0.5 (Zarr 3), a chunk for each tile.

Axes are ``c, y, x`` for colour and ``y, x`` for one channel; scales are µm; chunks of background are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from morphogen._version import __version__
from morphogen.slides.pyramid.halving import halved

SUFFIX = ".ome.zarr"
_RGB = (("red", "FF0000"), ("green", "00FF00"), ("blue", "0000FF"))


def is_zarr_name(path: Path | str) -> bool:
    """Whether a result of this name is to be written as OME-Zarr."""
    return Path(path).name.lower().endswith(".zarr")


class NgffWriter:
    """A multiscale image that is being written into ``folder``, which must not be there yet.

    Parameters
    ----------
    sizes:
        (width, height) of the levels, full resolution first.
    channels, dtype, fill:
        3 or 1; ``uint8`` or ``uint16``; the value of chunks that are never written.
    names, colours:
        Of channels that are measurements, as many as there are; colours as ``#rrggbb``.
    mpp:
        µm per pixel (x, y) of the full resolution; ``None`` where it is not known: scales are then relative.
    """

    def __init__(
        self,
        folder: Path | str,
        name: str,
        sizes: Sequence[tuple[int, int]],
        *,
        channels: int,
        tile: int,
        fill: int = 0,
        mpp: tuple[float, float] | None = None,
        dtype: str = "uint8",
        labels: bool = False,
        facts: Mapping[str, object] | None = None,
        names: Sequence[str] = (),
        colours: Sequence[str] = (),
    ) -> None:
        import zarr
        from ome_zarr.writer import write_multiscales_metadata
        from zarr.codecs import ZstdCodec

        group = zarr.open_group(str(folder), mode="w", zarr_format=3)
        colour = channels == 3 and not names
        several = channels > 1
        front: tuple[int, ...] = (channels,) if several else ()
        self._levels = [
            group.create_array(
                str(number),
                shape=(*front, height, width),
                chunks=(*front, min(tile, height), min(tile, width)),
                dtype=dtype,
                fill_value=fill,
                compressors=[ZstdCodec(level=3)],
                dimension_names=["c", "y", "x"] if several else ["y", "x"],
            )
            for number, (width, height) in enumerate(sizes)
        ]
        self._tile, self._several = tile, several
        unit = {"unit": "micrometer"} if mpp is not None else {}
        space = [{"name": axis, "type": "space", **unit} for axis in "yx"]
        width, height = sizes[0]
        x, y = mpp or (1.0, 1.0)
        datasets = [
            {
                "path": str(number),
                "coordinateTransformations": [
                    {"type": "scale", "scale": [*(1.0 for _ in front), y * height / h, x * width / w]},
                    # The middle of a coarse pixel is not that of a fine one.
                    {
                        "type": "translation",
                        "translation": [
                            *(0.0 for _ in front),
                            y * (height / h - 1) / 2,
                            x * (width / w - 1) / 2,
                        ],
                    },
                ],
            }
            for number, (w, h) in enumerate(sizes)
        ]
        axes: list[dict[str, str]] = [{"name": "c", "type": "channel"}, *space] if several else space
        write_multiscales_metadata(group, datasets, axes=axes, name=name)
        most = 255 if dtype == "uint8" else 65535
        window = {"min": 0, "max": most, "start": 0, "end": most}
        named: Sequence[tuple[str, str]] = (
            _RGB if colour else (("classes" if labels else "values", "FFFFFF"),)
        )
        if names:
            shown = colours or ("#FFFFFF",) * len(names)
            named = [
                (label, each.removeprefix("#").upper()) for label, each in zip(names, shown, strict=True)
            ]
        omero = {
            "channels": [
                {"label": label, "color": colour, "active": True, "window": window} for label, colour in named
            ],
            "rdefs": {"model": "color" if colour else "greyscale"},
        }
        ome = dict(group.attrs["ome"])
        group.attrs["ome"] = {**ome, "omero": omero}
        kept = {str(key): str(value) for key, value in (facts or {}).items()}
        group.attrs["morphogen"] = {"version": __version__, **kept}

    def write(self, level: int, row: int, column: int, pixels: np.ndarray) -> None:
        """A tile, (h, w, channels) or (h, w), cut at the border of the level."""
        array, side = self._levels[level], self._tile
        rows = slice(row * side, row * side + pixels.shape[0])
        columns = slice(column * side, column * side + pixels.shape[1])
        if self._several:
            array[:, rows, columns] = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        else:
            array[rows, columns] = pixels[..., 0] if pixels.ndim == 3 else pixels


def write_image(
    folder: Path | str,
    pixels: np.ndarray,
    *,
    mpp: float | None = None,
    tile: int = 512,
    labels: bool = False,
    facts: Mapping[str, object] | None = None,
    name: str | None = None,
    names: Sequence[str] = (),
    colours: Sequence[str] = (),
) -> None:
    """An image in memory, (H, W, 3), (H, W) or of named channels, uint8 or uint16, with its reduced levels, into
    ``folder``."""
    levels = list(_levels(pixels, tile, labels))
    writer = NgffWriter(
        folder,
        name or Path(folder).name,
        [(level.shape[1], level.shape[0]) for level in levels],
        channels=pixels.shape[2] if pixels.ndim == 3 else 1,
        tile=tile,
        mpp=None if mpp is None else (mpp, mpp),
        dtype=str(pixels.dtype),
        labels=labels,
        facts=facts,
        names=names,
        colours=colours,
    )
    for number, level in enumerate(levels):
        for row in range(-(-level.shape[0] // tile)):
            for column in range(-(-level.shape[1] // tile)):
                part = level[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]
                writer.write(number, row, column, part)


def _levels(pixels: np.ndarray, tile: int, labels: bool) -> Iterable[np.ndarray]:
    yield pixels
    while max(pixels.shape[:2]) > tile:
        padding: list[Any] = [
            (0, pixels.shape[0] % 2),
            (0, pixels.shape[1] % 2),
            *([(0, 0)] * (pixels.ndim - 2)),
        ]
        even = np.pad(pixels, padding, mode="edge")
        pixels = halved(even.astype(np.uint32), labels, pixels.dtype)
        yield pixels
