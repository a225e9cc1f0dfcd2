"""Diffusion of what a regression leaves over: CorrDiff (Mardani et al., arXiv 2309.15214) for stains.

A regression of the same network gives the expected stain; the diffusion learns the rest, in units of about its
spread. Samples then scatter around the regression's answer, and their mean does not have to be learned again on every
noise level.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from morphogen.core.errors import ConfigError
from morphogen.core.files import read_json, write_json
from morphogen.core.running.transfers import sent
from morphogen.core.seeds import generator
from morphogen.stain.config import TrainConfig
from morphogen.stain.data import Pair
from morphogen.stain.fitting.config import ObjectiveConfig
from morphogen.stain.fitting.effects import measured_effects
from morphogen.stain.model import StainTransfer
from morphogen.stain.pairs.crops import PairDataset, cells_seen
from morphogen.stain.recipes.folder import Start
from morphogen.stain.recipes.sampling import image_effects, local_unit, pixels_of_cell
from morphogen.stain.recipes.units import LocalUnit
from morphogen.tasks.splits import held_together

log = logging.getLogger("morphogen.stain")

CROPS = 64  # from which the spread of the residual is measured


def resolved(config: TrainConfig, start: Start | None) -> TrainConfig:
    """``config`` with ``model.residual`` where a mean is named, or with that or ``model.regression`` as the model that
    the training starts from has it."""
    model = config.model
    if config.mean is not None and model.regression:
        raise ConfigError("a regression has no mean to scatter around", where="mean")
    if model.residual or model.regression:
        return config
    if config.mean is not None:
        return config.replace(model=model.replace(residual=True))
    if start is None or start.own is None:
        return config
    same = {name: bool(start.own.config.get(name)) for name in ("residual", "regression")}
    return config.replace(model=model.replace(**same))


def parts(config: TrainConfig) -> tuple[TrainConfig, TrainConfig]:
    """The trainings of the regression and of the diffusion: ``mean_share`` of the steps and the rest."""
    total = config.training.steps
    if total < 2:
        raise ConfigError(
            "one step cannot be shared out between a regression and a diffusion", where="training.steps"
        )
    first = min(max(1, round(config.mean_share * total)), total - 1)
    regression = config.model.replace(
        residual=False,
        residual_scale=None,
        noise_shares=None,
        image_effects=None,
        effect_spread=1.0,
        regression=True,
        # An answer holds no noise that could be named.
        prediction="x0" if config.model.colour_start else config.model.prediction,
    )
    objective = config.objective.replace(  # these are of the diffusion
        cross_fit=0,
        noise_scales=0,
        residual_knots=0,
        image_effects=False,
        effect_spread=ObjectiveConfig().effect_spread,
    )
    training = _shorter(config, first)
    if config.mean_lr is not None:
        training = training.replace(lr=config.mean_lr)
    return (
        config.replace(model=regression, training=training, objective=objective),
        config.replace(training=_shorter(config, total - first)),
    )


def _shorter(config: TrainConfig, steps: int) -> Any:
    training = config.training
    share = steps / training.steps
    return training.replace(steps=steps, warmup_steps=round(training.warmup_steps * share))


def read_mean(config: TrainConfig, device: torch.device) -> StainTransfer:
    """The regression that ``config.mean`` names; :class:`ConfigError` where it cannot serve."""
    folder = Path(str(config.mean))
    mean = StainTransfer.from_pretrained(folder, encoder_weights=config.model.encoder_weights, device=device)
    if not mean.config.regression:
        raise ConfigError(
            "this is no regression",
            where=folder,
            fix="Train one with --model.regression true, or leave --mean out",
        )
    missing = sorted(set(config.model.stains) - set(mean.stains))
    if missing:
        raise ConfigError(f"this regression does not know the stain {', '.join(missing)}", where=folder)
    return mean


@dataclass(frozen=True)
class OutOfFold:
    """Regressions that have not seen their group of pairs. groups: number of the group of every item."""

    models: list[StainTransfer]
    groups: Tensor

    def base(
        self,
        stain: StainTransfer,
        latents: Tensor,
        tokens: Tensor | None,
        label: Tensor,
        index: Tensor,
        precision: str,
    ) -> Tensor:
        """What ``stain`` scatters around, (B, C, h, w), for items ``index`` (B,)."""
        group, parts = self.groups[index.cpu()], []
        for number, mean in enumerate(self.models):
            rows = (group == number).nonzero()[:, 0].to(latents.device)
            if len(rows):
                seen = None if tokens is None else tokens[rows]
                found = stain.base(latents[rows], seen, label[rows], precision, mean)
                assert found is not None
                parts.append((rows, found))
        order = torch.argsort(torch.cat([rows for rows, _ in parts]))
        return torch.cat([found for _, found in parts])[order]


@dataclass(frozen=True)
class Centre:
    """What the diffusion of a training item scatters around.

    crossed: regressions that have not seen its pair, in place of the model's. numbers: the pair of every item, where
    the effect of its image is taken out too.
    """

    crossed: OutOfFold | None = None
    numbers: Tensor | None = None

    def base(
        self,
        stain: StainTransfer,
        latents: Tensor,
        tokens: Tensor | None,
        label: Tensor,
        index: Tensor,
        precision: str,
    ) -> Tensor | None:
        """(B, C, h, w) for items ``index`` (B,); ``None`` for a model that scatters around nothing."""
        if self.crossed is not None:
            found: Tensor | None = self.crossed.base(stain, latents, tokens, label, index, precision)
        else:
            found = stain.base(latents, tokens, label, precision)
        effects = None if self.numbers is None else image_effects(stain.config)
        if found is None or effects is None or self.numbers is None:
            return found
        return effects.applied(found, sent(self.numbers, index.device)[index])


def groups_of(pairs: Sequence[Pair], groups: int) -> list[int]:
    """The part of every pair. Whole arrays, slides or scanners share it where the data name several
    (:attr:`~morphogen.stain.data.Pair.group`), else those of one patient. :class:`ConfigError` with fewer of them than
    parts.
    """
    patients = [pair.patient or "" for pair in pairs]
    units, words = (
        held_together([pair.group or "" for pair in pairs], patients),
        "groups (arrays, slides or scanners)",
    )
    if max(units) == 0 or not any(pair.group for pair in pairs):
        units, words = held_together(patients), "patients or images"
    count = max(units) + 1
    if count < groups:
        raise ConfigError(
            f"{count} {words} cannot be parted into {groups}",
            where="objective.cross_fit",
            fix=f"Use {count}, or 0" if count > 1 else "Use 0",
        )
    return [unit % groups for unit in units]


def without_each(pairs: Sequence[Pair], groups: Sequence[int]) -> list[list[Pair]]:
    """The pairs without those of the first group, without those of the second, and so on."""
    return [
        [pair for pair, group in zip(pairs, groups, strict=True) if group != number]
        for number in range(max(groups) + 1)
    ]


def attach(
    model: StainTransfer,
    mean: StainTransfer,
    dataset: PairDataset,
    seed: int,
    precision: str,
    kept: Path,
    objective: ObjectiveConfig,
    crossed: OutOfFold | None = None,
) -> Centre:
    """Let ``model`` scatter around ``mean``, in the unit that its configuration names or that is measured here, in
    which what is left over has the standard deviation ``objective.residual_spread``.

    What is measured is kept in the JSON file ``kept`` and taken from there again, so that a run that goes on does not
    depend on a GPU summing to the same digit. Returns what the items of the data set are taken from.
    """
    same = (
        "encoder",
        "texture_grid",
        "pixel_factor",
        "pixel_scale",
        "size",
        "target",
        "balance",
        "normalise",
    )
    for name in same:
        has, needed = getattr(mean.config, name), getattr(model.config, name)
        if has != needed:
            raise ConfigError(f"the regression has {name} {has}, the model {needed}", where="mean")
    for each in (mean, *(crossed.models if crossed is not None else [])):
        each.network.requires_grad_(False).eval()
    if objective.image_effects and model.config.target.colour:
        raise ConfigError(
            "effects of images are of channels, these are pictures in colour", where="objective.image_effects"
        )
    if objective.image_effects and model.config.image_effects is not None:
        raise ConfigError("effects are given or measured, not both", where="model.image_effects")
    model.mean, centre = mean, Centre(crossed)
    model.config = model.config.replace(residual=True)
    if objective.image_effects:
        model.config = model.config.replace(effect_spread=objective.effect_spread)
        centre = replace(centre, numbers=torch.tensor(dataset.numbers))
    wanted = {
        "image_effects": objective.image_effects,
        "residual_scale": True,
        "noise_shares": objective.noise_scales > 0,
        "residual_knots": objective.residual_knots > 0,
    }
    missing = [name for name, needed in wanted.items() if needed and getattr(model.config, name) is None]
    if missing:
        before = read_json(kept) if kept.is_file() else {}
        if before.get("mean") != mean.identity or not set(missing) <= set(before):
            found = measured_residual(model, dataset, seed, precision, objective, centre)
            before = {"mean": mean.identity, **found}
            write_json(kept, before)
        model.config = model.config.replace(**{name: before[name] for name in missing})
    log.info("what the regression leaves over is diffused in units of %.3g.", model.residual_scale)
    return centre


def shares_of(power: Sequence[float]) -> list[float]:
    """Mean squares of pixels and of means over 1, 2, 4 … cells → part of the first at each scale of cells.

    >>> shares_of([4.0, 2.0, 1.0])
    [0.25, 0.25]
    """
    rest = [*power[2:], 0.0]
    return [round(max(0.0, a - b) / max(power[0], 1e-12), 4) for a, b in zip(power[1:], rest, strict=True)]


def measured_residual(
    model: StainTransfer,
    dataset: PairDataset,
    seed: int,
    precision: str,
    objective: ObjectiveConfig,
    centre: Centre | None = None,
) -> dict[str, Any]:
    """Settings of the model that say how large what is left over is: ``residual_scale``, and ``image_effects``,
    ``residual_knots`` and ``noise_shares`` where the objective asks for them. The effects are the model's from then on
    (in place): the rest is what they leave over."""
    centre, out = centre or Centre(), {}
    if objective.image_effects and model.config.image_effects is None:
        plain = replace(centre, numbers=None)

        def answer(latents: Tensor, tokens: Tensor | None, label: Tensor, index: Tensor) -> Tensor:
            found = plain.base(model, latents, tokens, label, index, precision)
            assert found is not None  # the model has its regression
            return found

        out["image_effects"] = measured_effects(model, dataset, answer, seed)
        model.config = model.config.replace(image_effects=out["image_effects"])
    base, rest, seen = left_over(model, dataset, seed, precision, centre)
    together = pixels_of_cell(model.config)
    if objective.residual_knots and model.config.residual_knots is None:
        unit = LocalUnit.fitted(base, rest, seen, objective.residual_knots, together)
        rest, out["residual_knots"] = rest / unit(base), unit.knots
    else:
        rest = rest / local_unit(model.config, base)
    power = measured_power(rest, seen, objective.noise_scales, together, model.factor)
    if objective.noise_scales and model.config.noise_shares is None:
        out["noise_shares"] = shares_of(power)
    return {
        "residual_scale": max(round(power[0] ** 0.5 / objective.residual_spread, 4), 1e-4),
        **out,
    }


@torch.no_grad()
def left_over(
    model: StainTransfer, dataset: PairDataset, seed: int, precision: str, centre: Centre
) -> tuple[Tensor, Tensor, Tensor]:
    """Of random crops, on the CPU: the regression's answers and what they leave over (N, C, h, w), and where the target
    was scanned (N, 1, h, w)."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for at in range(0, CROPS, 8):
        drawn = [
            dataset.draw(number % len(dataset), generator(seed, "residual scale", number))
            for number in range(at, at + 8)
        ]
        he, ihc, index = (torch.stack([item[name] for item in drawn]) for name in ("he", "ihc", "index"))
        label = 1 + torch.stack([item["label"] for item in drawn])
        image = model.first_stage.encode(model.pixels(he)).mode()
        stain = model.target_stage.encode(model.target_pixels(ihc)).mode()
        known = (image, model.tokens(he), label.to(image.device))
        answer = centre.base(model, *known, index.to(image.device), precision)
        assert answer is not None
        over = model.target_stage.scaling * stain - answer
        where = torch.ones_like(over[:, :1])
        if "mask" in drawn[0]:
            where = cells_seen(torch.stack([item["mask"] for item in drawn]), model.factor).to(over)
        parts.append((answer.float().cpu(), over.float().cpu(), where.float().cpu()))
    base, rest, seen = (torch.cat(each) for each in zip(*parts, strict=True))
    return base, rest, seen


def measured_power(
    rest: Tensor, seen: Tensor, scales: int = 0, together: int = 1, factor: int = 1
) -> list[float]:
    """Mean squares of what is left over (N, C, h, w): of its values, then of its means over blocks of 1, 2, 4 … cells,
    ``scales`` of them. A block of which not all was ``seen`` does not count. ``together``: channels of a cell that are
    pixels of one channel; ``factor``: pixels of its side."""
    count = float(seen.sum()) * rest.shape[1]
    out = [float((rest.double().square() * seen).sum()) / max(count, 1)]
    means = rest.unflatten(1, (-1, together)).mean(dim=2).double()
    for side in (2**scale for scale in range(scales)):
        if side > min(rest.shape[2:]):
            raise ConfigError(
                f"{scales} scales need crops of {side * factor} px or more", where="objective.noise_scales"
            )
        blocks = torch.nn.functional.avg_pool2d(means, side)
        whole = torch.nn.functional.avg_pool2d(seen.double(), side) > 1 - 1e-9
        out.append(float((blocks.square() * whole).sum()) / max(int(whole.sum()) * blocks.shape[1], 1))
    return out
