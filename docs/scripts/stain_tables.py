"""Measure virtual staining on simulated tissue and write the tables into docs/stain.md.

``python docs/scripts/stain_tables.py --out runs/stain-tables`` trains the small model, a residual diffusion and a plain
regression of the same size on simulated tissue and scores them on other patients, every solver beside what needs no
learning. Runs and scores that are there already are taken as they are. ``--write`` puts the tables into the page.
``stain_real.py`` does so on real pairs.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import torch
from stain_runs import (
    KINDS,
    NAMES,
    PAIRS,
    TISSUE,
    measure,
    settings,
    trained,
    truth_table,
)

from morphogen.demo.writers.folders import write_mist
from morphogen.stain.data import find_pairs
from morphogen.stain.model import StainTransfer
from morphogen.stain.targets.files import read_image

PAGE = Path(__file__).resolve().parents[1] / "stain.md"
PICTURES = PAGE.parent / "images"

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
    told = f"{results['images']} test images, intervals over {results['unit']}s. Training: "
    told += ", ".join(f"{NAMES.get(kind, kind)} {value:.0f} s" for kind, value in training.items()) + "."
    if speed:
        told += (
            " Seconds per megapixel: "
            + ", ".join(f"{name} {value:.1f}" for name, value in speed.items())
            + "."
        )
    lines += ["", told]
    of, to = results["differences"]["of"], results["differences"]["to"]
    keys = ("dab_tile_correlation", "dab_tile_correlation_pooled", "dab_tile_mae")
    titles = dict(COLUMNS)
    lines += [
        "",
        f"| {of}, minus | " + " | ".join(titles[key] for key in keys) + " |",
        "|---" * (len(keys) + 1) + "|",
    ]
    lines += [
        f"| {method} | " + " | ".join(signed(found[key]) for key in keys) + " |"
        for method, found in to.items()
    ]
    if (folder / "truth.json").is_file():
        truth = json.loads((folder / "truth.json").read_text())
        lines += ["", "| correlation per tile of 32 px | r |", "|---|---|"]
        lines += [f"| {name} | {value:.3f} |" for name, value in truth.items()]
    return "\n".join(lines) + "\n"


def signed(interval: dict[str, Any]) -> str:
    """A difference with its interval."""
    if interval["low"] is None:
        return f"{interval['value']:+.3f}"
    return f"{interval['value']:+.3f} [{interval['low']:+.3f}, {interval['high']:+.3f}]"


def written(text: str, name: str, table: str, script: str = Path(__file__).name) -> str:
    """The page with one of its tables, that ``script`` writes, brought up to date."""
    begin, end = f"<!-- {name}: written by docs/scripts/{script} -->\n", "<!-- end -->"
    start = text.index(begin) + len(begin)
    return text[:start] + "\n" + table + "\n" + text[text.index(end, start) :]


def picture(out: Path) -> None:
    """The simulated panel with most stain: H&E, a sample, the real stain, their DAB, uncertainty."""
    from PIL import Image

    with open(out / "simulated" / "scores" / "images.csv", newline="") as file:
        most = max(csv.DictReader(file), key=lambda row: float(row["dab_mean_real"]))
    row = read_image(out / "simulated" / "scores" / "panels" / f"{most['image']}.png")[:256]
    shown = Image.fromarray(row).resize((1200, round(row.shape[0] * 1200 / row.shape[1])))
    shown.save(PICTURES / "stain.jpg", quality=88)


def simulated_models(
    out: Path, steps: int, precision: str
) -> tuple[Path, dict[str, tuple[StainTransfer, float]]]:
    """The pairs' folder, and the models that know simulated tissue, by kind."""
    root = write_mist(out / "simulated" / "data", PAIRS, 16, **TISSUE)
    train, models = find_pairs(root, "train"), {}
    for name in KINDS:
        models[name] = trained(train, out / "simulated" / name, settings(steps, name), precision)
    return root, models


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/stain-tables"))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/stain.md")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    out, precision = arguments.out, arguments.precision
    root, models = simulated_models(out, arguments.steps, precision)
    train, test = find_pairs(root, "train"), find_pairs(root, "val")
    scores = out / "simulated" / "scores"
    if not (scores / "truth.json").is_file():
        several = measure(train.pairs, test.pairs, models, scores, precision)
        truth_table(root, test.pairs, scores, several)
    table = markdown(scores)
    print(f"\nsimulated\n\n{table}")
    if arguments.write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), "simulated", table), encoding="utf-8")
        picture(out)


if __name__ == "__main__":
    main()
