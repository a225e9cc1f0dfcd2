"""Measure virtual second-harmonic (collagen) images and write the tables into docs/stain.md.

``python docs/scripts/stain_shg.py --data ../shared/data/pairs/he_shg --out runs/shg`` trains on some of the cores of
two breast arrays and a third from another scanner and scores the others, for every fold named (``--folds``): a plain
regression, and the diffusion of what a regression that begins as a colour map leaves over of cores it has not seen.
Runs and scores that are there already are taken as they are. ``--write`` puts the tables into the page.

What was chosen for X was chosen within 1B and 2B, on the folds ``inner0`` to ``inner2``, which hold the cores of 2B
too, and ``1B-2B`` and ``2B-1B``, from one array to the other; for 2B on ``1B-X`` and ``X-1B``.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from stain_runs import FEW_APPLY, few_pairs, trained
from stain_tables import cell, written

from morphogen.metrics.signals import gaussian_crps, seen_tiles
from morphogen.metrics.stain import tile_means
from morphogen.slides.images import read_image
from morphogen.stain.config import EvaluateConfig, TrainConfig
from morphogen.stain.data import FoundPairs, Pair, find_pairs
from morphogen.stain.evaluate import write_results
from morphogen.stain.fitting.chosen import measured_target
from morphogen.stain.model import StainTransfer
from morphogen.stain.pairs.geometry import read_aligned, scanned
from morphogen.stain.predict import stain_image
from morphogen.stain.scoring.baselines import ChannelBaselines
from morphogen.stain.scoring.channels import KEYS, ChannelMethod, Made, evaluate_channels, made_from
from morphogen.stain.scoring.figures import channel_panel
from morphogen.tasks.folders import save_png

PAGE = Path(__file__).resolve().parents[1] / "stain.md"
FOLDS = {
    "X": "Trained on 1B and 2B, tested on the seven cores of X (another scanner)",
    "2B": "Trained on X and 1B, tested on the five cores of 2B",
    **{
        f"{a}-{b}": f"Trained on {a}, tested on {b}"
        for a, b in (("1B", "2B"), ("2B", "1B"), ("X", "1B"), ("1B", "X"))
    },
    **{f"inner{k}": f"Trained within 1B and 2B, every third core held out ({k + 1} of 3)" for k in range(3)},
}
TILE, WEIGHT = 16, 0.5
SAMPLES, AVERAGED = 20, 16  # 19 samples are the fewest that have a 90 % interval
REGRESSION = 40  # steps; chosen on inner0 of 40, 80, 120, 160, 200: more make r lower
PARTS = ("colour", "plain", "diffusion")
OURS, ONE, PLAIN, START = (
    "mean of 16 samples",
    "one sample",
    "regression U-Net",
    "regression that begins as a colour map",
)


def prepare(data: Path, out: Path) -> Path:
    """A table of all pairs with masks of what was not scanned, and what the target is."""
    (out / "masks").mkdir(parents=True, exist_ok=True)
    rows = []
    for path in sorted((data / "HE").glob("*.jpg")):
        he, mask = read_image(path), ""
        white = np.asarray((he >= 250).all(axis=2))
        if white.mean() > 0.05:  # a border beyond the scan, in one piece
            mask = str((out / "masks" / f"{path.stem}.png").resolve())
            Image.fromarray((~_opened(white)).astype(np.uint8) * 255).save(mask)
        shg = (data / "SHG" / f"{path.stem}.png").resolve()
        rows.append(
            {"name": path.stem, "he": str(path.resolve()), "ihc": str(shg), "stain": "SHG", "mask": mask}
        )
    with open(out / "pairs.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (out / "target.yaml").write_text("channels: [SHG]\n")
    return out / "pairs.csv"


def _opened(white: np.ndarray) -> np.ndarray:
    from scipy.ndimage import binary_opening

    return np.asarray(binary_opening(white, iterations=4))


def fold(pairs: Sequence[Pair], name: str) -> tuple[list[Pair], list[Pair]]:
    """Training and test pairs: a group held out, one group from another, or every third core of 1B and 2B."""
    group = {pair.name: pair.name[0] if pair.name[0] == "X" else pair.name[:2] for pair in pairs}
    breast = [pair for pair in pairs if group[pair.name] != "X"]
    cores = [pair for pair in breast if "ROI" not in pair.name]
    if name == "X":
        return breast, [pair for pair in pairs if group[pair.name] == "X"]
    if name == "2B":
        return [p for p in pairs if group[p.name] != "2B"], [p for p in cores if group[p.name] == "2B"]
    if "-" in name:
        seen, held = name.split("-")
        return [p for p in pairs if group[p.name] == seen], [
            p for p in pairs if group[p.name] == held and "ROI" not in p.name
        ]
    number = int(name.removeprefix("inner"))
    apart = {pair.name for pair in cores[number::3]}
    return [p for p in breast if p.name not in apart], [p for p in cores if p.name in apart]


def settings(kind: str, steps: int) -> TrainConfig:
    """How they are trained, beside what :func:`stain_runs.few_pairs` says."""
    around = {
        "data.stain_jitter": 0.05,
        "model.normalise": "strength",
        "objective.cross_fit": 4,
        "objective.image_effects": True,
        "objective.noise_scales": 6,
    }
    return few_pairs(kind, steps, REGRESSION, {"data.crop": 192}, around)


def answers(model: StainTransfer, pairs: Sequence[Pair]) -> ChannelMethod:
    """What a regression makes of every pair, made once."""
    return _kept(
        {p.name: Made(stain_image(model, read_aligned(p)[0], FEW_APPLY, name=p.name).sample) for p in pairs}
    )


def sampled(
    model: StainTransfer, pairs: Sequence[Pair], kept: Path | None = None
) -> dict[str, ChannelMethod]:
    """Mean of the samples, one sample, and the regression that they scatter around."""
    assert model.mean is not None
    base, made = answers(model.mean, pairs), {}
    for pair in pairs:
        he = read_aligned(pair)[0]
        # The mean that is asked for is the regression's answer under the effects that the samples take.
        apply = FEW_APPLY.replace(samples=SAMPLES, mean_weight=0.0)
        out = stain_image(model, he, apply, name=pair.name)
        mean = (1 - WEIGHT) * out.mean + WEIGHT * out.samples[:AVERAGED].mean(axis=0)
        made[pair.name] = Made(mean, out.samples, out.uncertainty)
    if kept is not None:
        np.savez_compressed(
            kept,
            **{
                name: each.samples.astype(np.float16)
                for name, each in made.items()
                if each.samples is not None
            },
        )
    ones = {name: Made(each.samples[0]) for name, each in made.items() if each.samples is not None}
    return {OURS: _kept(made), ONE: _kept(ones), START: base}


def _kept(found: dict[str, Made]) -> ChannelMethod:
    return lambda pair, he: found[pair.name]


def residual_sd(method: ChannelMethod, pairs: Sequence[Pair]) -> float:
    """SD over the tiles of training pairs of what a method misses: the width of its Gaussian forecast."""
    errors = []
    for pair in pairs:
        he, real = read_aligned(pair)
        keep = seen_tiles(scanned(pair), real.shape[:2], TILE)
        made = method(pair, he).image[..., 0]
        errors.append((tile_means(real[..., 0], TILE) - tile_means(made, TILE))[keep])
    return float(np.concatenate(errors).std())


def add_gaussian(
    evaluations: Sequence[Any], method: ChannelMethod, name: str, pairs: Sequence[Pair], sd: float
) -> None:
    """CRPS of a method's answer with a Gaussian of ``sd`` around it, into its scores."""
    rows = next(each.items for each in evaluations if each.method == name)
    for row, pair in zip(rows, pairs, strict=True):
        he, real = read_aligned(pair)
        keep = seen_tiles(scanned(pair), real.shape[:2], TILE)
        a, b = (tile_means(each[..., 0], TILE)[keep] for each in (real, method(pair, he).image))
        row.values["crps"] = float(gaussian_crps(a, b, sd).mean())


def measure(pairs: Sequence[Pair], name: str, out: Path, steps: int, parts: Sequence[str]) -> None:
    """One fold: train what ``parts`` name, score, keep the scores in ``out/scores``."""
    train, test = fold(pairs, name)
    target = measured_target(train)
    train, test = ([replace(pair, target=target) for pair in each] for each in (train, test))
    kinds = {"colour": [], "plain": ["plain"], "diffusion": ["ours"]}
    models: dict[str, StainTransfer] = {}
    seconds = {}
    for kind in [kind for part in parts for kind in kinds[part]]:
        models[kind], seconds[kind] = trained(FoundPairs(train, []), out / kind, settings(kind, steps))
    methods: dict[str, ChannelMethod] = {}
    forecasts: dict[str, StainTransfer] = {}
    if "ours" in models:
        methods |= sampled(models["ours"], test, out / "samples.npz")
        assert models["ours"].mean is not None
        forecasts[START] = models["ours"].mean
    if "plain" in models:
        methods[PLAIN], forecasts[PLAIN] = answers(models["plain"], test), models["plain"]
    first = next(iter(methods), "")
    methods |= {key: made_from(make) for key, make in ChannelBaselines(train).methods().items()}
    config = EvaluateConfig(tile=TILE)
    evaluations = evaluate_channels(test, methods, config)
    for title, model in forecasts.items():
        sd = residual_sd(answers(model, train), train)
        add_gaussian(evaluations, methods[title], title, test, sd)
    evaluations = rescored(evaluations, config)
    write_results(out / "scores", evaluations, test, config, {"seconds of training": seconds, "fold": name})
    for pair in test[:3] if first else ():
        he, real = read_aligned(pair)
        save_png(
            out / "panels" / f"{pair.name}.png", channel_panel(he, real, methods[first](pair, he), target)
        )


def rescored(evaluations: Sequence[Any], config: EvaluateConfig) -> list[Any]:
    """Intervals again, with the scores that were added."""
    from morphogen.stain.scoring.channels import scores_of

    return [replace(each, scores=scores_of(each.items, config)) for each in evaluations]


SHOWN = (
    "tile_correlation",
    "tile_correlation_pooled",
    "tile_mae",
    "crps",
    "coverage50",
    "coverage90",
    "uncertainty_error_correlation",
    "dice",
    "sharpness",
)


def markdown(folder: Path) -> str:
    """The tables of one fold: scores, then differences of the first method and the others."""
    results = json.loads((folder / "metrics.json").read_text())
    heads = [KEYS[key][0] for key in SHOWN]
    lines = ["| method | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for method, found in results["methods"].items():
        cells = [cell(found["intervals"].get(key)) for key in SHOWN]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    lines += ["", f"{results['images']} test cores, intervals over them."]
    keys = ("tile_correlation", "tile_correlation_pooled", "tile_mae", "crps", "sharpness")
    lines += [
        "",
        f"| {results['differences']['of']}, minus | " + " | ".join(KEYS[key][0] for key in keys) + " |",
    ]
    lines.append("|---" * (len(keys) + 1) + "|")
    for method, found in results["differences"]["to"].items():
        lines.append(f"| {method} | " + " | ".join(cell(found.get(key), "+") for key in keys) + " |")
    return "\n".join(lines) + "\n"


def write(out: Path, folds: Sequence[str]) -> None:
    """The tables of ``folds`` into the page."""
    tables = [f"{FOLDS.get(name, name)}:\n\n{markdown(out / name / 'scores')}" for name in folds]
    PAGE.write_text(written(PAGE.read_text(), "shg", "\n".join(tables), Path(__file__).name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folds", nargs="+", default=["X", "2B", "inner0", "inner1", "inner2"])
    parser.add_argument("--parts", nargs="+", default=["diffusion", "plain"], choices=PARTS)
    parser.add_argument("--steps", type=int, default=640)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    pairs = find_pairs(prepare(arguments.data, arguments.out)).pairs
    for name in arguments.folds:
        folder = arguments.out / name
        if not (folder / "scores" / "manifest.json").is_file():
            measure(pairs, name, folder, arguments.steps, arguments.parts)
        print(name, markdown(folder / "scores"), sep="\n", flush=True)
    if arguments.write:
        write(arguments.out, arguments.folds)


if __name__ == "__main__":
    main()
