"""What is scored of a target, as its data state it: DAB, another dye, or named channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from morphogen.metrics.intervals import moments
from morphogen.metrics.probabilistic import coverage, crps
from morphogen.metrics.signals import cell_agreement, overlap, risk_coverage, seen_tiles
from morphogen.metrics.stain import correlation, sharpness_ratio, tile_means
from morphogen.stain.targets.config import TargetConfig

HAEMATOXYLIN = (0.65, 0.70, 0.29)  # Ruifrok and Johnston (2001)
LEVELS = (0.5, 0.9)  # of the samples' intervals


def dye_vectors(target: TargetConfig, vectors: Any = "hdab") -> Any:
    """Stain vectors of a picture in colour, of which the second is scored."""
    return vectors if target.vector is None else np.array([HAEMATOXYLIN, target.vector])


def signal_values(
    real: np.ndarray,
    made: np.ndarray,
    *,
    tile: int,
    threshold: float | None,
    mask: np.ndarray | None = None,
    samples: np.ndarray | None = None,
    uncertainty: np.ndarray | None = None,
    nuclei: np.ndarray | None = None,
) -> tuple[dict[str, float], np.ndarray]:
    """Scores of one signal of one image, real and made maps (H, W), and the moments of its tiles for figures over
    images.

    samples (K, H, W): CRPS and coverage of their tile means. uncertainty (H, W): risk–coverage of the tiles' errors.
    nuclei (H, W): number of the nucleus of every pixel, 0 none: agreement by nucleus.
    Only tiles, nuclei and pixels within ``mask`` count.
    """
    tile = min(tile, *real.shape)
    keep = seen_tiles(mask, (real.shape[0], real.shape[1]), tile)
    a, b = tile_means(real, tile)[keep], tile_means(made, tile)[keep]
    values = {"tile_correlation": correlation(a, b) if a.size else float("nan")}
    values["tile_mae"] = float(np.abs(a - b).mean()) if a.size else float("nan")
    values["mean"], values["mean_real"] = (float(each.mean()) if a.size else float("nan") for each in (b, a))
    if threshold is not None:
        values |= overlap(real, made, threshold, mask)._asdict()
    if nuclei is not None:
        cells = cell_agreement(real, made, nuclei, threshold, mask)
        values |= {f"cell_{key}": value for key, value in cells._asdict().items()}
    values["sharpness"] = sharpness_ratio(real, made, mask)
    if samples is not None and a.size:
        draws = np.stack([tile_means(each, tile)[keep] for each in samples], axis=1)[..., None]
        values["crps"] = float(crps(a[:, None], draws).mean())
        for level in LEVELS:
            found = coverage(a[:, None], draws, level)
            if found is not None:
                values[f"coverage{round(100 * level)}"] = found.observed
    if uncertainty is not None and a.size:
        doubt, error = tile_means(uncertainty, tile)[keep], np.abs(a - b)
        values["uncertainty_error_correlation"] = correlation(doubt, error)
        values["risk"] = risk_coverage(error, doubt).area
    return values, moments(b, a)


def thresholds_of(target: TargetConfig, positive: float) -> Sequence[float | None]:
    """From which value of each signal a pixel is positive; ``None`` where that is not known."""
    if target.threshold is not None:
        return target.threshold
    return (positive,) if target.colour else (None,) * target.width
