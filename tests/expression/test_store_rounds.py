"""Whole rounds by the commands a user types: store → sections → model → predictions → the same store → its picture."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from morphogen.cli.main import main

from .spatial_stores import GENES, STEP, hd_store, visium_store, xenium_store

pytestmark = pytest.mark.slow
SMALL = ["--recipe", "spatial", "--training.steps", 60, "--training.validate_every", 60, "--device", "cpu"]
PICTURES = os.environ.get("MORPHOGEN_TEST_PICTURES")  # a folder, to look at them


def run(*tokens) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(token) for token in tokens])
    return stop.value.code or 0


def blobs_store(path: Path) -> Path:
    """What spatialdata's own generator makes, with transcripts of many genes."""
    from spatialdata.datasets import blobs

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = blobs(length=400, n_points=4000, n_shapes=60, n_channels=3)
        points = data.points["blobs_points"].compute()
        names = [f"G{k}" for k in np.random.default_rng(0).integers(0, len(GENES), len(points))]
        points["genes"] = np.asarray(names, object)
        from spatialdata.models import PointsModel

        data.points["blobs_points"] = PointsModel.parse(
            points[["x", "y", "genes"]], coordinates={"x": "x", "y": "y"}, feature_key="genes"
        )
        data.write(path)
    return path


# How the store is made, what prepare is told, the section to look at, and what the picture is drawn of.
KINDS = {
    "visium": (visium_store, ["--data.mpp", 1, "--data.pitch_um", STEP], "visium", "full", "spots"),
    "hd": (hd_store, ["--data.mpp", 1, "--data.table", "square_016um"], "hd", "he", "hd_square_016um"),
    "xenium": (xenium_store, ["--data.units", "nuclei"], "xenium", "he", "nuclei"),
    "bins": (xenium_store, ["--data.bin_um", STEP], "bins", "he", "prediction_spots"),
    "blobs": (
        blobs_store,
        ["--data.mpp", 1, "--data.units", "blobs_polygons"],
        "blobs",
        "blobs_image",
        "blobs_polygons",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_all_the_way(kind, tmp_path):
    import anndata as ad
    import spatialdata as sd

    make, options, section, image, shapes = KINDS[kind]
    store = make(tmp_path / "in" / f"{kind}.zarr")
    sections = tmp_path / "sections"
    assert run("expression", "prepare", store, "--out", sections, *options) == 0
    prepared = sections / f"{section}.h5ad"
    assert prepared.is_file(), sorted(path.name for path in sections.iterdir())
    assert run("expression", "train", sections, "--genes", 8, "--out", tmp_path / "run", *SMALL) == 0
    model = ["--model", tmp_path / "run" / "model", "--device", "cpu", "--samples", 2]
    out = tmp_path / "map.h5ad"
    assert run("expression", "predict", prepared, *model, "--out", out, "--store", store) == 0

    result, measured = ad.read_h5ad(out), ad.read_h5ad(prepared)
    data = sd.read_zarr(store)
    table = data.tables["prediction"]
    assert table.n_obs == measured.n_obs and np.allclose(table.X, result.layers["pred_mean"])
    assert len(sd.match_table_to_element(data, shapes, "prediction")) == table.n_obs
    # The first six genes rise to the right, where the picture is redder, and the others fall.
    x = np.asarray(result.obsm["spatial"])[:, 0]
    assert np.ptp(x) > 200 and table.n_obs > 15
    if kind != "blobs":  # whose genes are noise
        for gene in result.var_names:
            along = np.corrcoef(x, np.asarray(result[:, gene].layers["pred_mean"]).ravel())[0, 1]
            assert along > 0.7 if gene in GENES[:6] else along < -0.7, (gene, along)
    plotted(data, shapes, table.var_names[0], image, tmp_path / f"{kind}.png")
    if PICTURES:
        shutil.copy(tmp_path / f"{kind}.png", PICTURES)


def plotted(data, shapes: str, gene: str, image: str, path: Path) -> None:
    """What spatialdata-plot draws of it, unedited."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import spatialdata_plot  # noqa: F401
    from PIL import Image

    chain = data.pl.render_images(image).pl.render_shapes(shapes, color=gene, table_name="prediction")
    chain.pl.show(coordinate_systems="global", save=str(path), dpi=70)
    plt.close("all")
    drawn = np.asarray(Image.open(path).convert("RGB"))
    assert drawn.std() > 20 and len(np.unique(drawn.reshape(-1, 3), axis=0)) > 200
