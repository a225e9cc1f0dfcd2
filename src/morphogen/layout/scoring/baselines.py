"""The arms of the comparison: what a segmenter is trained on when there are few labels."""

from __future__ import annotations

from collections.abc import Sequence

from morphogen.layout.config import DataConfig, SynthesisConfig
from morphogen.layout.sources.arrays import in_memory
from morphogen.layout.sources.sheets import ImageSheet, Sheet
from morphogen.layout.synthesis.plan import Plan, name_of

REAL = "real only"
AUGMENTED = "real + stain augmentation"
RECOLOURED = "real + recolouring"
RESTYLED = "real + recolouring and focus"
PSEUDO = "real + pseudo-labels"
SYNTHETIC = "synthetic only"
BOTH = "real + synthetic"
ALL = "all labels"
ORDER = (REAL, AUGMENTED, RECOLOURED, RESTYLED, PSEUDO, SYNTHETIC, BOTH, ALL)
STAIN = 0.15  # size of the stain augmentation, where the settings have none


def folder_of(arm: str) -> str:
    """Name of the folder that an arm's segmenter lies in.

    >>> folder_of(BOTH)
    'real-and-synthetic'
    """
    return arm.replace(" ", "-").replace("+", "and")


def recoloured_sheets(
    annotated: Sequence[Sheet],
    unannotated: Sequence[Sheet],
    count: int,
    data: DataConfig,
    classes: int,
    seed: int = 0,
    *,
    focus: bool = False,
) -> list[ImageSheet]:
    """``count`` annotated crops, flipped, in the stain colours of unannotated patients, who take turns. With
    ``focus`` they are as sharp or blurred as those, too: what the synthetic images of this seed begin at, one by one,
    so that the two differ by what the diffusion model does to them."""
    if not unannotated:
        return []
    data = data.replace(sampling="mp", style_images=1)
    plan = Plan(annotated, unannotated, data, SynthesisConfig(count=count, seed=seed, focus=focus), classes)
    return [
        in_memory(
            f"{name_of(pair.number)}_as_{pair.patient}",
            pair.patient,
            pair.begin,
            pair.layout.labels,
            balanced=True,
        )
        for pair in (plan[number] for number in range(count))
    ]
