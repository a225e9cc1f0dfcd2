"""A real slide: tiled, embedded, and what the embedding sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from morphogen.demo.workspace import Workspace, real_slide, shown
from morphogen.report import Report

TITLE = "A real slide, tiled and embedded"
COMMANDS = """
morphogen slide info cmu-1-small-region.svs
morphogen slide encode cmu-1-small-region.svs --encoder texture
"""


def embed(path: Path) -> tuple[Any, Any, Any]:
    from morphogen.slides import encode_slide, get_encoder, open_slide
    from morphogen.slides.store import read_table

    slide = open_slide(path)
    outcome = encode_slide(slide, get_encoder("texture"))
    table = read_table(slide, "texture_tiles")  # an AnnData, one row per tile
    return slide, outcome, table


def run(work: Workspace, report: Report) -> None:
    """Encode the CMU-1 region and colour its tiles by what the encoder says of them."""
    slide, outcome, table = embed(real_slide(work))
    report.text(
        f"A region of an H&E slide ({slide.width} × {slide.height} px at {slide.mpp:.3f} µm/px, CC0) is searched for "
        f"tissue, cut into {table.n_obs} tiles of 224 px at 0.5 µm/px, and each tile becomes {table.n_vars} numbers by "
        "the `texture` encoder, which needs no weights. Any encoder of LazySlide (UNI, Phikon, Virchow …) takes its "
        "place by name. Results lie in a SpatialData store beside the slide."
    )
    picture = slide.thumbnail(1100)
    coloured = _coloured(picture, slide, table)
    report.images(
        [picture, coloured],
        ["the slide", "tiles coloured by embedding"],
        "Drag the slider: colours are principal components, tiles of one colour look alike.",
        compare=True,
    )
    groups = _look_alike(slide, table)
    report.images(
        [image for image, _ in groups],
        [label for _, label in groups],
        "Tiles grouped by their embedding alone (k-means): each column is one group.",
    )
    report.code(shown(embed), "python", "The Python that made this")
    report.code(COMMANDS, "bash", "The same from the command line")
    work.headlines["tiles of a real slide embedded"] = f"{table.n_obs} in {max(outcome.seconds, 0.1):.1f} s"


def _boxes(table: Any) -> np.ndarray:
    return np.asarray(table.obsm["spatial"], dtype=float)


def _components(table: Any, count: int) -> np.ndarray:
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    return PCA(count, random_state=0).fit_transform(StandardScaler().fit_transform(table.X))


def _coloured(picture: np.ndarray, slide: Any, table: Any) -> np.ndarray:
    """The thumbnail with every tile tinted by its first three principal components (red, green, blue)."""
    ranks = np.argsort(np.argsort(_components(table, 3), axis=0), axis=0) / max(table.n_obs - 1, 1)
    out, scale = picture.astype(float).copy(), picture.shape[1] / slide.width
    half = 224 * 0.5 / slide.mpp / 2
    for (x, y), colour in zip(_boxes(table), ranks, strict=True):
        a, b = (round((v - half) * scale) for v in (y, x))
        c, d = (round((v + half) * scale) for v in (y, x))
        out[max(a, 0) : c, max(b, 0) : d] = 0.45 * out[max(a, 0) : c, max(b, 0) : d] + 0.55 * 255 * colour
    return out.clip(0, 255).astype(np.uint8)


def _look_alike(slide: Any, table: Any, groups: int = 4, examples: int = 3) -> list[tuple[np.ndarray, str]]:
    """Columns of the tiles nearest to the centre of each k-means group of embeddings."""
    from sklearn.cluster import KMeans

    from morphogen.slides import crop_fields

    points = _components(table, min(16, table.n_obs))
    fitted = KMeans(min(groups, table.n_obs), n_init=5, random_state=0).fit(points)
    columns = []
    for label in range(fitted.n_clusters):
        members = np.flatnonzero(fitted.labels_ == label)
        far = np.linalg.norm(points[members] - fitted.cluster_centers_[label], axis=1)
        nearest = members[np.argsort(far)[:examples]]
        tiles = np.concatenate([np.asarray(t) for t in crop_fields(slide, _boxes(table)[nearest], 112, 224)])
        column = np.concatenate(list(tiles.reshape(-1, 224, 224, 3)), axis=0)
        columns.append((column, f"group {label + 1}: {len(members)} tiles"))
    return columns
