"""Small well-formed inputs of every kind, made once; a case works on a copy of one."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np

TINY = {"network.depth": 1, "network.width": 16, "network.heads": 2}


def picture(seed: int = 0, size: int = 64) -> np.ndarray:
    """A pink field with purple discs; uint8 (size, size, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    image = np.full((size, size, 3), (228, 170, 200), float) + rng.normal(0, 6, (size, size, 3))
    for _ in range(size * size // 300):
        cy, cx = rng.integers(0, size, 2)
        image[(y - cy) ** 2 + (x - cx) ** 2 < rng.integers(6, 24)] = (110, 70, 150)
    return image.clip(0, 255).astype(np.uint8)


def images(root: Path) -> None:
    """``images/``: one file of each format."""
    import tifffile
    from PIL import Image

    root.mkdir(parents=True)
    pixels = picture()
    Image.fromarray(pixels).save(root / "a.png")
    Image.fromarray(pixels).save(root / "b.jpg", quality=90)
    tifffile.imwrite(root / "c.tif", pixels, photometric="rgb", compression="zlib")


def slides(root: Path) -> None:
    """``slides/``: a tiled pyramid, an OME-TIFF, a flat PNG, and a list of them."""
    import tifffile

    root.mkdir(parents=True)
    pixels = picture(3, 512)
    options: dict = {"tile": (128, 128), "photometric": "rgb", "compression": "jpeg"}
    scale: dict = {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(root / "pyramid.tif") as file:
        file.write(pixels, **options, **scale)
        file.write(np.ascontiguousarray(pixels[::2, ::2]), subfiletype=1, **options)
    metadata = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    tifffile.imwrite(root / "ome.ome.tif", pixels, ome=True, metadata=metadata, **options)
    (root / "list.csv").write_text("slide,mpp\npyramid.tif,0.5\nome.ome.tif,0.5\n")


def looks(root: Path) -> None:
    """``looks/``: what the viewer shows: spots with genes, outlines, an OME-Zarr image."""
    import anndata

    from morphogen.slides.pyramid.ngff import write_image

    root.mkdir(parents=True)
    write_image(root / "small.ome.zarr", picture(5, 160), mpp=0.5, tile=64)
    table = anndata.AnnData(np.random.default_rng(0).poisson(3, (36, 5)).astype(np.float32))
    table.obs_names, table.var_names = [f"s{k}" for k in range(36)], [f"G{k}" for k in range(5)]
    table.layers["pred_mean"] = np.asarray(table.X) + 1
    table.obsm["spatial"] = np.stack(np.divmod(np.arange(36), 6), axis=1) * 20.0 + 10
    table.uns["morphogen"] = {"section": {"section": "S", "mpp": 0.5}}
    table.write_h5ad(root / "genes.h5ad")
    ring = [[10, 10], [60, 10], [60, 50], [10, 10]]
    feature = {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": "tumour"}, "measurements": {"area": 900.0}},
    }
    (root / "cells.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature] * 3}))


def pairs(root: Path) -> None:
    """``pairs/``: MIST folders of three pairs, with patients and a table."""
    from PIL import Image

    for side in "AB":
        (root / "TrainValAB" / f"train{side}").mkdir(parents=True)
        for k in range(3):
            Image.fromarray(picture(k)).save(root / "TrainValAB" / f"train{side}" / f"p{k}.png")
    (root / "patients.csv").write_text("name,patient\np0,P1\np1,P1\np2,P2\n")
    base = "TrainValAB/train"
    rows = [f"{base}A/p{k}.png,{base}B/p{k}.png,ER,P{k},train" for k in range(3)]
    (root / "pairs.csv").write_text("he,ihc,stain,patient,split\n" + "\n".join(rows) + "\n")


def channels(root: Path) -> None:
    """``channels/``: a table of pairs of two channels of 16 bits with nuclei; ``panels/``: strips of six panels;
    ``slides/``: an H&E slide with a slide of channels, and another that was made of it."""
    from PIL import Image

    from morphogen.slides.formats.channels import save_channels

    for name in ("he", "target", "panels/train"):
        (root / name).mkdir(parents=True)
    labels = np.zeros((64, 64), np.uint8)
    labels[8:24, 8:24], labels[40:56, 30:50] = 1, 2
    Image.fromarray(labels).save(root / "nuclei.png")
    rows = []
    for k in range(2):
        pixels = picture(k, 64)
        Image.fromarray(pixels).save(root / "he" / f"p{k}.png")
        save_channels(
            root / "target" / f"p{k}.ome.tif", pixels[..., :2].astype(np.uint16) * 200, ("DNA", "ER")
        )
        Image.fromarray(np.concatenate([pixels] * 6, axis=1)).save(root / "panels" / "train" / f"p{k}.png")
        rows.append(f"he/p{k}.png,target/p{k}.ome.tif,nuclei.png,train")
    (root / "pairs.csv").write_text("he,ihc,nuclei,split\n" + "\n".join(rows) + "\n")
    (root / "target.yaml").write_text("channels: [DNA, ER]\ntransform: sqrt\nthreshold: [9000, 9000]\n")
    from morphogen.slides.pyramid import PyramidWriter

    pixels, whole = picture(7, 160), root / "slides"
    (whole / "made").mkdir(parents=True)
    for name, image in (("s0", pixels), ("real", pixels[..., :2]), ("made/s0_ER", pixels[..., 1:])):
        count = image.shape[2]
        names = ("DNA", "ER") if count == 2 else ()
        with PyramidWriter(
            whole / f"{name}.ome.tif",
            160,
            160,
            mpp=0.5,
            tile=64,
            codec="deflate",
            channels=count,
            names=names,
        ) as writer:
            writer.write(image, 0)
    (whole / "slides.csv").write_text("he,ihc,stain,split\ns0.ome.tif,real.ome.tif,ER,val\n")
    (whole / "target.yaml").write_text("channels: [DNA, ER]\nfull: [255, 255]\nthreshold: [90, 90]\n")


def sections(root: Path) -> None:
    """``prepared/``: two prepared sections; ``raw/`` ST tables with their image; ``visium/`` AnnData with an image."""
    import anndata
    import pandas as pd
    from PIL import Image
    from scipy import sparse

    from morphogen.expression import PrepareConfig, prepare_sections

    rng = np.random.default_rng(1)
    raw = root / "raw"
    raw.mkdir(parents=True)
    side, pitch = 6, 60
    for name in ("S1", "S2"):
        Image.fromarray(picture(len(name), 420)).save(raw / f"{name}_HE.png")
        spots = [(x, y) for y in range(side) for x in range(side)]
        counts = rng.poisson(4.0, (len(spots), 8))
        frame = pd.DataFrame(counts, [f"{x}x{y}" for x, y in spots], [f"G{k}" for k in range(8)])
        frame.to_csv(raw / f"{name}.tsv", sep="\t")
        rows = [f"{x}\t{y}\t{x}\t{y}\t{40 + x * pitch}\t{40 + y * pitch}\t1" for x, y in spots]
        header = "x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected\n"
        (raw / f"{name}_selection.tsv").write_text(header + "\n".join(rows) + "\n")
    (raw / "patients.csv").write_text("section,patient\nS1,P1\nS2,P2\n")
    config = PrepareConfig.load(
        overrides={"data.mpp": 200 / pitch, "data.patients": str(raw / "patients.csv")}
    )
    prepare_sections(raw, root / "prepared", config)
    visium = root / "visium"
    visium.mkdir()
    x = sparse.csr_matrix(rng.poisson(3.0, (side * side, 8)).astype(np.float32))
    data = anndata.AnnData(x)
    data.obsm["spatial"] = np.array(
        [(40 + x * pitch, 40 + y * pitch) for y in range(side) for x in range(side)], float
    )
    data.obs["array_row"], data.obs["array_col"] = np.divmod(np.arange(side * side), side)
    data.uns["spatial"] = {
        "V1": {
            "images": {"hires": picture(5, 420)},
            "scalefactors": {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 30.0},
        }
    }
    data.write_h5ad(visium / "V1.h5ad")
    Image.fromarray(picture(5, 420)).save(visium / "V1.png")
    with gzip.open(root / "list.txt.gz", "wt") as file:
        file.write("V1\n")


def spatial(root: Path) -> None:
    """``spatial/``: SpatialData stores with spots and with transcripts, and nuclei as outlines and as a mask."""
    from PIL import Image

    from ..expression import spatial_stores

    root.mkdir(parents=True)
    spatial_stores.visium_store(root / "visium.zarr")
    spatial_stores.xenium_store(root / "xenium.zarr")
    centres, _ = spatial_stores.cells(12)
    features, mask = [], np.zeros((spatial_stores.HEIGHT, spatial_stores.WIDTH), np.uint16)
    for number, (x, y) in enumerate(centres.astype(int).tolist(), start=1):
        ring = [[x - 5, y - 5], [x + 5, y - 5], [x + 5, y + 5], [x - 5, y + 5], [x - 5, y - 5]]
        geometry = {"type": "Polygon", "coordinates": [ring]}
        properties = {"objectType": "detection", "name": f"n{number}"}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
        mask[y - 5 : y + 5, x - 5 : x + 5] = number
    collection = {"type": "FeatureCollection", "features": features}
    (root / "nuclei.geojson").write_text(json.dumps(collection))
    Image.fromarray(mask).save(root / "nuclei.png")
    Image.fromarray(spatial_stores.picture().transpose(1, 2, 0)).save(root / "he.png")


def stain_model(folder: Path) -> None:
    """A stain model of some thousand parameters with random weights."""
    from morphogen.stain.config import ModelConfig
    from morphogen.stain.fitting.build import build_model

    config = ModelConfig(
        widths=(8, 16), groups=4, heads=2, attention=(1,), encoder="none", pixel_factor=4, detail=4
    )
    build_model(config, crop=64, seed=3).save_pretrained(folder)


def gene_model(prepared: Path, folder: Path) -> None:
    """A model trained for a few steps, on one of the sections."""
    from morphogen.expression import ExpressionConfig, load_sections, train_model

    config = ExpressionConfig.load(
        overrides={"recipe": "stem", "panel.size": 6, "training.steps": 2, "training.batch_size": 8, **TINY}
    )
    train_model(load_sections(prepared, ["S1"]), config, folder)


def checkpoints(root: Path) -> None:
    """``weights.safetensors``, ``weights.pt``, a gene list and a YAML file."""
    import torch
    from safetensors.torch import save_file

    root.mkdir(parents=True)
    state = {"linear.weight": torch.ones(3, 3), "linear.bias": torch.zeros(3)}
    save_file(state, root / "weights.safetensors")
    torch.save({"model": state, "ema": state, "epoch": 3}, root / "weights.pt")
    (root / "genes.txt").write_text("G0\nG1\nG2\n")
    (root / "config.yaml").write_text("seed: 3\n")
    (root / "config.json").write_text(json.dumps({"a": 1}))


def all_specimens(root: Path) -> Path:
    """Every kind below ``root``."""
    images(root / "images")
    slides(root / "slides")
    looks(root / "looks")
    pairs(root / "pairs")
    channels(root / "channels")
    sections(root / "sections")
    spatial(root / "spatial")
    checkpoints(root / "checkpoints")
    stain_model(root / "stain")
    gene_model(root / "sections" / "prepared", root / "genes")
    return root


# -- what verbs start from that others have written --------------------------------------------------------------------

TINY_LAYOUT = (
    "--annotated P1 P2 --test P3 --crop 32 --steps 1 --training.batch_size 4 --training.save_every 1 "
    "--device cpu"
)
TINY_STAIN = (
    "--model.widths [8,16] --model.groups 4 --model.heads 2 --model.attention [1] --model.encoder none --crop 32 "
    "--steps 2 --training.batch_size 2 --mpp 0.5 --device cpu"
)


def labelled(root: Path) -> None:
    """``labelled/``: two images of each of three patients, with masks of three classes."""
    from PIL import Image

    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    rows = ["name,patient"]
    for number in range(6):
        image = picture(number)
        labels = np.where(image[..., 0] < 150, 2, np.where(image[..., 1] > 170, 0, 1)).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"i{number}.png")
        Image.fromarray(labels).save(root / "masks" / f"i{number}.png")
        rows.append(f"i{number},P{number // 2 + 1}")
    (root / "patients.csv").write_text("\n".join(rows) + "\n")
    names = {str(k): name for k, name in enumerate(("background", "stroma", "nuclei"))}
    (root / "labels.json").write_text(json.dumps(names))


def polygons(root: Path) -> None:
    """``polygons/``: a slide with polygons of two classes beside it, as QuPath writes them."""
    from PIL import Image

    root.mkdir()
    Image.fromarray(picture(0)).save(root / "S1.tif")
    features = [
        {
            "type": "Feature",
            "geometry": {
                "type": "Polygon",
                "coordinates": [[[x, 8], [x + 24, 8], [x + 24, 40], [x, 40], [x, 8]]],
            },
            "properties": {"objectType": "annotation", "classification": {"name": name}},
        }
        for x, name in ((4, "tumour"), (32, "stroma"))
    ]
    text = json.dumps({"type": "FeatureCollection", "features": features})
    (root / "S1.geojson").write_text(text)


def samples(path: Path) -> None:
    """A pickle of two samples, as the published code of ZoomLDM writes them."""
    import pickle

    rows = [{"feat_20x": np.ones(8, np.float32), "image": picture(k, 32)} for k in range(2)]
    path.write_bytes(pickle.dumps(rows))


def results(root: Path) -> None:
    """``stores/``, ``clam/``, ``stained/``, ``labelled/`` and models of all rooms, by the commands that make them."""
    import os

    from morphogen.cli.main import main

    labelled(root / "labelled")
    polygons(root / "polygons")
    samples(root / "samples.pkl")
    tissue = (
        "--size tiny --steps 1 --training.batch_size 4 --training.save_every 1 --mpp 1 --tile-mpp 1 --tile 32"
    )
    os.chdir(root)
    for command in (
        "slide encode slides/ome.ome.tif --out stores --tissue all --tile-px 64 --tile-mpp 0.5",
        "slide export slides/ome.ome.tif --out stores --format clam --to clam",
        "stain predict pairs/TrainValAB/trainA --model stain --out stained --steps 1",
        f"tissue train images --out tissue {tissue} --model.first_stage components --device cpu",
        "tissue canvas --like images/a.png --model tissue/model --out drawn --steps 1 --mpp 1 --device cpu",
        f"layout train labelled --out layout --size tiny {TINY_LAYOUT}",
        f"layout segmenter labelled --out segmenter --network.widths [8,16] {TINY_LAYOUT}",
        "layout synthesize labelled --model layout/model --count 4 --out synthetic --device cpu",
    ):
        try:
            main(command.split())
        except SystemExit as end:
            assert not end.code, command
