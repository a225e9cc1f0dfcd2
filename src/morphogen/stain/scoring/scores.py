"""Scores of one pair, and of a set of pairs: DAB first, then retrieval, perception, features, pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from morphogen.core.errors import InputError
from morphogen.core.seeds import numpy_generator
from morphogen.metrics.images import frechet_distance, kernel_distance, manifold
from morphogen.metrics.intervals import Interval, moments, pooled_correlation
from morphogen.metrics.pairs import molecular_retrieval, perceptual_hash_value, psnr, ssim
from morphogen.metrics.signals import seen_tiles
from morphogen.metrics.stain import (
    correlation,
    dab_agreement,
    dab_summary,
    detail_ratio,
    sharpness_ratio,
    tile_means,
)
from morphogen.slides.colour import dab_density
from morphogen.stain.scoring.config import EvaluateConfig
from morphogen.stain.scoring.signals import signal_values
from morphogen.tasks.evaluation import ItemScores, SetScores, mean_intervals, paired_differences

PROTOCOL = "stain-2"  # changes whenever a figure would change on the same images
OF_SIGNAL = ("dice", "iou", "hausdorff95", "risk", "cell_correlation", "cell_mae", "cell_dice")
NEIGHBOURS = 5  # k of precision, recall, density and coverage


@dataclass
class ImageScores(ItemScores):
    """Scores of one pair; ``tiles`` holds the tile means of DAB (predicted, real) for the pooled figures."""

    stain: str
    tiles: tuple[np.ndarray, np.ndarray]
    summaries: tuple[Any, Any]

    def row(self) -> dict[str, Any]:
        """Cells of its line in ``images.csv``."""
        return {"image": self.name, "patient": self.unit, "stain": self.stain, **self.values}


def score_pair(
    predicted: np.ndarray,
    real: np.ndarray,
    config: EvaluateConfig,
    *,
    name: str = "",
    unit: str = "",
    stain: str = "IHC",
    stains: Any = "hdab",
    uncertainty: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    nuclei: np.ndarray | None = None,
) -> ImageScores:
    """Scores of a predicted against a real image, both (H, W, 3) uint8.

    ``stains`` are the vectors of the DAB maps. With ``uncertainty`` (H, W), its correlation with the
    absolute error of the DAB map is a score, pixel by pixel and tile by tile. Only what lies within ``mask`` (H, W)
    counts; ``nuclei`` (H, W), the number of the nucleus of every pixel and 0 for none, give scores by nucleus.
    """
    if mask is not None and not mask.any():
        raise InputError(
            "nothing of the real stain was scanned, says its mask", where=name, fix="Leave the pair out"
        )
    maps = [dab_density(image, stains, layout="nhwc")[0].numpy() for image in (predicted, real)]
    summaries = [dab_summary(each, mask, positive=config.positive, bins=config.bins) for each in maps]
    tile = min(config.tile, *real.shape[:2])
    keep = seen_tiles(mask, (real.shape[0], real.shape[1]), tile)
    tiles = [tile_means(each, tile)[keep] for each in maps]
    found, _ = signal_values(
        *(maps[1], maps[0]),
        tile=tile,
        threshold=config.positive,
        mask=mask,
        uncertainty=uncertainty,
        nuclei=nuclei,
    )
    values = {
        "dab_tile_correlation": found["tile_correlation"],
        "dab_tile_mae": found["tile_mae"],
        "dab_mean": summaries[0].mean,
        "dab_mean_real": summaries[1].mean,
        "dab_positive": summaries[0].positive,
        "dab_positive_real": summaries[1].positive,
        "h_score": summaries[0].h_score,
        "h_score_real": summaries[1].h_score,
        "ssim": ssim(real, predicted, mask),
        "psnr": psnr(real, predicted, mask),
        "sharpness": sharpness_ratio(real, predicted, mask),
        "detail": detail_ratio(real, predicted, mask),
    }
    values |= {f"dab_{key}": found[key] for key in OF_SIGNAL if key in found}
    if uncertainty is not None:
        error, seen = np.abs(maps[0] - maps[1]), np.s_[:] if mask is None else mask
        values["uncertainty_error_correlation"] = correlation(uncertainty[seen], error[seen])
        values["uncertainty_error_tile_correlation"] = correlation(
            tile_means(uncertainty, tile)[keep], tile_means(error, tile)[keep]
        )
    return ImageScores(name, unit or name, values, stain, (tiles[0], tiles[1]), (summaries[0], summaries[1]))


INTERVALS = (
    "dab_tile_correlation",
    "dab_tile_mae",
    *(f"dab_{key}" for key in OF_SIGNAL),
    "ssim",
    "psnr",
    "phv",
    "lpips",
    "sharpness",
    "detail",
    "uncertainty_error_correlation",
    "uncertainty_error_tile_correlation",
)


POOLED = "dab_tile_correlation_pooled"
COMPARED = ("dab_tile_correlation", POOLED, "dab_tile_mae")


def _moments(images: Sequence[ImageScores]) -> np.ndarray:
    return np.stack([moments(*image.tiles) for image in images])


def differences(
    images: Sequence[ImageScores],
    others: Sequence[ImageScores],
    config: EvaluateConfig,
    *,
    unit: str = "image",
) -> dict[str, Interval]:
    """``images`` minus ``others``, two methods on the same pairs: paired differences of the DAB scores with their
    intervals. Pairs where either score is undefined are left out of the means over images.
    """
    means = [key for key in COMPARED if key != POOLED]
    options: dict[str, Any] = {"unit": unit, "resamples": config.resamples}
    found = paired_differences(images, others, means, seed=config.seed, purpose="stain difference", **options)
    found[POOLED] = pooled_correlation(
        _moments(images),
        [image.unit for image in images],
        against=_moments(others),
        generator=numpy_generator(config.seed, "stain difference", POOLED),
        **options,
    )
    return {key: found[key] for key in COMPARED if key in found}


def score_set(
    images: Sequence[ImageScores],
    config: EvaluateConfig,
    *,
    features: tuple[np.ndarray, np.ndarray] | None = None,
    unit: str = "image",
) -> SetScores:
    """Scores over a set of pairs; ``features`` (N, D) of the predicted and of the real images."""
    agreement = dab_agreement([i.summaries[1] for i in images], [i.summaries[0] for i in images])
    figures: dict[str, float] = {f"dab_{key}": value for key, value in vars(agreement).items() if key != "n"}
    intervals, undefined = mean_intervals(
        images,
        INTERVALS,
        unit=unit,
        seed=config.seed,
        purpose="stain bootstrap",
        resamples=config.resamples,
    )
    intervals[POOLED] = pooled_correlation(
        _moments(images),
        [i.unit for i in images],
        unit=unit,
        generator=numpy_generator(config.seed, "stain bootstrap", POOLED),
        resamples=config.resamples,
    )
    notes: dict[str, Any] = {"images": len(images)}
    if features is not None:
        figures |= feature_scores(*features, config)
        notes["mra_chance"] = 1 / len(images)
    return SetScores(figures, intervals, undefined, notes)


def feature_scores(predicted: np.ndarray, real: np.ndarray, config: EvaluateConfig) -> dict[str, float]:
    """MRA, Fréchet distance, KID and the manifold scores of features (N, D); what needs more images is left
    out.
    """
    ties = "for" if config.reference_quirks else "against"
    retrieval = molecular_retrieval(real, predicted, ties=ties)
    figures = {"mra_top1": retrieval.top1, "mra_top3": retrieval.top3}
    if len(real) >= 2:
        figures["frechet"] = frechet_distance(real, predicted)
        kid = kernel_distance(real, predicted, numpy_generator(config.seed, "stain KID"))
        figures |= {"kid": kid.mean, "kid_sd": kid.sd}
    if len(real) > NEIGHBOURS:
        figures |= vars(manifold(real, predicted, k=NEIGHBOURS))
    return figures


def retrieval_view(image: np.ndarray) -> np.ndarray:
    """(224, 224, 3) uint8: shorter side to 256 px (bicubic, antialiased), centre 224 px; HistDiST's view
    for MRA.
    """
    height, width = image.shape[:2]
    scale = 256 / min(height, width)
    size = max(224, round(height * scale)), max(224, round(width * scale))
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    resized = F.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False)
    top, left = (size[0] - 224) // 2, (size[1] - 224) // 2
    view = resized[0, :, top : top + 224, left : left + 224]
    return view.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def features_of(images: Sequence[np.ndarray], encoder: Callable[[Any], Any], batch: int = 32) -> np.ndarray:
    """(N, D) features of images of any sizes, through :func:`retrieval_view`."""
    parts = [
        encoder(np.stack([retrieval_view(image) for image in images[at : at + batch]])).cpu().numpy()
        for at in range(0, len(images), batch)
    ]
    return np.concatenate(parts)


def perceptual(predicted: np.ndarray, real: np.ndarray, network: Any, config: EvaluateConfig) -> float:
    """PHV of one pair: mean over the four layers."""
    a, b = (
        torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255 for image in (predicted, real)
    )
    return float(perceptual_hash_value(b, a, network, reference=config.reference_quirks).mean())
