"""Virtual staining: what pairs of opposite noise are worth for the mean of several samples."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from bench.bench_stain import CROP, packaged
from bench.harness import Row
from morphogen.metrics.stain import tile_means
from morphogen.slides.colour import dab_density
from morphogen.stain.config import ApplyConfig
from morphogen.stain.model import StainTransfer
from morphogen.stain.recipes.translator import StainTranslator
from morphogen.tasks import plan_windows


def run(quick: bool) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        model, crops = packaged(Path(folder), quick)
        return [antithetic(model, crops, quick)]


def antithetic(model: StainTransfer, crops: dict[str, torch.Tensor], quick: bool) -> Row:
    """Variance of the mean DAB of two samples, per tile of 32 px: of opposite noise over independent ones."""
    few, pairs = crops["he"][: 2 if quick else 6], 4 if quick else 24
    config = ApplyConfig(samples=2 * pairs)
    plan = plan_windows(model, config.windows, CROP, CROP)
    translator = StainTranslator(model, config)
    ratios = []
    for k, image in enumerate(few):
        noise = translator.noise(plan, str(k)).over([plan.region(0, 0)])
        made = model(image[None], config.sampler, samples=2 * pairs, noise=noise).samples[0]
        density = dab_density(made, layout="nhwc").cpu().numpy()
        tiles = np.stack([tile_means(plane, 32) for plane in density])
        means = (tiles[::2] + tiles[1::2]) / 2
        ratios.append(float(means.var(axis=0, ddof=1).mean() / (tiles.var(axis=0, ddof=1).mean() / 2)))
    return Row(
        "stain: variance of the mean of two samples, opposite noise over independent",
        float(np.median(ratios)),
        low=min(ratios),
        high=max(ratios),
        detail=f"DAB per tile of 32 px, {len(few)} crops, {pairs} pairs each",
    )
