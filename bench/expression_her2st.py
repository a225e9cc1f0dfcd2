"""Every recipe and baseline on held-out her2st sections, and the tables of docs/expression.md.

    python -m bench.expression_her2st --data ../shared/data/st_her2st --out build/her2st

Prepares the sections with the texture encoder, trains each recipe on each split, evaluates, and writes the tables
between the markers of docs/expression.md. What is finished is kept, so a killed run goes on where it was. Nothing here
chooses anything on a test section: recipes are trained with their presets, whatever the split.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "expression.md"
SECTIONS = ("B4", "C3", "C4", "C6")
SPLITS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "a": (("B4", "C3", "C4"), "C6", "section"),
    "b": (("C3", "C4", "C6"), "B4", "patient"),
    "c": (("B4",), "C3", "patient"),
}
# The published objective on the small network, beside the standardised v-prediction that `small` uses.
PUBLISHED = {
    "network": {"objective": "epsilon", "learned_variance": True, "schedule": "linear"},
    "target": {"log": "log2p1", "standardise": False},
}
METHODS: dict[str, dict[str, Any]] = {
    "stem": {"recipe": "stem"},
    "stem (published objective)": {"recipe": "stem", **PUBLISHED},
    "hisdiff": {"recipe": "hisdiff"},
    "spatial (Gaussian residual)": {"recipe": "spatial", "spatial": {"factors": 0}},
    "spatial": {"recipe": "spatial"},
}
COLUMNS = {
    "pcc": "macro PCC [within-section 95 %]",
    "pcc10": "PCC-10",
    "pcc50": "PCC-50",
    "rvd_samples": "RVD samples",
    "rvd_mean": "RVD means",
    "crps": "CRPS",
    "energy": "energy",
    "coverage50": "50 %",
    "coverage90": "90 %",
    "coverage90_split": "90 % ties split",
    "coexpression_error_samples": "co-expr. RMSE",
    "moran_samples": "Moran r",
}


def run(
    data: Path, out: Path, splits: list[str], methods: list[str], *, only_train: bool = False
) -> dict[str, Any]:
    """Train, evaluate, and return ``{split: {...}}``; with ``only_train`` the models are left for a later call."""
    from morphogen.expression import (
        DataConfig,
        EvaluateConfig,
        ExpressionConfig,
        ExpressionModel,
        PrepareConfig,
        evaluate_models,
        load_sections,
        prepare_sections,
        split_sections,
        train_model,
    )

    prepare = PrepareConfig(data=DataConfig(patient_pattern="^[A-Z]"))
    prepare_sections(data, out / "store", prepare, sections=SECTIONS, device="cpu")
    found: dict[str, Any] = {}
    for key in splits:
        train, test, by = SPLITS[key]
        sections = load_sections(out / "store", [*train, test])
        split = split_sections(sections, [test], train, by)  # type: ignore[arg-type]
        models, seconds = {}, {}
        for name in methods:
            folder = out / key / name.replace(" ", "_").replace("(", "").replace(")", "")
            if not (folder / "model" / "manifest.json").is_file():
                started = time.perf_counter()
                config = ExpressionConfig(**METHODS[name])
                train_model(sections[: len(train)], config, folder, split=split, device="cpu")
                taken = time.perf_counter() - started
                (folder / "seconds.json").write_text(json.dumps(taken))
            seconds[name] = json.loads((folder / "seconds.json").read_text())
            models[name] = ExpressionModel.from_pretrained(folder / "model")
        if only_train:
            continue
        result = evaluate_models(models, sections, [test], EvaluateConfig(), by=by, device="cpu")  # type: ignore[arg-type]
        result.save(out / key / "evaluation")
        found[key] = {
            "label": result.split.label,
            "train": list(train),
            "test": test,
            "rows": result.frame().to_dict(orient="records"),
            "differences": result.differences,
            "seconds": seconds,
            "oracles": result.about["oracles"],
        }
    return found


def table(result: dict[str, Any]) -> str:
    """One split as Markdown."""
    rows = result["rows"]
    counts = rows[0]
    lines = [
        f"Train {', '.join(result['train'])} → test {result['test']}: **{result['label']}**. {counts['spots']} spots, "
        f"{counts['genes']} genes scored; {counts['genes_not_measured']} of the panel not measured in the test "
        f"section, {counts['genes_undefined']} undefined.",
        "",
        "| method | " + " | ".join(COLUMNS.values()) + " |",
        "|---|" + "---|" * len(COLUMNS),
    ]
    for row in rows:
        cells = []
        for column in COLUMNS:
            value = row[column]
            if value is None or value != value:
                cells.append("–")
            elif column == "pcc":
                cells.append(f"{value:.3f} [{row['pcc_low']:.3f}, {row['pcc_high']:.3f}]")
            elif column.startswith("coverage"):
                cells.append(f"{100 * value:.0f} %")
            else:
                cells.append(f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}")
        lines.append(f"| {row['method']} | " + " | ".join(cells) + " |")
    gaps = {d["method"]: d for d in result["differences"]}
    if "spatial" in gaps:
        d = gaps["spatial"]
        lines += [
            "",
            f"spatial − tuned ridge, macro PCC: {d['value']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}] over tissue "
            "blocks. Training seconds: "
            + ", ".join(f"{k} {v:.0f}" for k, v in result["seconds"].items())
            + ".",
        ]
    return "\n".join(lines)


def write_tables(results: dict[str, Any], page: Path = PAGE) -> None:
    """Replace what stands between the markers of each split."""
    text = page.read_text()
    for key, result in results.items():
        begin, end = f"<!-- her2st-{key}:begin -->", f"<!-- her2st-{key}:end -->"
        head, _, rest = text.partition(begin)
        _, _, tail = rest.partition(end)
        text = f"{head}{begin}\n{table(result)}\n{end}{tail}"
    page.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the her2st tables and images")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "her2st")
    parser.add_argument("--splits", default=",".join(SPLITS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--only-train", action="store_true", help="train what is missing and stop")
    parser.add_argument("--write", action="store_true", help="write the tables into docs/expression.md")
    args = parser.parse_args()
    results = run(
        args.data, args.out, args.splits.split(","), args.methods.split(","), only_train=args.only_train
    )
    if args.only_train:
        return
    (args.out / "results.json").write_text(json.dumps(results, indent=1))
    for key, result in results.items():
        print(f"\n({key}) {table(result)}")
    if args.write:
        write_tables(results)


if __name__ == "__main__":
    main()
