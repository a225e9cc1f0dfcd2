"""The TIFF container of a pyramid: tags, OME-XML, tiles in raster order.

Two families of readers look for a pyramid in two places. OME readers (QuPath, Bio-Formats, tifffile) follow
the SubIFDs tag of the first image; OpenSlide follows the chain of top-level images and takes those marked
as reduced. Here the reduced images are written once and linked both ways, so both see all levels.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import IO
from xml.sax.saxutils import escape, quoteattr

from morphogen._version import __version__

SOFTWARE = f"Morphogen {__version__}"
_LARGEST_CLASSIC = 2**32 - 2**20

_SHORT, _LONG, _ASCII, _RATIONAL, _LONG8 = 3, 4, 2, 5, 16
_FORMAT = {_SHORT: "H", _LONG: "I", _RATIONAL: "I", _LONG8: "Q"}
_COMPRESSION = {"jpeg": 7, "deflate": 8, "none": 1}


@dataclass(frozen=True)
class Level:
    """One resolution: size in pixels, µm per pixel (x, y), and by plane the bytes of each tile in raster order."""

    width: int
    height: int
    mpp: tuple[float, float]
    tile_bytes: list[list[int]]


@dataclass(frozen=True)
class Layout:
    """What all images share. ``codec`` is ``jpeg``, ``deflate`` or ``none``; ``channels`` of one plane 1 or 3."""

    tile: int
    channels: int
    codec: str
    subsampling: tuple[int, int] = (1, 1)
    bits: int = 8


def write_tiff(
    file: IO[bytes],
    layout: Layout,
    levels: list[Level],
    description: str,
    tiles: Callable[[int, int], Iterable[bytes]],
    blank: bytes,
) -> bool:
    """Write the whole file; True when it had to be a BigTIFF (more than 4 GiB).

    ``tiles(plane, level)`` gives the tiles of a level in raster order, empty bytes for those of background, which
    all point to ``blank``. Several planes are several images in a row, each with its own reduced ones. The bytes of the
    file depend on the arguments only.
    """
    planes = range(len(levels[0].tile_bytes))
    images = [(plane, k) for plane in planes for k in range(len(levels))]
    counts = [levels[k].tile_bytes[plane] for plane, k in images]
    total = len(blank) + sum(sum(each) + 16 * len(each) for each in counts)
    big = total > _LARGEST_CLASSIC
    file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16) if big else struct.pack("<2sHI", b"II", 42, 8))
    start = 16 if big else 8
    # Sizes of the directories do not depend on the offsets in them: first pass for sizes, second for values.
    sizes = [
        len(_directory(layout, levels, image, description, 0, [0] * len(images), (0, 1), big))
        for image in images
    ]
    where = [start + sum(sizes[:k]) for k in range(len(images))]
    blank += b"\0" * (len(blank) % 2)
    data = start + sum(sizes) + len(blank)
    for image, each in zip(images, counts, strict=True):
        file.write(
            _directory(layout, levels, image, description, data, where, (start + sum(sizes), len(blank)), big)
        )
        data += sum(size + size % 2 for size in each)
    file.write(blank)
    for image, each in zip(images, counts, strict=True):
        for size, tile in zip(each, tiles(*image), strict=True):
            if len(tile) != size:
                raise ValueError("a tile changed its size while the file was written")
            file.write(tile + b"\0" * (size % 2))  # offsets stay even
    return big


def _directory(
    layout: Layout,
    levels: list[Level],
    image: tuple[int, int],
    description: str,
    data: int,
    where: list[int],
    blank: tuple[int, int],
    big: bool,
) -> bytes:
    """One image file directory with the values that do not fit in it, at its place in ``where``.

    ``image`` is plane and level. ``data`` is where the level's tiles begin, ``blank`` the offset and size of the tile
    of background.
    """
    plane, k = image
    level, planes, at = levels[k], len(levels[0].tile_bytes), plane * len(levels) + k
    tile_bytes = level.tile_bytes[plane]
    offsets = []
    for size in tile_bytes:
        offsets.append(data if size else blank[0])
        data += size + size % 2
    pointer = _LONG8 if big else _LONG
    tags: list[tuple[int, int, list[int] | bytes]] = [
        (254, _LONG, [1 if k else 0]),  # NewSubfileType: reduced resolution
        (256, _LONG, [level.width]),
        (257, _LONG, [level.height]),
        (258, _SHORT, [layout.bits] * layout.channels),
        (259, _SHORT, [_COMPRESSION[layout.codec]]),
        (262, _SHORT, [_photometric(layout)]),
        (277, _SHORT, [layout.channels]),
        (282, _RATIONAL, _per_centimetre(level.mpp[0])),
        (283, _RATIONAL, _per_centimetre(level.mpp[1])),
        (284, _SHORT, [1]),
        (296, _SHORT, [3]),  # centimetre
        (305, _ASCII, SOFTWARE.encode() + b"\0"),
        (322, _LONG, [layout.tile]),
        (323, _LONG, [layout.tile]),
        (324, pointer, offsets),
        (325, _LONG, [size or blank[1] for size in tile_bytes]),
    ]
    if at == 0:
        tags.append((270, _ASCII, description.encode("ascii", "xmlcharrefreplace") + b"\0"))
    if k == 0 and len(levels) > 1:
        tags.append((330, pointer, where[at + 1 : at + len(levels)]))
    if layout.codec == "deflate":
        tags.append((317, _SHORT, [2]))  # horizontal differences
    if layout.codec == "jpeg" and layout.channels == 3:
        tags.append((530, _SHORT, list(layout.subsampling)))
    # A single plane's reduced images are in the chain too, for OpenSlide; of several the chain holds the planes.
    after = at + 1 if planes == 1 else at + len(levels) if k == 0 else len(where)
    following = where[after] if after < len(where) else 0
    return _pack(sorted(tags, key=lambda tag: tag[0]), where[at], following, big)


def _pack(tags: list[tuple[int, int, list[int] | bytes]], at: int, following: int, big: bool) -> bytes:
    count, entry, slot = ("<Q", "<HHQ", 8) if big else ("<H", "<HHI", 4)
    head = struct.calcsize(count) + len(tags) * (4 + slot + slot) + slot
    body, extra = struct.pack(count, len(tags)), b""
    for tag, kind, value in tags:
        packed = value if isinstance(value, bytes) else struct.pack(f"<{len(value)}{_FORMAT[kind]}", *value)
        number = len(value) // 2 if kind == _RATIONAL else len(value)
        body += struct.pack(entry, tag, kind, number)
        if len(packed) <= slot:
            body += packed.ljust(slot, b"\0")
        else:
            body += struct.pack("<Q" if big else "<I", at + head + len(extra))
            extra += packed + b"\0" * (len(packed) % 2)
    body += struct.pack("<Q" if big else "<I", following)
    return body + extra


def _photometric(layout: Layout) -> int:
    if layout.channels == 1:
        return 1
    return 6 if layout.codec == "jpeg" else 2


def _per_centimetre(mpp: float) -> list[int]:
    value = (Fraction(10_000) / Fraction(mpp).limit_denominator(10**9)).limit_denominator(10**5)
    return [value.numerator, value.denominator]


def ome_xml(
    name: str,
    width: int,
    height: int,
    channels: int,
    mpp: tuple[float, float] | None,
    magnification: float | None = None,
    facts: Mapping[str, object] | None = None,
    *,
    names: Sequence[str] = (),
    colours: Sequence[str] = (),
    dtype: str = "uint8",
) -> str:
    """OME-XML (schema 2016-06) of one RGB or grey plane, or of a plane for each of ``names``, drawn in its colour
    (``#rrggbb``); ``mpp`` µm per pixel (x, y), where it is known; ``facts`` become a map annotation."""
    objective = ref = notes = link = size = ""
    if mpp is not None:
        size = "".join(
            f' PhysicalSize{axis}="{value!r}" PhysicalSize{axis}Unit="µm"'
            for axis, value in zip("XY", mpp, strict=True)
        )
    if magnification:
        objective = (
            f'<Instrument ID="Instrument:0"><Objective ID="Objective:0" '
            f'NominalMagnification="{magnification:g}"/></Instrument>'
        )
        ref = '<InstrumentRef ID="Instrument:0"/><ObjectiveSettings ID="Objective:0"/>'
    if facts:
        rows = "".join(f"<M K={quoteattr(str(k))}>{escape(str(v))}</M>" for k, v in facts.items())
        notes = (
            '<StructuredAnnotations><MapAnnotation ID="Annotation:0" Namespace="morphogen"><Value>'
            f"{rows}</Value></MapAnnotation></StructuredAnnotations>"
        )
        link = '<AnnotationRef ID="Annotation:0"/>'
    if names:
        interleaved = ""
        planes = "".join(
            f'<Channel ID="Channel:0:{k}" Name={quoteattr(name)} SamplesPerPixel="1"'
            f"{_colour(colours[k]) if colours else ''}/>"
            for k, name in enumerate(names)
        ) + "".join(f'<TiffData IFD="{k}" FirstC="{k}" PlaneCount="1"/>' for k in range(len(names)))
    else:
        interleaved = ' Interleaved="true"'
        planes = f'<Channel ID="Channel:0:0" SamplesPerPixel="{channels}"/><TiffData IFD="0" PlaneCount="1"/>'
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
        'xsi:schemaLocation="http://www.openmicroscopy.org/Schemas/OME/2016-06 '
        'http://www.openmicroscopy.org/Schemas/OME/2016-06/ome.xsd" '
        f"Creator={quoteattr(SOFTWARE)}>{objective}"
        f'<Image ID="Image:0" Name={quoteattr(name)}>{ref}'
        f'<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="{dtype}" SizeX="{width}" SizeY="{height}" '
        f'SizeC="{channels}" SizeZ="1" SizeT="1"{interleaved}{size}>'
        f"{planes}"
        f"</Pixels>{link}</Image>{notes}</OME>"
    )


def _colour(text: str) -> str:
    """``#rrggbb`` as OME's signed RGBA number."""
    value = (int(text.removeprefix("#"), 16) << 8) + 255
    return f' Color="{value - (1 << 32) if value >= 1 << 31 else value}"'
