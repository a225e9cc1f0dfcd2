"""Evaluation: one segmenter for every arm of the comparison, scored on held-out patients; the synthetic images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from morphogen.core.errors import InputError
from morphogen.core.files import writable_folder
from morphogen.core.writing.locks import locks_folder
from morphogen.layout.config import SegmentConfig
from morphogen.layout.data import DataSplit
from morphogen.layout.scoring import baselines
from morphogen.layout.scoring.pages import segmentation_page, write_panels
from morphogen.layout.scoring.scores import patient_items, score_segmenter, set_scores
from morphogen.layout.segmenter.model import Segmenter
from morphogen.layout.segmenter.train import train_segmenter
from morphogen.layout.sources.sheets import Sheet
from morphogen.layout.synthesis.pseudo import pseudo_sheets
from morphogen.tasks.evaluation import Evaluation, against_first, paired_differences, write_results

PROTOCOL = "layout-1"
KEYS = ("iou", "dice", "boundary", "pq")


@dataclass(frozen=True)
class Comparison:
    """Scores of every arm; the first is the one compared with the others."""

    evaluations: tuple[Evaluation, ...]
    folder: Path
    verdict: str

    def value(self, method: str, key: str = "iou") -> float:
        """A figure of an arm."""
        found = next(e for e in self.evaluations if e.method == method).scores
        return found.intervals[key].value if key in found.intervals else found.figures[key]


@locks_folder()
def compare(
    found: DataSplit,
    synthetic: Sequence[Sheet],
    config: SegmentConfig,
    out: Path | str,
    *,
    everything: Sequence[Sheet] = (),
    arms: Sequence[str] = baselines.ORDER,
    instances: bool = False,
    device: str = "auto",
) -> Comparison:
    """Train one segmenter per arm, with the same steps, and score them on the test patients.

    The arms are always the same: real only; real with stain augmentation; and, all of them with that augmentation,
    real + synthetic, + recolouring, + recolouring and focus, + pseudo-labels, synthetic only, and all labels, where
    ``everything`` holds the labelled sheets of the patients that count as unannotated. A study that has less time names
    ``arms``, to which real + synthetic is added. A killed run goes on.
    """
    if not found.test:
        raise InputError("no patient is left to test on", where="split", fix="Name test patients with --test")
    if not synthetic:
        raise InputError(
            "there are no synthetic images to compare with", fix="Run morphogen layout synthesize"
        )
    out = writable_folder(out)
    names, crop = found.classes.names, config.data.crop
    config = config.replace(stain_augment=config.stain_augment or baselines.STAIN)
    train = partial(train_segmenter, classes=names, device=device)
    models: dict[str, Segmenter] = {}
    wanted = {baselines.BOTH, *arms}
    if baselines.PSEUDO in wanted:
        wanted.add(baselines.AUGMENTED)  # whose labels they are

    def arm(
        name: str, real: Sequence[Sheet], extra: Callable[[], Sequence[Sheet]] = tuple, **changes: Any
    ) -> None:
        if name in wanted:
            folder = out / "segmenters" / baselines.folder_of(name)
            models[name] = train(real, config=config.replace(**changes), out=folder, synthetic=extra()).model

    def restyled(focus: bool) -> Sequence[Sheet]:
        return baselines.recoloured_sheets(
            found.annotated,
            found.unannotated,
            len(synthetic),
            config.data,
            len(names),
            config.training.seed,
            focus=focus,
        )

    arm(baselines.REAL, found.annotated, stain_augment=0.0)
    arm(baselines.BOTH, found.annotated, lambda: synthetic)
    arm(baselines.AUGMENTED, found.annotated)
    arm(baselines.RECOLOURED, found.annotated, lambda: restyled(False))
    arm(baselines.RESTYLED, found.annotated, lambda: restyled(True))
    arm(
        baselines.PSEUDO,
        found.annotated,
        lambda: pseudo_sheets(models[baselines.AUGMENTED], found.unannotated, crop),
    )
    arm(baselines.SYNTHETIC, [], lambda: synthetic)
    if everything:
        arm(baselines.ALL, [*found.annotated, *everything])
    ordered = {baselines.BOTH: models[baselines.BOTH]}
    ordered |= {name: models[name] for name in baselines.ORDER if name in models}
    facts = {
        "steps": config.training.steps,
        "seed": config.training.seed,
        "synthetic_ratio": config.synthetic_ratio,
        "synthetic": len(synthetic),
    }
    return evaluate_segmenters(ordered, found, out, facts=facts, instances=instances)


@locks_folder()
def evaluate_segmenters(
    segmenters: Mapping[str, Segmenter],
    found: DataSplit,
    out: Path | str,
    *,
    facts: Mapping[str, Any] | None = None,
    instances: bool = False,
    seed: int = 0,
) -> Comparison:
    """Score segmenters on the test patients: per class and per patient, with intervals over patients, paired
    differences of the first to every other, ``report.html``."""
    out = writable_folder(out)
    if not found.test:
        raise InputError("no labelled test patient is given", where="split", fix="Name them with --test")
    names = found.classes.names
    evaluations = []
    for name, segmenter in segmenters.items():
        scores = score_segmenter(segmenter, found.test, instances=instances)
        items = patient_items(scores, names)
        evaluations.append(Evaluation(name, set_scores(scores, items, names, seed), items))
    differences = against_first(
        evaluations,
        partial(paired_differences, keys=KEYS, unit="patient", seed=seed, purpose="segmentation"),
    )
    about = {
        "annotated": sorted({sheet.patient for sheet in found.annotated}),
        "styles": sorted({sheet.patient for sheet in found.unannotated}),
        "test": sorted({sheet.patient for sheet in found.test}),
        "images": len(found.test),
        "classes": list(names),
        **(facts or {}),
    }
    write_results(
        out,
        evaluations,
        kind="segmentation evaluation",
        protocol=PROTOCOL,
        facts=about,
        differences=differences,
        order=("pooled", "iou", "sd", "dice", "boundary"),
        items="patients",
    )
    write_panels(segmenters, found.test, out / "panels")
    said = verdict(evaluations, differences)
    segmentation_page(out, evaluations, names, said)
    return Comparison(tuple(evaluations), out, said)


def verdict(evaluations: Sequence[Evaluation], differences: Mapping[str, Mapping[str, Any]]) -> str:
    """The first line of the report: whether synthetic images helped, against the best that does without them."""
    first = evaluations[0].method
    others = [name for name in differences if name not in (baselines.ALL, baselines.SYNTHETIC)]
    if first != baselines.BOTH or not others:
        return ""
    values = {e.method: e.scores.intervals["iou"].value for e in evaluations if "iou" in e.scores.intervals}
    best = max(others, key=lambda name: values.get(name, -np.inf))
    gain = differences[best]["iou"]
    said = f"{100 * gain.value:+.1f} IoU points"
    known = np.isfinite(gain.low)
    if known:
        said += f" [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
    if gain.value > 0 and known and gain.low > 0 and not gain.caution:
        return f"Synthetic images help: {first} is {said} from the best of the others, {best}."
    if gain.value > 0:
        few = f" {gain.caution}." if gain.caution else ""
        return f"Synthetic images may help, and it is not certain: {first} is {said} from {best}.{few}"
    return f"Synthetic images do not help here: {first} is {said} from {best}, which does without them."
