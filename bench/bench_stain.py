"""Virtual staining: fast against HistDiST's 100 + 100 steps on one network, windows in batches, what the
loop costs beside the network. Whole slides: ``bench_stain_slide``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.harness import Row, compare, rate, seconds
from morphogen.core.devices import resolve_device
from morphogen.demo.workspace import stain_model
from morphogen.demo.writers.folders import write_mist
from morphogen.metrics.pairs import molecular_retrieval
from morphogen.metrics.stain import correlation, tile_means
from morphogen.slides import get_encoder
from morphogen.slides.colour import dab_density
from morphogen.stain.config import (
    ApplyConfig,
    SamplerConfig,
)
from morphogen.stain.data import find_pairs
from morphogen.stain.model import StainTransfer
from morphogen.stain.pairs.geometry import read_aligned
from morphogen.stain.predict import stain_image
from morphogen.stain.recipes.translator import StainTranslator
from morphogen.stain.scoring.scores import features_of
from morphogen.tasks import plan_windows
from morphogen.tasks.streams.noise import RegionNoise

CROP = 128


def run(quick: bool) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        model, crops = packaged(Path(folder), quick)
        rows = fast_against_reference(model, crops, quick)
        rows += batches(model, quick)
        rows += overhead(model, quick)
    return rows


def packaged(folder: Path, quick: bool) -> tuple[StainTransfer, dict[str, torch.Tensor]]:
    """The small model of the package and crops of simulated patients that it was not trained on."""
    root = write_mist(folder / "data", 6, 4 if quick else 24, size=256, patients=24, val_patients=4, mpp=0.5)
    model = StainTransfer.from_pretrained(stain_model(), device="auto")
    crops: dict[str, list[np.ndarray]] = {"he": [], "ihc": []}
    for pair in find_pairs(root, "val").pairs:
        for kind, image in zip(("he", "ihc"), read_aligned(pair), strict=True):
            corners = [(0, 0), (CROP, CROP)]
            crops[kind] += [image[y : y + CROP, x : x + CROP] for y, x in corners]
    return model, {kind: torch.from_numpy(np.stack(images)) for kind, images in crops.items()}


def fast_against_reference(model: StainTransfer, crops: dict[str, torch.Tensor], quick: bool) -> list[Row]:
    """Time, and what the speed costs in DAB correlation and in retrieval; the same crops."""
    reference = SamplerConfig.reference()
    if quick:
        reference = reference.replace(steps=10, inversion_steps=10)
    samplers = {"fast": SamplerConfig.fast(), "reference": reference}
    few = crops["he"][: 2 if quick else 4]
    time = compare(
        "stain: fast against reference, same network",
        lambda: model(few, samplers["fast"]),
        lambda: model(few, samplers["reference"]),
        pairs=2 if quick else 3,
        goal="≥ 5",
        detail=f"{samplers['fast'].steps} evaluations against {reference.inversion_steps} + {reference.steps}",
    )
    encoder = get_encoder("texture")
    real = crops["ihc"].numpy()
    # One sample says little: its own noise moves these figures by more than the solver does.
    seeds = {"fast": 2 if quick else 24, "reference": 1 if quick else 12}
    scores: dict[str, np.ndarray] = {}
    for name, sampler in samplers.items():
        found = []
        for seed in range(seeds[name]):
            parts = [model(part, sampler, seed=seed).images.cpu() for part in crops["he"].split(8)]
            made = torch.cat(parts).numpy()
            retrieval = molecular_retrieval(
                features_of(list(real), encoder), features_of(list(made), encoder)
            )
            found.append((tile_correlation_pooled(made, real), retrieval.top1, retrieval.top3))
        scores[name] = np.array(found)
    rows = [time]
    for index, what in enumerate(("DAB correlation per tile", "MRA top-1", "MRA top-3")):
        fast, slow = scores["fast"][:, index], scores["reference"][:, index]
        each = fast / slow.mean() if slow.mean() else np.full(len(fast), np.nan)
        spread = np.hypot(*(relative_error(values) for values in (fast, slow)))
        rows.append(
            Row(
                f"stain: {what}, fast over reference",
                float(each.mean()),
                low=float(each.min()),
                high=float(each.max()),
                goal="≥ 0.99",
                detail=f"{fast.mean():.3f} against {slow.mean():.3f} on {len(real)} crops of unseen patients, "
                f"{len(fast)} seeds against {len(slow)}: a ratio of {each.mean():.3f} ± {each.mean() * spread:.3f} "
                "(standard error over seeds)",
            )
        )
    return rows


def relative_error(values: np.ndarray) -> float:
    """Standard error of a mean over seeds, as a share of it."""
    if len(values) < 2 or not values.mean():
        return 0.0
    return float(values.std(ddof=1) / np.sqrt(len(values)) / values.mean())


def tile_correlation_pooled(made: np.ndarray, real: np.ndarray, tile: int = 32) -> float:
    """Correlation of tile means of DAB over all crops (N, H, W, 3)."""
    maps = [dab_density(images, layout="nhwc").numpy() for images in (made, real)]
    means = [np.concatenate([tile_means(density, tile).ravel() for density in each]) for each in maps]
    return correlation(*means)


def batches(model: StainTransfer, quick: bool) -> list[Row]:
    """An image of many windows, one window at a time and eight."""
    side = 256 if quick else 512
    image = np.random.default_rng(0).integers(120, 255, (side, side, 3), dtype=np.uint8)
    sampler = SamplerConfig.fast().replace(steps=2 if quick else 4)

    def stain(batch: int, precision: str = "fp32") -> Any:
        config = ApplyConfig(sampler=sampler)
        return stain_image(
            model, image, config.replace(windows=config.windows.replace(batch=batch)), precision=precision
        )

    where = resolve_device(model.device).type
    windows = len(plan_windows(model, ApplyConfig().windows, side, side))
    pairs = 2 if quick else 5
    return [
        compare(
            f"stain: windows 8 at a time against 1 ({where})", lambda: stain(8), lambda: stain(1), pairs=pairs,
            detail=f"{windows} windows of {model.crop} px",
        ),
        compare(
            f"stain: bf16 against fp32 ({where})", lambda: stain(8, "bf16"), lambda: stain(8), pairs=pairs,
            detail="autocast of the network",
        ),
        rate(
            f"stain: fast mode ({where})",
            lambda: stain_image(model, image, ApplyConfig()),
            side * side,
            unit="px/s",
            repeats=2 if quick else 3,
        ),
    ]  # fmt: skip


def overhead(model: StainTransfer, quick: bool) -> list[Row]:
    """Time of a step of the sampler over that of the bare network (U-Net and head) on the same batch."""
    batch, steps = (2, 4) if quick else (8, 10)
    crop, device = 256, model.device
    config = ApplyConfig(sampler=SamplerConfig.fast().replace(steps=steps))
    config = config.replace(windows=config.windows.replace(window=crop, batch=batch))
    plan = plan_windows(model, config.windows, crop, crop)
    region = [plan.region(0, 0)]
    images = np.random.default_rng(0).integers(120, 255, (batch, crop, crop, 3), dtype=np.uint8)
    noises = [StainTranslator(model, config).noise(plan, str(k)) for k in range(batch)]
    fields = RegionNoise([each.fields[0] for each in noises], region)

    def sampled(steps: int) -> Any:
        chosen = config.replace(sampler=config.sampler.replace(steps=steps))
        return StainTranslator(model, chosen).make(images, fields, None)

    image = model.first_stage.encode(model.pixels(torch.from_numpy(images))).mode()
    condition = model.condition(image, model.tokens(torch.from_numpy(images)), 1)
    x = torch.randn(image.shape, generator=torch.Generator().manual_seed(0)).to(device)
    time = torch.full((batch,), 500.0, device=device)

    @torch.no_grad()
    def bare() -> Any:
        for _ in range(steps - 1):
            model.network(x, time, **condition)

    sampled(steps), bare()
    ratios = []
    for _ in range(2 if quick else 7):
        # The difference of two runs leaves out what is done once: reading, tokens, decoding.
        long, short, network = seconds(lambda: sampled(steps)), seconds(lambda: sampled(1)), seconds(bare)
        ratios.append((long - short) / network)
    return [
        Row(
            "stain: a step of the sampler over a bare forward of the network",
            float(np.median(ratios)),
            low=min(ratios),
            high=max(ratios),
            goal="≤ 1.03",
            detail=f"{batch} windows of {crop} px",
        )
    ]
