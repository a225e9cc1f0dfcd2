"""What needs no learning, or hardly any: every table of a stain model shows these beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from morphogen.slides.colour import deconvolve, optical_density, reconstruct
from morphogen.slides.recolouring import glass_colour, on_white_glass
from morphogen.stain.data import Pair, stains_of
from morphogen.stain.pairs.geometry import read_aligned, scanned
from morphogen.stain.recipes.colours import ColourPolynomial

Baseline = Callable[[np.ndarray], np.ndarray]
"""H&E (H, W, 3) uint8 → an image, or intensities (H, W, C), of the same size."""


def identity(he: np.ndarray) -> np.ndarray:
    """The H&E itself."""
    return he


def deconvolution(he: np.ndarray) -> np.ndarray:
    """Colour deconvolution only: haematoxylin stays, what looks like DAB in the H&E is drawn as DAB, eosin
    goes.

    The three-stain vectors of Ruifrok and Johnston (2001).
    """
    amounts = deconvolve(np.array(he), "hed", layout="nhwc")
    amounts[:, 1] = 0
    return reconstruct(amounts, "hed", dtype="uint8")[0].permute(1, 2, 0).contiguous().numpy()


class ColourMap(ColourPolynomial):
    """The best colour change per pixel: quadratic least squares from H&E optical density to that of the
    stain.
    """

    def fit(self, pairs: Iterable[Sequence[Any]], stride: int = 2) -> ColourMap:
        """Pairs of H&E and IHC (H, W, 3) uint8, every ``stride``-th pixel of both axes; where a third is there, a mask
        (H, W), within it."""
        for he, ihc, *mask in pairs:
            density: Tensor = optical_density(np.array(ihc), layout="nhwc")[0]
            values = density.permute(1, 2, 0).to(torch.float64).numpy()
            self.add(he, values, mask[0] if mask else None, stride)
        return self

    def __call__(self, he: np.ndarray) -> np.ndarray:
        return np.rint(255 * 10.0 ** -self.values(he).clip(0, None)).clip(0, 255).astype(np.uint8)


def colour_maps(training: Sequence[Pair]) -> dict[str, ColourMap]:
    """The map that fits the training pairs of every stain best."""
    return {
        stain: ColourMap().fit(
            (*read_aligned(pair), scanned(pair)) for pair in training if pair.stain == stain
        )
        for stain in stains_of(training)
    }


def eosin(he: np.ndarray) -> np.ndarray:
    """(H, W, 1) optical density of eosin, by deconvolution with the vectors of Ruifrok and Johnston (2001)."""
    return deconvolve(np.array(he), "hed", layout="nhwc")[0, 1].double().numpy()[..., None]


def grey_density(he: np.ndarray) -> np.ndarray:
    """(H, W, 1) mean optical density: how dark the H&E is."""
    return optical_density(np.array(he), layout="nhwc")[0].mean(dim=0).double().numpy()[..., None]


class ChannelBaselines:
    """What the colour of the H&E alone tells of channels: amounts of eosin and darkness on the line that fits the
    training pairs best, and the quadratic colour map fitted to them; each with the colour of the glass taken out too.
    """

    FEATURES = {"eosin by deconvolution": eosin, "H&E grey": grey_density}

    def __init__(self, training: Sequence[Pair]) -> None:
        width = training[0].target.width
        self._maps = {light: ColourPolynomial(width) for light in (False, True)}
        self._lines = {
            (name, light): np.zeros((3, 1 + width)) for name in self.FEATURES for light in (False, True)
        }
        for he, target, mask in _read(training):
            for light in (False, True):
                seen = on_white_glass(he, glass_colour(he)) if light else he
                self._maps[light].add(seen, target, mask)
                for name, feature in self.FEATURES.items():
                    self._lines[name, light] += _sums(feature(seen), target, mask)

    def methods(self) -> dict[str, Baseline]:
        """H&E (H, W, 3) → intensities (H, W, C), by name."""
        made: dict[str, Baseline] = {}
        for light, words in ((False, ""), (True, ", glass taken out")):
            made[f"colour map{words}"] = _seen(self._maps[light].values, light)
            for name, feature in self.FEATURES.items():
                made[f"{name}{words}"] = _seen(_on_line(feature, *_line(self._lines[name, light])), light)
        return made


def _on_line(feature: Baseline, slope: np.ndarray, offset: np.ndarray) -> Baseline:
    return partial(_line_of, feature, slope, offset)


def _line_of(feature: Baseline, slope: np.ndarray, offset: np.ndarray, he: np.ndarray) -> np.ndarray:
    return feature(he) * slope + offset


def _seen(make: Baseline, light: bool) -> Baseline:
    """``make`` of an H&E, its glass taken out where ``light`` says so; never below 0."""
    return partial(_made_of, make, light)


def _made_of(make: Baseline, light: bool, he: np.ndarray) -> np.ndarray:
    return make(on_white_glass(he, glass_colour(he)) if light else he).clip(0, None)


def _read(pairs: Sequence[Pair]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    for pair in pairs:
        he, target = read_aligned(pair)
        yield he, target.astype(np.float64), scanned(pair)


def _sums(x: np.ndarray, y: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """What a line needs of an image: rows n, Σx, Σx² and, beside them, of every channel Σy, Σxy (and 0)."""
    keep = np.ones(x.shape[:2], bool) if mask is None else mask
    a, b = x[keep][:, :1], y[keep]
    left = np.array([[len(a)], [a.sum()], [(a * a).sum()]])
    right = np.stack([b.sum(axis=0), (a * b).sum(axis=0), np.zeros(b.shape[1])])
    return np.concatenate([left, right], axis=1)


def _line(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope and offset (C,) of the least squares line."""
    n, x, xx = sums[:, 0]
    y, xy = sums[0, 1:], sums[1, 1:]
    spread = n * xx - x * x
    slope = (n * xy - x * y) / spread if spread > 0 else np.zeros_like(y)
    return slope, (y - slope * x) / max(n, 1)
