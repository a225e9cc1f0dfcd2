"""Measure virtual staining and write the tables into docs/stain.md.

``python docs/scripts/stain_tables.py --data ../shared/data/pairs --out runs/stain-tables`` trains the small
model and a plain regression of the same size on simulated tissue (scored on other patients) and goes on from
both, one model per stain, on real pairs (left two thirds of every image, scored on the right third). Every
solver is scored beside what needs no learning. Runs and scores that are there already are taken as they are.
``--choose`` compares lengths of that second training on the left parts alone, whose own right third is then
held out. ``--write`` puts the tables into the page.
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
    SIMULATED,
    TISSUE,
    Models,
    choices,
    measure,
    real_models,
    real_pairs,
    settings,
    trained,
    truth_table,
)

from morphogen.demo.writers.folders import write_mist
from morphogen.stain.data import find_pairs
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
    lines += [
        "",
        f"{results['images']} test images, intervals over {results['unit']}s. Training: "
        + ", ".join(f"{NAMES.get(kind, kind)} {value:.0f} s" for kind, value in training.items())
        + ". Seconds per megapixel: "
        + ", ".join(f"{name} {value:.1f}" for name, value in speed.items())
        + ".",
    ]
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


def by_image(folder: Path, registration: Path) -> str:
    """r per tile within each image, and whether registration found that its two sections match."""
    motions = json.loads(registration.read_text())
    with open(folder / "images.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    r = {(row["method"], row["image"]): float(row["dab_tile_correlation"] or "nan") for row in rows}
    sure = [name for name in motions if motions[name]["sure"]]
    lines = [
        "| r per tile | " + " | ".join(motions) + f" | mean of the {len(sure)} that match |",
        "|---" * (len(motions) + 2) + "|",
        "| score of registration | "
        + " | ".join(f"{each['score']:.2f}" for each in motions.values())
        + " | |",
    ]
    for method in methods:
        cells = [f"{r[method, name]:.3f}" for name in motions]
        mean = sum(r[method, name] for name in sure) / len(sure)
        lines.append(f"| {method} | " + " | ".join(cells) + f" | {mean:.3f} |")
    return "\n".join(lines) + "\n"


def signed(interval: dict[str, Any]) -> str:
    """A difference with its interval."""
    if interval["low"] is None:
        return f"{interval['value']:+.3f}"
    return f"{interval['value']:+.3f} [{interval['low']:+.3f}, {interval['high']:+.3f}]"


def written(text: str, name: str, table: str) -> str:
    """The page with one of its tables brought up to date."""
    begin, end = f"<!-- {name}: written by docs/scripts/stain_tables.py -->\n", "<!-- end -->"
    start = text.index(begin) + len(begin)
    return text[:start] + "\n" + table + "\n" + text[text.index(end, start) :]


def picture(out: Path) -> None:
    """The simulated panel with most stain, and a real one: H&E, a sample, the real stain, their DAB, uncertainty."""
    from PIL import Image

    rows = []
    with open(out / "simulated" / "scores" / "images.csv", newline="") as file:
        most = max(csv.DictReader(file), key=lambda row: float(row["dab_mean_real"]))
    first = out / "simulated" / "scores" / "panels" / f"{most['image']}.png"
    for file in (first, out / "real" / "scores" / "panels" / "restained.png"):
        row = read_image(file)[:256]
        rows.append(Image.fromarray(row).resize((1200, round(row.shape[0] * 1200 / row.shape[1]))))
    sheet = Image.new("RGB", (1200, sum(row.height for row in rows) + 12), "white")
    sheet.paste(rows[0], (0, 0))
    sheet.paste(rows[1], (0, rows[0].height + 12))
    sheet.save(PICTURES / "stain.jpg", quality=88)


def choice_table(rows: list[dict[str, Any]]) -> str:
    """The scores of the choice."""
    keys = ("dab_tile_correlation", "dab_tile_correlation_pooled", "dab_tile_mae", "ssim")
    titles = dict(COLUMNS)
    lines = [
        "| trained further | method | " + " | ".join(titles[key] for key in keys) + " |",
        "|---" * (len(keys) + 2) + "|",
    ]
    for row in rows:
        cells = " | ".join(f"{row[key]:.3f}" for key in keys)
        lines.append(f"| {row['training']} | {row['method']} | {cells} |")
    return "\n".join(lines) + "\n"


def simulated_models(out: Path, steps: int, precision: str) -> tuple[Path, dict[str, tuple[Models, float]]]:
    """The pairs' folder, and the models that know simulated tissue, by kind."""
    root = write_mist(out / "simulated" / "data", PAIRS, 16, **TISSUE)
    stain = SIMULATED["er"]
    train, models = find_pairs(root, "train"), {}
    for name in KINDS:
        config = settings(steps, name, 0.5, (stain,))
        model, seconds = trained(train, out / "simulated" / name, config, precision)
        models[name] = ({stain: model}, seconds)
    return root, models


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/pairs"))
    parser.add_argument("--out", type=Path, default=Path("runs/stain-tables"))
    parser.add_argument("--steps", type=int, default=3000, help="on simulated tissue")
    parser.add_argument(
        "--real-steps", type=int, default=300, help="per stain, simulated pairs as every other sample"
    )
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["real", "simulated"])
    parser.add_argument("--choose", choices=KINDS, nargs="+", default=(),
                        help="compare lengths of the training on real pairs, on the left parts alone")  # fmt: skip
    parser.add_argument("--write", action="store_true", help="put the tables into docs/stain.md")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    out, precision = arguments.out, arguments.precision
    if arguments.choose:
        rows = []
        for kind in arguments.choose:
            start = out / "simulated" / kind / "model"
            rows += choices(kind, arguments.data, start, out / "choice", precision)
        publish("choice", choice_table(rows), arguments.write)
        return
    root, models = simulated_models(out, arguments.steps, precision)
    if arguments.only != "real":
        train, test = find_pairs(root, "train"), find_pairs(root, "val")
        scores = out / "simulated" / "scores"
        if not (scores / "truth.json").is_file():
            several = measure("simulated", train.pairs, test.pairs, models, scores, precision)
            truth_table(root, test.pairs, scores, several)
        publish("simulated", markdown(scores), arguments.write)
    if arguments.only != "simulated":
        pairs = real_pairs(arguments.data, out / "real" / "data")
        train, test = find_pairs(pairs, "train"), find_pairs(pairs, "test")
        models = {}
        for kind in KINDS:
            start, folder = out / "simulated" / kind / "model", out / "real" / kind
            models[kind] = real_models(
                kind, train, start, folder, arguments.real_steps, precision, beside=True
            )
        measure("real", train.pairs, test.pairs, models, out / "real" / "scores", precision)
        scores = out / "real" / "scores"
        table = markdown(scores) + "\n" + by_image(scores, out / "real" / "data" / "registration.json")
        publish("real", table, arguments.write)
    if arguments.write and not arguments.only:
        picture(out)


def publish(name: str, table: str, write: bool) -> None:
    """Print a table and, if asked, put it into the page."""
    print(f"\n{name}\n\n{table}")
    if write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), name, table), encoding="utf-8")


if __name__ == "__main__":
    main()
