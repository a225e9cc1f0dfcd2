"""Drawing cells: nuclei with membrane and chromatin, cytoplasm territories, red cells; batched small patches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from morphogen.demo.simulator.cells import TERRITORY, Cells
from morphogen.demo.simulator.noise import Float, chromatin_texture, hash_words, normal_of

Grey = NDArray[np.float32]
NUCLEUS_REACH = 13.5  # µm: no part of a nucleus is farther from its centre


@dataclass(frozen=True)
class Canvas:
    """A window of the absolute pixel grid: pixel (i, j) has its centre at ((x + j + ½)·mpp, (y + i + ½)·mpp) µm."""

    x: int
    y: int
    width: int
    height: int
    mpp: float

    def grown(self, pixels: int) -> Canvas:
        """The window with a rim of ``pixels`` on every side."""
        return Canvas(
            self.x - pixels, self.y - pixels, self.width + 2 * pixels, self.height + 2 * pixels, self.mpp
        )

    def box(self, margin: float = 0.0) -> tuple[float, float, float, float]:
        """The window in µm, with a margin in µm."""
        x0, y0 = self.x * self.mpp - margin, self.y * self.mpp - margin
        return x0, y0, x0 + self.width * self.mpp + 2 * margin, y0 + self.height * self.mpp + 2 * margin


@dataclass(frozen=True)
class Nuclei:
    """Nuclei on a window, each array (height, width)."""

    haematoxylin: Grey  # optical density of the topmost nucleus
    alpha: Grey  # cover, 0–1, soft at the edge
    owner: NDArray[np.int32]  # 1 + row of the cell table of the topmost nucleus, 0 = none


@dataclass(frozen=True)
class Territories:
    """Cytoplasm of epithelial cells on a window: a Voronoi diagram of their centres, each array (height, width)."""

    owner: NDArray[np.int32]  # 1 + row of the cell table, 0 = no cell within reach
    gap: Grey  # distance to the second nearest centre less that to the nearest, µm; 0 on a border between cells


@lru_cache(maxsize=32)
def _offsets(half: int) -> Grey:
    return np.arange(-half, half + 1, dtype=np.float32)


def _anchors(positions: Float, origin: int, mpp: float) -> tuple[NDArray[np.int64], Grey]:
    """Pixel indices that hold the positions (µm), relative to ``origin``, and the rest within the pixel (µm)."""
    pixel = np.floor(positions / mpp)
    rest = ((pixel + 0.5) * mpp - positions).astype(np.float32)
    return pixel.astype(np.int64) - origin, rest


def nucleus_reach(cells: Cells) -> Float:
    """No part of a cell's nucleus is farther from its centre (µm)."""
    return np.minimum(np.maximum(cells.major, cells.minor) * (1 + 2.2 * cells.ragged) + 0.5, NUCLEUS_REACH)


def draw_nuclei(window: Canvas, cells: Cells, which: NDArray[np.bool_]) -> Nuclei:
    """Stamp the nuclei of the cells selected by ``which``.

    The window must reach NUCLEUS_REACH beyond their centres; cells nearer to its edge are ignored.
    """
    mpp = window.mpp
    rim = int(np.ceil(NUCLEUS_REACH / mpp)) + 2
    haematoxylin = np.zeros((window.height, window.width), dtype=np.float32)
    alpha = np.zeros_like(haematoxylin)
    owner = np.zeros((window.height, window.width), dtype=np.int32)
    col, rest_x = _anchors(cells.x, window.x, mpp)
    row, rest_y = _anchors(cells.y, window.y, mpp)
    fits = (col >= rim) & (col < window.width - rim) & (row >= rim) & (row < window.height - rim) & which

    half = np.ceil(nucleus_reach(cells) / mpp).astype(int) + 1
    sizes = sorted({min(3 * -(-int(h) // 3), rim) for h in half})
    order: list[tuple[int, Grey, Grey, NDArray]] = [None] * len(cells)  # type: ignore[list-item]
    lower = 0
    for size in sizes:
        index = np.flatnonzero((half > lower) & (half <= size) & fits)
        lower = size
        if len(index):
            value, cover, inside = _nucleus_patches(
                cells.take(index), size, rest_x[index], rest_y[index], mpp
            )
            for k, cell in enumerate(index.tolist()):
                order[cell] = (size, value[k], cover[k], inside[k])
    rows, cols = row.tolist(), col.tolist()
    for cell, patch in enumerate(order):
        if patch is None:
            continue
        size, value, cover, inside = patch
        r, c = rows[cell], cols[cell]
        part = (slice(r - size, r + size + 1), slice(c - size, c + size + 1))
        here = haematoxylin[part]
        value -= here
        value *= cover
        here += value
        cover_here = alpha[part]
        np.maximum(cover_here, cover, out=cover_here)
        np.copyto(owner[part], cell + 1, where=inside)
    return Nuclei(haematoxylin, alpha, owner)


def _nucleus_patches(
    cells: Cells, half: int, rest_x: Grey, rest_y: Grey, mpp: float
) -> tuple[Grey, Grey, NDArray[np.bool_]]:
    """Haematoxylin, cover and mask of nuclei, each (cells, 2·half+1, 2·half+1)."""

    def column(values: Float) -> Grey:
        return np.asarray(values, dtype=np.float32)[:, None, None]

    span = _offsets(half) * np.float32(mpp)
    dx = rest_x[:, None, None] + span[None, None, :]
    dy = rest_y[:, None, None] + span[None, :, None]
    cos, sin = column(np.cos(cells.angle)), column(np.sin(cells.angle))
    draws = normal_of(hash_words(cells.id, np.zeros(1, dtype=np.int64), 9001 + np.arange(9)[:, None]))
    major, minor = column(cells.major), column(cells.minor)

    u = dx * cos + dy * sin
    v = dy * cos - dx * sin
    # Long nuclei are bent.
    bend = column(np.clip(cells.major / cells.minor - 2.0, 0, 2) * 0.009 * draws[0])
    v += bend * u * u
    u /= major
    v /= minor
    square_u, square_v = u * u, v * v
    rr = square_u + square_v
    rr += np.float32(1e-6)
    radius = np.sqrt(rr)
    # Outline: harmonics 2 and 3 of the polar angle, as polynomials in u and v.
    ragged = cells.ragged
    bump = column(ragged * draws[1]) * (square_u - square_v)
    bump += column(2 * ragged * draws[2]) * (u * v)
    bump /= rr
    third = column(0.8 * ragged * draws[3]) * u * (square_u - 3 * square_v)
    third += column(0.8 * ragged * draws[4]) * v * (3 * square_u - square_v)
    third /= rr * radius
    bump += third
    np.clip(bump, -0.3, 0.3, out=bump)
    radius /= 1 + bump

    depth = (1 - radius) * minor  # µm below the membrane, roughly
    cover = np.clip(depth * np.float32(1 / max(1.4 * mpp, 0.6)) + np.float32(0.5), 0, 1)
    inside = radius < 1

    texture = chromatin_texture()
    step = mpp / 0.25
    words = hash_words(cells.id, np.zeros(1, dtype=np.int64), 9100)
    pixels = (np.arange(2 * half + 1) * step).astype(np.int64)
    rows = ((words & 255)[:, None] + pixels[None, :]) & 255
    cols = ((words >> np.uint32(8) & 255)[:, None] + pixels[None, :]) & 255
    value = texture[rows[:, :, None], cols[:, None, :]]
    value *= column(cells.chromatin)
    # Membrane: a thin dark rim, 0.5 µm wide.
    rim = depth * np.float32(1 / 0.55)
    rim *= rim
    rim += 1
    value += column(0.12 + 0.45 * cells.vesicle) / rim
    value -= column(cells.vesicle) * np.maximum(1 - radius * radius, 0)
    for k in range(2):
        size = np.clip(cells.nucleoli - k * 0.9 + 0.45 * draws[5 + k], 0, 1.2)
        some = np.flatnonzero((size > 0) & (cells.nucleoli > 0))
        if not len(some):
            continue
        du = u[some] - column(0.35 * np.clip(draws[7 - k, some], -1.3, 1.3))
        dv = v[some] - column(0.35 * np.clip(draws[8 - k, some], -1.3, 1.3))
        du *= major[some] / np.float32(0.85)
        dv *= minor[some] / np.float32(0.85)
        du *= du
        dv *= dv
        du += dv
        du += 1
        du *= du
        value[some] += column(0.75 * size[some]) / du
    np.clip(value, -0.75, 1.2, out=value)
    value += 1
    value *= column(cells.haematoxylin)
    return value, cover, inside


def draw_territories(window: Canvas, cells: Cells, which: NDArray[np.bool_]) -> Territories:
    """Cytoplasm of the cells selected by ``which``; the window must reach TERRITORY beyond what matters."""
    mpp = window.mpp
    half = int(np.ceil(TERRITORY / mpp))
    far = np.float32(2 * TERRITORY)
    nearest = np.full((window.height, window.width), far, dtype=np.float32)
    second = np.full_like(nearest, far)
    owner = np.zeros((window.height, window.width), dtype=np.int32)
    index = np.flatnonzero(which)
    if not len(index):
        return Territories(owner, second)
    col, rest_x = _anchors(cells.cx[index], window.x, mpp)
    row, rest_y = _anchors(cells.cy[index], window.y, mpp)
    fits = (col >= half) & (col < window.width - half) & (row >= half) & (row < window.height - half)
    index, col, row, rest_x, rest_y = index[fits], col[fits], row[fits], rest_x[fits], rest_y[fits]

    span = _offsets(half) * np.float32(mpp)
    cos = np.cos(cells.lean[index]).astype(np.float32)[:, None, None]
    sin = np.sin(cells.lean[index]).astype(np.float32)[:, None, None]
    tall = cells.tall[index].astype(np.float32)[:, None, None]
    rows, cols = row.tolist(), col.tolist()
    for start in range(0, len(index), 256):
        some = slice(start, start + 256)
        dx = rest_x[some, None, None] + span[None, None, :]
        dy = rest_y[some, None, None] + span[None, :, None]
        along = dx * cos[some] + dy * sin[some]
        along /= tall[some]
        beside = dy * cos[some] - dx * sin[some]
        along *= along
        beside *= beside
        along += beside
        distances = np.sqrt(along, out=along)
        for k, distance in enumerate(distances):
            r, c = rows[start + k], cols[start + k]
            part = (slice(r - half, r + half + 1), slice(c - half, c + half + 1))
            first_here, second_here = nearest[part], second[part]
            closer = distance < first_here
            np.minimum(second_here, np.maximum(first_here, distance), out=second_here)
            np.minimum(first_here, distance, out=first_here)
            np.copyto(owner[part], index[start + k] + 1, where=closer)
    gap = second - nearest
    np.copyto(gap, far, where=owner == 0)  # as where there is no cell at all
    return Territories(owner, gap)


def draw_packing(window: Canvas, x: Float, y: Float) -> Grey:
    """Distance (µm) to the border between the cells of a coarse packing with centres ``x``, ``y`` (fat cells)."""
    shape = (window.height, window.width)
    nearest, second = np.full(shape, 1e6, dtype=np.float32), np.full(shape, 1e6, dtype=np.float32)
    px = ((window.x + np.arange(window.width) + 0.5) * window.mpp)[None, :]
    py = ((window.y + np.arange(window.height) + 0.5) * window.mpp)[:, None]
    reach = 95.0
    for cx, cy in zip(x, y):
        cols = np.flatnonzero(np.abs(px[0] - cx) < reach)
        rows = np.flatnonzero(np.abs(py[:, 0] - cy) < reach)
        if not len(cols) or not len(rows):
            continue
        part = (slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1))
        distance = np.sqrt((px[:, part[1]] - cx) ** 2 + (py[part[0]] - cy) ** 2).astype(np.float32)
        first_here, second_here = nearest[part], second[part]
        np.minimum(second_here, np.maximum(first_here, distance), out=second_here)
        np.minimum(first_here, distance, out=first_here)
    return (second - nearest) * np.float32(0.5)


def draw_red_cells(window: Canvas, x: Float, y: Float, tone: Float) -> Grey:
    """Cover (0–1, times ``tone``) of red cells with the given centres (µm), with their pale middle."""
    mpp = window.mpp
    half = int(np.ceil(4.2 / mpp))
    cover = np.zeros((window.height, window.width), dtype=np.float32)
    col, rest_x = _anchors(x, window.x, mpp)
    row, rest_y = _anchors(y, window.y, mpp)
    fits = (col >= half) & (col < window.width - half) & (row >= half) & (row < window.height - half)
    index = np.flatnonzero(fits)
    if not len(index):
        return cover
    span = _offsets(half) * np.float32(mpp)
    dx = rest_x[index, None, None] + span[None, None, :]
    dy = rest_y[index, None, None] + span[None, :, None]
    radius = np.sqrt(dx * dx + dy * dy)
    size = (3.1 + 0.5 * (tone[index] - 1)).astype(np.float32)[:, None, None]
    patch = np.clip((size - radius) * np.float32(0.6 / mpp) + np.float32(0.5), 0, 1)
    patch *= (0.72 + 0.28 * np.minimum(radius / size, 1) ** 2) * tone[index].astype(np.float32)[:, None, None]
    for k, (r, c) in enumerate(zip(row[index].tolist(), col[index].tolist())):
        here = cover[r - half : r + half + 1, c - half : c + half + 1]
        np.maximum(here, patch[k], out=here)
    return cover
