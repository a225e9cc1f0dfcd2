"""Two checks of a layout model on the data of `bench.layout_study`.

    python -m bench.layout_checks samplers --study build/layout
    python -m bench.layout_checks freezing --study build/layout --steps 500

samplers: the same layouts and styles by the fast sampler (24 evaluations) and by the published one (286), both from
noise: how far a segmenter trained on real images finds the layouts, and the Fréchet distance of texture features to
unseen real images, as ratios. freezing: two trainings that differ in whether style encoder and aggregator are trained,
and the style match of both on the held-out patients. ``--study`` is a folder that `bench.layout_study simulator` left.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import Row
from bench.layout_study import judge, simulated
from morphogen.layout.config import DataConfig, SynthesisConfig, TrainConfig
from morphogen.layout.data import DataSplit, read_sources
from morphogen.layout.model import LayoutDiffusion, LayoutSampler
from morphogen.layout.scoring.synthetic import MEASURES, crops_of, style_match
from morphogen.layout.synthesis.agreement import agreement
from morphogen.layout.synthesis.plan import Plan
from morphogen.layout.train import train_model
from morphogen.metrics.images import frechet_distance

BATCH = 20


def samplers(study: Path, found: DataSplit, data: DataConfig, count: int = 200) -> list[Row]:
    """Agreement and Fréchet distance of the fast sampler over those of the published one."""
    import torch

    from morphogen.slides import get_encoder

    model = LayoutDiffusion.from_pretrained(study / "model" / "model")
    segmenter = judge(study)
    plan = Plan(
        found.annotated, found.unannotated, data, SynthesisConfig(count=count), len(found.classes),
        images=model.config.style_images,
    )  # fmt: skip
    pairs = [plan[number] for number in range(count)]
    encoder: Any = get_encoder("texture")

    def features(images: np.ndarray) -> np.ndarray:
        return np.asarray(encoder(torch.from_numpy(np.ascontiguousarray(images))))

    real = features(crops_of(found.test, model.crop, count))
    scores = {}
    for name, sampler in (
        ("fast", LayoutSampler.fast().replace(strength=1.0)),
        ("published", LayoutSampler.reference()),
    ):
        made = []
        for at in range(0, count, BATCH):
            part = pairs[at : at + BATCH]
            labels = np.stack([pair.layout.labels for pair in part])
            styles = torch.from_numpy(np.stack([pair.style for pair in part]))
            made.append(model(labels, styles, sampler, keys=[pair.number for pair in part]).numpy())
        images, labels = np.concatenate(made), np.stack([pair.layout.labels for pair in pairs])
        found_again = float(agreement(segmenter, images, labels).mean())
        scores[name] = (found_again, frechet_distance(real, features(images)))
    detail = "; ".join(f"{name}: agreement {a:.3f}, distance {d:.3g}" for name, (a, d) in scores.items())
    fast, published = scores["fast"], scores["published"]
    return [
        Row("layout: agreement, 24 evaluations over the published 286", fast[0] / published[0], "x",
            goal="0.98–1.02", detail=detail),
        Row("layout: Fréchet distance, 24 evaluations over the published 286", fast[1] / published[1], "x",
            goal="0.98–1.02", detail=f"texture features, {count} images"),
    ]  # fmt: skip


def freezing(
    study: Path, found: DataSplit, data: DataConfig, steps: int = 500, pairs: int = 100
) -> list[Row]:
    """Points of style match that training encoder and aggregator is worth, images from noise alone."""
    matched = {}
    for trained in (True, False):
        given = {
            "size": "small",
            "data": data.to_dict(),
            "train_style": trained,
            "training": {"steps": steps},
        }
        out = study / f"style-{'trained' if trained else 'frozen'}-{steps}"
        model = train_model(found, TrainConfig.load(overrides=given), out, device="cpu").model
        noise = LayoutSampler.fast().replace(strength=1.0)
        matched[trained] = style_match(model, found.annotated, found.test, pairs, sampler=noise)
    return [
        Row(
            f"layout: style match gained by training the style encoder, {name}",
            100 * (matched[True][name] - matched[False][name]),
            "points",
            goal="≥ 10",
            detail=f"{matched[True][name]:.2f} against {matched[False][name]:.2f}; {steps} steps, {pairs} pairs",
        )
        for name in MEASURES
    ]


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("check", choices=["samplers", "freezing"])
    parser.add_argument("--study", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=100)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = simulated().replace(sampling="mp", style_images=2, stain_shift=0.2, focus_shift=1.0)
    found = read_sources([given.study / "data"], data)
    rows = (
        samplers(given.study, found, data, given.count)
        if given.check == "samplers"
        else freezing(given.study, found, data, given.steps, given.pairs)
    )
    for row in rows:
        print(f"{row.name}: {row.value:.3f} {row.unit} (goal {row.goal}; {row.detail})", flush=True)


if __name__ == "__main__":
    main()
