"""What a scanner sees of stained tissue: absorption, blur, noise."""

from __future__ import annotations

from dataclasses import dataclass

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from morphogen.core.seeds import numpy_generator, seed_for
from morphogen.demo.simulator.noise import scanner_noise
from morphogen.demo.simulator.stamps import Canvas, Grey

BLUR = 0.34  # standard deviation of the optical blur, µm
NOISE = 1.6  # standard deviation of the camera's noise, grey levels


def rim_of(mpp: float) -> int:
    """Pixels beyond a window that the blur needs."""
    return max(3, int(np.ceil(3 * BLUR / mpp)))


@dataclass(frozen=True)
class Handling:
    """What a laboratory adds to an image after the scan: focus and compression."""

    focus: float  # standard deviation of the blur, µm
    quality: int  # of the JPEG

    @classmethod
    def of(cls, seed: int, patient: str) -> Handling:
        """That of a patient's laboratory."""
        random = numpy_generator(seed, "handling", patient)
        return cls(float(random.uniform(0.0, 2.2)), int(random.integers(25, 96)))

    def __call__(self, image: NDArray[np.uint8], mpp: float) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 as it leaves the laboratory."""
        if self.focus > 0.05 * mpp:
            sigma = self.focus / mpp
            image = np.rint(ndimage.gaussian_filter(image.astype(np.float32), (sigma, sigma, 0))).astype(
                np.uint8
            )
        return np.asarray(imagecodecs.jpeg8_decode(imagecodecs.jpeg8_encode(image, level=self.quality)))


class Scanner:
    """One scan of one section: Beer–Lambert absorption of light by stains, blur, camera noise."""

    def __init__(self, white: NDArray[np.float64], *keys: int | str) -> None:
        self._white = white
        self._shift = seed_for("scanner", *keys)

    def __call__(self, window: Canvas, stains: list[tuple[Grey, NDArray[np.float64]]]) -> NDArray[np.uint8]:
        """The image of a window, less :func:`rim_of` pixels on every side, (height, width, 3).

        ``stains`` are pairs of amounts (height, width) and optical densities of red, green and blue per amount:
        light = white · 10^(−Σ amount · density).
        """
        rim = rim_of(window.mpp)
        inner = (slice(rim, window.height - rim), slice(rim, window.width - rim))
        out = np.empty((window.height - 2 * rim, window.width - 2 * rim, 3), dtype=np.uint8)
        cols = (window.x + rim + np.arange(out.shape[1]) + (self._shift & 511)) & 511
        rows = (window.y + rim + np.arange(out.shape[0]) + (self._shift >> 9 & 511)) & 511
        for channel in range(3):
            light = np.zeros((window.height, window.width), dtype=np.float32)
            for amount, vector in stains:
                light += amount * np.float32(-np.log(10.0) * vector[channel])
            np.exp(light, out=light)
            for axis in (0, 1):
                light = ndimage.gaussian_filter1d(
                    light, BLUR / window.mpp, axis=axis, radius=rim, mode="nearest"
                )
            light = light[inner] * np.float32(self._white[channel])
            noise = scanner_noise()[channel][rows][:, cols]
            noise *= np.float32(NOISE)
            light += noise
            light += np.float32(0.5)
            np.clip(light, 0, 255, out=light)
            out[..., channel] = light
        return out
