"""Do variations of tiles help a classifier that has few labels? Beside stain augmentation, equally many tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from morphogen.core.errors import InputError
from morphogen.core.files import Manifest, writable_folder, write_json
from morphogen.core.seeds import numpy_generator
from morphogen.core.writing.locks import locks_folder
from morphogen.metrics.intervals import bootstrap
from morphogen.slides.recolouring import colour_map, recoloured
from morphogen.tissue import scoring
from morphogen.tissue.config import UseConfig
from morphogen.tissue.data import TileTable
from morphogen.tissue.evaluate import judges, open_rgb
from morphogen.tissue.model import TissueDiffusion
from morphogen.tissue.predict import draw_patches

ARMS = ("real", "stain", "variations", "both")
WORTH = 0.03
"""Gain in balanced accuracy, over stain augmentation alone, that is called a help."""


@dataclass(frozen=True)
class Use:
    """What came out: ``accuracy[encoder][share][arm]``, a value per seed; ``gains``; ``lead``, the answer."""

    accuracy: dict[str, dict[str, dict[str, list[float]]]]
    gains: dict[str, dict[str, dict[str, dict[str, Any]]]]
    lead: str
    folder: Path


@locks_folder()
def evaluate_use(
    model: TissueDiffusion,
    labelled: TileTable,
    test: TileTable,
    out: Path | str,
    config: UseConfig | None = None,
    *,
    precision: str = "fp32",
) -> Use:
    """Classify tiles from few labels, with and without variations of the labelled ones.

    For every share of ``labelled`` and every seed, a logistic regression on an encoder's features learns from a
    stratified choice of tiles alone (``real``), from them and recoloured copies (``stain``), from them and tiles drawn
    from their own embeddings (``variations``), or from half of either kind (``both``). Copies are equally many in all
    four: those of ``real`` are the tiles themselves. Scores are balanced accuracies on ``test``; gains are paired by
    seed, with bootstrap intervals over seeds.

    Raises :class:`InputError` without labels, for fewer than two classes, or when ``test`` holds a class of its own.
    """
    config, out = config or UseConfig(), writable_folder(out)
    classes = _classes(labelled, test)
    truth, wanted = (np.array([classes.index(label) for label in table.labels]) for table in (labelled, test))
    choices = {
        share: [_chosen(truth, share, config.seed + k) for k in range(config.seeds)]
        for share in config.shares
    }
    rows = np.unique(np.concatenate([part for parts in choices.values() for part in parts]))
    chosen = labelled.take(rows)
    patches = draw_patches(
        model,
        chosen,
        out / "variations",
        config.sampler,
        samples=config.copies,
        seed=config.seed,
        precision=precision,
    )
    real = chosen.read(range(len(chosen)))
    drawn = np.stack([open_rgb(path) for path in patches.files])
    stained = np.stack(
        [
            recoloured(image, colour_map(numpy_generator(config.seed, "stain", int(row), k), config.stain))
            for row, image in zip(rows, real, strict=True)
            for k in range(config.copies)
        ]
    )
    tested = test.read(range(len(test)))
    accuracy: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name, encoder in judges(model, config).items():
        base, held = scoring.encoded(encoder, real), scoring.encoded(encoder, tested)
        kinds = {
            kind: scoring.encoded(encoder, images).reshape(len(rows), config.copies, -1)
            for kind, images in (("stain", stained), ("variations", drawn))
        }
        accuracy[name] = {
            f"{share:g}": _arms(
                base, kinds, truth[rows], [np.searchsorted(rows, part) for part in parts], held, wanted
            )
            for share, parts in choices.items()
        }
    gains = {
        name: {share: _gains(values, config, name, share) for share, values in shares.items()}
        for name, shares in accuracy.items()
    }
    lead = _lead(gains)
    facts = {"classes": classes, "labelled": len(labelled), "test": len(test), "config": config.to_dict()}
    write_json(out / "use.json", {"lead": lead, "accuracy": accuracy, "gains": gains, **facts})
    Manifest.write(out, kind="tissue use", model=model.identity)
    return Use(accuracy, gains, lead, out)


def _classes(labelled: TileTable, test: TileTable) -> list[str]:
    if not labelled.labels or not test.labels:
        raise InputError(
            "the tiles have no labels",
            where="tiles",
            fix="Put the images of each class into a folder of its name",
        )
    classes = sorted(set(labelled.labels))
    if len(classes) < 2:
        raise InputError(
            f"there is one class alone, '{classes[0]}'", where="tiles", fix="Give two or more folders"
        )
    unknown = sorted(set(test.labels) - set(classes))
    if unknown:
        raise InputError(
            f"the test tiles hold the class '{unknown[0]}', the labelled ones do not", where="tiles"
        )
    return classes


def _chosen(truth: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Rows of a stratified choice: of each class its share, one at least."""
    generator = numpy_generator(seed, "labels", f"{share:g}")
    parts = []
    for label in np.unique(truth):
        rows = np.flatnonzero(truth == label)
        parts.append(generator.choice(rows, max(1, round(share * len(rows))), replace=False))
    return np.sort(np.concatenate(parts))


def _arms(
    base: np.ndarray,
    kinds: dict[str, np.ndarray],
    labels: np.ndarray,
    choices: Sequence[np.ndarray],
    held: np.ndarray,
    wanted: np.ndarray,
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for rows in choices:
        copies = next(iter(kinds.values())).shape[1]
        half = copies // 2
        more = {
            # The tile itself again: more rows alone weaken the penalty of the regression, and are no help.
            "real": np.repeat(base[rows][:, None], copies, axis=1),
            "stain": kinds["stain"][rows],
            "variations": kinds["variations"][rows],
            "both": np.concatenate(
                [kinds["stain"][rows][:, :half], kinds["variations"][rows][:, half:]], axis=1
            ),
        }
        for arm, extra in more.items():
            features = np.concatenate([base[rows][:, None], extra], axis=1)
            repeated = np.repeat(labels[rows], features.shape[1])
            found[arm].append(_accuracy(features.reshape(len(repeated), -1), repeated, held, wanted))
    return found


def _accuracy(features: np.ndarray, labels: np.ndarray, held: np.ndarray, wanted: np.ndarray) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # Few tiles are separated by any direction: a strong penalty, the same for all arms.
    learner = make_pipeline(
        StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000)
    )
    # Columns that hardly vary among few tiles must not decide.
    limit = np.abs(features).max(axis=0)
    return float(
        balanced_accuracy_score(wanted, learner.fit(features, labels).predict(np.clip(held, -limit, limit)))
    )


def _gains(
    values: dict[str, list[float]], config: UseConfig, name: str, share: str
) -> dict[str, dict[str, Any]]:
    """Of every arm over ``real``, and of ``both`` over ``stain``: mean, bounds of the 95 % interval, and why it shows
    nothing where seeds are few."""
    pairs = {arm: (arm, "real") for arm in ARMS[1:]} | {"both over stain": ("both", "stain")}
    found: dict[str, dict[str, Any]] = {}
    for key, (one, other) in pairs.items():
        difference = np.subtract(values[one], values[other])
        interval = bootstrap(
            difference,
            list(range(len(difference))),
            unit="seed",
            generator=numpy_generator(config.seed, "use", name, share, key),
            resamples=config.resamples,
        )
        bounds = {"low": interval.low, "high": interval.high}
        found[key] = {"value": interval.value, **bounds, "caution": interval.caution}
    return found


def _lead(gains: dict[str, dict[str, dict[str, dict[str, Any]]]]) -> str:
    """The answer for the smallest share, encoder by encoder."""
    share = min(next(iter(gains.values())), key=float)
    found = {name: shares[share] for name, shares in gains.items()}
    added = {name: arms["both over stain"] for name, arms in found.items()}
    helped = [
        name
        for name, gain in added.items()
        if gain["value"] >= WORTH and gain["low"] > 0 and not gain.get("caution")
    ]
    others = [name for name in added if name not in helped]
    if not helped:
        said = "do not help as much as 3 points with an interval above 0"
    else:
        said = "help" + (
            f" in {', '.join(helped)}, and do not help in {', '.join(others)}," if others else ""
        )
    return (
        f"Variations {said} beside stain augmentation: at {100 * float(share):g} % of the labels they add "
        + ", ".join(f"{_points(gain)} points of balanced accuracy in {name}" for name, gain in added.items())
        + " to recoloured copies; to tiles alone "
        + ", ".join(f"{_points(arms['variations'])} in {name}" for name, arms in found.items())
        + ", where recoloured copies add "
        + ", ".join(_points(arms["stain"]) for arms in found.values())
        + "."
    )


def _points(gain: dict[str, Any]) -> str:
    low, high = (f"{100 * gain[end]:+.1f}" for end in ("low", "high"))
    return f"{100 * gain['value']:+.1f} ({low} to {high})"
