"""Trainings and scores behind the tables of docs/stain.md: data, models, methods side by side."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from morphogen.core.files import read_json, write_json
from morphogen.demo.writers.folders import write_mist
from morphogen.metrics.stain import correlation, tile_means
from morphogen.stain.config import (
    ApplyConfig,
    EvaluateConfig,
    SamplerConfig,
    TrainConfig,
)
from morphogen.stain.data import FoundPairs, Pair, find_pairs
from morphogen.stain.evaluate import Evaluation, evaluate_methods, write_results
from morphogen.stain.model import StainTransfer
from morphogen.stain.outputs import Stained
from morphogen.stain.pairs.geometry import align, read_aligned
from morphogen.stain.predict import stain_image
from morphogen.stain.registration.motion import estimate_motion
from morphogen.stain.scoring.baselines import ColourMap, deconvolution, identity
from morphogen.stain.scoring.figures import density_of, panel
from morphogen.stain.scoring.pages import write_page
from morphogen.stain.targets.files import read_image
from morphogen.stain.train import train_model
from morphogen.tasks import save_png

KINDS = ("residual", "diffusion", "regression")
SAMPLES = 24
KIND_OF = {"ER": "er", "Ki67": "er", "HER2": "her2"}  # what the simulator has of the like
SIMULATED = {"er": "IHC", "her2": "simulated HER2"}  # stains of the simulator, and their labels
PAIRS = 256  # simulated, for training
TISSUE: dict[str, Any] = {"size": 256, "patients": 24, "val_patients": 4, "mpp": 0.5}
TILE = 64  # px, on real pairs

REAL = [  # name, H&E, IHC, stain
    ("bci-00345", "bci/valA/00345_test_0.png", "bci/valB/00345_test_0.png", "HER2"),
    ("bci-00820", "bci/valA/00820_test_2+.png", "bci/valB/00820_test_2+.png", "HER2"),
    ("bci-00901", "bci/valA/00901_test_1+.png", "bci/valB/00901_test_1+.png", "HER2"),
    ("mist", "mist_er/he.jpg", "mist_er/er.jpg", "ER"),
    ("restained", "restained_ki67/HE.png", "restained_ki67/IHC.png", "Ki67"),
]


def real_pairs(data: Path, out: Path, *, inner: bool = False) -> Path:
    """Left two thirds of every image for training, right third for the test; the table of pairs.

    The images are registered (rigid) from their left parts alone; pairs that do not match stay as they are.
    ``inner``: the same again within the left two thirds, for choices; the right third of the image is then not
    looked at.
    """
    rows, motions = [], {}
    for name, he_file, ihc_file, stain in REAL:
        he, ihc = read_image(data / he_file), read_image(data / ihc_file)
        if inner:
            cut = he.shape[1] * 2 // 3
            he, ihc = he[:, :cut], ihc[:, :cut]
        cut = he.shape[1] * 2 // 3
        found = estimate_motion(he[:, :cut], ihc[:, :cut])
        if found.sure:
            affine = tuple(found.matrix.ravel())
            he, ihc = align(Pair(name, data / he_file, data / ihc_file, affine=affine), he, ihc)
        cut = he.shape[1] * 2 // 3
        motions[name] = {
            "sure": found.sure,
            "score": found.score,
            "turn": found.turn,
            "map": found.matrix.tolist(),
        }
        print(f"{name}: {he.shape[1]} × {he.shape[0]} px, {motions[name]}")
        for split, columns in (("train", slice(0, cut)), ("test", slice(cut, None))):
            for kind, image in (("he", he), ("ihc", ihc)):
                save_png(out / kind / split / f"{name}.png", np.ascontiguousarray(image[:, columns]))
            row = {"name": name, "he": f"he/{split}/{name}.png", "ihc": f"ihc/{split}/{name}.png"}
            rows.append(row | {"stain": stain, "patient": name, "split": split})
    write_json(out / "registration.json", motions)
    with open(out / "pairs.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return out / "pairs.csv"


def settings(
    steps: int, kind: str, mpp: float | None, stains: tuple[str, ...], start: Path | None = None
) -> TrainConfig:
    """The small model as documented; the regression differs in its objective alone. ``residual``: half the steps are
    the regression's, the others those of a diffusion of what it leaves over."""
    config = TrainConfig.recipe("small", steps, residual=kind == "residual")
    return config.replace(
        data=config.data.replace(mpp=mpp),
        model=config.model.replace(stains=stains, regression=kind == "regression"),
        start=None if start is None else str(start),
    )


def trained(pairs: Any, out: Path, config: TrainConfig, precision: str) -> tuple[StainTransfer, float]:
    """The model of a finished run, or of one made now, and the seconds its training took."""
    if not (out / "seconds.json").is_file():
        start = time.perf_counter()
        train_model(pairs, config, out, device="cpu", precision=precision)
        write_json(out / "seconds.json", time.perf_counter() - start)
    return StainTransfer.from_pretrained(out / "model"), float(read_json(out / "seconds.json"))


Models = dict[str, StainTransfer]  # by stain


def stained(
    models: Models, pairs: Sequence[Pair], solver: str, samples: int, precision: str
) -> dict[str, Stained]:
    """Every pair's H&E through one solver."""
    made = {}
    for pair in pairs:
        config = ApplyConfig(sampler=SamplerConfig.named(solver), samples=samples, stain=pair.stain)
        made[pair.name] = stain_image(
            models[pair.stain], read_aligned(pair)[0], config, name=pair.name, precision=precision
        )
    return made


Method = Callable[[Pair, np.ndarray], np.ndarray]


NAMES = {"residual": "residual diffusion", "diffusion": "diffusion"}


def methods_of(
    train: Sequence[Pair], test: Sequence[Pair], models: dict[str, Models], precision: str
) -> tuple[dict[str, Method], dict[str, dict[str, Stained]], dict[str, float]]:
    """All methods by name, the K samples of each diffusion by kind, and seconds per megapixel of each solver."""
    maps = {
        stain: ColourMap().fit(read_aligned(pair) for pair in train if pair.stain == stain)
        for stain in {pair.stain for pair in train}
    }
    seconds: dict[str, float] = {}
    pixels = sum(read_aligned(pair)[0].shape[0] * read_aligned(pair)[0].shape[1] for pair in test) / 1e6

    def timed(name: str, kind: str, solver: str, samples: int = 1) -> dict[str, Stained]:
        start = time.perf_counter()
        made = stained(models[kind], test, solver, samples, precision)
        seconds[name] = (time.perf_counter() - start) / pixels
        return made

    plain = timed("regression U-Net", "regression", "mean")
    expected = timed("diffusion, expected stain (1 evaluation)", "diffusion", "mean")
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
        "colour map fitted per stain": lambda pair, he: maps[pair.stain](he),
        "colour deconvolution": lambda pair, he: deconvolution(he),
        "H&E as it is": lambda pair, he: identity(he),
    }
    return methods, several, seconds


def mean_of(kind: str) -> str:
    """The name in the tables."""
    return f"{NAMES[kind]}, mean of {SAMPLES} samples"


def measure(
    name: str,
    train: Sequence[Pair],
    test: Sequence[Pair],
    models: dict[str, tuple[Models, float]],
    out: Path,
    precision: str,
) -> dict[str, Stained]:
    """Score all methods on the test pairs; files into ``out``. The K samples of the residual diffusion."""
    methods, several, seconds = methods_of(
        train, test, {kind: each for kind, (each, _) in models.items()}, precision
    )
    doubts = {mean_of(kind): _doubts(several[kind]) for kind in NAMES}
    config = EvaluateConfig(tile=TILE if name == "real" else 32)
    evaluations = evaluate_methods(test, methods, config, uncertainty=doubts)
    facts = {
        "seconds of training": {kind: time for kind, (_, time) in models.items()},
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


def beside_simulated(pairs: list[Pair], stain: str, root: Path) -> tuple[list[Pair], tuple[str, ...]]:
    """Real pairs of a stain and simulated ones of its kind (nuclear or membrane), and the labels of both."""
    target = KIND_OF[stain]
    folder = write_mist(root / target, PAIRS, 16, target=target, **TISSUE)
    label = SIMULATED[target]
    simulated = [replace(pair, stain=label) for pair in find_pairs(folder, "train").pairs]
    return [*pairs, *simulated], (label, stain)


def real_models(
    kind: str, train: FoundPairs, start: Path, out: Path, steps: int, precision: str, *, beside: bool
) -> tuple[Models, float]:
    """One model per real stain, trained further from the one that knows simulated tissue (``start``). ``beside``:
    with simulated pairs as every other sample. By stain, and the seconds of all.
    """
    models, total = {}, 0.0
    for stain in sorted({pair.stain for pair in train.pairs}):
        pairs = [pair for pair in train.pairs if pair.stain == stain]
        stains: tuple[str, ...] = (stain,)
        if beside:
            pairs, stains = beside_simulated(pairs, stain, out.parent.parent / "simulated-stains")
        config = settings(steps, kind, None, stains, start)
        config = config.replace(data=config.data.replace(balance_stains=beside))
        found = replace(train, pairs=pairs)
        models[stain], seconds = trained(found, out / stain, config, precision)
        total += seconds
    return models, total


CHOICES = [(150, False), (300, True), (600, True)]  # steps, with simulated pairs as every other sample
FEWER = 8  # samples for the choice


def choices(kind: str, data: Path, start: Path, out: Path, precision: str) -> list[dict[str, Any]]:
    """Scores of the second training's lengths on the last third of the left part; a row each."""
    table = real_pairs(data, out / "data", inner=True)
    train, test = find_pairs(table, "train"), find_pairs(table, "test")
    rows = []
    for steps, beside in CHOICES:
        what = f"{steps} steps, " + ("simulated pairs beside" if beside else "real pairs alone")
        folder = out / kind / what.replace(" ", "-").replace(",", "")
        if not (folder / "scores.json").is_file():
            models, seconds = real_models(kind, train, start, folder, steps, precision, beside=beside)
            made = {"regression U-Net": stained(models, test.pairs, "mean", 1, precision)}
            if kind != "regression":
                several = stained(models, test.pairs, "fast", FEWER, precision)
                made = {
                    f"{NAMES[kind]}, expected stain (1 evaluation)": made["regression U-Net"],
                    f"{NAMES[kind]}, mean of {FEWER} samples": {
                        name: replace(each, sample=each.mean) for name, each in several.items()
                    },
                    f"{NAMES[kind]}, one sample": several,
                }
            methods = {name: _of(images) for name, images in made.items()}
            found = [
                {"method": e.method, "training": what, "seconds": seconds, **_figures(e)}
                for e in evaluate_methods(test.pairs, methods, EvaluateConfig(tile=TILE))
            ]
            write_json(folder / "scores.json", found)
        rows += read_json(folder / "scores.json")
        for row in rows[-1 if kind == "regression" else -3 :]:
            print(row)
    return rows


def _of(images: dict[str, Stained]) -> Method:
    return lambda pair, he: images[pair.name].sample


def _means(images: dict[str, Stained]) -> Method:
    return lambda pair, he: images[pair.name].mean


def _doubts(images: dict[str, Stained]) -> Callable[[Pair], np.ndarray]:
    return lambda pair: images[pair.name].uncertainty


def _figures(evaluation: Evaluation) -> dict[str, float]:
    intervals = evaluation.scores.intervals
    keys = ("dab_tile_correlation", "dab_tile_correlation_pooled", "dab_tile_mae", "ssim")
    return {key: intervals[key].value for key in keys}
