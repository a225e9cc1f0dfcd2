"""The options of STEDM's code (hydra) as a configuration of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from morphogen.core.errors import InputError
from morphogen.core.presets import nested
from morphogen.core.reading.documents import read_yaml
from morphogen.layout.config import SegmentConfig, TrainConfig

_SAMPLING = {"none": "none", "augmented": "augmented", "aug": "augmented", "nearby": "nearby", "mp": "mp"}
_COMMON = {"data.class_train_samples": "data.class_train_samples", "data.patch_size": "data.crop"}
_DIFFUSION = {
    **_COMMON,
    "style_drop_rate": "objective.style_drop",
    "style_sampling.num_patches": "data.style_images",
    "style_sampling.relative_dist": "data.relative_distance",
    "diffusion.loss_type": "objective.loss",
}
_SEGMENTATION = {
    **_COMMON,
    "ce_ratio": "ce",
    "dice_ratio": "dice",
    "data.overlap_train": "overlap",
    "lr": "training.lr",
}
_MEANT = ("name", "class_name", "location", "num_gpus", "n_gpus", "backend", "result_dir", "data_dir")


def imported_config(source: Path | str) -> tuple[TrainConfig | SegmentConfig, list[str], list[str]]:
    """The configuration of a composed hydra file, or of the settings in a checkpoint; the options that were taken, and
    those that were not.

    A file with ``ce_ratio`` or ``dice_ratio`` is one of segmentation. The learning rate of diffusion is not taken: the
    published one (1e-7 per image) was for a network that was trained before.
    """
    source = Path(source)
    given = flat(_read(source))
    segmentation = any(key.rsplit(".", 1)[-1] in ("ce_ratio", "dice_ratio") for key in given)
    values: dict[str, Any] = {}
    taken: list[str] = []
    for theirs, ours in (_SEGMENTATION if segmentation else _DIFFUSION).items():
        if given.get(theirs) is not None:
            values[ours] = given[theirs]
            taken.append(theirs)
    ratios = given.get("data.ratios")
    if isinstance(ratios, list) and len(ratios) == 2:
        total = sum(ratios) or 1.0
        values["synthetic_ratio" if segmentation else "data.ratios"] = (
            ratios[1] / total if segmentation else ratios
        )
        taken.append("data.ratios")
    if not segmentation:
        taken += _style(given, values)
        values |= {"data.stain_shift": 0.0, "data.focus_shift": 0.0}  # that code has none
    epochs, samples = given.get("num_epochs"), given.get("data.samples")
    if isinstance(epochs, int) and isinstance(samples, int):
        batch = (SegmentConfig if segmentation else TrainConfig)().training.batch_size
        values["training.steps"] = max(1, epochs * samples // batch)
        taken += ["num_epochs", "data.samples"]
    if not taken:
        raise InputError(
            "none of STEDM's options is in it", where=source, fix="Give the composed config.yaml"
        )
    kind = SegmentConfig if segmentation else TrainConfig
    left = [key for key in given if key not in taken and key.rsplit(".", 1)[-1] not in _MEANT]
    return kind.load(None, values), sorted(taken), left  # type: ignore[return-value]


def _style(given: Mapping[str, Any], values: dict[str, Any]) -> list[str]:
    """Sampling and aggregator, which may be a word or a section with a name."""
    taken = []
    for option in ("style_sampling", "style_agg"):
        key = option if isinstance(given.get(option), str) else f"{option}.name"
        name = given.get(key)
        if not isinstance(name, str):
            continue
        if option == "style_sampling" and name in _SAMPLING:
            values["data.sampling"] = _SAMPLING[name]
        elif option == "style_agg" and name in ("mean", "max", "linear", "svit"):
            network: dict[str, Any] = {"style.aggregator": name}
            if name == "linear":
                network["style.images"] = int(given.get("style_sampling.num_patches") or 1)
            values["network"] = nested(network)
        else:
            continue
        taken.append(key)
    return taken


def _read(source: Path) -> Mapping[str, Any]:
    if source.suffix.lower() in (".ckpt", ".pt", ".pth"):
        from morphogen.checkpoints.stedm import published_settings
        from morphogen.core.weights.reading import read_weights

        found = published_settings(read_weights(source).content)
        settings = (found.get("hyper_parameters") or {}).get("cfg") if isinstance(found, dict) else None
    else:
        settings = read_yaml(source)
    if not isinstance(settings, Mapping):
        raise InputError("there are no settings in it", where=source)
    return settings


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by dotted keys."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out
