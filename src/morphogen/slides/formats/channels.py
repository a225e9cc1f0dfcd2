"""Images that are measurements: channels of uint8, uint16 or float32 as they are, from PNG, TIFF, OME-TIFF and NPY.

:mod:`morphogen.slides.images` makes every file a picture in RGB; here samples keep their values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from morphogen.core.devices import check_memory
from morphogen.core.errors import InputError, SlideError
from morphogen.core.files import atomic_path
from morphogen.slides.formats.scale import ome_image
from morphogen.slides.formats.tiff import main_series
from morphogen.slides.images import (
    IMAGE_SUFFIXES,
    check_pixels,
    first_bytes,
    open_flat,
    open_tiff,
    short,
    sniff,
)
from morphogen.slides.pyramid.tiff import SOFTWARE, ome_xml

NPY = ".npy"
CHANNEL_SUFFIXES = (*IMAGE_SUFFIXES, NPY)
KINDS = ("uint8", "uint16", "float32")

_MOST = 64  # channels; a longer axis is no channel axis


@dataclass(frozen=True)
class ChannelFacts:
    """What a file of channels is: (height, width), number of channels, ``uint8``, ``uint16`` or ``float32``; what an
    OME-TIFF calls each of them, where it names all."""

    size: tuple[int, int]
    channels: int
    dtype: str
    names: tuple[str, ...] = ()

    def places(self, wanted: tuple[str, ...], path: Path | str) -> list[int]:
        """Numbers of the channels that are ``wanted``: those of these names where the file has them all, else all as
        they stand, where they are as many. :class:`InputError` where they are not, and where a name stands elsewhere.

        >>> ChannelFacts((9, 9), 3, "uint8", ("CD3", "DAPI", "CD8")).places(("DAPI", "CD3"), "a.ome.tif")
        [1, 0]
        """
        has, asked = ([name.strip().lower() for name in names] for names in (self.names, wanted))
        if has and all(has.count(name) == 1 for name in asked):
            return [has.index(name) for name in asked]
        called = f"; it calls them {_listed(self.names)}" if has else ""
        if self.channels != len(wanted):
            raise InputError(
                f"has {self.channels} channels, not {len(wanted)} ({_listed(wanted)}){called}", where=path
            )
        for place, name in enumerate(asked):
            if name in has and has[place] != name:
                raise InputError(
                    f"has '{wanted[place]}' as channel {has.index(name) + 1}, not {place + 1}{called}",
                    where=path,
                    fix=f"The names wanted are {_listed(wanted)}: say all as the file does",
                )
        return list(range(self.channels))

    def renamed(self, wanted: tuple[str, ...]) -> bool:
        """Whether the file has other names for what is wanted."""
        has, asked = ({name.strip().lower() for name in names} for names in (self.names, wanted))
        return bool(has) and not asked <= has


def _listed(names: tuple[str, ...], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def channel_facts(path: Path | str) -> ChannelFacts:
    """Size, channels and type of a file, from its header. Raises as :func:`read_channels` does."""
    path = Path(path)
    if path.suffix.lower() == NPY:
        return _facts(_npy(path), path)
    if sniff(path) == "TIFF":
        with open_tiff(path) as file:
            series = main_series(file)
            shape = [n for axis, n in zip(series.axes, series.shape, strict=True) if axis in "YX"]
            check_pixels(shape[1], shape[0], path)
            others = [
                n for axis, n in zip(series.axes, series.shape, strict=True) if axis not in "YX" and n > 1
            ]
            if len(others) > 1:
                raise SlideError(f"is a stack with axes {series.axes}, not one image of channels", where=path)
            count = others[0] if others else 1
            return ChannelFacts(
                (shape[0], shape[1]), count, _kind(series.dtype, path), _names(file, series, count)
            )
    with open_flat(path) as image:
        check_pixels(image.width, image.height, path)
        grey = image.mode in ("1", "L", "LA", "I", "I;16", "I;16B")
        return ChannelFacts(
            (image.height, image.width), 1 if grey else 3, "uint16" if image.mode.startswith("I") else "uint8"
        )


def _names(file: Any, series: Any, count: int) -> tuple[str, ...]:
    """What the OME-XML calls each of ``count`` channels; empty where it does not name all."""
    found = ome_image(file, series)
    named = [] if found is None else found[2].findall("{*}Channel")
    names = tuple((each.get("Name") or "").strip() for each in named)
    return names if len(names) == count and all(names) else ()


def read_channels(path: Path | str, names: tuple[str, ...] = ()) -> np.ndarray:
    """(H, W, C) uint8, uint16 or float32: the samples of a file as they are; with ``names`` the channels of these names
    (:meth:`ChannelFacts.places`).

    Grey and RGB images of PNG and its like, TIFF and OME-TIFF with one axis of channels, NPY arrays (H, W), (H, W, C)
    or (C, H, W). Float samples must be finite. Raises :class:`SlideError` for what cannot be read so.

    >>> read_channels("shg.png").shape  # doctest: +SKIP
    (512, 512, 1)
    """
    path = Path(path)
    facts = channel_facts(path)
    array = _samples(path, facts)
    chosen = facts.places(names, path) if names else list(range(facts.channels))
    if chosen != list(range(facts.channels)):
        array = np.ascontiguousarray(array[..., chosen])
    return _finite(array, path)


def _samples(path: Path, facts: ChannelFacts) -> np.ndarray:
    if path.suffix.lower() == NPY:
        array = _laid_out(_npy(path), path)
        check_memory(4 * array.size, "to be read", path, "Cut it into tiles")
        return np.array(array, dtype=_kind(array.dtype, path))
    wanted = facts.size[0] * facts.size[1] * facts.channels * 4
    check_memory(wanted, "to be decoded", path, "Cut it into tiles")
    if sniff(path) == "TIFF":
        with open_tiff(path) as file:
            series = main_series(file)
            array, axes = series.asarray(), series.axes
        loose = tuple(i for i, axis in enumerate(axes) if axis not in "YX" and array.shape[i] == 1)
        array = array.squeeze(loose)
        axes = "".join(axis for i, axis in enumerate(axes) if i not in loose)
        if len(axes) == 2:
            array, axes = array[..., None], f"{axes}C"
        other = next(axis for axis in axes if axis not in "YX")
        array = array.transpose([axes.index(axis) for axis in ("Y", "X", other)])
        return np.ascontiguousarray(array, dtype=facts.dtype)
    with open_flat(path) as image:
        mode = {("uint8", 1): "L", ("uint8", 3): "RGB"}.get((facts.dtype, facts.channels))
        array = np.asarray(image if mode is None else image.convert(mode))
    if facts.dtype == "uint16" and (array.min(initial=0) < 0 or array.max(initial=0) > 65535):
        raise SlideError("holds samples of more than 16 bits", where=path, fix="Save it as uint16")
    return np.ascontiguousarray(array.reshape(*facts.size, facts.channels), dtype=facts.dtype)


def save_channels(
    path: Path,
    pixels: np.ndarray,
    names: Sequence[str] = (),
    *,
    colours: Sequence[str] = (),
    mpp: float | None = None,
    facts: Mapping[str, object] | None = None,
) -> None:
    """(H, W, C) or (H, W), uint8 or uint16, as a lossless OME-TIFF with the names and ``colours`` (``#rrggbb``) of its
    channels, µm per pixel and ``facts``, atomically. The bytes depend on the arguments alone."""
    import tifffile

    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    count, height, width = planes.shape
    text = ome_xml(
        *(path.name, width, height, count, None if mpp is None else (mpp, mpp)),
        facts=facts,
        names=names or [""] * count,
        colours=colours,
        dtype=planes.dtype.name,
    )
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        tifffile.imwrite(
            file,
            np.ascontiguousarray(planes),
            description=text.encode(),
            photometric="minisblack",
            compression="zlib",
            predictor=True,
            metadata=None,
            software=SOFTWARE,
        )


def _npy(path: Path) -> np.ndarray:
    first_bytes(path, 8)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise SlideError(f"cannot be read as an NPY array ({short(error)})", where=path) from None


def _facts(array: np.ndarray, path: Path) -> ChannelFacts:
    laid = _laid_out(array, path)
    return ChannelFacts((laid.shape[0], laid.shape[1]), laid.shape[2], _kind(laid.dtype, path))


def _laid_out(array: np.ndarray, path: Path) -> np.ndarray:
    """(H, W, C) of an array whose shortest outer axis is that of channels."""
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or not array.size:
        raise SlideError(
            f"is an array of shape {array.shape}, not (H, W), (H, W, C) or (C, H, W)", where=path
        )
    if array.shape[0] < array.shape[2] and array.shape[0] <= _MOST:
        array = array.transpose(1, 2, 0)
    if array.shape[2] > _MOST:
        raise SlideError(
            f"is an array of shape {array.shape}, with no axis of up to {_MOST} channels", where=path
        )
    check_pixels(array.shape[1], array.shape[0], path)
    return array


def _kind(dtype: Any, path: Path) -> str:
    name = np.dtype(dtype).newbyteorder("=").name
    name = {"bool": "uint8", "float64": "float32", "float16": "float32"}.get(name, name)
    if name not in KINDS:
        raise SlideError(
            f"holds {name} samples, not {', '.join(KINDS)}", where=path, fix="Save it as one of these"
        )
    return name


def _finite(array: np.ndarray, path: Path) -> np.ndarray:
    if array.dtype.kind == "f":
        wrong = int((~np.isfinite(array)).sum())
        if wrong:
            raise InputError(
                f"holds {wrong} values that are NaN or infinite",
                where=path,
                fix="Mask them, or write numbers",
            )
    return array
