"""Where a canvas' grid comes from: a region of a slide, tiles picked one by one, a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from morphogen.core.errors import InputError, nearest
from morphogen.core.reading.tables import read_table
from morphogen.core.reading.text import clean
from morphogen.slides import Slide, open_slide
from morphogen.slides.fields import read_boxes
from morphogen.tissue.canvases.grid import EmbeddingGrid
from morphogen.tissue.data import TileTable
from morphogen.tissue.model import TissueDiffusion
from morphogen.tissue.reading.images import bare_glass
from morphogen.tissue.train import model_encoder, tiles_for

_BATCH = 64
_SMALLER = 0.005  # that cells may be made for one row or column more


def parse_region(text: str | None) -> tuple[float, float, float, float] | None:
    """``x,y,width,height`` as numbers; :class:`InputError` for anything else."""
    if text is None:
        return None
    try:
        x, y, width, height = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"'{text}' is not x,y,width,height", where="--region") from None
    return x, y, width, height


def grid_from(
    model: TissueDiffusion,
    *,
    like: Path | None = None,
    region: str | None = None,
    grid: Path | None = None,
    tiles: Sequence[Path] | None = None,
    prior: Path | None = None,
    label: str | None = None,
    shape: tuple[int | None, int | None] = (None, None),
    encoder: str | None = None,
    weights: Path | str | None = None,
    mpp: float | None = None,
    seed: int = 0,
    cache: Path | None = None,
) -> EmbeddingGrid:
    """The grid that the command line asks for: exactly one of ``like``, ``grid`` and ``prior``."""
    given = [
        name for name, value in (("--like", like), ("--grid", grid), ("--prior", prior)) if value is not None
    ]
    if len(given) != 1:
        raise InputError(
            f"a canvas is drawn from one source, here are {len(given)}",
            where="tissue canvas",
            fix="Give --like SLIDE, --grid FILE or --prior FOLDER",
        )
    if like is not None:
        judge = model_encoder(model, model.device, encoder=encoder, weights=weights)
        return grid_of_region(model, like, judge, region=parse_region(region), mpp=mpp)
    if prior is not None:
        from morphogen.tissue.priors.model import TissuePrior

        drawn = TissuePrior.from_pretrained(prior, device=model.device)
        side = drawn.config.side
        rows, columns = (side if extent is None else extent for extent in shape)
        return drawn((rows, columns), label=label, seed=seed)
    assert grid is not None
    if grid.suffix.lower() != ".csv":
        return EmbeddingGrid.load(grid)
    if not tiles:
        raise InputError(
            "a grid of tile names needs the tiles", where=grid, fix="Name their folder with --tiles"
        )
    out = cache.parent if cache is not None else Path()
    return grid_of_picks(grid, tiles_for(model, tiles, out, encoder=encoder, weights=weights, mpp=mpp))


def region_boxes(
    slide: Slide, region: tuple[float, float, float, float] | None, tile_px: int, mpp: float
) -> tuple[np.ndarray, tuple[int, int]]:
    """(N, 4) level-0 boxes of the whole cells of ``tile_px`` at ``mpp`` in a region, row by row, and (rows, columns).

    region: x, y, width, height in level-0 pixels; ``None`` = the whole slide. Where a last row or column is hardly
    short (1024 px hold eight cells of 64 px at 1 µm/px although the slide has 0.499), all cells are that much smaller.
    Raises :class:`InputError` for a region that leaves the slide or is smaller than a cell.
    """
    x, y, width, height = region or (0, 0, slide.width, slide.height)
    if x < 0 or y < 0 or x + width > slide.width or y + height > slide.height or min(width, height) <= 0:
        raise InputError(
            f"the region {x:g},{y:g},{width:g},{height:g} is not within the slide of "
            f"{slide.width} × {slide.height} px",
            where=slide.path,
            fix="Give --region x,y,width,height in pixels of the full resolution",
        )
    side = tile_px * mpp / slide.require_mpp()
    rows, columns = (int(size / side * (1 + _SMALLER) + 1e-6) for size in (height, width))
    if rows < 1 or columns < 1:
        raise InputError(
            f"the region is smaller than a cell, which is {side:.0f} px of this slide",
            where=slide.path,
            fix="Give a larger region",
        )
    side = min(side, height / rows, width / columns)
    top, left = np.meshgrid(np.arange(rows) * side + y, np.arange(columns) * side + x, indexing="ij")
    return np.stack([left.ravel(), top.ravel(), *(np.full(left.size, side),) * 2], axis=1), (rows, columns)


def grid_of_region(
    model: TissueDiffusion,
    path: Path | str,
    encoder: Any,
    *,
    region: tuple[float, float, float, float] | None = None,
    mpp: float | None = None,
) -> EmbeddingGrid:
    """The embeddings of a region of a slide or image, cell by cell: the grid of its synthetic twin.

    region: x, y, width, height in level-0 pixels, as QuPath shows the slide. mpp: µm per pixel of the slide, where it
    does not say; the model must know its own.
    """
    if model.mpp is None:
        raise InputError("the model does not know its µm per pixel", where="--like", fix="Give a grid file")
    with open_slide(path, mpp=mpp).within_bounds() as slide:
        boxes, shape = region_boxes(slide, region, model.tile_px, model.mpp)
        parts, cleared = [], _GlassCells()
        for start in range(0, len(boxes), _BATCH):
            images = read_boxes(slide, boxes[start : start + _BATCH], model.tile_px)
            parts.append(encoder(images).cpu().numpy())
            cleared.add(images)
    patch = np.concatenate(parts).reshape(*shape, -1)
    name = getattr(encoder, "spec", None)
    facts = {
        "from": Path(path).name,
        "region": list(region) if region else "all",
        "encoder": getattr(name, "name", None),
    }
    return EmbeddingGrid(patch.astype(np.float32), None, facts, *cleared.found(shape))


class _GlassCells:
    """Which cells are bare glass, and its colour, from their images."""

    def __init__(self) -> None:
        self._bare: list[np.ndarray] = []
        self._colours: list[np.ndarray] = []

    def add(self, images: np.ndarray) -> None:
        """The next cells, (N, H, W, 3) uint8."""
        bare = bare_glass(images)
        self._bare.append(bare)
        self._colours += [np.median(image, axis=(0, 1)) for image in images[bare]]

    def found(self, shape: tuple[int, int]) -> tuple[np.ndarray | None, np.ndarray | None]:
        """(R, C) bool and (3,), the median colour of these cells; both ``None`` where no cell is bare."""
        bare = np.concatenate(self._bare).reshape(shape)
        return (bare, np.median(self._colours, axis=0)) if bare.any() else (None, None)


def grid_of_picks(path: Path | str, table: TileTable) -> EmbeddingGrid:
    """A grid from a CSV with the columns row, column, tile: every cell the embedding of the tile of that name.

    Raises :class:`InputError` for an unknown tile, a cell that is named twice, and cells that are left out.
    """
    path = Path(path)
    rows = read_table(path, ("row", "column", "tile")).rows
    if not rows:
        raise InputError("has no rows with the columns row, column, tile", where=path)
    known = {clean(name): number for number, name in enumerate(table.names)}
    cells: dict[tuple[int, int], int] = {}
    for each in rows:
        row, column, tile = each.integer("row"), each.integer("column"), each.need("tile")
        if row is None or column is None or min(row, column) < 0:
            raise InputError("row and column must be whole numbers from 0", where=each.where)
        if tile not in known:
            raise InputError(f"there is no tile '{tile}'.{nearest(tile, known)}", where=each.where)
        if (row, column) in cells:
            raise InputError(f"cell {(row, column)} is named twice", where=each.where)
        cells[row, column] = known[tile]
    height, width = (max(cell[axis] for cell in cells) + 1 for axis in (0, 1))
    missing = [(r, c) for r in range(height) for c in range(width) if (r, c) not in cells]
    if missing:
        raise InputError(
            f"{len(missing)} of {height * width} cells have no tile "
            f"(first: row {missing[0][0]}, column {missing[0][1]})",
            where=path,
        )
    order = [cells[r, c] for r in range(height) for c in range(width)]
    region = table.features.get("region")
    return EmbeddingGrid(
        table.features["patch"][order].reshape(height, width, -1),
        None if region is None else region[order].reshape(height, width, -1),
        {"from": path.name},
    )


def grid_of_table(table: TileTable, image: int) -> EmbeddingGrid:
    """The grid of one image of a table whose tiles tell their places; the largest full rectangle from its corner.

    Raises :class:`InputError` where tiles have no places.
    """
    if not len(table.places):
        raise InputError("these tiles do not say where they lie", where="grid")
    here = np.flatnonzero(table.places[:, 0] == image)
    rows, columns = table.places[here, 1], table.places[here, 2]
    filled = np.full((rows.max() + 1, columns.max() + 1), -1)
    filled[rows, columns] = here
    while filled.size and (filled < 0).any():  # drop the border line that misses most
        lines = {
            (0, 0): filled[0],
            (0, -1): filled[-1],
            (1, 0): filled[:, 0],
            (1, -1): filled[:, -1],
        }
        axis, end = max(lines, key=lambda key: (lines[key] < 0).mean())
        filled = np.delete(filled, end, axis=axis)
    if not filled.size:
        raise InputError("no rectangle of this image is full of tiles", where="grid")
    return EmbeddingGrid(table.features["patch"][filled], facts={"from": table.names[int(filled[0, 0])]})
