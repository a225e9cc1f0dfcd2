"""A small slide with what may be made of it: a stain, its uncertainty, a mask, genes, outlines."""

from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from morphogen.slides.pyramid import write_pyramid

WIDTH, HEIGHT, MPP = 1500, 1100, 0.5
GENES = ["ERBB2", "ESR1", '<b onmouseover=x>"&', "MKI67"]


def write_genes(path: Path, *, kind: str = "dense") -> ad.AnnData:
    """12 × 9 spots on a grid of 120 px, four genes, predictions in layers, a category."""
    x, y = np.meshgrid(np.arange(60, WIDTH - 60, 120), np.arange(60, HEIGHT - 60, 120))
    places = np.column_stack([x.ravel(), y.ravel()]).astype(float)
    rng = np.random.default_rng(0)
    counts = rng.poisson(2, (len(places), len(GENES))).astype(np.float32)
    made = {"dense": counts, "csr": sparse.csr_matrix(counts), "csc": sparse.csc_matrix(counts)}[kind]
    table = ad.AnnData(made, obs=pd.DataFrame({"cluster": pd.Categorical(["a", "b"] * (len(places) // 2))}))
    table.var_names, table.obs_names = GENES, [f"s{k}" for k in range(len(places))]
    table.layers["pred_mean"] = counts + 0.5
    table.layers["pred_std"] = np.full_like(counts, 0.25)
    table.obsm["spatial"] = places
    table.uns["morphogen"] = {"section": {"section": "S", "mpp": MPP}}
    table.write_h5ad(path)
    return table


@pytest.fixture(scope="session")
def results(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("view")
    rng = np.random.default_rng(0)
    small = rng.integers(60, 256, (HEIGHT // 20, WIDTH // 20, 3), dtype=np.uint8)
    he = np.kron(small, np.ones((20, 20, 1), np.uint8))
    how = {"mpp": MPP, "tile": 256}
    write_pyramid(place / "slide.ome.tif", [he], WIDTH, HEIGHT, codec="deflate", **how)
    stain = {"facts": {"made by": "virtual staining"}}
    write_pyramid(place / "slide_ER.ome.tif", [he[:, ::-1]], WIDTH, HEIGHT, codec="deflate", **how, **stain)
    level = (np.arange(WIDTH) * 100 // WIDTH).astype(np.uint8)
    grey = {"codec": "deflate", "channels": 1, "background": 0}
    unit = {"facts": {"unit": "SD of DAB optical density, 0.002 per grey level"}}
    uncertainty = [np.tile(level, (HEIGHT, 1))]
    write_pyramid(place / "slide_uncertainty.ome.tif", uncertainty, WIDTH, HEIGHT, **how, **grey, **unit)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[200:700, 300:901] = 1
    mask[300:400, 400:500] = 2
    classes = {"facts": {"classes": "background, tumour, stroma"}, "labels": True}
    write_pyramid(place / "slide_mask.ome.tif", [mask], WIDTH, HEIGHT, **how, **grey, **classes)
    write_genes(place / "genes.h5ad")
    square = [[100, 100], [300, 100], [300, 250], [100, 250], [100, 100]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [square]},
        "properties": {
            "name": "n1",
            "classification": {"name": "<img src=x onerror=alert(1)>"},
            "measurements": {"area": 30000.0},
        },
    }
    collection = {"type": "FeatureCollection", "features": [feature]}
    (place / "cells.geojson").write_text(json.dumps(collection))
    return place
