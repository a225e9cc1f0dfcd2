"""Synthesis: annotated layouts in the styles of unannotated patients, as a labelled data set with its manifest."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from morphogen.core.devices import chosen_precision
from morphogen.core.errors import ConfigError, InputError
from morphogen.core.files import Manifest, writable_folder, write_bytes, write_json
from morphogen.core.jobs import RECORD, Job
from morphogen.core.progress import progress
from morphogen.core.running.threads import in_lanes
from morphogen.core.writing.locks import locks_folder
from morphogen.layout.config import DataConfig, SynthesisConfig
from morphogen.layout.model import LayoutDiffusion, LayoutSampler
from morphogen.layout.segmenter.model import Segmenter
from morphogen.layout.sources.sheets import Sheet
from morphogen.layout.synthesis.agreement import agreement, agreement_on, foreground, kept_shares
from morphogen.layout.synthesis.plan import Pair, Plan, name_of
from morphogen.slides.images import read_image, read_raw

COLUMNS = ("image", "mask", "layout", "row", "column", "turn", "matrix", "style_patient", "style_sources")
MADE = ("seed", "model", "agreement", "kept")


@dataclass(frozen=True)
class Synthesized:
    """A finished data set: its folder, images made and kept, kept share per patient, patients whose style was not
    learned, and the least agreement that was asked for (None without a filter)."""

    folder: Path
    made: int
    kept: int
    shares: dict[str, float]
    flagged: tuple[str, ...]
    threshold: float | None


@locks_folder()
def synthesize(
    model: LayoutDiffusion,
    layouts: Sequence[Sheet],
    styles: Sequence[Sheet],
    config: SynthesisConfig,
    out: Path | str,
    *,
    sampler: LayoutSampler | str = "fast",
    data: DataConfig | None = None,
    segmenter: Segmenter | None = None,
    held_out: Sequence[Sheet] = (),
    precision: str = "fp32",
) -> Synthesized:
    """Make ``config.count`` labelled images: ``out/images``, ``out/masks``, ``labels.json``, ``manifest.csv``.

    Parameters
    ----------
    layouts, styles:
        Labelled sheets that give layouts; sheets that give styles, by patient.
    data:
        How layouts are drawn (``balance``); its crop is the model's.
    segmenter, held_out:
        Trained on real images, and labelled real sheets it did not see. Images whose layout it finds worse than
        ``config.agreement`` of the held-out crops are marked as left out in the manifest and not read again. Without
        ``held_out`` the sheets of ``layouts`` are taken, which it knows: the filter is then stricter.

    A killed run goes on with the batches that are not there, to the same bytes. The manifest is written last; the
    reader of the folder takes the images it names and no other file.
    """
    out = writable_folder(out)
    data = (data or DataConfig()).replace(crop=model.crop)
    chosen = LayoutSampler.of(sampler)
    if config.strength is not None:
        chosen = chosen.replace(strength=config.strength)
    if config.guidance is not None:
        chosen = chosen.replace(guidance_scale=config.guidance)
    if config.edit is not None:
        chosen = chosen.replace(edit=config.edit)
    if model.config.sampling == "none":  # it was trained on black style images: there is nothing to guide by
        data = data.replace(sampling="none", style_images=1)
        chosen = chosen.replace(guidance_scale=1.0, edit="sdedit")  # nor is there a difference of styles
    count = model.config.network.classes
    if segmenter is not None and segmenter.planes != count:
        raise ConfigError(
            f"the segmenter has {segmenter.planes} classes, the model {count}", where="segmenter"
        )
    images = config.style_images or model.config.style_images
    share = None if segmenter is None else lambda image: foreground(segmenter, image)
    plan = Plan(layouts, styles, data, config, count, images=images, share=share)
    precision = chosen_precision(precision, model.device)
    facts: dict[str, Any] = {
        "settings": config.to_dict(),
        "sampler": chosen.to_dict(),
        "model": model.identity,
        "draws": 2,  # which layout and which look a seed gives: the second way to draw them
    }
    facts |= {"balance": data.balance, "layouts": [s.identity() for s in layouts]}
    facts |= {"styles": [s.identity(labels=False) for s in styles]}
    facts |= {"segmenter": segmenter.identity if segmenter is not None else None, "precision": precision}
    goes_on = Job(facts).begin(out / RECORD, "synthetic images")
    whole = goes_on and Manifest.read(out) is not None
    if whole and all(path.is_file() for number in range(len(plan)) for path in _files(out, number)):
        return _told(out)
    for folder in ("images", "masks"):
        writable_folder(out / folder)
    numbers = range(len(plan))
    batches = [numbers[at : at + config.batch] for at in range(0, len(plan), config.batch)]
    model.expect(len(batches) * chosen.evaluations(model.schedule))
    rows: list[dict[str, str]] = []

    def made(batch: range) -> list[Pair]:
        pairs = [plan[number] for number in batch]
        if not (goes_on and all(path.is_file() for number in batch for path in _files(out, number))):
            own = torch.from_numpy(np.stack([plan.own(pair) for pair in pairs])) if chosen.keeps else None
            _make(model, pairs, own, chosen, config.seed, precision, out)
        return pairs

    with closing(in_lanes(made, batches, min(model.lanes, len(batches)))) as finished:
        for pairs in progress(finished, total=len(batches), what="synthesising batches"):
            rows += [_row(pair, config.seed, model.identity) for pair in pairs]
    threshold = _filter(rows, out, config, segmenter, held_out or layouts, model.crop)
    _finish(out, rows, config, model, threshold)
    return _told(out)


def _make(
    model: LayoutDiffusion,
    pairs: list[Pair],
    own: torch.Tensor | None,
    sampler: LayoutSampler,
    seed: int,
    precision: str,
    out: Path,
) -> None:
    labels = torch.from_numpy(np.stack([pair.layout.labels for pair in pairs]))
    styles = torch.from_numpy(np.stack([pair.style for pair in pairs]))
    keys = [("synthesize", pair.number) for pair in pairs]
    begin = torch.from_numpy(np.stack([pair.begin for pair in pairs]))
    made = (
        model(labels, styles, sampler, seed=seed, keys=keys, begin=begin, own=own, precision=precision)
        .cpu()
        .numpy()
    )
    for pair, image in zip(pairs, made, strict=True):
        for path, pixels in zip(_files(out, pair.number), (image, pair.layout.labels), strict=True):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, format="PNG")
            write_bytes(path, buffer.getvalue())


def _files(out: Path, number: int) -> tuple[Path, Path]:
    return out / "images" / f"{name_of(number)}.png", out / "masks" / f"{name_of(number)}.png"


def _row(pair: Pair, seed: int, identity: str) -> dict[str, str]:
    layout, name = pair.layout, name_of(pair.number)
    return {
        "image": f"images/{name}.png",
        "mask": f"masks/{name}.png",
        "layout": layout.sheet.name,
        "row": str(layout.top),
        "column": str(layout.left),
        "turn": str(layout.turn),
        "matrix": " ".join(f"{value:g}" for value in layout.matrix),
        "style_patient": pair.patient,
        "style_sources": ";".join(pair.sources),
        "seed": str(seed),
        "model": identity[:16],
        "agreement": "",
        "kept": "1",
    }


def _filter(
    rows: list[dict[str, str]],
    out: Path,
    config: SynthesisConfig,
    segmenter: Segmenter | None,
    real: Sequence[Sheet],
    crop: int,
) -> float | None:
    """Scores of all images, in the rows; the threshold, and which images it keeps."""
    if segmenter is None or config.agreement is None:
        return None
    threshold = float(np.quantile(agreement_on(segmenter, real, crop), config.agreement))
    for at in range(0, len(rows), config.batch):
        part = rows[at : at + config.batch]
        images = np.stack([read_image(out / row["image"]) for row in part])
        labels = np.stack([read_raw(out / row["mask"]) for row in part])
        for row, score in zip(part, agreement(segmenter, images, labels), strict=True):
            row["agreement"] = f"{score:.4f}"
            row["kept"] = "1" if score >= threshold else "0"
    if not any(row["kept"] == "1" for row in rows):
        raise InputError(
            f"the segmenter finds the layout in no synthetic image as well as {threshold:.2f}",
            where=out,
            fix="Train the model longer, or set agreement to null",
        )
    return threshold


def _finish(
    out: Path,
    rows: list[dict[str, str]],
    config: SynthesisConfig,
    model: LayoutDiffusion,
    threshold: float | None,
) -> None:
    write_json(out / "labels.json", {str(k): name for k, name in enumerate(model.config.classes)})
    text = io.StringIO()
    writer = csv.DictWriter(text, [*COLUMNS, *MADE], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(out / "manifest.csv", text.getvalue().encode())
    shares = kept_shares(rows)
    flagged = [patient for patient, share in shares.items() if share < config.flag_below]
    facts: dict[str, Any] = {"made": len(rows), "kept": sum(row["kept"] == "1" for row in rows)}
    Manifest.write(out, kind="synthetic images", **facts, shares=shares, flagged=flagged, threshold=threshold)


def _told(out: Path) -> Synthesized:
    facts = Manifest.read(out) or {}
    return Synthesized(
        out,
        int(facts["made"]),
        int(facts["kept"]),
        dict(facts["shares"]),
        tuple(facts["flagged"]),
        facts["threshold"],
    )
