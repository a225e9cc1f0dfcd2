"""A section out of a SpatialData store: counts of a table, centres of what it annotates on the pixels of its H&E."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from morphogen.core.errors import InputError
from morphogen.expression.config import DataConfig
from morphogen.expression.data import log
from morphogen.expression.sections.h5ad import counts_of, grid_of
from morphogen.expression.stores.elements import Placed, affine, fetched, place_image, read_store
from morphogen.expression.stores.finding import StoredSection
from morphogen.expression.stores.transcripts import count_bins, count_cells
from morphogen.slides.formats.spatial import image_of

Known = dict[str, Any]
_BIN = re.compile(r"square_0*(\d+(?:\.\d+)?)um$")


def read_stored(source: StoredSection, config: DataConfig) -> tuple[ad.AnnData, Known]:
    """Counts (CSR), ``obsm["spatial"]`` in level-0 pixels of the store's H&E, and what is known beside them.

    ``obs`` names the element (``region``) and row (``instance``) of each spot, so that predictions find back. Raises
    :class:`InputError` where the store has no table, no H&E, or no way from one to the other.
    """
    data = read_store(source.store)
    if not source.table:
        return _from_transcripts(data, source, config)
    table = data.tables[source.table]
    attrs = table.uns.get("spatialdata_attrs", {})
    region_key, instance_key = str(attrs.get("region_key")), str(attrs.get("instance_key"))
    for key in (region_key, instance_key):
        if key not in table.obs:
            raise InputError(f"the table '{source.table}' has no column '{key}'", where=source.store)
    table = table[(table.obs[region_key].astype(str) == source.region).to_numpy()]
    if not table.n_obs:
        raise InputError(f"no row of the table '{source.table}' is of '{source.region}'", where=source.store)
    matrix, genes = counts_of(table, config.layer, config.values, source.store)
    section = ad.AnnData(sparse.csr_matrix(matrix))
    section.obs_names, section.var_names = table.obs_names.astype(str), genes.astype(str)
    for name, values in grid_of(table, source.store).items():
        section.obs[name] = values
    element = data.shapes[source.region] if source.region in data.shapes else data.labels[source.region]
    placed = place_image(data, [element], config.image, source.store, elsewhere=config.images is not None)
    instances = table.obs[instance_key].to_numpy()
    _place(section, element, placed, instances, source)
    known = _known(source, placed, config)
    known["technology"] = _technology(source, section)
    bins = _BIN.search(source.region)
    if bins:
        known["pitch_um"] = float(bins[1])
    known["spot_diameter_px"] = _diameter(element, placed, source.store)
    return section, known


def _from_transcripts(data: Any, source: StoredSection, config: DataConfig) -> tuple[ad.AnnData, Known]:
    """Transcripts counted in the cells of an element, or in square bins."""
    if config.units is not None:
        section, element = count_cells(data, config, source.store)
        placed = place_image(data, [element], config.image, source.store, elsewhere=config.images is not None)
        source = StoredSection(source.section, source.store, "", config.units)
        _place(section, element, placed, section.obs["instance"].to_numpy(), source)
        known = _known(source, placed, config)
        known["spot_diameter_px"] = _diameter(element, placed, source.store)
        return section, known
    section, placed, side = count_bins(data, config, source.store)
    known = _known(source, placed, config)
    known |= {"technology": "bins", "pitch_um": config.bin_um, "spot_diameter_px": side}
    return section, known


def _place(
    section: ad.AnnData, element: Any, placed: Placed, instances: np.ndarray, source: StoredSection
) -> None:
    """``obsm["spatial"]``: the centroids of an element's instances; NaN for those that it does not have."""
    from spatialdata import get_centroids

    found = fetched(
        lambda: get_centroids(element, coordinate_system=placed.system).compute(), source.region, source.store
    )
    centres = pd.DataFrame(placed.pixels(found[["x", "y"]].to_numpy(np.float64)), index=found.index)
    centres = centres[~centres.index.duplicated()]
    if len(instances) and not set(pd.Index(instances)) & set(centres.index):
        raise InputError(
            f"no row of the table is in '{source.region}': '{instances[0]}' against '{centres.index[0]}'",
            where=source.store,
        )
    section.obsm["spatial"] = centres.reindex(pd.Index(instances)).to_numpy(np.float64)
    section.obs["region"] = source.region
    section.obs["instance"] = instances


def _known(source: StoredSection, placed: Placed, config: DataConfig) -> Known:
    known: Known = {"image": str(image_of(source.store, placed.name))} if placed.name else {}
    if placed.mpp:
        known["mpp"] = placed.mpp
    return known


def _technology(source: StoredSection, section: ad.AnnData) -> str:
    """What the array says of itself: bins by the name of their element, Visium by its staggered rows."""
    if _BIN.search(source.region):
        return "Visium HD"
    if {"array_row", "array_col"} <= set(section.obs):
        parity = (section.obs["array_row"] + section.obs["array_col"]).to_numpy() % 2
        if len(parity) > 6 and len(np.unique(parity)) == 1:
            return "Visium"
    return ""


def _diameter(element: Any, placed: Placed, where: Path) -> float:
    """Diameter of the circles, or side of squares of the area of the polygons, in level-0 pixels; 0 = not known."""
    if not hasattr(element, "geometry"):
        return 0.0
    matrix = placed.matrix @ affine(element, placed.system, where)
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
    if "radius" in element.columns:
        return 2 * float(np.median(element["radius"])) * scale
    areas = element.geometry.area
    if not len(areas) or not np.isfinite(areas).all():
        log.warning("%s: the shapes have no area", where)
        return 0.0
    return float(np.sqrt(np.median(areas))) * scale
