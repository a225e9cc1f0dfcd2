"""Measure virtual staining on simulated tissue and write the tables into docs/stain.md.

``python docs/scripts/stain_tables.py --out runs/stain-tables`` trains the small model, a residual diffusion and a plain
regression of the same size on simulated tissue and scores them on other patients, every solver beside what needs no
learning. Runs and scores that are there already are taken as they are. ``--start demo`` begins all of them from the
packaged model, ``--kinds`` trains some and scores nothing, ``--write`` puts the tables into the page.
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
    TEST,
    TISSUE,
    measure,
    settings,
    trained,
    truth_table,
)

from morphogen.demo.workspace import stain_model
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
            value = {"value": scores["figures"].get(key), "low": None}
            cells.append(cell(scores["intervals"].get(key) or value))
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
        f"| {method} | " + " | ".join(cell(found[key], "+") for key in keys) + " |"
        for method, found in to.items()
    ]
    if (folder / "truth.json").is_file():
        truth = json.loads((folder / "truth.json").read_text())
        lines += ["", "| correlation per tile of 32 px | r |", "|---|---|"]
        lines += [f"| {name} | {value:.3f} |" for name, value in truth.items()]
    return "\n".join(lines) + "\n"


def cell(interval: dict[str, Any] | None, sign: str = "") -> str:
    """A figure with its interval; ``sign`` + for a difference."""
    if interval is None or interval["value"] is None:
        return "–"
    if interval["low"] is None:
        return f"{interval['value']:{sign}.3f}"
    return f"{interval['value']:{sign}.3f} [{interval['low']:{sign}.3f}, {interval['high']:{sign}.3f}]"


def written(text: str, name: str, table: str, script: str = Path(__file__).name) -> str:
    """The page with one of its tables, that ``script`` writes, brought up to date."""
    begin, end = f"<!-- {name}: written by docs/scripts/{script} -->\n", "<!-- end -->"
    start = text.index(begin) + len(begin)
    return text[:start] + "\n" + table + "\n" + text[text.index(end, start) :]


def picture(out: Path) -> None:
    """The simulated panel with most stain: H&E, a sample, the real stain, their DAB, uncertainty."""
    from PIL import Image

    with open(out / "scores" / "images.csv", newline="") as file:
        most = max(csv.DictReader(file), key=lambda row: float(row["dab_mean_real"]))
    row = read_image(out / "scores" / "panels" / f"{most['image']}.png")[:256]
    shown = Image.fromarray(row).resize((1200, round(row.shape[0] * 1200 / row.shape[1])))
    shown.save(PICTURES / "stain.jpg", quality=88)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/stain-tables"))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--start", help="model that all begin from: demo, or a folder")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, help="train these, score nothing")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/stain.md")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    out, precision, start = arguments.out / "simulated", arguments.precision, arguments.start
    start = str(stain_model()) if start == "demo" else start
    root = write_mist(out / "data", PAIRS, TEST, **TISSUE)
    train, test = find_pairs(root, "train"), find_pairs(root, "val")
    models = {
        kind: trained(train, out / kind, settings(arguments.steps, kind, start), precision)
        for kind in arguments.kinds or KINDS
    }
    if arguments.kinds:
        return
    if start is not None:
        models["start"] = (StainTransfer.from_pretrained(start), 0.0)
    scores = out / "scores"
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
