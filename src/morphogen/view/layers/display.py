"""From the pixels of a file to the pixels of a tile: colour, single channels, stains, maps, classes."""

from __future__ import annotations

from functools import cache

import numpy as np

from morphogen.report.style import COLOURS

MAPS = ("magma", "viridis", "grey")
STAINS = {
    "haematoxylin": ("hed", 0, (0.650, 0.704, 0.286)),
    "eosin": ("hed", 1, (0.072, 0.990, 0.105)),
    "DAB": ("hdab", 1, (0.268, 0.570, 0.776)),
}


@cache
def lookup(name: str) -> np.ndarray:
    """(256, 3) uint8 of a colour map by its name of matplotlib's."""
    if name == "grey":
        return np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    import matplotlib

    return (matplotlib.colormaps[name](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


def class_colour(label: int) -> tuple[int, int, int]:
    """Colour of a class: none for 0, then those of the project's figures in turn."""
    if label == 0:
        return 255, 255, 255
    text = COLOURS[(label - 1) % len(COLOURS)]
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def stain_density(pixels: np.ndarray, stain: str) -> np.ndarray:
    """(H, W) optical density (base 10) of a stain by name, of (H, W, 3) uint8; nothing below 0.

    The numbers of :func:`morphogen.slides.colour.deconvolve`, without torch, whose import a page would wait for.
    """
    from skimage.color import colorconv

    name, channel, _ = STAINS[stain]
    matrix = {"hed": colorconv.hed_from_rgb, "hdab": colorconv.hdx_from_rgb}[name]
    # scikit-image counts in sixths of the optical density; a channel of 0 is 1/255, the darkest a camera can tell.
    return 6 * colorconv.separate_stains(np.maximum(pixels, 1), matrix)[..., channel]


def shown_stain(pixels: np.ndarray, stain: str) -> np.ndarray:
    """(H, W, 3) uint8: one stain alone in its own colour on white, as a microscope would show it."""
    density = np.clip(stain_density(pixels, stain), 0, 4)[..., None]
    return (255 * 10 ** (-density * np.asarray(STAINS[stain][2]))).round().astype(np.uint8)


def shown_values(values: np.ndarray, name: str, limits: tuple[float, float]) -> np.ndarray:
    """(H, W, 3) uint8 of (H, W) numbers through a colour map between ``limits``."""
    low, high = limits
    level = (values.astype(np.float32) - low) * (255 / max(high - low, 1e-12))
    return lookup(name)[np.clip(level.round(), 0, 255).astype(np.uint8)]


def shown_classes(values: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 of (H, W) labels."""
    colours = np.array([class_colour(label) for label in range(256)], dtype=np.uint8)
    return colours[np.minimum(values, 255)]
