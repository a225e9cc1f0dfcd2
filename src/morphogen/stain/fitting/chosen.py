"""Which pairs and stains a training takes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from morphogen.core.errors import ConfigError
from morphogen.stain.config import ModelConfig, TrainConfig
from morphogen.stain.data import FoundPairs, Pair, stains_of
from morphogen.stain.pairs.checks import usable_pairs
from morphogen.stain.pairs.geometry import scanned_values, shared_side
from morphogen.stain.recipes.folder import Preprocessing, Start
from morphogen.stain.registration.shift import register_pairs
from morphogen.stain.targets.config import TargetConfig
from morphogen.stain.targets.files import measured

log = logging.getLogger("morphogen.stain")

_SAMPLED = 20  # images that full and threshold are taken from


def prepared(
    found: FoundPairs, config: TrainConfig, where: object = None, *, learned: bool = True
) -> tuple[list[Pair], int]:
    """Checked and, where asked for, registered pairs; and how many were left out. ``learned``: not only looked at."""
    data = config.data
    if data.target is not None:
        found = replace(found, pairs=[replace(pair, target=data.target) for pair in found.pairs])
    pairs, report = usable_pairs(found, crop=data.crop, skip_bad=data.skip_bad, where=where, learned=learned)
    if data.register_pairs != "none":
        moved = register_pairs(pairs, data.register_pairs, data.max_shift)
        # What leaves less than a crop is of no use.
        pairs = [b.pair if shared_side(b.pair) >= data.crop else a for a, b in zip(pairs, moved, strict=True)]
    return pairs, report.skipped


def measured_target(pairs: Sequence[Pair]) -> TargetConfig:
    """What the targets are, with type, ``full`` and ``threshold`` of where they were scanned where those are not
    stated."""
    if pairs[0].target.colour:
        return pairs[0].target
    step = max(1, len(pairs) // _SAMPLED)
    return measured(pairs[0].target, [scanned_values(pair) for pair in pairs[::step]])


def with_stains(config: TrainConfig, pairs: Sequence[Pair], start: Start | None) -> TrainConfig:
    """The stains of the pairs as the model's, when the configuration names none of its own; behind those of
    the model that the training starts from."""
    if config.model.stains != ModelConfig().stains:
        return config
    stains = stains_of(pairs)
    if start is not None and start.own is not None:
        known = start.own.settings(ModelConfig).stains
        stains = known + tuple(stain for stain in stains if stain not in known)
    return config.replace(model=config.model.replace(stains=stains))


def check_stains(stains: Sequence[str], config: ModelConfig) -> None:
    """:class:`ConfigError` when pairs are of stains that the model does not have."""
    unknown = sorted(set(stains) - set(config.stains))
    if unknown:
        raise ConfigError(
            f"the pairs are of stain {', '.join(unknown)}, the model of {', '.join(config.stains)}",
            where="model.stains",
            fix=f'Set --model.stains "[{", ".join(sorted(set(stains)))}]"',
        )


def tell_scale(config: TrainConfig, start: Start | None) -> None:
    """Say whose µm per pixel a model has that goes on from another, where its images' is not known."""
    if start is None or start.own is None or config.data.mpp is not None:
        return
    mpp = start.own.fact("preprocessing", Preprocessing, Preprocessing()).mpp
    if mpp is not None:
        log.warning(
            "the images' µm per pixel is not known: the model keeps the %g of the one it starts from. "
            "Give --mpp (data.mpp) if they have another",
            mpp,
        )
