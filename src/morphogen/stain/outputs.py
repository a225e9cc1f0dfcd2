"""What is written of a stained image or slide, and what it is in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from morphogen.slides.images import read_raw
from morphogen.stain.config import ApplyConfig
from morphogen.stain.data import COLOUR
from morphogen.stain.recipes.translator import Planes
from morphogen.stain.targets.config import TargetConfig
from morphogen.stain.targets.values import levels
from morphogen.tasks.bands import Band
from morphogen.tasks.layers import Layer

UNCERTAINTY_UNIT = 1e-4  # DAB optical density per grey level of the 16-bit uncertainty images
UNCERTAINTY_STEP = 0.002  # DAB optical density per grey level of the uncertainty pyramid (255 = 0.51)


@dataclass(frozen=True)
class Stained:
    """A stained image of the size of its H&E.

    sample, mean: (H, W, 3) uint8. uncertainty: (H, W) float32, SD of the DAB optical density over the
    samples. samples: (K, H, W, 3) uint8. Of channels: intensities (…, H, W, C) float32, and the SD of each.
    """

    sample: np.ndarray
    mean: np.ndarray
    uncertainty: np.ndarray
    samples: np.ndarray

    @classmethod
    def of(cls, band: Band, target: TargetConfig) -> Stained:
        """From the planes of :class:`~morphogen.stain.recipes.translator.StainTranslator`, all samples kept."""
        laid, width = Planes(target), target.width
        take = _picture if target.colour else lambda first: lambda band: band.channels(first, width)
        kept = [take(plane)(band) for plane in range(laid.samples, len(band.planes), width)]
        doubt = band.values(laid.uncertainty) if target.colour else band.channels(laid.uncertainty, width)
        return cls(take(0)(band), take(laid.mean)(band), doubt, np.stack(kept))


def image_layers(
    config: ApplyConfig, keep_samples: bool = False, target: TargetConfig = COLOUR
) -> list[Layer]:
    """Files of one image: the stain; with several samples ``mean/``, ``uncertainty/`` (16-bit grey, or channels in the
    levels of the image) and, where they are kept, ``samples/00/`` …"""
    laid = Planes(target)
    layers = [_main(config, {}, target)]
    if config.samples > 1:
        doubt = (
            Layer("uncertainty", _levels(laid.uncertainty, UNCERTAINTY_UNIT, np.uint16), channels=1)
            if target.colour
            else _channels("uncertainty", laid.uncertainty, target, {})
        )
        layers += [_layer("mean", laid.mean, target, {}), doubt]
        if keep_samples:
            firsts = (laid.samples + target.width * k for k in range(config.samples))
            layers += [_layer(f"samples/{k:02d}", first, target, {}) for k, first in enumerate(firsts)]
    return layers


def slide_layers(
    config: ApplyConfig, notes: Mapping[str, object], target: TargetConfig = COLOUR
) -> list[Layer]:
    """Pyramids of a slide: the stain and, with several samples, its uncertainty; ``notes`` go into both."""
    laid = Planes(target)
    layers = [_main(config, {**notes, "made by": "virtual staining, not a real immunostain"}, target)]
    if config.samples > 1 and not target.colour:
        layers.append(
            _channels("uncertainty", laid.uncertainty, target, {**notes, "shows": "SD of the samples"})
        )
    elif config.samples > 1:
        unit = f"SD of DAB optical density, {UNCERTAINTY_STEP} per grey level"
        layers.append(
            Layer(
                "uncertainty",
                _levels(laid.uncertainty, UNCERTAINTY_STEP, np.uint8),
                channels=1,
                codec="deflate",
                background=0,
                facts={**notes, "unit": unit},
            )
        )
    return layers


def _main(config: ApplyConfig, facts: Mapping[str, object], target: TargetConfig) -> Layer:
    return _layer("", Planes(target).mean if config.show == "mean" else 0, target, facts)


def _layer(name: str, first: int, target: TargetConfig, facts: Mapping[str, object]) -> Layer:
    """A picture in colour, or channels, from plane ``first`` on."""
    if target.colour:
        return Layer(name, _picture(first), facts=facts)
    return _channels(name, first, target, facts)


def _channels(name: str, first: int, target: TargetConfig, facts: Mapping[str, object]) -> Layer:
    """Intensities of channels as levels, lossless."""

    def pixels(band: Band) -> np.ndarray:
        made = levels(band.channels(first, target.width), target)
        return made[..., 0] if target.width == 1 else made

    unit = {} if target.step == 1 else {"unit": f"intensity, {target.step:.6g} per grey level"}
    return Layer(
        name,
        pixels,
        channels=target.width,
        codec="deflate",
        background=0,
        facts={**facts, **unit},
        dtype=target.kept,
        names=target.channels,
        colours=target.shown,
    )


def _picture(plane: int) -> Callable[[Band], np.ndarray]:
    return lambda band: band.picture(plane)


def _levels(plane: int, unit: float, dtype: type[np.unsignedinteger]) -> Callable[[Band], np.ndarray]:
    most = np.iinfo(dtype).max
    return lambda band: np.clip(np.rint(band.values(plane) / unit), 0, most).astype(dtype)


def read_uncertainty(path: Path | str) -> np.ndarray:
    """(H, W) float32 SD of the DAB optical density from a file of ``uncertainty/``."""
    return read_raw(path).astype(np.float32) * UNCERTAINTY_UNIT
