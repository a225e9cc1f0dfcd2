"""Does a segmenter gain from synthetic images? All arms of `morphogen layout evaluate`, over seeds, on one data set.

    python -m bench.layout_study simulator --out build/layout --seeds 0 1 2
    python -m bench.layout_study glas --shared ../shared --out build/glas --split 1
    python -m bench.layout_study simulator --out build/pool --pool build/world-0 build/world-1

simulator: 2 annotated, 20 unannotated and 20 test patients of different laboratories (stain, nuclear size, focus and
JPEG differ together), regions at 2 µm/px, tumour and lymphoid tissue; every split is another world. glas: glands, 2
patients annotated, the others lend their style, 3 are the test. monuseg: nuclei, 2 images annotated, 3 lend their
style, 3 are the test. flowers: flower or not, 2 classes annotated, half of the others lend their style.

The model is trained once; every seed trains all segmenters anew. All settings are the defaults of the package. What is
finished is kept, so a killed run goes on. The table gives means over seeds of the means over patients; intervals are
over patients, of seed means.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.layout_pool import pool
from morphogen.core.seeds import numpy_generator
from morphogen.layout.config import DataConfig, SegmentConfig, SynthesisConfig, TrainConfig
from morphogen.layout.data import DataSplit, read_sources
from morphogen.layout.evaluate import compare
from morphogen.layout.model import LayoutDiffusion, LayoutSampler
from morphogen.layout.predict import synthesize
from morphogen.layout.scoring import baselines
from morphogen.layout.scoring.synthetic import evaluate_synthetic, style_match
from morphogen.layout.segmenter.model import Segmenter
from morphogen.layout.sources.folders import image_folder
from morphogen.layout.train import train_model
from morphogen.metrics.intervals import bootstrap

GLAS = (
    (("G10", "G01"), ("G02", "G09", "G11")),
    (("G02", "G03"), ("G01", "G08", "G10")),
    (("G09", "G05"), ("G03", "G06", "G10")),
)


def simulator(out: Path, shared: Path, split: int) -> tuple[Path, DataConfig]:
    """42 patients of different laboratories."""
    from morphogen.demo.writers.folders import write_segmentation

    root = out / "data"
    write_segmentation(root, 168, 192, labels="regions", patients=42, mpp=2.0, seed=split, laboratories=True)
    return root, simulated()


def simulated() -> DataConfig:
    """How the simulated data are read: 2 patients annotated, 20 the test, the others lend their style."""
    names = [f"P{k:02d}" for k in range(1, 43)]
    classes = ("tumour", "lymphoid")
    return DataConfig(crop=64, classes=classes, annotated=tuple(names[:2]), test=tuple(names[22:]))


def glas(out: Path, shared: Path, split: int) -> tuple[Path, DataConfig]:
    """Glands at a quarter of the published size, by patient."""
    source = shared / "data" / "seg" / "glas"
    with open(source / "Grade.csv") as file:
        patients = {row["name"].strip(): f"G{int(row['patient ID']):02d}" for row in csv.DictReader(file)}
    pairs = {path.stem: (path, source / "masks" / f"{path.stem}.png") for path in source.glob("images/*.jpg")}
    root = _folder(out / "data", {k: (*v, patients[k]) for k, v in pairs.items() if k in patients}, 0.5)
    annotated, test = GLAS[split]
    return root, DataConfig(crop=64, annotated=annotated, test=test)


def monuseg(out: Path, shared: Path, split: int) -> tuple[Path, DataConfig]:
    """Nuclei at half size, by image; a split is where the images are counted from."""
    source = shared / "data" / "seg" / "monuseg"
    names = sorted(path.name.removesuffix("_img.jpg") for path in source.glob("*_img.jpg"))
    pairs = {
        name: (
            source / f"{name}_img.jpg",
            source / f"{name}_mask.png",
            f"I{(number + 3 * split) % len(names)}",
        )
        for number, name in enumerate(names)
    }
    root = _folder(out / "data", pairs, 0.5)
    return root, DataConfig(crop=64, annotated=("I0", "I1"), test=("I5", "I6", "I7"))


def flowers(out: Path, shared: Path, split: int) -> tuple[Path, DataConfig]:
    """Flower or not at half size, by class of flower (80 images of each in the published numbering)."""
    source = shared / "data" / "seg" / "flowers17"
    pairs = {}
    for path in sorted(source.glob("images/*.jpg")):
        kind = (int(path.stem.split("_")[1]) - 1) // 80
        pairs[path.stem] = (path, source / "labels" / f"{path.stem}.png", f"F{kind:02d}")
    kinds = sorted({kind for _, _, kind in pairs.values()})
    kinds = kinds[2 * split :] + kinds[: 2 * split]
    root = _folder(out / "data", pairs, 0.5, foreground=1)
    return root, DataConfig(crop=64, annotated=tuple(kinds[:2]), test=tuple(kinds[9:]))


def _folder(
    root: Path, pairs: dict[str, tuple[Path, Path, str]], scale: float, foreground: int | None = None
) -> Path:
    """Images and masks at another size, with their patients; a label above 127 is foreground, or the one given."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True, exist_ok=True)
    rows = ["name,patient"]
    for name, (image, mask, patient) in sorted(pairs.items()):
        rows.append(f"{name},{patient}")
        if (root / "masks" / f"{name}.png").is_file():
            continue
        with Image.open(image, formats=["JPEG"]) as pixels, Image.open(mask, formats=["PNG"]) as labels:
            size = round(pixels.width * scale), round(pixels.height * scale)
            pixels.convert("RGB").resize(size, Image.Resampling.BOX).save(root / "images" / f"{name}.png")
            grey = (
                labels
                if foreground is None
                else Image.fromarray(255 * (np.asarray(labels) == foreground).astype(np.uint8))
            )
            half = grey.convert("L").resize(size, Image.Resampling.BOX)
            Image.fromarray((np.asarray(half) > 127).astype(np.uint8)).save(root / "masks" / f"{name}.png")
    (root / "patients.csv").write_text("\n".join(rows) + "\n")
    return root


ARMS = {baselines.folder_of(name): name for name in baselines.ORDER}
DATA = {"simulator": simulator, "glas": glas, "monuseg": monuseg, "flowers": flowers}


def run(
    name: str,
    out: Path,
    *,
    shared: Path,
    split: int = 0,
    seeds: list[int],
    steps: int | None = None,
    segmenter_steps: int | None = None,
    count: int = 500,
    pairs: int = 200,
    freeze_style: bool = False,
    model: Path | None = None,
    threads: int = 1,
    arms: list[str] | None = None,
) -> dict[str, Any]:
    """Everything of one data set; returns and writes ``out/study.json``."""
    import torch

    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    root, data = DATA[name](out, shared, split)
    drawn = data.replace(sampling="mp", style_images=2, stain_shift=0.2, focus_shift=1.0)
    found = read_sources([root], drawn)
    given = {"size": "small", "data": drawn.to_dict(), "train_style": not freeze_style}
    config = TrainConfig.load(overrides={**given, **({"training.steps": steps} if steps is not None else {})})
    started = time.perf_counter()
    if model is None:
        trained = train_model(found, config, out / "model", device="cpu").model
    else:
        trained = LayoutDiffusion.from_pretrained(model)
    times = {"train": time.perf_counter() - started}
    begun = time.perf_counter()
    made = synthesize(
        trained, found.annotated, found.unannotated, SynthesisConfig(count=count, batch=20), out / "synthetic",
        data=drawn,
    )  # fmt: skip
    times["synthesise"] = time.perf_counter() - begun
    synthetic = image_folder(made.folder)[0]
    everything = read_sources([root], data.replace(annotated=())).annotated
    annotated = {sheet.name for sheet in found.annotated}
    rest = [sheet for sheet in everything if sheet.name not in annotated]
    scores: dict[str, dict[str, list[float]]] = {}
    quality: dict[str, float] = {}
    begun = time.perf_counter()
    for seed in seeds:
        base = SegmentConfig(data=data)
        loop = base.training.replace(seed=seed)
        if segmenter_steps is not None:
            loop = loop.replace(steps=segmenter_steps)
        result = compare(
            found, synthetic, base.replace(training=loop), out / f"seed-{seed}", everything=rest,
            arms=[ARMS[arm] for arm in arms or ARMS], instances=name == "monuseg", device="cpu",
        )  # fmt: skip
        for evaluation in result.evaluations:
            for item in evaluation.items:
                arm = scores.setdefault(evaluation.method, {})
                arm.setdefault(item.name, []).append(item.values["iou"])
        times["segment"] = time.perf_counter() - begun
        if pairs and not quality:
            quality = of_images(trained, synthetic, found, out / "quality", judge(out, seed), pairs)
            begun += time.perf_counter() - begun - times["segment"]
        write(name, out, scores, seeds, times, made, quality)
    return json.loads((out / "study.json").read_text()) if seeds else {}


def judge(study: Path, seed: int = 0) -> Segmenter:
    """The segmenter of a study that was trained on real images alone, with or without augmentation."""
    arms = (baselines.REAL, baselines.AUGMENTED)
    folders = [study / f"seed-{seed}" / "segmenters" / baselines.folder_of(arm) / "model" for arm in arms]
    return Segmenter.from_pretrained(next((each for each in folders if each.is_dir()), folders[0]))


def of_images(
    model: LayoutDiffusion, synthetic: list[Any], found: DataSplit, out: Path, real: Segmenter, pairs: int
) -> dict[str, float]:
    """Style match, agreement, diversity and memorisation; the style match of images that begin at noise alone, too."""
    figures = dict(
        evaluate_synthetic(
            model, synthetic, found.annotated, found.unannotated, found.test, out, segmenter=real, pairs=pairs
        ).figures
    )
    noise = LayoutSampler.fast().replace(strength=1.0)
    for key, share in style_match(model, found.annotated, found.test, pairs, sampler=noise).items():
        figures[f"style match from noise alone, {key}"] = share
    return figures


def write(
    name: str,
    out: Path,
    scores: dict[str, dict[str, list[float]]],
    seeds: list[int],
    times: dict[str, float],
    made: Any,
    quality: dict[str, float] | None = None,
) -> dict[str, Any]:
    """The table, printed and kept."""
    means = {arm: {p: float(np.nanmean(v)) for p, v in found.items()} for arm, found in scores.items()}
    first = means[baselines.BOTH]
    rows = {}
    for arm, values in means.items():
        patients = [p for p in values if np.isfinite(values[p]) and np.isfinite(first[p])]
        own = bootstrap(
            [values[p] for p in patients], patients, unit="patient", generator=numpy_generator(0, arm)
        )
        gain = bootstrap(
            [first[p] - values[p] for p in patients],
            patients,
            unit="patient",
            generator=numpy_generator(1, arm),
        )
        runs = len(next(iter(scores[arm].values())))
        rows[arm] = {
            "iou": own.value,
            "low": own.low,
            "high": own.high,
            "sd": float(np.std([values[p] for p in patients], ddof=1)),
            "gain": gain.value,
            "gain low": gain.low,
            "gain high": gain.high,
            "seeds": [float(np.nanmean([v[k] for v in scores[arm].values()])) for k in range(runs)],
        }
    result = {
        "data": name,
        "seeds": seeds,
        "kept": made.kept,
        "made": made.made,
        "seconds": times,
        "arms": rows,
    }
    result["quality"] = quality or {}
    (out / "study.json").write_text(json.dumps(result, indent=1))
    print(f"\n{name}: {len(seeds)} seeds, {made.kept} synthetic images; seconds {times}")
    print("| arm | IoU [95 %] | SD between patients | real + synthetic minus it |\n|---|---|---|---|")
    for arm in (baselines.BOTH, *(a for a in baselines.ORDER if a != baselines.BOTH and a in rows)):
        row = rows[arm]
        gain = (
            ""
            if arm == baselines.BOTH
            else (f"{100 * row['gain']:+.1f} [{100 * row['gain low']:+.1f}, {100 * row['gain high']:+.1f}]")
        )
        print(
            f"| {arm} | {row['iou']:.3f} [{row['low']:.3f}, {row['high']:.3f}] | {row['sd']:.3f} | {gain} |"
        )
    for key, value in (quality or {}).items():
        print(f"{key}: {value:.3f}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", choices=list(DATA))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--split", type=int, default=0, help="Which patients, or which simulated world.")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--segmenter-steps", type=int)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--pairs", type=int, default=200, help="Of the style match; 0: no scores of images.")
    parser.add_argument("--freeze-style", action="store_true", help="Leave the style encoder as it began.")
    parser.add_argument("--model", type=Path, help="A model trained before, in the place of training one.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--arms", nargs="+", choices=list(ARMS), help="Those that are trained; all, if not named."
    )
    parser.add_argument("--pool", type=Path, nargs="+", help="Folders of finished studies: one table of all.")
    values = vars(parser.parse_args())
    if folders := values.pop("pool"):
        pool(folders, values["out"])
        return
    run(values.pop("data"), values.pop("out"), **values)


if __name__ == "__main__":
    main()
