"""Evaluate virtual stains: plain folders of images in, tables and pictures out.

Any method's output can be scored: a folder of images named like the real ones is enough.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from morphogen.core.devices import check_memory
from morphogen.core.errors import ConfigError, InputError
from morphogen.core.files import content_hash, file_hash, read_json, write_text
from morphogen.core.running.gather import gathered
from morphogen.core.running.spread import Spread
from morphogen.core.writing.locks import locks_folder
from morphogen.metrics.intervals import Interval
from morphogen.slides.colour import estimate_stains
from morphogen.slides.images import image_size, list_images
from morphogen.stain.data import FoundPairs, Pair, find_pairs, refuse_aligned, splits_of
from morphogen.stain.pairs.checks import usable_pairs
from morphogen.stain.pairs.geometry import read_aligned, scanned
from morphogen.stain.scoring.baselines import ChannelBaselines, colour_maps, deconvolution, identity
from morphogen.stain.scoring.channels import (
    ChannelMethod,
    ChannelScores,
    channel_differences,
    evaluate_channels,
    items_of,
    made_from,
)
from morphogen.stain.scoring.config import EvaluateConfig
from morphogen.stain.scoring.figures import save_channel_panels, save_panels
from morphogen.stain.scoring.methods import (
    Doubt,
    Method,
    PairScores,
    channels_from,
    from_files,
    from_he,
    from_maps,
    uncertainty_in,
)
from morphogen.stain.scoring.scores import (
    COMPARED,
    POOLED,
    PROTOCOL,
    ImageScores,
    differences,
    score_set,
)
from morphogen.stain.scoring.signals import dye_vectors, thresholds_of
from morphogen.stain.scoring.wholeslides import slide_facts
from morphogen.stain.targets.config import TargetConfig
from morphogen.stain.targets.files import read_image
from morphogen.tasks import evaluation
from morphogen.tasks.evaluation import Evaluation

log = logging.getLogger("morphogen.stain")

_SCORING = 160  # bytes for every pixel of an image that is scored, measured
_FAKE = "_fake_B"  # what pix2pix and CycleGAN add to the name of an image they made


@locks_folder()
def evaluate_folder(
    predicted: Path | str,
    found: FoundPairs,
    out: Path | str | None = None,
    config: EvaluateConfig | None = None,
    *,
    method: str = "predicted",
    others: Mapping[str, Path | str] | None = None,
    baselines: bool = True,
    outside: Mapping[str, Method] | None = None,
    skip_bad: bool = False,
    where: object = None,
    facts: dict[str, Any] | None = None,
    training: FoundPairs | None = None,
    spread: Spread | None = None,
    slides: Mapping[str, str] | None = None,
) -> list[Evaluation]:
    """Score the images of a folder against the real stains of pairs, beside baselines made from the H&E.

    Parameters
    ----------
    predicted:
        Images named like the pairs. ``uncertainty/`` in it, as
        :func:`~morphogen.stain.predict.stain_folder` writes it, is compared with the true error.
    found:
        The pairs, from :func:`~morphogen.stain.data.find_pairs`. Every pair needs its image.
    others:
        More folders of images to be scored beside, by the name of their method.
    out:
        Folder for ``metrics.json``, ``summary.csv``, ``images.csv`` and ``panels/``; ``None`` writes nothing.
    baselines:
        Score the H&E itself and its colour deconvolution as if they were predictions, and what the colour of the H&E
        tells, fitted to the pairs ``training``; of channels that alone.
    outside:
        Models of others by name: a pair and its H&E → the picture that each makes of it.
    spread:
        Where pairs are scored: one after another here when not said.
    slides:
        The slide that every pair is a field of (:func:`~morphogen.stain.scoring.wholeslides.cut_fields`): slides are
        scored as a whole too, into ``metrics.json`` and ``slides.csv``.

    Returns the evaluation of the folder, then of the others, of the baselines, of the models of others.
    """
    config = config or EvaluateConfig()
    if training is not None and not baselines:
        raise ConfigError(
            "what the colour of the H&E tells is a baseline, and there are none",
            where="--training",
            fix="Score pairs with their H&E, with baselines, or leave it out",
        )
    predicted = Path(predicted)
    found = as_stated(found, predicted, config)
    pairs, _ = usable_pairs(found, skip_bad=skip_bad, where=where)
    methods: dict[str, Any] = {}
    for name, folder in {method: predicted, **(others or {})}.items():
        files = _predictions(list_images(folder))
        missing = [pair.name for pair in pairs if pair.name not in files]
        if missing and (not skip_bad or len(missing) == len(pairs)):
            raise InputError(
                f"{len(missing)} of {len(pairs)} pairs have no image here ({', '.join(missing[:5])})",
                where=folder,
                fix="Images must be named like the pairs (or NAME_fake_B); leave pairs out with --skip-bad",
            )
        pairs = [pair for pair in pairs if pair.name in files]
        methods[name] = from_files(files) if pairs[0].target.colour else channels_from(Path(folder), files)
    if not pairs[0].target.colour:
        return _evaluate_channels(pairs, methods, config, predicted, out, facts, training, spread, slides)
    if baselines:
        if training is not None:
            methods["colour map"] = _fitted_maps(training, pairs)
        methods |= {"H&E as it is": from_he(identity), "colour deconvolution": from_he(deconvolution)}
    methods |= outside or {}
    if outside and spread is not None and not spread.plain:
        raise ConfigError(
            "models of others run in this process alone",
            where="--baseline",
            fix="Leave out --workers and its like",
        )
    doubts = {method: uncertainty_in(predicted)}
    where_to = Path(out) if out is not None else None
    evaluations = evaluate_methods(pairs, methods, config, uncertainty=doubts, spread=spread, out=where_to)
    if out is not None:
        write_results(out, evaluations, pairs, config, _known(predicted, facts), slides)
        if config.panels:
            save_panels(Path(out) / "panels", pairs[: config.panels], methods[method], doubts[method])
    return evaluations


def _fitted_maps(training: FoundPairs, pairs: Sequence[Pair]) -> Method:
    """The colour map of every stain, fitted to ``training``."""
    maps = colour_maps(usable_pairs(training)[0])
    if missing := sorted({pair.stain for pair in pairs} - set(maps)):
        raise InputError(f"no pair is of the stain {', '.join(missing)}", where="--training")
    return from_maps(maps)


def _known(predicted: Path, facts: dict[str, Any] | None) -> dict[str, Any]:
    run = predicted / "run.json"
    return {
        "predicted": str(predicted),
        "run": read_json(run) if run.is_file() else None,
        **(facts or {}),
    }


def as_stated(found: FoundPairs, predicted: Path, config: EvaluateConfig) -> FoundPairs:
    """Pairs with the target that the settings, their data or the predicted images state; thresholds that the data leave
    open are those of the model that made the images, of some of its channels too, by name."""
    if not found.pairs:
        return found
    run = predicted / "run.json"
    made = TargetConfig(**((read_json(run) if run.is_file() else {}).get("target") or {}))
    stated = config.target or found.pairs[0].target
    if stated.colour and config.target is None and stated.vector is None:
        stated = made
    if stated.colour or made.colour:
        return replace(found, pairs=[replace(pair, target=stated) for pair in found.pairs])
    if made.dtype == "float32" and stated.channels != made.channels:  # all share the step of their levels
        raise ConfigError(
            f"these images hold {', '.join(made.channels)} in levels of their own",
            where="target.channels",
            fix="Score all channels of a model of floats, in their order",
        )
    if set(stated.channels) <= set(made.channels):
        places = [made.channels.index(name) for name in stated.channels]
        rest = {
            "dtype": made.dtype,
            **{key: _at(places, getattr(made, key)) for key in ("full", "threshold")},
        }
        stated = stated.replace(**{key: value for key, value in rest.items() if getattr(stated, key) is None})
    return replace(found, pairs=[replace(pair, target=stated) for pair in found.pairs])


def _at(places: Sequence[int], values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values[place] for place in places)


def _evaluate_channels(
    pairs: Sequence[Pair],
    methods: dict[str, ChannelMethod],
    config: EvaluateConfig,
    predicted: Path,
    out: Path | str | None,
    facts: dict[str, Any] | None,
    training: FoundPairs | None,
    spread: Spread | None,
    slides: Mapping[str, str] | None,
) -> list[Evaluation]:
    if training is not None:
        fitted = as_stated(training, predicted, config).pairs
        methods |= {name: made_from(make) for name, make in ChannelBaselines(fitted).methods().items()}
    evaluations = evaluate_channels(pairs, methods, config, spread, Path(out) if out is not None else None)
    if out is not None:
        known = _known(predicted, facts) | {"target": pairs[0].target.to_dict()}
        write_results(out, evaluations, pairs, config, known, slides)
        if config.panels:
            first = next(iter(methods.values()))
            save_channel_panels(Path(out) / "panels", pairs[: config.panels], first)
    return evaluations


def _predictions(files: dict[str, Path]) -> dict[str, Path]:
    """Images by the names of their pairs; of what pix2pix and CycleGAN write, ``NAME_fake_B`` alone."""
    made = {name.removesuffix(_FAKE): path for name, path in files.items() if name.endswith(_FAKE)}
    return made or files


def evaluate_methods(
    pairs: Sequence[Pair],
    methods: dict[str, Method],
    config: EvaluateConfig | None = None,
    *,
    uncertainty: Mapping[str, Doubt] | None = None,
    spread: Spread | None = None,
    out: Path | None = None,
) -> list[Evaluation]:
    """Score methods ``name → image(pair, H&E)`` on the same pairs, where ``spread`` says; that is reported in ``out``.

    Methods that go to other processes can be pickled.
    """
    config = config or EvaluateConfig()
    for pair in pairs:
        height, width = image_size(pair.he)
        check_memory(
            _SCORING * height * width, "to be scored", pair.he, "Cut the images of the pair into tiles"
        )
    stains = stain_vectors(pairs, config)
    (positive,) = thresholds_of(pairs[0].target, config.positive)
    config = config.replace(positive=positive)
    work = PairScores(methods, config, stains, uncertainty or {})
    rows: dict[str, list[ImageScores]] = {name: [] for name in methods}
    views: dict[str, list[np.ndarray]] = {name: [] for name in methods}
    real_views: list[np.ndarray] = []
    for real_view, found in gathered(work, items_of(pairs), spread, what="scoring images", out=out):
        real_views.append(real_view)
        for name, (scores, view) in found.items():
            rows[name].append(scores)
            views[name].append(view)
    unit = "patient" if any(pair.patient for pair in pairs) else "image"
    truth = np.stack(real_views)
    return [
        Evaluation(
            name,
            score_set(rows[name], config, features=(np.stack(views[name]), truth), unit=unit),
            rows[name],
        )
        for name in methods
    ]


def stain_vectors(pairs: Sequence[Pair], config: EvaluateConfig, most: int = 20) -> Any:
    """``"hdab"``, the vectors of the dye that the data state, or vectors estimated from up to ``most`` real images
    (Macenko et al. 2009)."""
    if pairs[0].target.vector is not None:
        return dye_vectors(pairs[0].target)
    if config.vectors == "hdab":
        return "hdab"
    step = max(1, len(pairs) // most)
    pixels = [_some_pixels(pair) for pair in pairs[::step]]
    return estimate_stains(np.concatenate(pixels)[None, None], stains="hdab", layout="nhwc").numpy()


def _some_pixels(pair: Pair) -> np.ndarray:
    """(N, 3) of the real stain, where it was scanned."""
    if (mask := scanned(pair)) is None:
        return read_image(pair.ihc)[::4, ::4].reshape(-1, 3)
    return read_aligned(pair)[1][mask][::16]


def write_results(
    out: Path | str,
    evaluations: Sequence[Evaluation],
    pairs: Sequence[Pair],
    config: EvaluateConfig,
    facts: dict[str, Any] | None = None,
    slides: Mapping[str, str] | None = None,
) -> Path:
    """``metrics.json``, ``summary.csv`` and ``images.csv``, and of fields of ``slides`` ``slides.csv``, each with what
    made it; the manifest last."""
    first = evaluations[0].scores
    if slides is not None:
        found = slide_facts(evaluations, slides, config)
        facts = {**(facts or {}), "slides": found}
        rows = [
            {"method": method, "slide": name, **values}
            for method, scores in found.items()
            for name, values in scores["slides"].items()
        ]
        write_text(Path(out) / "slides.csv", evaluation.to_csv(rows))
    provenance = {
        "config": config.model_dump(mode="json"),
        "images": len(pairs),
        "unit": unit_of(evaluations),
        "pairs": [pair.name for pair in pairs],
        "real_hash": content_hash([file_hash(pair.ihc) for pair in pairs]),
        "image_codecs": sorted({pair.ihc.suffix.lower() for pair in pairs}),
        "mra_chance": first.notes.get("mra_chance"),
        **(facts or {}),
    }
    return evaluation.write_results(
        out,
        evaluations,
        kind="stain evaluation",
        protocol=PROTOCOL,
        facts=provenance,
        differences=paired_differences(evaluations, config),
        order=[*COMPARED, *(key for key in first.figures if key.startswith("dab"))],
        items="images",
    )


def unit_of(evaluations: Sequence[Evaluation]) -> str:
    """What is independent, as the intervals say."""
    return next((interval.unit for interval in evaluations[0].scores.intervals.values()), "image")


def paired_differences(
    evaluations: Sequence[Evaluation], config: EvaluateConfig | None = None, of: str | None = None
) -> dict[str, dict[str, Interval]]:
    """By every other method, the DAB scores of one (``of``, else the first) minus its own, paired by image."""
    config = config or EvaluateConfig()
    first = evaluations[0].items[0]
    if isinstance(first, ChannelScores):
        between = channel_differences(first.target, config, unit_of(evaluations))
        return evaluation.against_first(evaluations, between, of)
    unit = evaluations[0].scores.intervals[POOLED].unit
    return evaluation.against_first(
        evaluations, lambda own, others: differences(own, others, config, unit=unit), of
    )


def named_folders(texts: Iterable[str]) -> dict[str, Path]:
    """``NAME=FOLDER`` lines as folders by name."""
    out = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not equals:
            raise ConfigError(f"'{text}' is not of the form NAME=FOLDER", where="--other")
        out[name] = Path(folder)
    return out


def real_stains(
    data: Path | str, split: str, he: Path | str | None, predicted: Path | str
) -> tuple[FoundPairs, bool]:
    """What predictions are scored against, and whether there is H&E for baselines: pairs in any layout of
    :mod:`morphogen.stain.data`, or a plain folder of real stains (with its H&E in ``he``).
    """
    data = Path(data)
    plain = data.is_dir() and split not in splits_of(data)
    if plain:
        refuse_aligned(data, split)
    if plain or he is not None:
        return as_pairs(data, he, predicted), he is not None
    return find_pairs(data, split), True


def as_pairs(real: Path | str, he: Path | str | None, predicted: Path | str) -> FoundPairs:
    """Pairs of a plain folder of real stains; without H&E the predicted images stand in, and baselines make
    no sense.
    """
    reals = list_images(real)
    hes = list_images(he) if he is not None else _predictions(list_images(predicted))
    pairs = [Pair(name, hes[name], path) for name, path in reals.items() if name in hes]
    alone = [str(path) for name, path in reals.items() if name not in hes]
    return FoundPairs([replace(pair, stain="IHC") for pair in pairs], alone)
