"""Labelled images: the fast sampler against the published one of the same model, and what an image costs on a core."""

from __future__ import annotations

import time

import torch

from bench.harness import Row, compare
from morphogen.layout.config import ModelConfig
from morphogen.layout.model import LayoutDiffusion, LayoutSampler
from morphogen.nets.first_stages import PixelFirstStage
from morphogen.nets.layout.network import build_layout_network

CLASSES = ("background", "tumour", "lymphoid")


def model() -> LayoutDiffusion:
    """Size small with fresh weights: time does not depend on them."""
    config = ModelConfig.sized("small", CLASSES)
    network = build_layout_network(config.network, seed=0).eval()
    return LayoutDiffusion(network, PixelFirstStage(config.network.factor), config).to("cpu")


def run(quick: bool) -> list[Row]:
    """Ratio of times, and seconds of one core for an image of 128 px."""
    layout = model()
    labels = torch.zeros(2, 128, 128, dtype=torch.long)
    labels[:, 32:96, 32:96] = 1
    styles = layout.styles(torch.full((2, 1, 128, 128, 3), 180, dtype=torch.uint8))
    fast, reference = LayoutSampler.fast(), LayoutSampler.reference()
    calls = [2 * config.replace(strength=1.0).evaluations(layout.schedule) for config in (fast, reference)]
    rows = [
        compare(
            f"layout: {calls[0]} evaluations against the published {calls[1]}, size small, 128 px",
            lambda: layout(labels, styles, fast),
            lambda: layout(labels, styles, reference),
            pairs=2 if quick else 5,
            goal="≥ 10",
            detail="both halves of guidance in one batch",
        )
    ]
    begin = torch.full((2, 128, 128, 3), 180, dtype=torch.uint8)
    for what, options, count in (
        ("from noise", {}, calls[0]),
        ("from the annotated image", {"begin": begin, "own": styles}, 3 * len(fast.times(layout.schedule))),
    ):
        spent = []
        for _ in range(3 if quick else 7):
            begun = time.process_time()
            layout(labels, styles, fast, **options)
            spent.append((time.process_time() - begun) / len(labels))
        spent.sort()
        rows.append(
            Row(
                f"layout: an image of 128 px {what}, fast, one core",
                spent[len(spent) // 2],
                "s",
                spent[0],
                spent[-1],
                goal="≤ 0.6",
                detail=f"{count} evaluations",
            )
        )
    return rows
