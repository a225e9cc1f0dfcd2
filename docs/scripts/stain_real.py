"""Measure virtual DAB on real pairs, whole images held out, and write the tables into docs/stain.md.

``python docs/scripts/stain_real.py --data ../shared/data/pairs --out runs/stain-real`` looks for images of one field
among the pairs, registers every pair, parts them into three folds (images of one field in one), trains on two, three
times, and scores all images by models that have not seen them: a plain regression, and the diffusion of what a
regression that begins as a colour map leaves over, set as they were for second harmonics; nothing is chosen here. Runs
and scores that are there already are taken as they are. ``--folds 0 1`` makes some of the folds, ``--write`` puts the
tables into the page.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from stain_runs import FEW_APPLY, few_pairs, seconds_of, trained
from stain_tables import markdown, written

from morphogen.core.files import atomic_path, file_hash, read_json, write_json
from morphogen.stain.config import EvaluateConfig, TrainConfig
from morphogen.stain.data import FoundPairs, Pair, find_pairs
from morphogen.stain.evaluate import evaluate_methods, write_results
from morphogen.stain.model import StainTransfer
from morphogen.stain.pairs.geometry import read_aligned, shared_side
from morphogen.stain.predict import stain_image
from morphogen.stain.registration.motion import estimate_motion
from morphogen.stain.scoring.baselines import colour_maps, deconvolution, identity
from morphogen.stain.scoring.figures import in_a_row, uncertainty_picture
from morphogen.stain.targets.files import read_image
from morphogen.tasks import held_together, save_png

PAGE = Path(__file__).resolve().parents[1] / "stain.md"
FOLDS, CROP, TILE = 3, 128, 32
SAMPLES, STEPS, REGRESSION = 6, 400, 60
INLIERS = 25  # matching corners from which two images show one field
OURS, ONE, START, PLAIN = (
    f"mean of {SAMPLES} samples",
    "one sample",
    "regression that begins as a colour map",
    "regression U-Net",
)
NUCLEAR = ("ER", "PR", "Ki67")
SHOWN = (
    "restained-ki67",
    "mist-er",
    "bci_HER2_d",
)  # of the picture: one of each kind of stain, and the re-stained one


def sources(data: Path) -> list[tuple[str, Path, Path, str, float]]:
    """Name, H&E, IHC, stain and the factor to about 1 µm per pixel, the scale of the crops, of all pairs."""
    out = []
    for he in sorted((data / "bci" / "valA").glob("*.png")):
        out.append((f"bci-{he.stem.split('_')[0]}", he, data / "bci" / "valB" / he.name, "HER2", 391 / 1024))
    for he in sorted((data / "mist_bci_crops" / "HE").glob("*.jpg")):
        stain = he.stem.split("_")[1]
        label = "nuclear" if stain in NUCLEAR else stain
        out.append((he.stem, he, data / "mist_bci_crops" / "IHC" / he.name, label, 1.0))
    out.append(("mist-er", data / "mist_er" / "he.jpg", data / "mist_er" / "er.jpg", "nuclear", 1.0))
    restained = data / "restained_ki67"
    out.append(("restained-ki67", restained / "HE.png", restained / "IHC.png", "nuclear", 0.5))
    for he in sorted((data / "liver_ihc_serial" / "HE").glob("*.jpg")):
        out.append((f"liver-{he.stem}", he, data / "liver_ihc_serial" / "IHC" / he.name, "liver", 1.0))
    return out


def shrunk(path: Path, factor: float) -> np.ndarray:
    image = Image.fromarray(read_image(path))
    if factor != 1:
        size = (round(image.width * factor), round(image.height * factor))
        image = image.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(image)


def inliers(a: np.ndarray, b: np.ndarray) -> int:
    """Corners of two images that one turn, scale and shift brings together (ORB, Rublee et al., ICCV 2011)."""
    import cv2

    orb = cv2.ORB_create(800)  # type: ignore[attr-defined]
    found = [orb.detectAndCompute(cv2.cvtColor(each, cv2.COLOR_RGB2GRAY), None) for each in (a, b)]
    if any(marks is None or len(marks) < INLIERS for _, marks in found):
        return 0
    best = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(found[0][1], found[1][1])
    if len(best) < INLIERS:
        return 0
    ends = [
        np.array([found[0][0][m.queryIdx].pt for m in best]),
        np.array([found[1][0][m.trainIdx].pt for m in best]),
    ]
    cv2.setRNGSeed(0)
    _, kept = cv2.estimateAffinePartial2D(ends[0], ends[1], ransacReprojThreshold=3.0)
    return 0 if kept is None else int(kept.sum())


def fields(
    images: Sequence[np.ndarray], hashes: Sequence[str]
) -> tuple[list[int], list[tuple[int, int, str]]]:
    """The field of every image, and which two are of one: the same bytes, or corners that match as they are or in a
    mirror."""
    alike = []
    for b in range(len(images)):
        for a in range(b):
            if hashes[a] == hashes[b]:
                alike.append((a, b, "the same file"))
                continue
            count = max(
                inliers(images[a], images[b]), inliers(images[a], np.ascontiguousarray(images[b][:, ::-1]))
            )
            if count >= INLIERS:
                alike.append((a, b, f"{count} corners match"))
    labels = [[""] * len(images) for _ in alike] or [[""] * len(images)]
    for label, (a, b, _) in zip(labels, alike, strict=False):
        label[a] = label[b] = "one"
    return held_together(*labels), alike


def prepare(data: Path, out: Path) -> Path:
    """Pairs registered, in three folds: ``pairs.csv`` with the fold as group, and ``found.json``."""
    table = out / "pairs.csv"
    if table.is_file():
        return table
    given = sources(data)
    images = [shrunk(he, factor) for _, he, _, _, factor in given]
    units, alike = fields(images, [file_hash(he) for _, he, *_ in given])
    rows, found, used = [], [], dict.fromkeys({stain for *_, stain, _ in given}, 0)
    fold_of: dict[int, int] = {}
    for (name, _, ihc_path, stain, factor), he, unit in zip(given, images, units, strict=True):
        ihc = shrunk(ihc_path, factor)
        for side, image in (("he", he), ("ihc", ihc)):
            save_png(out / side / f"{name}.png", np.ascontiguousarray(image))
        pair = Pair(name, out / "he" / f"{name}.png", out / "ihc" / f"{name}.png", stain)
        motion = estimate_motion(he, ihc)
        moved = replace(pair, affine=tuple(motion.matrix.ravel()))
        sure = motion.sure and shared_side(moved) >= CROP
        if unit not in fold_of:
            fold_of[unit] = used[stain] % FOLDS
            used[stain] += 1
        affine = " ".join(f"{value:.8g}" for value in motion.matrix.ravel()) if sure else ""
        rows.append(
            {"name": name, "he": f"he/{name}.png", "ihc": f"ihc/{name}.png", "stain": stain,
             "group": fold_of[unit], "affine": affine}
        )  # fmt: skip
        found.append({"name": name, "stain": stain, "score": motion.score, "turn": motion.turn, "sure": sure,
                      "size": list(he.shape[:2][::-1]), "fold": fold_of[unit]})  # fmt: skip
        print(found[-1], flush=True)
    names = [name for name, *_ in given]
    write_json(
        out / "found.json", {"pairs": found, "alike": [[names[a], names[b], how] for a, b, how in alike]}
    )
    with open(table, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return table


def settings(kind: str) -> TrainConfig:
    """How they are trained, beside what :func:`stain_runs.few_pairs` says."""
    given = {
        "model.normalise": "strength",
        "data.crop": CROP,
        "data.balance_stains": True,
        "data.stain_jitter": 0.05,
        "objective.bias_he_ihc": 0.0,
    }
    around = {"objective.cross_fit": FOLDS - 1, "objective.noise_scales": 5}
    return few_pairs(kind, STEPS, REGRESSION, given, around)


def images_of(pairs: Sequence[Pair], fold: int, out: Path) -> dict[str, dict[str, np.ndarray]]:
    """What every method makes of the test images of a fold, by method and name; uncertainty as ``doubt``. Kept in
    ``made.npz``."""
    kept = out / f"fold{fold}" / "made.npz"
    if kept.is_file():
        with np.load(kept) as file:
            found: dict[str, dict[str, np.ndarray]] = {}
            for key in file.files:
                method, _, name = key.rpartition("|")
                found.setdefault(method, {})[name] = file[key]
        return found
    train = [pair for pair in pairs if pair.group != str(fold)]
    test = [pair for pair in pairs if pair.group == str(fold)]
    models: dict[str, StainTransfer] = {}
    for kind in ("ours", "plain"):
        models[kind], _ = trained(FoundPairs(train, []), out / f"fold{fold}" / kind, settings(kind))
    maps = colour_maps(train)
    regression = models["ours"].mean
    assert regression is not None
    made: dict[str, dict[str, np.ndarray]] = {
        key: {} for key in (OURS, ONE, START, PLAIN, "colour map", "doubt")
    }
    for pair in test:
        he, apply = read_aligned(pair)[0], FEW_APPLY.replace(stain=pair.stain)
        several = stain_image(
            models["ours"], he, apply.replace(samples=SAMPLES, mean_weight=0.5), name=pair.name
        )
        made[OURS][pair.name], made[ONE][pair.name] = several.mean, several.sample
        made["doubt"][pair.name] = several.uncertainty
        for key, model in ((START, regression), (PLAIN, models["plain"])):
            made[key][pair.name] = stain_image(model, he, apply, name=pair.name).sample
        made["colour map"][pair.name] = maps[pair.stain](he)
    with atomic_path(kept) as temporary, open(temporary, "wb") as file:
        np.savez(
            file, **{f"{key}|{name}": image for key, each in made.items() for name, image in each.items()}
        )
    return made


def measure(everything: Sequence[Pair], folds: Sequence[int], out: Path) -> None:
    """Every fold trained and applied, all their images scored together."""
    made: dict[str, dict[str, np.ndarray]] = {}
    pairs = [pair for pair in everything if int(pair.group or -1) in folds]
    for fold in folds:
        for key, images in images_of(everything, fold, out).items():
            made.setdefault(key, {}).update(images)
        print(f"fold {fold} made", flush=True)
    doubt = made.pop("doubt")
    methods: dict[str, Any] = {name: _of(images) for name, images in made.items()}
    methods |= {
        "colour deconvolution": lambda pair, he: deconvolution(he),
        "H&E as it is": lambda pair, he: identity(he),
    }
    config = EvaluateConfig(tile=TILE)
    evaluations = evaluate_methods(pairs, methods, config, uncertainty={OURS: lambda pair: doubt[pair.name]})
    seconds = {
        title: sum(seconds_of(out / f"fold{k}" / kind) for k in folds)
        for kind, title in (("ours", "diffusion with its regressions"), ("plain", "regression U-Net"))
    }
    facts = {"seconds of training": seconds, "seconds per megapixel": {}}
    write_results(out / "scores", evaluations, pairs, config, facts)
    for pair in pairs:
        he, real = read_aligned(pair)
        shown = [he, made[ONE][pair.name], real, made[OURS][pair.name], made[PLAIN][pair.name]]
        strip = in_a_row([*shown, uncertainty_picture(doubt[pair.name])])
        save_png(out / "panels" / f"{pair.name}.png", strip)


def picture(out: Path) -> None:
    """Three images held out: H&E, one sample, the real stain, the mean of samples, the regression, uncertainty."""
    rows = []
    for name in SHOWN:
        row = Image.fromarray(read_image(out / "panels" / f"{name}.png"))
        rows.append(row.resize((1200, round(row.height * 1200 / row.width))))
    sheet = Image.new("RGB", (1200, sum(row.height + 8 for row in rows) - 8), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + 8
    sheet.save(PAGE.parent / "images" / "stain-real.jpg", quality=88)


def _of(images: dict[str, np.ndarray]) -> Any:
    return lambda pair, he: images[pair.name]


def by_group(out: Path) -> str:
    """r per tile within images, by stain, of the pairs that match and of those that do not."""
    found = read_json(out / "found.json")
    with open(out / "scores" / "images.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    r = {(row["method"], row["image"]): float(row["dab_tile_correlation"] or "nan") for row in rows}
    scored = {name for _, name in r}
    found["pairs"] = [each for each in found["pairs"] if each["name"] in scored]
    groups: dict[str, list[str]] = {}
    for each in found["pairs"]:
        words = "match" if each["sure"] else "do not match"
        groups.setdefault(f"{each['stain']}, {words}", []).append(each["name"])
    groups = dict(sorted(groups.items()))
    groups |= {
        f"all that {words}": [each["name"] for each in found["pairs"] if each["sure"] == sure]
        for words, sure in (("match", True), ("do not match", False))
    }
    lines = [
        "| r per tile within images | "
        + " | ".join(f"{key} ({len(names)})" for key, names in groups.items())
        + " |",
        "|---" * (len(groups) + 1) + "|",
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        means = [np.array([r[method, name] for name in names]) for names in groups.values()]
        cells = [f"{np.nanmean(each):.3f}" if np.isfinite(each).any() else "–" for each in means]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def pairs_table(out: Path) -> str:
    """Which pairs there are, which of them match and how well, and which show one field."""
    found = read_json(out / "found.json")
    lines = ["| pairs | stain | match | score of registration, turn |", "|---|---|---|---|"]
    for stain in dict.fromkeys(each["stain"] for each in found["pairs"]):
        for sure in (True, False):
            these = [each for each in found["pairs"] if each["stain"] == stain and each["sure"] == sure]
            if these:
                told = ", ".join(
                    f"{e['name']} {e['score']:.2f}" + (f", {e['turn']:+.0f}°" if sure else "") for e in these
                )
                lines.append(f"| {len(these)} | {stain} | {'yes' if sure else 'no'} | {told} |")
    alike = "; ".join(f"{a} and {b}: {how}" for a, b, how in found["alike"]) or "none"
    return "\n".join(lines) + f"\n\nImages of one field: {alike}.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/pairs"))
    parser.add_argument("--out", type=Path, default=Path("runs/stain-real"))
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(FOLDS)), choices=range(FOLDS))
    parser.add_argument("--write", action="store_true", help="put the tables into docs/stain.md")
    arguments = parser.parse_args()
    out = arguments.out
    pairs = find_pairs(prepare(arguments.data, out)).pairs
    print(pairs_table(out), flush=True)
    if not (out / "scores" / "manifest.json").is_file():
        measure(pairs, arguments.folds, out)
    tables = {"pairs": pairs_table(out), "real": markdown(out / "scores") + "\n" + by_group(out)}
    for name, table in tables.items():
        print(f"\n{name}\n\n{table}", flush=True)
        if arguments.write:
            PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), name, table, Path(__file__).name))
    if arguments.write:
        picture(out)


if __name__ == "__main__":
    main()
