"""Pairs cut from two registered whole slides, as files that training reads like any other pairs."""

from __future__ import annotations

import csv
import io
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from morphogen.core.errors import InputError, SlideError, nearest
from morphogen.core.files import Manifest, content_hash, writable_folder, write_text
from morphogen.core.fingerprints import fingerprint
from morphogen.core.jobs import RECORD, Job
from morphogen.core.progress import progress
from morphogen.core.writing.locks import locks_folder
from morphogen.slides import Slide, open_slide
from morphogen.slides.formats.channels import save_channels
from morphogen.slides.formats.regions import ChannelRegions
from morphogen.slides.images import name_of
from morphogen.slides.tiles import tissue_windows
from morphogen.stain.data import COLOUR, SPLITS, FoundPairs, find_pairs, pair_table, read_affine, split_name
from morphogen.stain.pairs.panels import as_pairs
from morphogen.stain.targets.config import TargetConfig
from morphogen.stain.targets.files import stated_target
from morphogen.tasks.checks import shortened
from morphogen.tasks.folders import save_png
from morphogen.tasks.sources import is_slide

log = logging.getLogger("morphogen.stain")

BOX = ("x", "y", "side")  # of a tile in level-0 pixels of the H&E, columns of the table of tiles


@dataclass(frozen=True)
class SlidePair:
    """Two slides of one tissue. ``affine`` (2, 3) takes level-0 pixels of the H&E to those of the IHC;
    ``None`` means that both show the same micrometres at the same place. ``split`` is empty in a table without."""

    he: Path
    ihc: Path
    stain: str = "IHC"
    patient: str | None = None
    split: str = ""
    affine: np.ndarray | None = None
    he_mpp: float | None = None
    ihc_mpp: float | None = None
    group: str | None = None


def slide_table(path: Path | str) -> list[SlidePair] | None:
    """Slide pairs of a CSV with the columns of a pair table whose files are slides, else ``None``.

    Optional columns: ``stain, patient, group, split``; ``affine``, six numbers ``a b tx c d ty``; ``he_mpp,
    ihc_mpp``.
    """
    path = Path(path)
    if not path.is_file():
        return None
    rows = pair_table(path).rows
    if not is_slide(rows[0].file("he")):
        return None
    pairs = []
    for row in rows:
        split = split_name(row.text("split"))
        if split and split not in SPLITS:
            raise InputError(f"unknown split '{split}'.{nearest(split, SPLITS)}", where=row.where)
        numbers = read_affine(row.text("affine"), row.where)
        pairs.append(
            SlidePair(
                row.file("he"),
                row.file("ihc"),
                row.text("stain", "IHC"),
                row.text("patient") or None,
                split,
                None if numbers is None else np.array(numbers).reshape(2, 3),
                row.micrometres("he_mpp"),
                row.micrometres("ihc_mpp"),
                row.text("group") or None,
            )
        )
    if len({bool(pair.split) for pair in pairs}) > 1:
        raise InputError("some rows have no split and others do", where=path, fix="Give every row one")
    return pairs


def open_pair(pair: SlidePair, side: Literal["he", "ihc"]) -> Slide:
    """One slide of a pair; :class:`SlideError` that names the table's column when its µm/px is not known."""
    path, mpp = (pair.he, pair.he_mpp) if side == "he" else (pair.ihc, pair.ihc_mpp)
    slide = open_slide(path, mpp)
    if slide.mpp is None:
        slide.close()
        raise SlideError(
            slide.mpp_note or "the file does not say how many µm a pixel is",
            where=path,
            fix=f"Give it in the column {side}_mpp of the table",
        )
    return slide


@locks_folder()
def cut_slide_pairs(
    pairs: list[SlidePair],
    out: Path | str,
    *,
    tile: int = 1024,
    mpp: float = 0.5,
    min_tissue: float = 0.25,
    most: int | None = None,
    target: TargetConfig = COLOUR,
) -> Path:
    """Cut tissue tiles of both slides at the same place and µm/px into ``out``; returns the pair table in it.

    Parameters
    ----------
    tile, mpp:
        Side in pixels and µm/px of the tiles.
    min_tissue:
        Least share of tissue in the H&E tile.
    most:
        Tiles per slide pair, spread evenly; ``None`` takes all.
    target:
        What the second slides are: pictures in colour, or channels, whose tiles are OME-TIFF.

    A finished folder is used as it is; a run that was killed goes on.
    """
    out = writable_folder(out)
    grouped = any(pair.group for pair in pairs)
    job = Job(
        {
            "slides": {p.he.name: [fingerprint(p.he), fingerprint(p.ihc)] for p in pairs},
            "maps": content_hash([[p.stain, p.affine, p.he_mpp, p.ihc_mpp] for p in pairs]),
            "patients and splits": content_hash([[p.patient, p.split or "train"] for p in pairs]),
            **({"groups": [p.group for p in pairs]} if grouped else {}),
            "tile": tile,
            "mpp": mpp,
            "min_tissue": min_tissue,
            "most": most,
            **({} if target.colour else {"channels": list(target.channels)}),
        }
    )
    former = content_hash(
        [[str(p.he), str(p.ihc), p.stain, p.affine, p.he_mpp, p.ihc_mpp] for p in pairs], tile, mpp, most
    )
    manifest = Manifest.read(out)
    table = out / "pairs.csv"
    if manifest is not None and manifest.get("mark") in (job.mark, former):
        return table
    goes_on = job.begin(out / RECORD, "pairs cut from slides")
    rows, beyond = [], []
    for pair in pairs:
        with open_pair(pair, "he") as he, _second(pair, target) as signal:
            windows = tissue_windows(he, tile, mpp=mpp, min_tissue=min_tissue)
            step = max(1, -(-len(windows) // most)) if most else 1
            affine = (
                pair.affine
                if pair.affine is not None
                else np.array([[1, 0, 0], [0, 1, 0]]) * he.require_mpp() / _micrometres(pair, signal)
            )
            boxes = list(windows.boxes[::step])
            inside = [box for box in boxes if _shown(signal, affine, *(float(value) for value in box[:3]))]
            if len(inside) < len(boxes):
                beyond.append(f"{len(boxes) - len(inside)} of {len(boxes)} tiles of {pair.he.name}")
            for box in progress(inside, what=f"{pair.he.stem}: cutting tiles"):
                x, y, side, _ = (float(value) for value in box)
                name = f"{pair.he.stem}_{round(x)}_{round(y)}"
                files = [out / "he" / f"{name}.png", out / "ihc" / f"{name}{tile_suffix(target)}"]
                if not (goes_on and all(file.is_file() for file in files)):
                    save_png(files[0], he.read_box(x, y, side, side, tile, tile))
                    save_tile(files[1], read_warped(signal, affine, x, y, side, tile), target)
                rows.append(
                    {
                        "name": name,
                        "he": f"he/{name}.png",
                        "ihc": f"ihc/{files[1].name}",
                        "stain": pair.stain,
                        "patient": pair.patient or pair.he.stem,
                        **({"group": pair.group or ""} if grouped else {}),
                        "split": pair.split,
                        "slide": name_of(pair.he),
                        **{key: f"{value:.10g}" for key, value in zip(BOX, (x, y, side), strict=True)},
                    }
                )
    if beyond:
        log.warning("%s lie beyond what the other slide shows and are left out.", shortened(beyond))
    if not rows and beyond:
        raise InputError(
            "the other slide shows none of the tissue of this one",
            where=pairs[0].he,
            fix="Register them with `morphogen stain register`, or give their map in the column affine",
        )
    if not rows:
        raise InputError("no tissue was found in any of the H&E slides", where=pairs[0].he)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(table, text.getvalue())
    Manifest.write(out, kind="pairs cut from slides", mark=job.mark, pairs=len(rows), mpp=mpp, tile=tile)
    return table


def _shown(signal: Slide | ChannelRegions, affine: np.ndarray, x: float, y: float, side: float) -> bool:
    """Whether another slide shows the square (x, y, side) of this one's level 0, to a fiftieth of its side."""
    width, height = (signal.width, signal.height) if isinstance(signal, Slide) else signal.size[::-1]
    low, high = 0.02 * side, 0.98 * side
    corners = np.array([[x + a, y + b, 1] for a in (low, high) for b in (low, high)])
    u, v = affine @ corners.T
    return bool((u >= 0).all() and (v >= 0).all() and (u <= width).all() and (v <= height).all())


def channels_of(path: Path, target: TargetConfig) -> ChannelRegions:
    """The channels of ``target`` of a slide; :class:`InputError` when it has others."""
    return ChannelRegions(path, target.channels)


def tile_suffix(target: TargetConfig) -> str:
    """Of a tile of the second slide."""
    return ".png" if target.colour else ".ome.tif"


def save_tile(path: Path, pixels: np.ndarray, target: TargetConfig) -> None:
    """A tile of the second slide: a picture, or channels as they are."""
    if target.colour:
        save_png(path, pixels)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_channels(path, pixels, target.channels)


def _second(pair: SlidePair, target: TargetConfig) -> Slide | ChannelRegions:
    """The slide beside the H&E: a picture, or channels."""
    return open_pair(pair, "ihc") if target.colour else channels_of(pair.ihc, target)


def _micrometres(pair: SlidePair, slide: Slide | ChannelRegions) -> float:
    """µm per pixel of the second slide; :class:`SlideError` that names the table's column when it is not known."""
    mpp = slide.require_mpp() if isinstance(slide, Slide) else pair.ihc_mpp or slide.mpp
    if mpp is None:
        raise SlideError(
            "the file does not say how many µm a pixel is",
            where=pair.ihc,
            fix="Give it in the column ihc_mpp of the table, or the map in the column affine",
        )
    return mpp


def read_warped(
    slide: Slide | ChannelRegions, affine: np.ndarray, x: float, y: float, side: float, pixels: int
) -> np.ndarray:
    """The square (x, y, side) of another slide's level 0, seen in this one: (pixels, pixels, C) of its type; glass, or
    nothing of a signal, lies around it."""
    import cv2

    corners = np.array([[x, y, 1], [x + side, y, 1], [x, y + side, 1], [x + side, y + side, 1]]).T
    there = affine @ corners
    if affine[0, 1] == 0 == affine[1, 0]:  # no rotation, no shear: the box itself
        (left, top), (right, bottom) = there[:, 0], there[:, 3]
        return slide.read_box(left, top, right - left, bottom - top, pixels, pixels)
    scale = float(np.sqrt(abs(np.linalg.det(affine[:, :2])))) * side / pixels  # its pixels per output pixel
    low, high = there.min(axis=1) - 2 * scale, there.max(axis=1) + 2 * scale
    size = np.ceil((high - low) / scale).astype(int)
    block = slide.read_box(low[0], low[1], size[0] * scale, size[1] * scale, int(size[0]), int(size[1]))
    # Output pixel → H&E level 0 → IHC level 0 → pixel of the block, centres at half pixels.
    step = side / pixels
    linear = affine[:, :2] * step / scale
    offset = (affine @ np.array([x + step / 2, y + step / 2, 1]) - low) / scale - 0.5
    matrix = np.column_stack([linear, offset])
    flags, empty = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, 0 if isinstance(slide, ChannelRegions) else 255
    turned = [
        cv2.warpAffine(plane, matrix, (pixels, pixels), flags=flags, borderValue=empty)
        for plane in np.ascontiguousarray(np.moveaxis(block, 2, 0))
    ]
    return np.stack(turned, axis=-1)


def read_pairs(
    data: Path | str,
    split: str,
    out: Path | str,
    *,
    tile: int,
    mpp: float | None,
    target: TargetConfig | None = None,
) -> FoundPairs:
    """Pairs of any layout; a table of slides is cut into ``out/pairs`` first, at ``mpp`` (0.5 when not
    given), and so are the panels of :mod:`morphogen.stain.pairs.panels`. ``target`` is what their second images are,
    where the data do not state it.
    """
    slides = slide_table(data)
    if slides is None:
        return find_pairs(as_pairs(data, split, Path(out) / "pairs" / split, target), split, target)
    target = target or stated_target(data) or COLOUR
    table = cut_slide_pairs(slides, Path(out) / "pairs", tile=tile, mpp=mpp or 0.5, target=target)
    return find_pairs(table, split, target)
