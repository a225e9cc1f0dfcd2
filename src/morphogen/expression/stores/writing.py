"""Predictions in a SpatialData store: a table that annotates shapes of it, plotted by spatialdata-plot as it is."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd

from morphogen.core.errors import InputError
from morphogen.core.writing.locks import locks_file
from morphogen.expression.data import facts
from morphogen.expression.stores.elements import read_store
from morphogen.expression.stores.finding import is_store, names_of
from morphogen.slides.formats.spatial import is_image_of_store
from morphogen.slides.store import element_name, update_store

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

TABLE = "prediction"


@locks_file("store")
def write_predictions(
    result: ad.AnnData, store: Path | str, table: str = TABLE, outlines: GeoDataFrame | None = None
) -> Path:
    """Put a prediction into a SpatialData store, which is made when it is not there.

    The table ``table`` has the predicted means as ``X`` and all layers of the result. It annotates the shapes or labels
    that the section was read from, where they are in this store; else shapes ``<table>_spots`` are added: the outlines
    of cells, squares of a grid or of bins, circles of spots, on the pixels of the H&E. A new store gets a reduced copy
    of the H&E. Elements of these names are replaced, everything else stays; all at once or not at all.

    Raises :class:`InputError` where there is something else at this place, or the table's name cannot be one.
    """
    store = Path(store)
    if element_name(table) != table:
        raise InputError(
            f"a table cannot be called '{table}'", where=store, fix=f"Call it {element_name(table)}"
        )
    if store.exists() and not is_store(store):
        raise InputError("there is something else here, not a SpatialData store", where=store)
    there = store.exists()
    known = {*names_of(store, "shapes"), *names_of(store, "labels")} if there else set()
    made = _table(result)
    regions = set(made.obs["region"].astype(str)) if "region" in made.obs else set()
    shapes: dict[str, Any] = {}
    if outlines is not None or not regions or not regions <= known:
        name = f"{table}_spots"
        shapes[name] = _shapes(result, store if there else None, outlines)
        made.obs["region"], made.obs["instance"] = name, shapes[name].index.to_numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from spatialdata.models import TableModel

        made.obs["region"] = pd.Categorical(made.obs["region"].astype(str))
        if made.obs["instance"].dtype.kind not in "iu":
            made.obs["instance"] = made.obs["instance"].astype(str).astype(object)
        made = TableModel.parse(
            made, region=sorted(set(made.obs["region"])), region_key="region", instance_key="instance"
        )
        images = {} if there else _image(result)
    return update_store(store, images=images, shapes=shapes, tables={table: made})


def _table(result: ad.AnnData) -> ad.AnnData:
    """The result without its pictures; the predicted means as ``X``."""
    made = ad.AnnData(
        np.asarray(result.layers["pred_mean"], np.float32), obs=result.obs.copy(), var=result.var.copy()
    )
    for name in result.layers:
        made.layers[name] = np.asarray(result.layers[name])
    if "measured" in result.var and result.var["measured"].any():
        made.layers["measured"] = result.X.copy()
    made.obsm["spatial"] = np.asarray(result.obsm["spatial"])
    made.uns["morphogen"] = result.uns["morphogen"]
    return made


def _shapes(result: ad.AnnData, store: Path | None, outlines: GeoDataFrame | None) -> Any:
    """What the rows of the table are, on level-0 pixels of the H&E."""
    import geopandas as gpd
    from shapely.geometry import box
    from spatialdata.models import ShapesModel

    f = facts(result)
    centres = np.asarray(result.obsm["spatial"], np.float64)
    half = (f.spot_diameter_px or f.pitch_px * 0.5) / 2
    options = {"transformations": _transformations(f.image, store)}
    index = pd.Index([str(name) for name in result.obs_names])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if outlines is not None:
            geometry = outlines.geometry.to_numpy()
            whole = [each.buffer(half) if each.geom_type == "Point" else each for each in geometry]
            return ShapesModel.parse(gpd.GeoDataFrame(geometry=whole, index=index), **options)
        if f.technology in ("grid", "bins", "Visium HD"):
            squares = [box(x - half, y - half, x + half, y + half) for x, y in centres]
            return ShapesModel.parse(gpd.GeoDataFrame(geometry=squares, index=index), **options)
        circles = gpd.GeoDataFrame({"radius": half}, geometry=gpd.points_from_xy(*centres.T), index=index)
        return ShapesModel.parse(circles, **options)


def _transformations(image: str, store: Path | None) -> dict[str, Any]:
    """Those of the store's H&E where the result's pixels are its own; else the pixels are the global coordinates."""
    from spatialdata.transformations import Identity, get_transformation

    if store is not None and is_image_of_store(image):
        name = Path(image).name
        if name in names_of(store, "images"):
            found: dict[str, Any] = dict(get_transformation(read_store(store).images[name], get_all=True))
            return found
    return {"global": Identity()}


def _image(result: ad.AnnData) -> dict[str, Any]:
    """The reduced H&E that the result carries, in its place."""
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale

    for library in dict(result.uns.get("spatial", {})).values():
        pixels = np.asarray(library["images"]["hires"])
        factor = 1 / float(library["scalefactors"]["tissue_hires_scalef"])
        return {
            "he": Image2DModel.parse(
                pixels.transpose(2, 0, 1),
                dims=("c", "y", "x"),
                c_coords=["r", "g", "b"],
                transformations={"global": Scale([factor, factor], axes=("x", "y"))},
            )
        }
    return {}
