"""Canvases with a part that stays: edits of some cells, and images continued beyond their border."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from morphogen.core.errors import InputError
from morphogen.tissue.canvases.config import CanvasConfig
from morphogen.tissue.canvases.draw import draw_latents
from morphogen.tissue.canvases.grid import EmbeddingGrid
from morphogen.tissue.canvases.plan import CanvasPlan
from morphogen.tissue.model import TissueDiffusion


def changed_part(before: EmbeddingGrid, after: EmbeddingGrid) -> np.ndarray:
    """(R, C) bool: cells whose embedding differs, or which are bare glass in one of the two."""
    if before.patch.shape != after.patch.shape:
        raise InputError(
            f"the grids are {before.shape[0]} × {before.shape[1]} and {after.shape[0]} × {after.shape[1]}",
            where="grid",
        )
    bare = [np.zeros(grid.shape, bool) if grid.bare is None else grid.bare for grid in (before, after)]
    return (before.patch != after.patch).any(axis=2) | (bare[0] != bare[1])


@torch.no_grad()
def edit_image(
    model: TissueDiffusion,
    image: np.ndarray,
    before: EmbeddingGrid,
    after: EmbeddingGrid,
    config: CanvasConfig | None = None,
    *,
    precision: str = "fp32",
) -> np.ndarray:
    """An image (H, W, 3) uint8 drawn from ``before``, with the cells that differ in ``after`` drawn anew.

    Only the part of the canvas that a changed cell can reach is computed: the cell, and a window around it, in which
    the picture goes over softly; every pixel further away stays as it is, to the byte.
    """
    config = config or CanvasConfig()
    changed = changed_part(before, after)
    if not changed.any():
        return image.copy()
    side, window = model.tile_px, model.window
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    # A cell's vector also reaches windows that begin up to a cell before it; one more cell is there to hold on to.
    top, left = max(0, rows[0] - 2), max(0, columns[0] - 2)
    bottom, right = min(after.shape[0], rows[-1] + 3), min(after.shape[1], columns[-1] + 3)
    part = after.part(slice(top, bottom), slice(left, right))
    area = (slice(top * side, bottom * side), slice(left * side, right * side))
    known = model.latents(torch.from_numpy(np.ascontiguousarray(image[area]))[None])
    weight = torch.from_numpy(changed[top:bottom, left:right].astype(np.float32))
    redraw = weight.repeat_interleave(window, 0).repeat_interleave(window, 1)[None, None]
    keep = 1 - _softened(redraw, window // 2)
    fresh = _drawn(model, part, config, known, keep, precision)
    out = image.copy()
    mixed = (keep < 1)[0, 0].repeat_interleave(model.first_stage.factor, 0)
    mixed = mixed.repeat_interleave(model.first_stage.factor, 1).numpy()
    out[area] = np.where(mixed[: fresh.shape[0], : fresh.shape[1], None], fresh, image[area])
    return out


@torch.no_grad()
def outpaint_image(
    model: TissueDiffusion,
    image: np.ndarray,
    grid: EmbeddingGrid,
    row: int,
    column: int,
    config: CanvasConfig | None = None,
    *,
    precision: str = "fp32",
) -> np.ndarray:
    """A canvas of ``grid`` in which ``image`` (H, W, 3) uint8 stays, its corner at cell (row, column).

    Sides of the image must be whole cells. Returns (R·tile_px, C·tile_px, 3) uint8; the image's own pixels come back
    as they were but for a soft edge of a quarter of a cell.
    """
    config, side, window = config or CanvasConfig(), model.tile_px, model.window
    height, width = image.shape[0] // side, image.shape[1] // side
    if image.shape[0] % side or image.shape[1] % side or min(height, width) < 1:
        raise InputError(
            f"the image is {image.shape[1]} × {image.shape[0]} px, not whole cells of {side} px",
            where="outpaint",
            fix="Crop it",
        )
    if row < 0 or column < 0 or row + height > grid.shape[0] or column + width > grid.shape[1]:
        raise InputError(
            f"{height} × {width} cells at row {row}, column {column} are not within the grid of "
            f"{grid.shape[0]} × {grid.shape[1]}",
            where="outpaint",
        )
    size = (1, model.channels, grid.shape[0] * window, grid.shape[1] * window)
    inside = (slice(row * window, (row + height) * window), slice(column * window, (column + width) * window))
    known = torch.zeros(size, device=model.device)
    known[(..., *inside)] = model.latents(torch.from_numpy(np.ascontiguousarray(image))[None])
    new = torch.ones(1, 1, *size[2:])
    new[(..., *inside)] = 0
    keep = (1 - _softened(new, window // 4)) * (1 - new)
    made = _drawn(model, grid, config, known, keep, precision)
    factor = model.first_stage.factor
    share = keep[0, 0].repeat_interleave(factor, 0).repeat_interleave(factor, 1).numpy()[..., None]
    base = made.copy()
    area = (slice(row * side, (row + height) * side), slice(column * side, (column + width) * side))
    base[area] = image
    return np.rint(share * base + (1 - share) * made).astype(np.uint8)


def _drawn(
    model: TissueDiffusion,
    grid: EmbeddingGrid,
    config: CanvasConfig,
    known: Tensor,
    keep: Tensor,
    precision: str,
) -> np.ndarray:
    plan = CanvasPlan(model, grid, config)
    latents: Any = draw_latents(
        model, grid, plan, known=known, keep=keep.to(model.device), precision=precision
    )
    pixels = model.decode(latents)[0].cpu().numpy()
    return pixels if plan.glass is None else plan.glass.behind(pixels)


def _softened(mask: Tensor, reach: int) -> Tensor:
    """(1, 1, H, W): 1 on the mask, falling to 0 over ``reach`` cells outside of it."""
    import cv2

    outside = (mask[0, 0] == 0).to(torch.uint8).numpy()
    distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    away = np.clip(distance / max(reach, 1), 0, 1)
    return torch.from_numpy((1 - away * away * (3 - 2 * away)).astype(np.float32))[None, None]
