"""Other colours of one tissue: random changes of stain, the light of the glass taken out, and the same amount of stain
in every image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from morphogen.slides.colour import deconvolve, estimate_stains, stain_matrix


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
    density = _DENSITY[image] @ change[:, :3].T.astype(np.float32) + change[:, 3].astype(np.float32)
    return np.clip(np.rint(256 * 10**-density - 1), 0, 255).astype(np.uint8)


_DENSITY = -np.log10((np.arange(256, dtype=np.float32) + 1) / 256)  # of every level
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


Normalise = Literal["none", "white", "strength", "macenko"]
"""What is done to an H&E before anything looks at it, see :func:`normaliser`."""

MOST = 2.5  # factor between amounts of stain; beyond it an estimate has failed
_TISSUE = 0.15  # sum of the three optical densities from which a pixel on white glass is tissue
_STRENGTH = 0.5  # its mean over tissue
_STAINED = 0.15  # length of the vector of the three, likewise, as Macenko has it
_FEWEST = 100  # pixels of tissue that an estimate needs
_AMOUNTS = (0.6, 0.3)  # 99th percentiles of haematoxylin and eosin


@dataclass(frozen=True)
class Stains:
    """How an image is stained: Macenko's matrix and a high percentile of the amounts of its two stains."""

    matrix: np.ndarray
    amounts: np.ndarray

    @classmethod
    def of(cls, images: np.ndarray, *, robust: bool = False) -> Stains:
        """Of images (N, H, W, 3) uint8 together: extremes of 1 % of the pixels, 99th percentiles of the amounts.

        robust: extremes of 5 %, 90th percentiles over tissue. Of one image that is too little; of many together it is
        what a little blood, pigment or ink does not change.
        """
        matrix = estimate_stains(images, alpha=5.0 if robust else 1.0)
        amounts = deconvolve(images, matrix)[:, :2].permute(1, 0, 2, 3).flatten(1).numpy()
        if robust:
            density = np.linalg.norm(_DENSITY[images], axis=-1).ravel()
            tissue = amounts[:, density > _STAINED]
            amounts = tissue if tissue.shape[1] >= _FEWEST else amounts
        high = np.quantile(amounts, 0.9 if robust else 0.99, axis=1)
        return cls(matrix.numpy(), np.maximum(high, 1e-3))

    @classmethod
    def usual(cls) -> Stains:
        """The vectors of Ruifrok and Johnston (2001) in amounts as tissue arrays have them."""
        matrix = stain_matrix("he", device="cpu").numpy()
        return cls(matrix / np.linalg.norm(matrix, axis=1, keepdims=True), np.array(_AMOUNTS))

    def factors(self, target: Stains) -> np.ndarray:
        """(2,) of the amounts, from this staining to another; at most 2.5 either way."""
        return np.clip(target.amounts / self.amounts, 1 / MOST, MOST)

    def change(self, target: Stains) -> np.ndarray:
        """(3, 4), as :func:`recoloured` takes it: this staining laid out in the amounts and colours of another (Macenko
        et al. 2009)."""
        mixed = np.linalg.inv(self.matrix) @ np.diag([*self.factors(target), 1.0]) @ target.matrix
        return np.concatenate([mixed.T, np.zeros((3, 1))], axis=1)


@dataclass(frozen=True, eq=False)
class Normaliser:
    """Images of one light and one staining → on white glass and, with ``change`` (3, 4), in the usual staining.

    glass: colour of the light.
    """

    glass: tuple[float, float, float]
    change: np.ndarray | None = None

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(…, 3) uint8 → likewise."""
        white = on_white_glass(image, self.glass)
        return white if self.change is None else recoloured(white, self.change)


def normaliser(image: np.ndarray, how: Normalise) -> Normaliser | None:
    """What sets a picture (H, W, 3) uint8, or the slide that it is an overview of, beside all others.

    how: ``white`` divides by the colour of the glass. ``strength`` also gives all tissue the same mean optical
    density: one factor for thickness and staining. ``macenko`` lays the two stains that are estimated out in fixed
    colours and 99th percentiles (Macenko et al. 2009). ``none`` is ``None``. A picture that shows hardly any tissue
    keeps its stain.
    """
    if how == "none":
        return None
    glass = glass_colour(image)
    if how == "white":
        return Normaliser(glass)
    step = max(1, max(image.shape[:2]) // 1024)
    white = on_white_glass(image[::step, ::step], glass)
    density = _DENSITY[white].sum(axis=-1)
    tissue = density > _TISSUE
    if tissue.sum() < _FEWEST:
        return Normaliser(glass)
    if how == "macenko":
        return Normaliser(glass, Stains.of(np.ascontiguousarray(white)[None]).change(Stains.usual()))
    factor = float(np.clip(_STRENGTH / density[tissue].mean(), 1 / MOST, MOST))
    return Normaliser(glass, np.concatenate([factor * np.eye(3), np.zeros((3, 1))], axis=1))


def normalised(image: np.ndarray, how: Normalise) -> np.ndarray:
    """A picture (H, W, 3) uint8 set beside all others by what itself shows."""
    made = normaliser(image, how)
    return image if made is None else made(image)
