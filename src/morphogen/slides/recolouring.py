"""Other colours of one tissue: random changes of stain, and the light of the glass taken out."""

from __future__ import annotations

import numpy as np


def colour_map(random: np.random.Generator, size: float) -> np.ndarray:
    """A random change of stain: (3, 4), a matrix on optical density near the identity and the white that is left.

    size: standard deviation of the amounts of stain, relative; of their directions half of it.
    """
    amount = np.exp(random.normal(0, size, 3))
    turn = np.eye(3) + random.normal(0, 0.25 * size, (3, 3)) * (1 - np.eye(3))
    white = np.clip(random.normal(0, 0.1 * size, 3), -0.05, 0.08)
    return np.concatenate([turn * amount[:, None], white[:, None]], axis=1)


def recoloured(image: np.ndarray, change: np.ndarray) -> np.ndarray:
    """(…, 3) uint8 with a change of stain applied to its optical density."""
    levels = -np.log10((np.arange(256, dtype=np.float32) + 1) / 256)
    density = levels[image] @ change[:, :3].T.astype(np.float32) + change[:, 3].astype(np.float32)
    return np.clip(np.rint(256 * 10**-density - 1), 0, 255).astype(np.uint8)


_WHITE = 250  # from this level of all channels on, a pixel is saturated glass, or was not scanned
_BRIGHTEST = 99  # percentile of the rest that is taken for the light of the glass


def glass_colour(image: np.ndarray) -> tuple[float, float, float]:
    """The colour of the light in a picture (H, W, 3) uint8: the 99th percentile of each channel, pixels aside that are
    white.

    What scanners and microscopes give to the same glass differs by up to a half; colours divided by it agree. Of a
    picture that shows no glass it is the palest tissue, which makes it paler than it is.
    """
    step = max(1, max(image.shape[:2]) // 1024)
    pixels = image[::step, ::step].reshape(-1, 3)
    rest = pixels[(pixels < _WHITE).any(axis=1)]
    if len(rest) < max(16, len(pixels) // 100):
        return 255.0, 255.0, 255.0
    red, green, blue = (max(1.0, float(value)) for value in np.percentile(rest, _BRIGHTEST, axis=0))
    return red, green, blue


def on_white_glass(image: np.ndarray, glass: tuple[float, float, float]) -> np.ndarray:
    """(…, 3) uint8 divided by the colour of its glass, which becomes white."""
    levels = np.arange(256, dtype=np.float64)
    table = [np.clip(np.rint(levels * 255 / each), 0, 255).astype(np.uint8) for each in glass]
    return np.stack([table[k][image[..., k]] for k in range(3)], axis=-1)
