"""Noise that is a pure function of seed and absolute position, and the small textures made of it.

Everything here is elementwise or a stencil of fixed order, so that a value does not depend on the window in which it
is computed: this is what lets a slide be rendered in tiles of any size and order without a seam.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

from morphogen.core.seeds import numpy_generator, seed_for

Float = NDArray[np.floating]
Words = NDArray[np.uint32]

# Normal quantiles at 2^16 equal probabilities: a normal deviate is then one look-up of a hash's upper half.
_QUANTILES = special.ndtri((np.arange(65536) + 0.5) / 65536).astype(np.float32)
_QUANTILES /= _QUANTILES.std()

# Mean of the squared cubic B-spline weights along one axis: splined white noise of unit variance keeps this variance.
_SPLINE_POWER = 151 / 315


def hash_words(ix: NDArray, iy: NDArray, stream: int) -> Words:
    """32 well-mixed bits for integer positions (broadcast), different for every ``stream`` (murmur finaliser)."""
    x = np.asarray(ix).astype(np.uint32) * np.uint32(0x8DA6B343)
    y = np.asarray(iy).astype(np.uint32) * np.uint32(0xD8163841)
    word = (x ^ np.uint32(stream & 0xFFFFFFFF)) + y
    word ^= word >> np.uint32(16)
    word *= np.uint32(0x85EBCA6B)
    word ^= word >> np.uint32(13)
    word *= np.uint32(0xC2B2AE35)
    word ^= word >> np.uint32(16)
    return word


def uniform(ix: NDArray, iy: NDArray, stream: int) -> NDArray[np.float64]:
    """Uniform deviates in [0, 1) for integer positions."""
    return hash_words(ix, iy, stream) * 2.0**-32


def normal_of(words: Words) -> NDArray[np.float32]:
    """Standard normal deviates (|z| < 4.4, unit variance) from hash words."""
    return _QUANTILES[words >> np.uint32(16)]


def normal(ix: NDArray, iy: NDArray, stream: int) -> NDArray[np.float32]:
    """Standard normal deviates for integer positions."""
    return normal_of(hash_words(ix, iy, stream))


def _spline_weights(fraction: Float) -> tuple[Float, Float, Float, Float]:
    """Uniform cubic B-spline weights of the four lattice values around a point."""
    square = fraction * fraction
    cube = square * fraction
    last = cube / 6
    first = (1 - fraction) ** 3 / 6
    second = (4 - 6 * square + 3 * cube) / 6
    return first, second, 1 - first - second - last, last


class SplineNoise:
    """Smooth stationary noise, mean 0 and variance 1 on average: a cubic B-spline over hashed lattice values.

    ``period`` is the lattice spacing in µm; features are about 1.5 periods wide.
    """

    def __init__(self, period: float, *keys: int | str) -> None:
        self.period = float(period)
        self.stream = seed_for("spline-noise", *keys) & 0xFFFFFFFF
        shift = numpy_generator("spline-noise-shift", *keys).random(2)
        self.shift_x, self.shift_y = float(shift[0]), float(shift[1])

    def __call__(self, x: Float, y: Float) -> Float:
        """Values at positions in µm; ``x`` of shape (1, W) with ``y`` of shape (H, 1) takes the fast separable way."""
        ux = x / self.period + self.shift_x
        uy = y / self.period + self.shift_y
        bx, by = np.floor(ux), np.floor(uy)
        wx, wy = _spline_weights(ux - bx), _spline_weights(uy - by)
        jx, jy = bx.astype(np.int64), by.astype(np.int64)
        if jx.size == 0 or jy.size == 0:
            return np.zeros(np.broadcast_shapes(x.shape, y.shape))
        x0, y0 = int(jx.min()) - 1, int(jy.min()) - 1
        lattice_x = np.arange(x0, int(jx.max()) + 3)
        lattice_y = np.arange(y0, int(jy.max()) + 3)
        lattice = normal(lattice_x[None, :], lattice_y[:, None], self.stream).astype(ux.dtype)
        lattice *= 1 / _SPLINE_POWER
        jx, jy = jx - 1 - x0, jy - 1 - y0
        if x.ndim == 2 and x.shape[0] == 1 and y.ndim == 2 and y.shape[1] == 1:
            rows = sum(wx[k] * lattice[:, jx[0] + k] for k in range(4))
            return sum(wy[k] * rows[jy[:, 0] + k] for k in range(4))  # type: ignore[return-value]
        flat = lattice.ravel()
        base = jy * lattice.shape[1] + jx
        total = np.zeros(base.shape, dtype=ux.dtype)
        for k in range(4):
            line = base + k * lattice.shape[1]
            total += wy[k] * sum(wx[m] * flat[line + m] for m in range(4))
        return total


class Relaxed:
    """Scattered points, one per cell of a staggered lattice, pushed apart from close neighbours.

    Looks like packed cells rather than a grid, yet each point depends on the hashes of its neighbourhood alone.
    ``pitch`` is the lattice spacing in µm, ``spacing`` the distance (in pitches) below which neighbours repel.
    """

    _AROUND = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))

    def __init__(
        self, pitch: float, *keys: int | str, jitter: float = 0.85, spacing: float = 1.0, steps: int = 2
    ):
        self.pitch, self.jitter, self.spacing, self.steps = float(pitch), jitter, spacing, steps
        self.stream_x = seed_for("points-x", *keys) & 0xFFFFFFFF
        self.stream_y = seed_for("points-y", *keys) & 0xFFFFFFFF

    def __call__(self, x0: float, y0: float, x1: float, y1: float) -> tuple[NDArray, NDArray, Float, Float]:
        """Lattice indices and positions (µm) of every point inside the box [x0, x1) × [y0, y1)."""
        row = self.pitch * 0.75**0.5
        margin = 2 + 2 * self.steps
        ix = np.arange(int(np.floor(x0 / self.pitch)) - margin, int(np.ceil(x1 / self.pitch)) + margin + 1)
        iy = np.arange(int(np.floor(y0 / row)) - margin, int(np.ceil(y1 / row)) + margin + 1)
        gx, gy = np.broadcast_arrays(ix[None, :], iy[:, None])
        px = (gx + 0.5 * (gy % 2) + self.jitter * (uniform(gx, gy, self.stream_x) - 0.5)) * self.pitch
        py = (gy + self.jitter * (uniform(gx, gy, self.stream_y) - 0.5)) * row
        for _ in range(self.steps):
            px, py = self._push(px, py)
        inside = (px >= x0) & (px < x1) & (py >= y0) & (py < y1)
        return gx[inside], gy[inside], px[inside], py[inside]

    def _push(self, px: Float, py: Float) -> tuple[Float, Float]:
        # The rim of the array moves too little for want of neighbours; the margin keeps it out of the box.
        qx, qy = px.copy(), py.copy()
        height, width = px.shape
        reach = self.spacing * self.pitch
        for dy, dx in self._AROUND:
            here = (slice(max(0, -dy), height - max(0, dy)), slice(max(0, -dx), width - max(0, dx)))
            there = (slice(max(0, dy), height + min(0, dy)), slice(max(0, dx), width + min(0, dx)))
            ax, ay = px[here] - px[there], py[here] - py[there]
            distance = np.sqrt(ax * ax + ay * ay) + 1e-9
            push = 0.4 * np.maximum(reach - distance, 0) / distance
            qx[here] += push * ax
            qy[here] += push * ay
        return qx, qy


def _unit(texture: NDArray) -> NDArray[np.float32]:
    return ((texture - texture.mean()) / texture.std()).astype(np.float32)


@lru_cache(maxsize=1)
def chromatin_texture() -> NDArray[np.float32]:
    """Clumped chromatin, (256, 256), mean 0 and standard deviation 1, periodic, 0.25 µm per texel."""
    white = numpy_generator("chromatin").standard_normal((256, 256))
    fine = _unit(ndimage.gaussian_filter(white, 1.3, mode="wrap"))
    coarse = _unit(ndimage.gaussian_filter(white[::-1], 3.2, mode="wrap"))
    return _unit(np.tanh(0.9 * (0.8 * fine + 0.75 * coarse)))


@lru_cache(maxsize=1)
def granule_texture() -> NDArray[np.float32]:
    """Fine cytoplasm granules, (512, 512), mean 0 and standard deviation 1, periodic, 0.5 µm per texel."""
    white = numpy_generator("granules").standard_normal((512, 512))
    fine = _unit(ndimage.gaussian_filter(white, 0.8, mode="wrap"))
    coarse = _unit(ndimage.gaussian_filter(white.T, 2.5, mode="wrap"))
    return _unit(0.7 * fine + 0.7 * coarse)


@lru_cache(maxsize=1)
def fibre_texture() -> NDArray[np.float32]:
    """Collagen strands in [0, 1], (1024 along, 1024 across), periodic; 2 µm per texel along, 0.25 µm across."""
    random = numpy_generator("fibres")
    fine = ndimage.gaussian_filter(random.standard_normal((1024, 1024)), (9, 2.4), mode="wrap")
    strand = ndimage.gaussian_filter(random.standard_normal((1024, 1024)), (16, 6.0), mode="wrap")
    bundle = ndimage.gaussian_filter(random.standard_normal((1024, 1024)), (24, 20.0), mode="wrap")
    mixed = 0.55 * _unit(fine) + 0.75 * _unit(strand) + 0.6 * _unit(bundle)
    ranks = special.ndtr(_unit(mixed))
    return ranks.astype(np.float32)
