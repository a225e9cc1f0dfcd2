"""What the tables of docs/stain.md rest on: settings and trainings; methods on simulated tissue side by side."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from morphogen.core.files import Manifest, write_json
from morphogen.metrics.stain import correlation, tile_means
from morphogen.stain.config import (
    ApplyConfig,
    EvaluateConfig,
    SamplerConfig,
    TrainConfig,
    WindowConfig,
)
from morphogen.stain.data import FoundPairs, Pair
from morphogen.stain.evaluate import evaluate_methods, write_results
from morphogen.stain.model import StainTransfer
from morphogen.stain.outputs import Stained
from morphogen.stain.pairs.geometry import read_aligned
from morphogen.stain.predict import stain_image
from morphogen.stain.scoring.baselines import ColourMap, deconvolution, identity
from morphogen.stain.scoring.figures import density_of, panel
from morphogen.stain.scoring.pages import write_page
from morphogen.stain.train import train_model
from morphogen.tasks import save_png

KINDS = ("residual", "diffusion", "regression")
SAMPLES = 6
PAIRS, TEST = 256, 12  # simulated, for training and for the scores
TISSUE: dict[str, Any] = {"size": 256, "patients": 24, "val_patients": 4, "mpp": 0.5}


def settings(steps: int, kind: str, start: str | None = None) -> TrainConfig:
    """The small model as documented; the regression differs in its objective alone. ``residual``: half the steps are
    the regression's, the others those of a diffusion of what it leaves over. ``start``: folder of a model that all
    begin from."""
    config = TrainConfig.recipe("small", steps, residual=kind == "residual")
    return config.replace(
        start=start,
        data=config.data.replace(mpp=TISSUE["mpp"]),
        model=config.model.replace(regression=kind == "regression"),
    )


FEW_APPLY = ApplyConfig(sampler=SamplerConfig(steps=5), windows=WindowConfig(window=512, overlap=0, batch=1))


def few_pairs(
    kind: str, steps: int, first: int, given: dict[str, Any], around: dict[str, Any]
) -> TrainConfig:
    """Settings where real pairs are few and scanners differ. ``ours`` diffuses what a regression that begins as a
    colour map leaves over of pairs it has not seen; ``plain`` is a regression of the same network with as many steps
    as that regression and the diffusion have together. The regressions of the cross-fitting come on top.

    first: of ``steps``, those of the regression of ``ours``. given: settings of both. around: of ``ours`` alone.
    """
    common: dict[str, Any] = {
        "model.encoder": "none",
        "model.attention": [],
        "model.widths": [32, 64, 96],
        "training.steps": steps,
        "training.batch_size": 4,
        "training.lr": 5e-4,
        "training.ema_decay": 0.98,
        "training.save_every": 10_000,
    }
    if kind == "plain":
        return TrainConfig.load(overrides=common | given | {"model.regression": True})
    ours: dict[str, Any] = {
        "model.colour_start": True,
        "model.colour_degree": 3,
        "model.residual": True,
        "model.see_mean": True,
        "mean_share": first / steps,
        "mean_lr": 2e-4,
        "objective.residual_spread": 1.0,
        "objective.residual_knots": 12,
    }
    return TrainConfig.load(overrides=common | given | ours | around)


def trained(
    pairs: FoundPairs, out: Path, config: TrainConfig, precision: str = "fp32"
) -> tuple[StainTransfer, float]:
    """The model of a finished run, or of one made or gone on with now, and the seconds that its steps took, those
    of its regressions among them."""
    if Manifest.read(out / "model") is None:
        train_model(pairs, config, out, where=out.name, device="cpu", precision=precision)
    return StainTransfer.from_pretrained(out / "model"), seconds_of(out)


def seconds_of(run: Path) -> float:
    """What the steps of a training took, as its logs say."""
    logs = [path.read_text().splitlines() for path in run.rglob("metrics.jsonl")]
    return sum(float(json.loads(log[-1])["seconds"]) for log in logs)


def stained(
    model: StainTransfer, pairs: Sequence[Pair], solver: str, samples: int, precision: str
) -> dict[str, Stained]:
    """Every pair's H&E through one solver."""
    made = {}
    for pair in pairs:
        config = ApplyConfig(sampler=SamplerConfig.named(solver), samples=samples, stain=pair.stain)
        made[pair.name] = stain_image(
            model, read_aligned(pair)[0], config, name=pair.name, precision=precision
        )
    return made


Method = Callable[[Pair, np.ndarray], np.ndarray]


NAMES = {"residual": "residual diffusion", "diffusion": "diffusion"}
BEGUN = "the model that all begin from, expected stain"


def methods_of(
    train: Sequence[Pair], test: Sequence[Pair], models: dict[str, StainTransfer], precision: str
) -> tuple[dict[str, Method], dict[str, dict[str, Stained]], dict[str, float]]:
    """All methods by name, the K samples of each diffusion by kind, and seconds per megapixel of each solver."""
    colours = ColourMap().fit(read_aligned(pair) for pair in train)
    seconds: dict[str, float] = {}
    pixels = sum(read_aligned(pair)[0].shape[0] * read_aligned(pair)[0].shape[1] for pair in test) / 1e6

    def timed(name: str, kind: str, solver: str, samples: int = 1) -> dict[str, Stained]:
        start = time.perf_counter()
        made = stained(models[kind], test, solver, samples, precision)
        seconds[name] = (time.perf_counter() - start) / pixels
        return made

    plain = timed("regression U-Net", "regression", "mean")
    expected = timed("diffusion, expected stain (1 evaluation)", "diffusion", "mean")
    begun = timed(BEGUN, "start", "mean") if "start" in models else None
    several = {
        kind: timed(f"{name}, {SAMPLES} samples", kind, "fast", SAMPLES) for kind, name in NAMES.items()
    }
    methods: dict[str, Method] = {}  # the first is the one the others are compared with
    for kind, name in NAMES.items():
        methods[mean_of(kind)] = _means(several[kind])
        methods[f"{name}, one sample"] = _of(several[kind])
    methods |= {
        "diffusion, expected stain (1 evaluation)": _of(expected),
        "regression U-Net": _of(plain),
        **({BEGUN: _of(begun)} if begun is not None else {}),
        "colour map fitted per stain": lambda pair, he: colours(he),
        "colour deconvolution": lambda pair, he: deconvolution(he),
        "H&E as it is": lambda pair, he: identity(he),
    }
    return methods, several, seconds


def mean_of(kind: str) -> str:
    """The name in the tables."""
    return f"{NAMES[kind]}, mean of {SAMPLES} samples"


def measure(
    train: Sequence[Pair],
    test: Sequence[Pair],
    models: dict[str, tuple[StainTransfer, float]],
    out: Path,
    precision: str,
) -> dict[str, Stained]:
    """Score all methods on the test pairs; files into ``out``. The K samples of the residual diffusion."""
    methods, several, seconds = methods_of(
        train, test, {kind: each for kind, (each, _) in models.items()}, precision
    )
    doubts = {mean_of(kind): _doubts(several[kind]) for kind in NAMES}
    config = EvaluateConfig(tile=32)
    evaluations = evaluate_methods(test, methods, config, uncertainty=doubts)
    facts = {
        "seconds of training": {kind: models[kind][1] for kind in KINDS},
        "seconds per megapixel": seconds,
    }
    write_results(out, evaluations, test, config, facts)
    for pair in test:
        he, real = read_aligned(pair)
        stains, around = several["diffusion"][pair.name], several["residual"][pair.name]
        row = panel(he, stains.sample, real, stains.uncertainty)
        others = [
            panel(he, image, real)
            for image in (
                stains.mean,
                around.sample,
                around.mean,
                methods["regression U-Net"](pair, he),
            )
        ]
        wide = [
            np.pad(p, ((0, 0), (0, row.shape[1] - p.shape[1]), (0, 0)), constant_values=255) for p in others
        ]
        save_png(out / "panels" / f"{pair.name}.png", np.concatenate([row, *wide]))
    write_page(out, evaluations)
    return several["residual"]


def truth_table(root: Path, test: Sequence[Pair], out: Path, several: dict[str, Stained]) -> dict[str, float]:
    """Simulated tissue: predicted DAB and uncertainty against the truth, per tile of 32 px."""
    found: dict[str, list[np.ndarray]] = {
        key: [] for key in ("predicted", "truth", "expected", "doubt", "error")
    }
    for pair in test:
        with np.load(root / "truth" / "val" / f"{pair.name}.npz", allow_pickle=False) as file:
            truth, expected = (file[key].astype(np.float32) for key in ("dab_od", "dab_od_mean"))
        stains = several[pair.name]
        density = density_of(stains.mean)
        for key, plane in (
            ("predicted", density),
            ("truth", truth),
            ("expected", expected),
            ("doubt", stains.uncertainty),
            ("error", np.abs(density - truth)),
        ):
            found[key].append(tile_means(plane, 32).ravel())
    flat = {key: np.concatenate(values) for key, values in found.items()}
    figures = {
        "predicted DAB with the drawn DAB": correlation(flat["predicted"], flat["truth"]),
        "predicted DAB with its expectation": correlation(flat["predicted"], flat["expected"]),
        "best possible (expectation with drawn)": correlation(flat["expected"], flat["truth"]),
        "uncertainty with the true error": correlation(flat["doubt"], flat["error"]),
    }
    write_json(out / "truth.json", figures)
    return figures


def _of(images: dict[str, Stained]) -> Method:
    return lambda pair, he: images[pair.name].sample


def _means(images: dict[str, Stained]) -> Method:
    return lambda pair, he: images[pair.name].mean


def _doubts(images: dict[str, Stained]) -> Callable[[Pair], np.ndarray]:
    return lambda pair: images[pair.name].uncertainty
