"""SpatialData stores in the manner of spatialdata-io: Visium, Visium HD bins, Xenium, on one simulated picture."""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata as ad
import dask.dataframe as dd
import geopandas as gpd
import numpy as np
import pandas as pd
from scipy import sparse
from shapely.geometry import Point, box
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, PointsModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, Sequence, Translation

GENES = [f"G{i}" for i in range(12)]
WIDTH, HEIGHT, MPP = 600, 480, 1.0
STEP = 48  # px between spots


def picture(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """(3, H, W) uint8: redder to the right, with texture."""
    rng = np.random.default_rng(0)
    x = np.linspace(0, 1, width)[None, :] * np.ones((height, 1))
    base = np.stack([200 + 40 * x, 120 + 20 * x, 200 - 60 * x])
    return np.clip(base + rng.normal(0, 12, base.shape), 0, 255).astype(np.uint8)


def rates(xy: np.ndarray) -> np.ndarray:
    """(N, 12): half of the genes rise to the right, half fall."""
    x = xy[:, :1] / WIDTH
    return np.concatenate([np.repeat(2 + 20 * x, 6, 1), np.repeat(22 - 20 * x, 6, 1)], axis=1)


def table(xy: np.ndarray, region: str, instances, seed: int = 0) -> ad.AnnData:
    counts = np.random.default_rng(seed).poisson(rates(xy)).astype(np.float32)
    adata = ad.AnnData(
        sparse.csr_matrix(counts), obs=pd.DataFrame(index=[f"{region}-{i}" for i in instances])
    )
    adata.var_names = GENES
    adata.obs["region"], adata.obs["spot"] = pd.Categorical([region] * len(xy)), np.asarray(instances)
    return TableModel.parse(adata, region=region, region_key="region", instance_key="spot")


def spots() -> tuple[np.ndarray, np.ndarray]:
    """Centres in pixels of the picture and (row, column) of a staggered array, as Visium's."""
    places, grid = [], []
    for row in range(int(HEIGHT / (STEP * 0.866)) - 1):
        for column in range(WIDTH // STEP - 1):
            places.append([STEP * (column + 0.75 + 0.5 * (row % 2)), STEP * 0.866 * (row + 1)])
            grid.append([row, 2 * column + row % 2])
    return np.array(places), np.array(grid)


def written(data: SpatialData, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.write(path)
    return path


def image(levels: bool = True, **options):
    options.setdefault("transformations", {"global": Identity()})
    return Image2DModel.parse(
        picture(),
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        scale_factors=[2] if levels else None,
        **options,
    )


def visium_store(path: Path, *, turn: bool = True) -> Path:
    """Spots in a coordinate system that is the picture's, turned, enlarged and moved; a small copy of the picture."""
    xy, grid = spots()
    angle = 0.3 if turn else 0.0
    cos, sin = 2 * np.cos(angle), 2 * np.sin(angle)
    matrix = np.array([[cos, -sin, 70.0], [sin, cos, -30.0], [0, 0, 1]])
    place = Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y"))
    shapes = ShapesModel.parse(
        xy @ matrix[:2, :2].T + matrix[:2, 2], geometry=0, radius=2 * 13.0,
        transformations={"global": Identity()},
    )  # fmt: skip
    counts = table(xy, "spots", shapes.index)
    counts.obs["array_row"], counts.obs["array_col"] = grid.T
    small = Image2DModel.parse(
        picture()[:, ::4, ::4], dims=("c", "y", "x"), c_coords=["r", "g", "b"],
        transformations={"global": Sequence([Scale([4, 4], axes=("x", "y")), place])},
    )  # fmt: skip
    grey = Image2DModel.parse(np.zeros((1, 900, 900), np.uint8), dims=("c", "y", "x"))
    data = SpatialData(
        images={"full": image(transformations={"global": place}), "lowres": small, "dapi": grey},
        shapes={"spots": shapes}, tables={"table": counts},
    )  # fmt: skip
    return written(data, path)


def hd_store(path: Path) -> Path:
    """Square bins of 8 and 16 µm, each with its table."""
    shapes, tables = {}, {}
    for side in (16, 8):
        y, x = np.mgrid[4 : HEIGHT // side - 4, 4 : WIDTH // side - 4].reshape(2, -1)
        name = f"{path.stem}_square_{side:03d}um"
        squares = [box(c * side, r * side, (c + 1) * side, (r + 1) * side) for r, c in zip(y, x)]
        shapes[name] = ShapesModel.parse(gpd.GeoDataFrame(geometry=squares))
        centres = (np.stack([x, y], axis=1) + 0.5) * side
        tables[f"square_{side:03d}um"] = table(centres, name, shapes[name].index)
        tables[f"square_{side:03d}um"].obs["array_row"], tables[f"square_{side:03d}um"].obs["array_col"] = (
            y,
            x,
        )
    return written(SpatialData(images={"he": image()}, shapes=shapes, tables=tables), path)


def cells(count: int = 80, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Centres and radii of nuclei that do not touch, in pixels."""
    rng = np.random.default_rng(seed)
    centres: list[np.ndarray] = []
    while len(centres) < count:
        new = rng.uniform((30, 30), (WIDTH - 30, HEIGHT - 30))
        if all(np.hypot(*(new - old)) > 20 for old in centres):
            centres.append(new)
    return np.array(centres), rng.uniform(5, 8, count)


def xenium_store(path: Path, *, with_table: bool = False, micrometres: bool = True) -> Path:
    """Transcripts in µm, cells as polygons (µm) and as labels (pixels), a picture at 1 µm/px moved by 100 µm."""
    rng = np.random.default_rng(1)
    centres, radii = cells()
    rows = []
    for number, (centre, rate) in enumerate(zip(centres, rates(centres), strict=True)):
        for gene, count in enumerate(rng.poisson(rate)):
            angle, away = (
                rng.uniform(0, 2 * np.pi, count),
                radii[number] * 0.9 * np.sqrt(rng.uniform(0, 1, count)),
            )
            places = centre + np.stack([away * np.cos(angle), away * np.sin(angle)], axis=1)
            rows += [(*place, GENES[gene], 30.0) for place in places]
    rows += [(*place, "G0", 5.0) for place in centres]  # of a low quality
    rows += [(*place, "NegControlProbe_1", 40.0) for place in centres]
    dots = pd.DataFrame(rows, columns=["x", "y", "feature_name", "qv"])
    dots["feature_name"] = dots["feature_name"].astype("category")
    moved = {"global": Identity()}
    system = "microns" if micrometres else "global"
    names = {"global": Translation([100, 100], axes=("x", "y"))}
    if micrometres:
        names[system] = Translation([100, 100], axes=("x", "y"))
        moved[system] = Identity()
    shift = 100.0
    dots[["x", "y"]] += shift
    points = PointsModel.parse(
        dd.from_pandas(dots, npartitions=2), coordinates={"x": "x", "y": "y"}, feature_key="feature_name",
        transformations=moved,
    )  # fmt: skip
    nuclei = [Point(c + shift).buffer(r) for c, r in zip(centres, radii, strict=True)]
    index = [f"cell{i}" for i in range(len(nuclei))]
    shapes = ShapesModel.parse(gpd.GeoDataFrame(geometry=nuclei, index=index), transformations=moved)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    mask = np.zeros((HEIGHT, WIDTH), np.int32)
    for number, (centre, radius) in enumerate(zip(centres, radii, strict=True), start=1):
        mask[np.hypot(x + 0.5 - centre[0], y + 0.5 - centre[1]) < radius] = number
    labels = Labels2DModel.parse(mask, dims=("y", "x"), transformations=names)
    tables = {"cells": table(centres, "nuclei", index)} if with_table else {}
    data = SpatialData(
        images={"he": image(transformations=names)}, points={"transcripts": points},
        shapes={"nuclei": shapes}, labels={"mask": labels}, tables=tables,
    )  # fmt: skip
    return written(data, path)
