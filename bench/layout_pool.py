"""Several studies of `bench.layout_study` as one: each is a world (another data set, or another split of one).

    python -m bench.layout_study simulator --pool build/world-* --out build/pool

What is counted is the world: differences are paired within it, and the intervals are Student's over worlds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t as student

from morphogen.layout.scoring import baselines


class Pooled(NamedTuple):
    """Mean over worlds with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Pooled:
        """Of one value per world, NaN where it has none; the interval of one alone is without end."""
        known = [value for value in values if np.isfinite(value)]
        count, mean = len(known), float(np.mean(known))
        if count < 2:
            return cls(mean, float("-inf"), float("inf"))
        half = float(student.ppf(0.975, count - 1) * np.std(known, ddof=1) / np.sqrt(count))
        return cls(mean, mean - half, mean + half)

    def points(self) -> str:
        """In hundredths, with signs."""
        return f"{100 * self.value:+.1f} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def pool(folders: Sequence[Path], out: Path | None = None) -> dict[str, Any]:
    """The table of several worlds, printed and, with ``out``, kept as ``pool.json``. A difference is over the worlds
    that have both arms."""
    studies = [json.loads((folder / "study.json").read_text()) for folder in folders]
    worlds = [study["arms"] for study in studies]
    arms = [name for name in baselines.ORDER if any(name in world for world in worlds)]

    def of(key: str) -> dict[str, np.ndarray]:
        return {name: np.array([world.get(name, {}).get(key, np.nan) for world in worlds]) for name in arms}

    iou, sd = of("iou"), of("sd")
    first = iou[baselines.BOTH]
    gains = {name: Pooled.of(first - iou[name]) for name in arms if name != baselines.BOTH}
    known = [name for name in STEPS if name in iou]
    parts = {
        f"{after} − {before}": Pooled.of(iou[after] - iou[before]) for before, after in zip(known, known[1:])
    }
    figures: dict[str, Any] = {"worlds": len(worlds), "steps": parts, "gains": gains}
    figures["iou"] = {name: Pooled.of(values) for name, values in iou.items()}
    figures["sd"] = {name: float(np.nanmean(values)) for name, values in sd.items()}
    if baselines.AUGMENTED in iou:
        augmented = iou[baselines.AUGMENTED]
        figures["sd ratio"] = Pooled.of(sd[baselines.BOTH] / sd[baselines.AUGMENTED])
        if baselines.ALL in iou:
            gap = iou[baselines.ALL] - augmented
            both = np.isfinite(gap)
            figures["share of the gap closed"] = float((first - augmented)[both].mean() / gap[both].mean())
    colours = [name for name in (baselines.RESTYLED, baselines.RECOLOURED) if name in iou]
    if baselines.PSEUDO in iou and colours:
        recoloured = np.fmax.reduce([iou[name] for name in colours])
        rivals = np.maximum(recoloured, iou[baselines.PSEUDO])  # NaN where a world has not both
        figures["minus the best of recolouring and pseudo-labels"] = Pooled.of(first - rivals)
    figures["seconds"] = {
        key: float(np.mean([each["seconds"][key] for each in studies])) for key in studies[0]["seconds"]
    }
    _say(figures, arms, [{name: float(iou[name][k]) for name in arms} for k in range(len(worlds))])
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "pool.json").write_text(json.dumps(figures, indent=1))
    return figures


STEPS = (baselines.REAL, baselines.AUGMENTED, baselines.RECOLOURED, baselines.RESTYLED, baselines.BOTH)
"""Each arm has what the one before it has and one thing more: augmentation, colour, focus, the diffusion model."""


def _say(figures: dict[str, Any], arms: Sequence[str], worlds: Sequence[dict[str, float]]) -> None:
    order = [baselines.BOTH, *(name for name in arms if name != baselines.BOTH)]
    print(
        "| arm | IoU, mean of the worlds | each | SD between patients | real + synthetic minus it, points |"
    )
    print("|---|---|---|---|---|")
    for name in order:
        each = " ".join(f"{world[name]:.3f}" for world in worlds)
        gain = figures["gains"][name].points() if name in figures["gains"] else ""
        print(f"| {name} | {figures['iou'][name].value:.3f} | {each} | {figures['sd'][name]:.3f} | {gain} |")
    for name, part in figures["steps"].items():
        print(f"{name}: {part.points()}")
    if "sd ratio" in figures:
        ratio = figures["sd ratio"]
        print(f"SD between patients, over that of stain augmentation: {ratio.value:.2f}", end=" ")
        print(f"[{ratio.low:.2f}, {ratio.high:.2f}]")
    key = "minus the best of recolouring and pseudo-labels"
    if key in figures:
        print(f"real + synthetic {key}: {figures[key].points()}")
    if "share of the gap closed" in figures:
        print(f"share of the gap to all labels that is closed: {figures['share of the gap closed']:.0%}")
    print("seconds of a world:", ", ".join(f"{k} {v:.0f}" for k, v in figures["seconds"].items()))
