"""Scores of targets that are named channels: every channel by itself, and the mean over channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from morphogen.core.running.gather import gathered
from morphogen.core.running.spread import Spread
from morphogen.core.running.work import Item
from morphogen.core.seeds import numpy_generator
from morphogen.metrics.intervals import Interval, pooled_correlation
from morphogen.metrics.pairs import psnr, ssim
from morphogen.stain.data import Pair
from morphogen.stain.pairs.geometry import cells_of, fitted, read_aligned, scanned
from morphogen.stain.scoring.config import EvaluateConfig
from morphogen.stain.scoring.signals import signal_values, thresholds_of
from morphogen.stain.targets.config import TargetConfig
from morphogen.tasks.evaluation import (
    Columns,
    Evaluation,
    ItemScores,
    SetScores,
    mean_intervals,
    paired_differences,
)

POOLED = "tile_correlation_pooled"
COMPARED = ("tile_correlation", POOLED, "tile_mae", "dice", "crps", "sharpness")
KEYS: Columns = {
    "tile_correlation": ("r per tile, within images", "max"),
    POOLED: ("r per tile, all tiles", "max"),
    "tile_mae": ("error per tile", "min"),
    "crps": ("CRPS per tile", "min"),
    "coverage50": ("50 % interval covers", None),
    "coverage90": ("90 % interval covers", None),
    "dice": ("Dice", "max"),
    "iou": ("IoU", "max"),
    "hausdorff95": ("Hausdorff 95 %, px", "min"),
    "cell_correlation": ("r per nucleus", "max"),
    "cell_mae": ("error per nucleus", "min"),
    "cell_dice": ("Dice of positive nuclei", "max"),
    "sharpness": ("gradient ratio", None),
    "uncertainty_error_correlation": ("r of uncertainty and error", None),
    "risk": ("error kept by certainty", "min"),
    "ssim": ("SSIM", "max"),
    "psnr": ("PSNR", "max"),
}


@dataclass(frozen=True)
class Made:
    """What a method made of one pair: ``image`` (H, W, C) intensities and, where it has them, ``samples``
    (K, H, W, C) and ``uncertainty`` (H, W, C)."""

    image: np.ndarray
    samples: np.ndarray | None = None
    uncertainty: np.ndarray | None = None


ChannelMethod = Callable[[Pair, np.ndarray], Made]
"""A pair and its H&E (H, W, 3) uint8 → what was made of it, on the same pixels or those of the whole H&E."""


def made_from(make: Callable[[np.ndarray], np.ndarray]) -> ChannelMethod:
    """A method that sees the H&E alone and gives intensities (H, W, C)."""
    return partial(_made_of, make)


def _made_of(make: Callable[[np.ndarray], np.ndarray], pair: Pair, he: np.ndarray) -> Made:
    return Made(make(he))


@dataclass
class ChannelScores(ItemScores):
    """Scores of one pair, ``CHANNEL KEY`` and the mean over channels as ``KEY``; ``tiles`` holds the moments of every
    channel's tiles."""

    tiles: tuple[np.ndarray, ...]
    target: TargetConfig

    def row(self) -> dict[str, object]:
        """Cells of its line in ``images.csv``."""
        return {"image": self.name, "patient": self.unit, **self.values}


def score_channels(
    pair: Pair,
    real: np.ndarray,
    made: Made,
    mask: np.ndarray | None,
    tile: int,
    nuclei: np.ndarray | None = None,
) -> ChannelScores:
    """Scores of one pair, real (H, W, C) intensities, by one method."""
    target = pair.target
    limits = thresholds_of(target, 0.0)
    seen = real if mask is None else real[mask]
    full = target.full or tuple(float(seen[..., k].max(initial=0)) or 1.0 for k in range(target.width))
    values: dict[str, float] = {}
    tiles: list[np.ndarray] = []
    each_key: dict[str, list[float]] = {}
    for k, name in enumerate(target.channels):
        found, sums = signal_values(
            real[..., k],
            made.image[..., k],
            tile=tile,
            threshold=limits[k],
            mask=mask,
            nuclei=nuclei,
            samples=None if made.samples is None else made.samples[..., k],
            uncertainty=None if made.uncertainty is None else made.uncertainty[..., k],
        )
        shown = [
            np.repeat(
                np.clip(np.rint(255 * each[..., k : k + 1] / full[k]), 0, 255).astype(np.uint8), 3, axis=2
            )
            for each in (real, made.image)
        ]
        found |= {"ssim": ssim(shown[0], shown[1], mask), "psnr": psnr(shown[0], shown[1], mask)}
        tiles.append(sums)
        for key, value in found.items():
            each_key.setdefault(key, []).append(value)
            if target.width > 1:
                values[f"{name} {key}"] = value
    means = {}
    for key, found_values in each_key.items():
        known = [value for value in found_values if np.isfinite(value)]
        means[key] = float(np.mean(known)) if known else float("nan")
    return ChannelScores(pair.name, pair.unit, means | values, tuple(tiles), target)


def items_of(pairs: Sequence[Pair]) -> list[Item]:
    """Pairs as the engine of many items takes them."""
    names = [pair.name for pair in pairs]
    same = len(set(names)) < len(names)
    return [Item(f"{k} {pair.name}" if same else pair.name, None, pair) for k, pair in enumerate(pairs)]


@dataclass(frozen=True, eq=False)
class _EachPair:
    """All methods on pairs of channels, as that engine takes it: scores by method."""

    methods: dict[str, ChannelMethod]
    tile: int

    def load(self) -> bool:
        return True  # nothing

    def __call__(self, loaded: bool, item: Item, path: Path | None) -> dict[str, ChannelScores]:
        pair: Pair = item.more
        he, real = read_aligned(pair)
        mask, nuclei = scanned(pair), cells_of(pair)
        return {
            name: score_channels(
                pair, real, fitting(make(pair, he), real.shape, pair, name), mask, self.tile, nuclei
            )
            for name, make in self.methods.items()
        }


def evaluate_channels(
    pairs: Sequence[Pair],
    methods: dict[str, ChannelMethod],
    config: EvaluateConfig,
    spread: Spread | None = None,
    out: Path | None = None,
) -> list[Evaluation]:
    """Score methods on the same pairs of channels, where ``spread`` says; that is reported in ``out``."""
    rows: dict[str, list[ChannelScores]] = {name: [] for name in methods}
    work = _EachPair(methods, config.tile)
    for found in gathered(work, items_of(pairs), spread, what="scoring images", out=out):
        for name, scores in found.items():
            rows[name].append(scores)
    unit = "patient" if any(pair.patient for pair in pairs) else "image"
    return [Evaluation(name, scores_of(found, config, unit), found) for name, found in rows.items()]


def fitting(made: Made, size: tuple[int, ...], pair: Pair, method: str = "made") -> Made:
    """Cut like a registered pair where it is of the size of the whole H&E."""
    cuts = partial(fitted, pair, size=(size[0], size[1]), what=f"image of '{method}'")
    samples = None if made.samples is None else np.stack([cuts(each) for each in made.samples])
    return Made(cuts(made.image), samples, None if made.uncertainty is None else cuts(made.uncertainty))


def _names(target: TargetConfig) -> list[str]:
    """Prefixes of scores: of all channels together, then of each."""
    return ["", *(f"{name} " for name in target.channels if target.width > 1)]


def scores_of(rows: Sequence[ChannelScores], config: EvaluateConfig, unit: str = "image") -> SetScores:
    """Means over units with their intervals, of all channels together and of each."""
    target = rows[0].target
    keys = [f"{prefix}{key}" for prefix in _names(target) for key in KEYS if key != POOLED]
    intervals, undefined = mean_intervals(
        rows, keys, unit=unit, seed=config.seed, purpose="stain bootstrap", resamples=config.resamples
    )
    for prefix, found in _pooled(rows, target, config, unit).items():
        intervals[f"{prefix}{POOLED}"] = found
    return SetScores({}, intervals, undefined, {"images": len(rows)})


def _pooled(
    rows: Sequence[ChannelScores],
    target: TargetConfig,
    config: EvaluateConfig,
    unit: str,
    against: Sequence[ChannelScores] | None = None,
) -> dict[str, Interval]:
    """r over the tiles of all images, of every channel; of one channel as that of all."""
    out = {}
    for k, name in enumerate(target.channels):
        prefix = f"{name} " if target.width > 1 else ""
        out[prefix] = pooled_correlation(
            np.stack([row.tiles[k] for row in rows]),
            [row.unit for row in rows],
            against=None if against is None else np.stack([row.tiles[k] for row in against]),
            unit=unit,
            generator=numpy_generator(config.seed, "stain bootstrap", f"{prefix}{POOLED}"),
            resamples=config.resamples,
        )
    return out


def channel_differences(
    target: TargetConfig, config: EvaluateConfig, unit: str
) -> Callable[[Sequence[ChannelScores], Sequence[ChannelScores]], dict[str, Interval]]:
    """One method minus another on the same pairs, with intervals."""

    def between(own: Sequence[ChannelScores], others: Sequence[ChannelScores]) -> dict[str, Interval]:
        keys = [f"{prefix}{key}" for prefix in _names(target) for key in COMPARED if key != POOLED]
        found = paired_differences(
            own,
            others,
            keys,
            unit=unit,
            seed=config.seed,
            purpose="stain difference",
            resamples=config.resamples,
        )
        for prefix, interval in _pooled(own, target, config, unit, others).items():
            found[f"{prefix}{POOLED}"] = interval
        return found

    return between


def channel_tables(target: TargetConfig) -> list[tuple[str, Columns]]:
    """The tables of the page: all channels together, then each."""
    return [
        (
            prefix.strip() or ", ".join(target.channels),
            {f"{prefix}{key}": how for key, how in KEYS.items()},
        )
        for prefix in _names(target)
    ]
