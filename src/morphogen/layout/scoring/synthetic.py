"""Scores of synthetic images: is it the style that was asked for, is it the layout, is it new."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from morphogen.core.errors import InputError
from morphogen.core.files import writable_folder
from morphogen.core.seeds import numpy_generator
from morphogen.core.writing.locks import locks_folder
from morphogen.layout.config import DataConfig
from morphogen.layout.model import LayoutDiffusion, LayoutSampler
from morphogen.layout.sampling.crops import Places
from morphogen.layout.sampling.looks import Look, Restyling
from morphogen.layout.sampling.styles import StyleSampler
from morphogen.layout.segmenter.model import Segmenter
from morphogen.layout.sources.sheets import Sheet
from morphogen.layout.synthesis.agreement import agreement, agreement_on
from morphogen.slides.recolouring import Stains
from morphogen.tasks.evaluation import Evaluation, SetScores, write_page, write_results

BATCH = 16
Measure = Callable[[np.ndarray], np.ndarray]
"""Images (n, H, W, 3) uint8 of one style → its features (D,)."""


def colour(images: np.ndarray) -> np.ndarray:
    """(6,) mean and SD of the optical density of red, green and blue, over tissue: how much of an image is glass is
    layout and no style."""
    density = -np.log10((images.reshape(-1, 3).astype(np.float64) + 1) / 256)
    tissue = np.linalg.norm(density, axis=1) > 0.15
    density = density[tissue] if tissue.sum() > 100 else density
    return np.concatenate([density.mean(0), density.std(0)])


def stains(images: np.ndarray) -> np.ndarray:
    """(8,) Macenko's vectors of two stains and the 99th percentile of their amounts."""
    found = Stains.of(images)
    return np.concatenate([found.matrix[:2].ravel(), found.amounts])


def texture(images: np.ndarray) -> np.ndarray:
    """(D,) mean features of the texture encoder, which no network here was trained with."""
    from morphogen.slides import get_encoder

    features: Any = get_encoder("texture")(torch.from_numpy(np.ascontiguousarray(images)))
    return np.asarray(features, np.float64).mean(0)


MEASURES: dict[str, Measure] = {"colour": colour, "stain vectors": stains, "texture encoder": texture}


def style_match(
    model: LayoutDiffusion,
    layouts: Sequence[Sheet],
    styles: Sequence[Sheet],
    pairs: int,
    *,
    sampler: LayoutSampler | str = "fast",
    seed: int = 0,
    images: int = 4,
) -> dict[str, float]:
    """Measure → share of outputs that are nearer to their own style than to the other, over ``pairs`` pairs.

    A pair is one layout in the styles of two patients. An output is compared with the mean over the style images of
    both, in features scaled by their SD within patients, so that what varies with the layout counts little. Chance:
    ½.
    """
    config = DataConfig(crop=model.crop, sampling="mp", style_images=max(images, 2))
    draw = StyleSampler(styles, config, max(images, model.config.style_images))
    patients, shown = _patients(draw, seed)
    places = Places(layouts, model.crop, 0.5, model.config.network.classes)
    told = model.config.style_images
    targets = {name: Look.of(each[:told]) for name, each in shown.items()}
    restyling = Restyling(layouts, model.crop)
    labels, chosen, drawn = [], [], []
    for number in range(pairs):
        random = numpy_generator(seed, "match", number)
        sheet, top, left = places.draw(random)
        labels.append(sheet.labels(top, left, model.crop))
        drawn.append((sheet.image(top, left, model.crop), sheet))
        chosen.append([patients[k] for k in random.choice(len(patients), 2, replace=False)])
    keeps = LayoutSampler.of(sampler).keeps
    outputs = [[], []]  # type: list[list[np.ndarray]]
    for side in (0, 1):
        for at in range(0, pairs, BATCH):
            part = range(at, min(at + BATCH, pairs))
            begun, own = [], []
            for k in part:
                image, sheet = drawn[k]
                target = targets[chosen[k][side]]
                begun.append(restyling(image, sheet, target))
                if keeps:
                    random = numpy_generator(seed, "match own style", k)
                    own.append(restyling.style(sheet, target, told, random))
            made = model(
                torch.from_numpy(np.stack([labels[k] for k in part])),
                torch.from_numpy(np.stack([shown[chosen[k][side]][:told] for k in part])),
                sampler,
                seed=seed,
                keys=[("match", k) for k in part],
                begin=torch.from_numpy(np.stack(begun)),
                own=torch.from_numpy(np.stack(own)) if keeps else None,
            )
            outputs[side] += list(made.cpu().numpy())
    return {name: _share_nearer(measure, shown, outputs, chosen) for name, measure in MEASURES.items()}


def style_match_of_real(
    styles: Sequence[Sheet], crop: int, pairs: int, *, seed: int = 0, images: int = 4
) -> dict[str, float]:
    """What :func:`style_match` gives for further real images of both patients in place of outputs: patients look alike,
    too, so that not even those are always nearer to their own."""
    draw = StyleSampler(styles, DataConfig(crop=crop, sampling="mp", style_images=images), images)
    patients, shown = _patients(draw, seed)
    chosen, further = [], [[], []]  # type: list[list[str]], list[list[np.ndarray]]
    for number in range(pairs):
        random = numpy_generator(seed, "match real", number)
        chosen.append([patients[k] for k in random.choice(len(patients), 2, replace=False)])
        for side in (0, 1):
            further[side].append(draw.of_patient(chosen[-1][side], random)[0])
    return {name: _share_nearer(measure, shown, further, chosen) for name, measure in MEASURES.items()}


def _patients(draw: StyleSampler, seed: int) -> tuple[list[str], dict[str, np.ndarray]]:
    """Names, and the style images of each that outputs are compared with."""
    names = sorted(draw.groups)
    if len(names) < 2:
        raise InputError("a style match needs images of two patients at least", where="styles")
    return names, {name: draw.of_patient(name, numpy_generator(seed, "match style", name)) for name in names}


def _share_nearer(
    measure: Measure,
    shown: dict[str, np.ndarray],
    outputs: list[list[np.ndarray]],
    chosen: list[list[str]],
) -> float:
    each = {
        patient: np.stack([measure(image[None]) for image in images]) for patient, images in shown.items()
    }
    known = {patient: values.mean(0) for patient, values in each.items()}
    scale = _scale(np.concatenate([values - known[patient] for patient, values in each.items()]))
    nearer = []
    for number, pair in enumerate(chosen):
        for side in (0, 1):
            features = measure(outputs[side][number][None])
            own, other = (
                float(np.linalg.norm((features - known[pair[k]]) / scale)) for k in (side, 1 - side)
            )
            nearer.append(own < other)
    return float(np.mean(nearer))


def nearest_distances(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(N,) distance of each image to the nearest of the others, in texture features scaled by the others' SD."""
    from morphogen.slides import get_encoder

    encoder: Any = get_encoder("texture")
    a, b = (
        np.asarray(encoder(torch.from_numpy(np.ascontiguousarray(x))), np.float64) for x in (images, others)
    )
    scale = _scale(b - b.mean(0))
    a, b = a / scale, b / scale
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.sqrt(np.maximum(squared, 0).min(1))


def _scale(deviations: np.ndarray) -> np.ndarray:
    """(D,) SD of (N, D) deviations; infinite where a feature hardly varies, so that it counts for nothing."""
    found = np.sqrt((deviations**2).mean(0))
    return np.where(found > 1e-6 * max(float(found.max()), 1e-12), found, np.inf)


def memorisation(synthetic: np.ndarray, training: np.ndarray, held_out: np.ndarray) -> dict[str, float]:
    """How near synthetic images come to training images, against what unseen real images do.

    ``nearness``: median distance to the nearest training image, synthetic over held-out real; well below 1 is copying.
    ``copies``: share of synthetic images nearer than the nearest 1 % of the held-out real ones.
    """
    ours, theirs = nearest_distances(synthetic, training), nearest_distances(held_out, training)
    return {
        "nearness": float(np.median(ours) / np.median(theirs)),
        "copies": float((ours < np.quantile(theirs, 0.01)).mean()),
    }


def diversity(synthetic: dict[str, np.ndarray], real: dict[str, np.ndarray]) -> float:
    """Spread of stain vectors over patients, synthetic over real: (patient → images (n,H,W,3)); 1 is as various."""
    spreads = []
    for group in (synthetic, real):
        features = np.stack([stains(images) for images in group.values()])
        spreads.append(features.std(0))
    return float(np.mean(spreads[0] / (spreads[1] + 1e-9)))


def crops_of(sheets: Sequence[Sheet], crop: int, most: int = 200, seed: int = 0) -> np.ndarray:
    """(N, crop, crop, 3) tissue crops of sheets, N at most ``most``."""
    places = [(sheet, int(row), int(column)) for sheet in sheets for row, column in sheet.tissue(crop)]
    if not places:
        raise InputError("there is no image to cut crops from")
    order = numpy_generator(seed, "crops").permutation(len(places))[:most]
    return np.stack([places[k][0].image(places[k][1], places[k][2], crop) for k in order])


@locks_folder()
def evaluate_synthetic(
    model: LayoutDiffusion,
    synthetic: Sequence[Sheet],
    layouts: Sequence[Sheet],
    styles: Sequence[Sheet],
    held_out: Sequence[Sheet],
    out: Path | str,
    *,
    segmenter: Segmenter | None = None,
    pairs: int = 200,
    sampler: LayoutSampler | str = "fast",
    seed: int = 0,
) -> SetScores:
    """Style match on three measures, layout agreement, diversity and memorisation of a synthetic data set, with a page.

    styles: sheets of patients that lend their style. held_out: labelled sheets that neither model nor segmenter saw:
    the styles of the style match, what a real image reaches in agreement, and how near unseen real images come.
    """
    out = writable_folder(out)
    crop = model.crop
    figures: dict[str, float] = {}
    lent = held_out if len({sheet.patient for sheet in held_out}) > 1 else [*held_out, *styles]
    if len({sheet.patient for sheet in lent}) > 1:
        matched = style_match(model, layouts, lent, pairs, sampler=sampler, seed=seed)
        figures = {f"style match, {name}": share for name, share in matched.items()}
        real_match = style_match_of_real(lent, crop, pairs, seed=seed)
        figures |= {f"style match of real images, {name}": share for name, share in real_match.items()}
    images = crops_of(synthetic, crop, seed=seed)
    unseen = crops_of(held_out, crop, seed=seed)
    figures |= memorisation(images, crops_of([*layouts, *styles], crop, 1000, seed), unseen)
    groups = [_by_patient(sheets, crop, seed) for sheets in (synthetic, styles)]
    both = sorted(set(groups[0]) & set(groups[1]))
    if len(both) > 1:
        figures["diversity"] = diversity(*({name: group[name] for name in both} for group in groups))
    if segmenter is not None:
        found = [
            agreement(segmenter, sheet.image(0, 0, crop)[None], sheet.labels(0, 0, crop)[None])[0]
            for sheet in synthetic
        ]
        real = agreement_on(segmenter, held_out, crop)
        figures["layout agreement"] = float(np.mean(found))
        figures["agreement on held-out real"] = float(np.mean(real))
        figures["agreement ratio"] = figures["layout agreement"] / figures["agreement on held-out real"]
    scores = SetScores(figures, {})
    evaluations = [Evaluation("synthetic", scores, [])]
    facts = {"images": len(synthetic), "pairs": pairs, "seed": seed, "model": model.identity[:16]}
    write_results(out, evaluations, kind="synthetic evaluation", protocol="layout-1", facts=facts)
    table = {name: (name, None) for name in figures}
    write_page(
        out, evaluations, "Synthetic images", f"{len(synthetic)} images", [("Figures", table)], notes=[NOTE]
    )
    return scores


NOTE = (
    "Style match: share of outputs nearer to the patient whose style was asked for than to another one (chance 0.5). "
    "Agreement: IoU at which a segmenter trained on real images finds the layout. Nearness below 1 hints at copies."
)


def _by_patient(sheets: Sequence[Sheet], crop: int, seed: int) -> dict[str, np.ndarray]:
    groups: dict[str, list[Sheet]] = {}
    for sheet in sheets:
        groups.setdefault(sheet.patient, []).append(sheet)
    return {name: crops_of(group, crop, 12, seed) for name, group in groups.items()}
