"""What is scored, and how one pair is: methods by name on a pair, in whatever process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from morphogen.core.running.work import Item
from morphogen.metrics.pairs import lpips, resnet50_layers
from morphogen.slides import get_encoder
from morphogen.slides.images import list_images
from morphogen.stain.data import Pair
from morphogen.stain.outputs import read_uncertainty
from morphogen.stain.pairs.geometry import cells_of, fitted, read_aligned, scanned
from morphogen.stain.scoring.baselines import Baseline
from morphogen.stain.scoring.channels import ChannelMethod, Made
from morphogen.stain.scoring.config import EvaluateConfig
from morphogen.stain.scoring.scores import ImageScores, features_of, perceptual, score_pair
from morphogen.stain.targets.files import read_image, read_made

Method = Callable[[Pair, np.ndarray], np.ndarray]
"""A pair and its H&E (H, W, 3) uint8 → a picture of the same size."""
Doubt = Callable[[Pair], np.ndarray | None]
"""A pair → (H, W) uncertainty of a method, where it has one."""


# -- methods; all can be pickled


def from_files(files: Mapping[str, Path]) -> Method:
    """Images by the names of their pairs."""
    return partial(_of_file, files)


def _of_file(files: Mapping[str, Path], pair: Pair, he: np.ndarray) -> np.ndarray:
    return read_image(files[pair.name])


def from_he(baseline: Baseline) -> Method:
    """A method that sees the H&E alone."""
    return partial(_of_he, baseline)


def _of_he(baseline: Baseline, pair: Pair, he: np.ndarray) -> np.ndarray:
    return baseline(he)


def from_maps(maps: Mapping[str, Baseline]) -> Method:
    """The map of a pair's stain, by the names of the stains."""
    return partial(_of_map, maps)


def _of_map(maps: Mapping[str, Baseline], pair: Pair, he: np.ndarray) -> np.ndarray:
    return maps[pair.stain](he)


def uncertainty_in(folder: Path) -> Doubt:
    """The 16-bit images of ``folder/uncertainty``."""
    return partial(_uncertainty, folder)


def _uncertainty(folder: Path, pair: Pair) -> np.ndarray | None:
    path = folder / "uncertainty" / f"{pair.name}.png"
    return read_uncertainty(path) if path.is_file() else None


def channels_from(folder: Path, files: Mapping[str, Path]) -> ChannelMethod:
    """Images of channels, with the samples and uncertainty that lie beside them."""
    draws = [list_images(each) for each in sorted(folder.glob("samples/*")) if each.is_dir()]
    doubts = list_images(folder / "uncertainty") if (folder / "uncertainty").is_dir() else {}
    return partial(_channels_of, files, draws, doubts)


def _channels_of(
    files: Mapping[str, Path],
    draws: list[dict[str, Path]],
    doubts: Mapping[str, Path],
    pair: Pair,
    he: np.ndarray,
) -> Made:
    def read(path: Path) -> np.ndarray:
        return read_made(path, pair.target)

    kept = [read(each[pair.name]) for each in draws if pair.name in each]
    return Made(
        read(files[pair.name]),
        np.stack(kept) if len(kept) > 1 else None,
        read(doubts[pair.name]) if pair.name in doubts else None,
    )


# -- one pair


@dataclass(frozen=True, eq=False)
class PairScores:
    """All methods on pairs of images, as the engine of many items takes it.

    An outcome is the features (D,) of the real image and, by method, the scores and the features of its picture.
    """

    methods: Mapping[str, Method]
    config: EvaluateConfig
    stains: Any
    doubts: Mapping[str, Doubt]

    def load(self) -> tuple[Any, Any]:
        """The encoder, and the layers of the perceptual metric where it is asked for."""
        config = self.config
        resnet = resnet50_layers(config.resnet_weights) if config.resnet_weights else None
        return get_encoder(config.encoder, config.encoder_weights), resnet

    def __call__(
        self, loaded: tuple[Any, Any], item: Item, path: Path | None
    ) -> tuple[np.ndarray, dict[str, tuple[ImageScores, np.ndarray]]]:
        encoder, resnet = loaded
        pair: Pair = item.more
        config = self.config
        he, real = read_aligned(pair)
        mask, nuclei, size = scanned(pair), cells_of(pair), (real.shape[0], real.shape[1])
        found = {}
        for name, make in self.methods.items():
            image = fitted(pair, make(pair, he), size, f"image of '{name}'")
            doubt = self.doubts[name](pair) if name in self.doubts else None
            scores = score_pair(
                image,
                real,
                config,
                name=pair.name,
                unit=pair.unit,
                stain=pair.stain,
                stains=self.stains,
                uncertainty=fitted(pair, doubt, size, "uncertainty") if doubt is not None else None,
                mask=mask,
                nuclei=nuclei,
            )
            image, shown = (_shown(each, mask) for each in (image, real))
            if resnet is not None:
                scores.values["phv"] = perceptual(image, shown, resnet, config)
            if config.lpips:
                scores.values["lpips"] = float(lpips(shown[None], image[None])[0])
            found[name] = scores, features_of([image], encoder)[0]
        return features_of([_shown(real, mask)], encoder)[0], found


def _shown(image: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """A picture with glass where the target was not scanned: what sees pictures as a whole finds nothing there."""
    return image if mask is None else np.where(mask[..., None], image, np.uint8(255))
