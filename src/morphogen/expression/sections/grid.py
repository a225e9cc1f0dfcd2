"""Any H&E slide without measured spots: a grid over its tissue, prepared like a section."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import anndata as ad
import numpy as np
import pandas as pd

from morphogen.core.errors import InputError
from morphogen.core.files import write_json
from morphogen.expression.config import PredictConfig, PrepareConfig
from morphogen.expression.data import SectionFacts, facts, set_facts
from morphogen.expression.sections.neighbours import nearest_spots
from morphogen.expression.sections.prepare import add_images, embed, slide_fields
from morphogen.expression.stores.cells import cell_section, pitched_neighbours
from morphogen.slides import Slide, get_encoder
from morphogen.slides.formats.spatial import open_image, slide_name

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

DEFAULT_PITCH_UM = 100.0
GEOJSON_GENES = 20


class Trained(Protocol):
    """What a model says of the sections it was trained on; :class:`~morphogen.expression.ExpressionModel` is one."""

    encoder: dict[str, Any]
    prepared: dict[str, Any]


def slide_section(
    image: Path | str,
    model: Trained,
    config: PredictConfig,
    *,
    mpp: float | None = None,
    weights: str | None = None,
    device: str = "auto",
    precision: str = "fp32",
    batch_size: int = 64,
    cells: GeoDataFrame | None = None,
    staged: Path | None = None,
) -> ad.AnnData:
    """A slide as a section to predict: a square grid of spots over its tissue, embedded as the model needs.

    mpp: µm per pixel where the file does not say. cells: outlines in level-0 pixels, which are the spots instead of a
    grid (:func:`morphogen.expression.stores.cells.read_cells`). Spots are named ``row x column`` of the grid, or as
    the cells. staged: a copy of the file on a faster disk, read in its place. Raises :class:`InputError` when there is
    no tissue.
    """
    slide = open_image(image, mpp=mpp, staged=staged)
    slide.require_mpp()
    trained = float(model.prepared.get("pitch_um", 0.0) or 0.0) or DEFAULT_PITCH_UM
    spacing = config.grid_um or trained
    if cells is None:
        section = grid_section(slide, spacing, config.tissue)
    else:
        section = cell_section(slide, cells, trained)
    prepare = PrepareConfig(
        encoder=model.encoder["name"],
        weights=weights,
        field=str(model.prepared.get("field", "112um")),
        field_px=int(model.prepared.get("field_px", 224)),
        near=int(model.prepared.get("near", 9)),
        region=int(model.prepared.get("region", 49)),
        orientations="1",
        batch_size=batch_size,
    )
    # "auto" is a choice for the model's own network; embeddings stay as training had them.
    wanted = "fp32" if precision == "auto" else precision
    encoder = get_encoder(prepare.encoder, weights, device=device, precision=wanted)
    wide = max(prepare.near, prepare.region)
    if cells is None:
        near = grid_neighbours(section, wide, every=max(1, round(trained / spacing)))
    else:
        near = pitched_neighbours(section.obsm["spatial"], wide, trained / slide.require_mpp())
    embed(section, slide_fields(section, slide, prepare), prepare, encoder, near)
    add_images(section, slide)
    return section


def grid_section(slide: Slide, spacing_um: float, tissue: str = "otsu") -> ad.AnnData:
    """An AnnData without genes: one spot per grid point inside the tissue, ``obsm["spatial"]`` its centre."""
    import shapely

    from morphogen.slides.tissue import tissue_of

    step = spacing_um / slide.require_mpp()
    if step < 1:
        raise InputError(f"a grid of {spacing_um:g} µm is finer than a pixel", where="--grid-um")
    found = tissue_of(slide, tissue)
    if not len(found):
        raise InputError("no tissue was found", where=slide.path, fix="Use --tissue all for the whole image")
    columns, rows = int(slide.width // step), int(slide.height // step)
    area: Any = found.geometry.union_all()
    shapely.prepare(area)
    x = (np.arange(columns) + 0.5) * step
    kept = []
    for row in range(rows):  # row by row: a slide has millions of points, most of them glass
        inside = shapely.contains_xy(area, x, np.full(columns, (row + 0.5) * step))
        kept += [(column, row) for column in np.flatnonzero(inside)]
    if not kept:
        raise InputError(
            f"no point of a {spacing_um:g} µm grid lies in the tissue",
            where=slide.path,
            fix="Use a finer grid",
        )
    grid = np.asarray(kept)
    obs = pd.DataFrame(
        {"array_row": grid[:, 1], "array_col": grid[:, 0]}, index=[f"{c}x{r}" for c, r in kept]
    )
    section = ad.AnnData(obs=obs)
    section.obsm["spatial"] = (grid + 0.5) * step
    set_facts(
        section,
        SectionFacts(
            section=slide_name(slide.path),
            image=str(slide.path),
            mpp=slide.require_mpp(),
            mpp_source=slide.mpp_source or "",
            technology="grid",
            pitch_um=spacing_um,
            pitch_px=step,
            spot_diameter_px=step,
            origin_x=float(slide.bounds[0]),
            origin_y=float(slide.bounds[1]),
        ),
    )
    return section


def grid_neighbours(section: ad.AnnData, k: int, every: int = 1) -> np.ndarray:
    """Neighbours at the training pitch on a grid ``every`` times finer: nearest among the points of equal phase."""
    if every <= 1:
        return nearest_spots(section.obsm["spatial"], k)
    phase = (section.obs["array_row"].to_numpy() % every) * every + section.obs[
        "array_col"
    ].to_numpy() % every
    out = np.full((section.n_obs, k), -1, dtype=np.int32)
    for value in np.unique(phase):
        rows = np.flatnonzero(phase == value)
        found = nearest_spots(section.obsm["spatial"][rows], k)
        out[rows] = np.where(found >= 0, rows[np.maximum(found, 0)], -1)
    return out


def write_geojson(
    result: ad.AnnData, path: Path | str, genes: tuple[str, ...] = (), outlines: GeoDataFrame | None = None
) -> Path:
    """Predictions for QuPath: one square per spot in level-0 pixels, or its outline, with a number per gene.

    QuPath crops slides with OpenSlide bounds (SCN, MRXS) to them: coordinates count from their corner, which the file
    states as ``origin`` (level-0 pixels of the whole slide).

    genes: which; empty takes the 20 whose predicted mean varies most. Each gene gives ``GENE`` (predicted mean) and,
    where there are samples, ``GENE sd``.
    """
    chosen = list(genes) or _most_varied(result)
    missing = [gene for gene in chosen if gene not in result.var_names]
    if missing:
        raise InputError(f"gene '{missing[0]}' is not in the panel", where="--geojson-genes")
    index = result.var_names.get_indexer(chosen)
    mean = np.asarray(result.layers["pred_mean"])[:, index]
    std = np.asarray(result.layers["pred_std"])[:, index] if "pred_std" in result.layers else None
    f = facts(result)
    half = (f.spot_diameter_px or f.pitch_px * 0.5) / 2
    features = []
    origin = np.array([f.origin_x, f.origin_y])
    for i, (x, y) in enumerate(np.asarray(result.obsm["spatial"], dtype=np.float64) - origin):
        geometry = _square(x, y, half) if outlines is None else _outline(outlines.geometry.iloc[i], origin)
        measurements = {gene: round(float(mean[i, j]), 4) for j, gene in enumerate(chosen)}
        if std is not None:
            measurements |= {f"{gene} sd": round(float(std[i, j]), 4) for j, gene in enumerate(chosen)}
        features.append(
            {
                "type": "Feature",
                "geometry": geometry,
                "properties": {
                    "objectType": "detection",
                    "name": str(result.obs_names[i]),
                    "measurements": measurements,
                },
            }
        )
    collection = {"type": "FeatureCollection", "origin": origin.tolist(), "features": features}
    return write_json(path, collection)


def _square(x: float, y: float, half: float) -> dict[str, Any]:
    corners = [(-half, -half), (half, -half), (half, half), (-half, half), (-half, -half)]
    ring = np.round([[x + right, y + down] for right, down in corners], 2)
    return {"type": "Polygon", "coordinates": [ring.tolist()]}


def _outline(geometry: Any, origin: np.ndarray) -> dict[str, Any]:
    import shapely
    from shapely.geometry import mapping

    moved = shapely.transform(geometry, lambda points: np.round(points - origin, 2))
    return dict(mapping(moved))


def _most_varied(result: ad.AnnData) -> list[str]:
    spread = np.asarray(result.layers["pred_mean"]).std(axis=0)
    return [str(g) for g in result.var_names[np.argsort(-spread, kind="stable")[:GEOJSON_GENES]]]
