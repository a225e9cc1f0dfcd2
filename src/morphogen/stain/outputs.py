"""What is written of a stained image or slide, and what it is in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from morphogen.slides.images import read_raw
from morphogen.stain.config import ApplyConfig
from morphogen.stain.recipes.translator import MEAN, SAMPLE, SAMPLES, UNCERTAINTY
from morphogen.tasks.bands import Band
from morphogen.tasks.layers import Layer

UNCERTAINTY_UNIT = 1e-4  # DAB optical density per grey level of the 16-bit uncertainty images
UNCERTAINTY_STEP = 0.002  # DAB optical density per grey level of the uncertainty pyramid (255 = 0.51)


@dataclass(frozen=True)
class Stained:
    """A stained image of the size of its H&E.

    sample, mean: (H, W, 3) uint8. uncertainty: (H, W) float32, SD of the DAB optical density over the
    samples. samples: (K, H, W, 3) uint8.
    """

    sample: np.ndarray
    mean: np.ndarray
    uncertainty: np.ndarray
    samples: np.ndarray

    @classmethod
    def of(cls, band: Band) -> Stained:
        """From the planes of :class:`~morphogen.stain.recipes.translator.StainTranslator`, all samples kept."""
        kept = [band.picture(plane) for plane in range(SAMPLES, len(band.planes), 3)]
        return cls(band.picture(SAMPLE), band.picture(MEAN), band.values(UNCERTAINTY), np.stack(kept))


def image_layers(config: ApplyConfig, keep_samples: bool = False) -> list[Layer]:
    """Files of one image: the stain; with several samples ``mean/``, ``uncertainty/`` (16-bit grey) and, where they
    are kept, ``samples/00/`` …"""
    layers = [_main(config, {})]
    if config.samples > 1:
        layers += [
            Layer("mean", _picture(MEAN)),
            Layer("uncertainty", _levels(UNCERTAINTY_UNIT, np.uint16), channels=1),
        ]
        if keep_samples:
            layers += [Layer(f"samples/{k:02d}", _picture(SAMPLES + 3 * k)) for k in range(config.samples)]
    return layers


def slide_layers(config: ApplyConfig, notes: Mapping[str, object]) -> list[Layer]:
    """Pyramids of a slide: the stain and, with several samples, its uncertainty; ``notes`` go into both."""
    layers = [_main(config, {**notes, "made by": "virtual staining, not a real immunostain"})]
    if config.samples > 1:
        unit = f"SD of DAB optical density, {UNCERTAINTY_STEP} per grey level"
        layers.append(
            Layer(
                "uncertainty",
                _levels(UNCERTAINTY_STEP, np.uint8),
                channels=1,
                codec="deflate",
                background=0,
                facts={**notes, "unit": unit},
            )
        )
    return layers


def _main(config: ApplyConfig, facts: Mapping[str, object]) -> Layer:
    return Layer("", _picture(MEAN if config.show == "mean" else SAMPLE), facts=facts)


def _picture(plane: int) -> Callable[[Band], np.ndarray]:
    return lambda band: band.picture(plane)


def _levels(unit: float, dtype: type[np.unsignedinteger]) -> Callable[[Band], np.ndarray]:
    most = np.iinfo(dtype).max
    return lambda band: np.clip(np.rint(band.values(UNCERTAINTY) / unit), 0, most).astype(dtype)


def read_uncertainty(path: Path | str) -> np.ndarray:
    """(H, W) float32 SD of the DAB optical density from a file of ``uncertainty/``."""
    return read_raw(path).astype(np.float32) * UNCERTAINTY_UNIT
