"""Measure virtual staining and write the tables into docs/stain.md.

``python docs/scripts/stain_tables.py --data ../shared/data/pairs --out runs/stain-tables`` trains the small
model and a plain regression of the same size on simulated tissue (scored on other patients) and goes on from
both, one model per stain, on real pairs (left two thirds of every image, scored on the right third). Every
solver is scored beside what needs no learning. Runs that are there already are taken as they are. ``--write``
puts the tables into the page.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from morphogen.core.files import read_json, write_json
from morphogen.demo.tissue_writers import write_mist
from morphogen.metrics.stain import correlation, tile_means
from morphogen.stain.baselines import ColourMap, deconvolution, identity
from morphogen.stain.config import (
    ApplyConfig,
    EvaluateConfig,
    SamplerConfig,
    TrainConfig,
)
from morphogen.stain.data import Found, Pair, aligned, find_pairs, read_image
from morphogen.stain.evaluate import Evaluation, evaluate_methods, read_pair, write_results
from morphogen.stain.figures import density_of, panel
from morphogen.stain.model import StainTransfer
from morphogen.stain.pages import write_page
from morphogen.stain.predict import Stained, save_png, stain_image
from morphogen.stain.registration import estimate_shift
from morphogen.stain.train import train_model

PAGE = Path(__file__).resolve().parents[1] / "stain.md"
PICTURES = PAGE.parent / "images"
SAMPLES = 6
KINDS = ("diffusion", "regression")

REAL = [  # name, H&E, IHC, stain
    ("bci-00345", "bci/valA/00345_test_0.png", "bci/valB/00345_test_0.png", "HER2"),
    ("bci-00820", "bci/valA/00820_test_2+.png", "bci/valB/00820_test_2+.png", "HER2"),
    ("bci-00901", "bci/valA/00901_test_1+.png", "bci/valB/00901_test_1+.png", "HER2"),
    ("mist", "mist_er/he.jpg", "mist_er/er.jpg", "ER"),
    ("restained", "restained_ki67/HE.png", "restained_ki67/IHC.png", "Ki67"),
]


def real_pairs(data: Path, out: Path) -> Path:
    """Left two thirds of every image for training, right third for the test; the table of pairs.

    A shift is estimated from the left part alone, so that nothing of the test is used.
    """
    rows = []
    for name, he_file, ihc_file, stain in REAL:
        he, ihc = read_image(data / he_file), read_image(data / ihc_file)
        cut = he.shape[1] * 2 // 3
        shift = estimate_shift(he[:, :cut], ihc[:, :cut])
        he, ihc = aligned(he, ihc, (shift.dy, shift.dx))
        print(
            f"{name}: {he.shape[1]} × {he.shape[0]} px, shift {(shift.dy, shift.dx) if shift.sure else 'none clear'}"
        )
        cut = he.shape[1] * 2 // 3
        for split, columns in (("train", slice(0, cut)), ("test", slice(cut, None))):
            for kind, image in (("he", he), ("ihc", ihc)):
                save_png(out / kind / split / f"{name}.png", np.ascontiguousarray(image[:, columns]))
            row = {"name": name, "he": f"he/{split}/{name}.png", "ihc": f"ihc/{split}/{name}.png"}
            rows.append(row | {"stain": stain, "patient": name, "split": split})
    with open(out / "pairs.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return out / "pairs.csv"


def settings(
    steps: int, regression: bool, mpp: float | None, stain: str, start: Path | None = None
) -> TrainConfig:
    """The small model as documented; the regression differs in its objective alone."""
    config = TrainConfig.recipe("small", steps)
    return config.replace(
        data=config.data.replace(mpp=mpp),
        model=config.model.replace(stains=(stain,), regression=regression),
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
            models[pair.stain], read_pair(pair)[0], config, name=pair.name, precision=precision
        )
    return made


Method = Callable[[Pair, np.ndarray], np.ndarray]


def methods_of(
    train: Sequence[Pair],
    test: Sequence[Pair],
    diffusion: Models,
    regression: Models,
    precision: str,
) -> tuple[dict[str, Method], dict[str, Stained], dict[str, float]]:
    """All methods by name, the K samples, and seconds per megapixel of each solver."""
    maps = {
        stain: ColourMap().fit(read_pair(pair) for pair in train if pair.stain == stain)
        for stain in {pair.stain for pair in train}
    }
    seconds: dict[str, float] = {}
    pixels = sum(read_pair(pair)[0].shape[0] * read_pair(pair)[0].shape[1] for pair in test) / 1e6

    def timed(name: str, models: Models, solver: str, samples: int = 1) -> dict[str, Stained]:
        start = time.perf_counter()
        made = stained(models, test, solver, samples, precision)
        seconds[name] = (time.perf_counter() - start) / pixels
        return made

    plain = timed("regression U-Net", regression, "mean")
    expected = timed("diffusion, expected stain (1 evaluation)", diffusion, "mean")
    several = timed(f"diffusion, {SAMPLES} samples (fast)", diffusion, "fast", SAMPLES)
    methods: dict[str, Method] = {
        "H&E as it is": lambda pair, he: identity(he),
        "colour deconvolution": lambda pair, he: deconvolution(he),
        "colour map fitted per stain": lambda pair, he: maps[pair.stain](he),
        "regression U-Net": lambda pair, he: plain[pair.name].sample,
        "diffusion, expected stain (1 evaluation)": lambda pair, he: expected[pair.name].sample,
        f"diffusion, mean of {SAMPLES} samples (fast)": lambda pair, he: several[pair.name].mean,
        "diffusion, one sample (fast)": lambda pair, he: several[pair.name].sample,
    }
    return methods, several, seconds


def measure(
    name: str,
    train: Sequence[Pair],
    test: Sequence[Pair],
    diffusion: Any,
    regression: Any,
    out: Path,
    precision: str,
) -> list[Evaluation]:
    """Score all methods on the test pairs; files into ``out``."""
    (model, time_a), (plain, time_b) = diffusion, regression
    methods, several, seconds = methods_of(train, test, model, plain, precision)
    mean_name = f"diffusion, mean of {SAMPLES} samples (fast)"
    doubts = {mean_name: lambda pair: several[pair.name].uncertainty}
    config = EvaluateConfig(tile=64 if name == "real" else 32)
    evaluations = evaluate_methods(test, methods, config, uncertainty=doubts)
    facts = {
        "seconds of training": {"diffusion": time_a, "regression": time_b},
        "seconds per megapixel": seconds,
    }
    write_results(out, evaluations, test, config, facts)
    for pair in test:
        he, real = read_pair(pair)
        stains = several[pair.name]
        row = panel(he, stains.sample, real, stains.uncertainty)
        also = panel(he, stains.mean, real)
        third = panel(he, methods["regression U-Net"](pair, he), real)
        wide = [
            np.pad(p, ((0, 0), (0, row.shape[1] - p.shape[1]), (0, 0)), constant_values=255)
            for p in (also, third)
        ]
        save_png(out / "panels" / f"{pair.name}.png", np.concatenate([row, *wide]))
    write_page(out, evaluations)
    return evaluations


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


COLUMNS = [
    ("dab_tile_correlation", "r per tile, within images"),
    ("dab_tile_correlation_pooled", "r, all tiles"),
    ("dab_tile_mae", "DAB error per tile"),
    ("sharpness", "gradient ratio"),
    ("detail", "Laplacian ratio"),
    ("ssim", "SSIM"),
    ("uncertainty_error_tile_correlation", "r of uncertainty and error"),
]


def markdown(folder: Path) -> str:
    """The table of one result folder."""
    results = json.loads((folder / "metrics.json").read_text())
    lines = [
        "| method | " + " | ".join(title for _, title in COLUMNS) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for method, scores in results["methods"].items():
        cells = []
        for key, _ in COLUMNS:
            interval, value = scores["intervals"].get(key), scores["figures"].get(key)
            if interval is not None:
                bounds = (
                    "" if interval["low"] is None else f" [{interval['low']:.3f}, {interval['high']:.3f}]"
                )
                cells.append(f"{interval['value']:.3f}{bounds}")
            else:
                cells.append("–" if value is None else f"{value:.3f}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    training, speed = results["seconds of training"], results["seconds per megapixel"]
    lines += [
        "",
        f"{results['images']} test images, intervals over {results['unit']}s. Training: diffusion "
        f"{training['diffusion']:.0f} s, regression {training['regression']:.0f} s. Seconds per megapixel: "
        + ", ".join(f"{name} {value:.1f}" for name, value in speed.items())
        + ".",
    ]
    if (folder / "truth.json").is_file():
        truth = json.loads((folder / "truth.json").read_text())
        lines += ["", "| correlation per tile of 32 px | r |", "|---|---|"]
        lines += [f"| {name} | {value:.3f} |" for name, value in truth.items()]
    return "\n".join(lines) + "\n"


def written(text: str, name: str, table: str) -> str:
    """The page with one of its tables brought up to date."""
    begin, end = f"<!-- {name}: written by docs/scripts/stain_tables.py -->\n", "<!-- end -->"
    start = text.index(begin) + len(begin)
    return text[:start] + "\n" + table + "\n" + text[text.index(end, start) :]


def real_models(name: str, train: Found, out: Path, steps: int, precision: str) -> tuple[Models, float]:
    """One model per stain, each trained further from the one that knows simulated tissue; all seconds."""
    models, total = {}, 0.0
    start = out / "simulated" / name / "model"
    for stain in sorted({pair.stain for pair in train.pairs}):
        pairs = replace(train, pairs=[pair for pair in train.pairs if pair.stain == stain])
        config = settings(steps, name == "regression", None, stain, start)
        models[stain], seconds = trained(pairs, out / "real" / name / stain, config, precision)
        total += seconds
    return models, total


def picture(out: Path) -> None:
    """One simulated and one real panel (top row: H&E, a sample, the real stain, their DAB, uncertainty)."""
    from PIL import Image

    rows = []
    for file in ("simulated/scores/panels/P07_00000.png", "real/scores/panels/restained.png"):
        row = read_image(out / file)[:256]
        rows.append(Image.fromarray(row).resize((1200, round(row.shape[0] * 1200 / row.shape[1]))))
    sheet = Image.new("RGB", (1200, sum(row.height for row in rows) + 12), "white")
    sheet.paste(rows[0], (0, 0))
    sheet.paste(rows[1], (0, rows[0].height + 12))
    sheet.save(PICTURES / "stain.jpg", quality=88)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/pairs"))
    parser.add_argument("--out", type=Path, default=Path("runs/stain-tables"))
    parser.add_argument("--steps", type=int, default=1500, help="on simulated tissue")
    parser.add_argument("--real-steps", type=int, default=700, help="per stain, on real pairs")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["real", "simulated"])
    parser.add_argument("--write", action="store_true", help="put the tables into docs/stain.md")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    out, precision = arguments.out, arguments.precision
    root = write_mist(out / "simulated" / "data", 64, 16, size=256, patients=6, val_patients=4, mpp=0.5)
    train, test = find_pairs(root, "train"), find_pairs(root, "val")
    models: list[tuple[Models, float]] = []
    for name in KINDS:
        config = settings(arguments.steps, name == "regression", 0.5, "IHC")
        model, seconds = trained(train, out / "simulated" / name, config, precision)
        models.append(({"IHC": model}, seconds))
    if arguments.only != "real":
        scores = out / "simulated" / "scores"
        measure("simulated", train.pairs, test.pairs, *models, scores, precision)
        several = stained(models[0][0], test.pairs, "fast", SAMPLES, precision)
        truth_table(root, test.pairs, scores, several)
    if arguments.only != "simulated":
        table = real_pairs(arguments.data, out / "real" / "data")
        train, test = find_pairs(table, "train"), find_pairs(table, "test")
        models = [real_models(name, train, out, arguments.real_steps, precision) for name in KINDS]
        measure("real", train.pairs, test.pairs, *models, out / "real" / "scores", precision)
    names = [name for name in ("real", "simulated") if (out / name / "scores" / "metrics.json").is_file()]
    for name in names:
        table = markdown(out / name / "scores")
        print(f"\n{name}\n\n{table}")
        if arguments.write:
            PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), name, table), encoding="utf-8")
    if arguments.write and len(names) == 2:
        picture(out)


if __name__ == "__main__":
    main()
