"""Scores of drawn tissue against real tissue, in several encoders, with what real tissue scores against itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from morphogen.core.errors import InputError
from morphogen.core.seeds import numpy_generator
from morphogen.metrics.faithfulness import embedding_similarity, faithfulness, memorisation, standardise
from morphogen.metrics.images import frechet_distance, kernel_distance_exact, manifold
from morphogen.slides import get_encoder

LEAST = 12


def encoded(encoder: Any, images: np.ndarray, batch: int = 64) -> np.ndarray:
    """(N, D) float32 features of uint8 images (N, H, W, 3)."""
    return np.concatenate([part.numpy() for part in encoder.batches(images, batch)])


def set_scores(
    real: np.ndarray, generated: np.ndarray, *, seed: int = 0, units: bool = False
) -> dict[str, float]:
    """Distances of two sets of features (N, D), row i of both belonging together, beside those of real to real.

    The real ones are cut into two random halves; drawn items of one half are held against the real ones of the other,
    and the real halves against each other (the floor), so that both rest on the same numbers. Twice, halves changed;
    means. ``frechet_ratio`` is the drawn distance over the floor.

    units: the columns are quantities in units of their own, as the named ones of ``texture`` are. Then they are divided
    by their SD among the real items first, or the few of large numbers would be all that is compared; what the Fréchet
    distance is without that stands beside as ``frechet_raw…``. Columns that are constant among the real ones are left
    out.
    """
    if len(real) != len(generated):
        raise InputError(f"{len(real)} real and {len(generated)} drawn items are no pairs", where="scores")
    if len(real) < 2 * LEAST:
        raise InputError(f"{2 * LEAST} or more tiles are needed, there are {len(real)}", where="scores")
    order = numpy_generator(seed, "halves").permutation(len(real))
    halves = order[: len(real) // 2], order[len(real) // 2 : 2 * (len(real) // 2)]
    found: dict[str, list[float]] = {}
    raw = (real, generated)
    if units:
        real, generated = standardise(real, real), standardise(generated, real)
    for a, b in (halves, halves[::-1]):
        for name, other in (("", generated[b]), ("_floor", real[b])):
            spread = manifold(real[a], other)
            values = {
                "frechet": frechet_distance(real[a], other),
                "kernel": kernel_distance_exact(real[a], other),
                "precision": spread.precision,
                "recall": spread.recall,
                "density": spread.density,
                "coverage": spread.coverage,
            }
            if units:
                values["frechet_raw"] = frechet_distance(raw[0][a], raw[1][b] if not name else raw[0][b])
            for key, value in values.items():
                found.setdefault(f"{key}{name}", []).append(value)
    scores = {key: float(np.mean(values)) for key, values in found.items()}
    for kind in ("frechet", "frechet_raw") if units else ("frechet",):
        scores[f"{kind}_ratio"] = scores[kind] / max(scores[f"{kind}_floor"], 1e-12)
    scores["n"] = len(halves[0])
    return scores


def pair_scores(
    real: np.ndarray, generated: np.ndarray, *, by: np.ndarray | None = None, group: int = 100, seed: int = 0
) -> tuple[dict[str, float], np.ndarray]:
    """How well drawn items show their own vectors, and matched − shuffled cosine per item."""
    found = faithfulness(real, generated, numpy_generator(seed, "retrieval"), group=group, by=by)
    scores = {
        "matched": found.matched,
        "shuffled": found.shuffled,
        "gain": found.gain,
        "top1": found.top1,
        "top5": found.top5,
        "group": found.group,
        "embedding_similarity": embedding_similarity(real, generated),
    }
    return scores, found.values


def copy_scores(training: np.ndarray, held_out: np.ndarray, generated: np.ndarray) -> dict[str, float]:
    """Whether drawn items lie nearer to training tiles than held-out ones do."""
    found = memorisation(training, held_out, generated)
    return {"nearer_than_held_out": found.nearer, "c_t": found.c_t}


def twin_scores(
    real: np.ndarray, generated: np.ndarray, *, group: int = 64, seed: int = 0
) -> dict[str, float]:
    """Retrieval of every cell of a twin among ``group`` cells of the region it is a twin of."""
    found = faithfulness(real, generated, numpy_generator(seed, "twin"), group=group)
    return {"cell_top1": found.top1, "cell_gain": found.gain, "group": found.group}


def crops(image: np.ndarray, side: int, count: int, seed: int = 0) -> np.ndarray:
    """(count, side, side, 3) of an image (H, W, 3), at random places that are the same for images of one size."""
    generator = numpy_generator(seed, "crops")
    top, left = (generator.integers(0, extent - side + 1, count) for extent in image.shape[:2])
    return np.stack([image[y : y + side, x : x + side] for y, x in zip(top, left, strict=True)])


def nuclear_area(images: np.ndarray) -> np.ndarray:
    """(N,) share of each tile (N, H, W, 3) that is nuclei, as the ``texture`` encoder segments them."""
    encoder = get_encoder("texture", device="cpu")
    assert encoder.names is not None
    return encoded(encoder, images)[:, encoder.names.index("nuclei/area")]
