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


def hash_words(ix: NDArray, iy: NDArray, stream: int | NDArray) -> Words:
    """32 well-mixed bits for integer positions, different for every ``stream`` (murmur finaliser); all broadcast."""
    x = np.asarray(ix).astype(np.uint32) * np.uint32(0x8DA6B343)
    y = np.asarray(iy).astype(np.uint32) * np.uint32(0xD8163841)
    word = (x ^ (np.asarray(stream) & 0xFFFFFFFF).astype(np.uint32)) + y
    word ^= word >> np.uint32(16)
    word *= np.uint32(0x85EBCA6B)
    word ^= word >> np.uint32(13)
    word *= np.uint32(0xC2B2AE35)
    word ^= word >> np.uint32(16)
    return word


def uniform(ix: NDArray, iy: NDArray, stream: int | NDArray) -> Float:
    """Uniform deviates in [0, 1) for integer positions."""
    return hash_words(ix, iy, stream) * 2.0**-32


def normal_of(words: Words) -> NDArray[np.float32]:
    """Standard normal deviates (|z| < 4.4, unit variance) from hash words."""
    return _QUANTILES[words >> np.uint32(16)]


def normal(ix: NDArray, iy: NDArray, stream: int | NDArray) -> NDArray[np.float32]:
    """Standard normal deviates for integer positions."""
    return normal_of(hash_words(ix, iy, stream))


class SplineNoise:
    """Smooth stationary noise, mean 0 and variance 1 on average: a cubic B-spline over hashed lattice values.

    Values are float32. ``period`` is the lattice spacing in µm; features are about 1.5 periods wide. With
    ``channels`` several independent noises are computed at once, stacked in front.
    """

    def __init__(self, period: float, *keys: int | str, channels: int | None = None) -> None:
        self.period = float(period)
        self._single = channels is None
        count = 1 if channels is None else channels
        streams = [seed_for("spline-noise", *keys, k) & 0xFFFFFFFF for k in range(count)]
        self._streams = np.array(streams)[:, None, None]
        shift = numpy_generator("spline-noise-shift", *keys).random(2)
        self._shift_x, self._shift_y = float(shift[0]), float(shift[1])

    def __call__(self, x: Float, y: Float) -> Float:
        """Values at positions in µm; ``x`` of shape (1, W) with ``y`` of shape (H, 1) takes the fast separable way."""
        shape = np.broadcast_shapes(x.shape, y.shape)
        grid = len(shape) == 2 and x.shape[0] == 1 and y.shape[1] == 1
        if 0 in shape:
            values = np.zeros((len(self._streams), *shape), dtype=np.float32)
            return values[0] if self._single else values
        jx, wx = _place(x / self.period + self._shift_x)
        jy, wy = _place(y / self.period + self._shift_y)
        x0, y0 = int(jx.min()), int(jy.min())
        lattice_x = np.arange(x0, int(jx.max()) + 4)[None, :]
        lattice_y = np.arange(y0, int(jy.max()) + 4)[:, None]
        lattice = normal(lattice_x, lattice_y, self._streams)
        lattice *= np.float32(1 / _SPLINE_POWER)
        jx -= x0
        jy -= y0
        if grid:
            ix, iy, wx, wy = jx[0], jy[:, 0], wx[:, 0], wy[:, :, 0, None]
            rows = wx[0] * lattice[:, :, ix]
            for k in range(1, 4):
                rows += wx[k] * lattice[:, :, ix + k]
            values = wy[0] * rows[:, iy]
            for k in range(1, 4):
                values += wy[k] * rows[:, iy + k]
        else:
            width = lattice.shape[2]
            flat = lattice.reshape(len(lattice), -1)
            index = (jy * width + jx) + np.arange(4).reshape(4, *(1,) * jx.ndim)
            values = np.zeros((len(flat), *jx.shape), dtype=np.float32)
            for k in range(4):
                near = flat.take(index + k * width, axis=1)
                near *= wx
                row = near[:, 0] + near[:, 1]
                row += near[:, 2]
                row += near[:, 3]
                row *= wy[k]
                values += row
        return values[0] if self._single else values


def _place(u: Float) -> tuple[NDArray[np.int64], Float]:
    """First of the four lattice points around positions, and their cubic B-spline weights (4, ...)."""
    floor = np.floor(u)
    fraction = u - floor
    square = fraction * fraction
    cube = square * fraction
    last = cube / 6
    rest = 1 - fraction
    first = rest * rest * rest / 6
    second = (4 - 6 * square + 3 * cube) / 6
    weights = np.stack([first, second, 1 - first - second - last, last])
    return floor.astype(np.int64) - 1, weights.astype(np.float32)


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
        margin = 2 + self.steps
        ix = np.arange(int(np.floor(x0 / self.pitch)) - margin, int(np.ceil(x1 / self.pitch)) + margin + 1)
        iy = np.arange(int(np.floor(y0 / row)) - margin, int(np.ceil(y1 / row)) + margin + 1)
        gx, gy = np.broadcast_arrays(ix[None, :], iy[:, None])
        px: Float = (gx + 0.5 * (gy % 2) + self.jitter * (uniform(gx, gy, self.stream_x) - 0.5)) * self.pitch
        py: Float = (gy + self.jitter * (uniform(gx, gy, self.stream_y) - 0.5)) * row
        for _ in range(self.steps):
            px, py = self._push(px, py)
        gx, gy = (each[self.steps : -self.steps, self.steps : -self.steps] for each in (gx, gy))
        inside = (px >= x0) & (px < x1) & (py >= y0) & (py < y1)
        return gx[inside], gy[inside], px[inside], py[inside]

    def _push(self, px: Float, py: Float) -> tuple[Float, Float]:
        """Points moved away from close neighbours; the rim, which lacks some, is dropped."""
        height, width = px.shape
        inner = (slice(1, height - 1), slice(1, width - 1))
        views = [(slice(1 + dy, height - 1 + dy), slice(1 + dx, width - 1 + dx)) for dy, dx in self._AROUND]
        qx, qy = px[inner].copy(), py[inner].copy()
        ax = qx - np.stack([px[view] for view in views])
        ay = qy - np.stack([py[view] for view in views])
        distance = np.sqrt(ax * ax + ay * ay)
        distance += 1e-9
        push = self.spacing * self.pitch - distance
        np.maximum(push, 0, out=push)
        push /= distance
        push *= 0.4
        ax *= push
        ay *= push
        for k in range(len(views)):  # one by one: the order of a sum must not depend on the shape
            qx += ax[k]
            qy += ay[k]
        return qx, qy


def _unit(texture: NDArray) -> NDArray[np.float32]:
    return ((texture - texture.mean()) / texture.std()).astype(np.float32)


@lru_cache(maxsize=1)
def chromatin_texture() -> NDArray[np.float32]:
    """Clumped chromatin, (256, 256), mean 0 and standard deviation 1, periodic, 0.25 µm per texel."""
    white = numpy_generator("chromatin").standard_normal((256, 256))
    fine = _unit(ndimage.gaussian_filter(white, 1.7, mode="wrap"))
    coarse = _unit(ndimage.gaussian_filter(white[::-1], 3.8, mode="wrap"))
    return _unit(np.tanh(0.9 * (0.8 * fine + 0.75 * coarse)))


@lru_cache(maxsize=1)
def granule_texture() -> NDArray[np.float32]:
    """Fine cytoplasm granules, (512, 512), mean 0 and standard deviation 1, periodic, 0.5 µm per texel."""
    white = numpy_generator("granules").standard_normal((512, 512))
    fine = _unit(ndimage.gaussian_filter(white, 0.8, mode="wrap"))
    coarse = _unit(ndimage.gaussian_filter(white.T, 2.5, mode="wrap"))
    return _unit(0.7 * fine + 0.7 * coarse)


ORIENTATIONS = 16  # of the fibre textures, over half a turn


@lru_cache(maxsize=1)
def fibre_textures() -> NDArray[np.float32]:
    """Collagen seen along every direction: (2, ORIENTATIONS + 1, 512, 512), ranks 0–1, periodic.

    0.5 µm per texel. Channel 0 holds strands, channel 1 the bundles between which gaps open. Orientation k runs
    at k·π/ORIENTATIONS from the x axis; the last equals the first. All come from the same white noise, so that
    neighbours may be blended.
    """
    size = 512
    random = numpy_generator("fibres")
    fy, fx = np.meshgrid(np.fft.fftfreq(size, 0.5), np.fft.rfftfreq(size, 0.5), indexing="ij")
    # Per layer: white noise, standard deviations (µm) along and across the fibres, weight.
    layers = [
        [(np.fft.rfft2(random.standard_normal((size, size))), *shape) for shape in shapes]
        for shapes in (
            ((7.0, 0.42, 0.55), (13.0, 1.1, 0.8), (16.0, 3.6, 0.65)),
            ((7.0, 1.5, 1.0), (15.0, 4.0, 0.8)),
        )
    ]
    out = np.empty((2, ORIENTATIONS + 1, size, size), dtype=np.float32)
    for k in range(ORIENTATIONS):
        angle = np.pi * k / ORIENTATIONS
        along = fx * np.cos(angle) + fy * np.sin(angle)
        across = fy * np.cos(angle) - fx * np.sin(angle)
        for channel, parts in enumerate(layers):
            total = np.zeros((size, size))
            for white, length, width, weight in parts:
                spread = np.exp(-2 * np.pi**2 * ((along * length) ** 2 + (across * width) ** 2))
                total += weight * _unit(np.fft.irfft2(white * spread, s=(size, size)))
            out[channel, k] = special.ndtr(_unit(total))
    out[:, ORIENTATIONS] = out[:, 0]
    return out


@lru_cache(maxsize=1)
def scanner_noise() -> NDArray[np.float32]:
    """Noise of a camera in red, green and blue: (3, 512, 512), standard normal, periodic."""
    return numpy_generator("scanner").standard_normal((3, 512, 512)).astype(np.float32)
