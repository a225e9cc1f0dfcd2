"""Tiles and embeddings: images, tables, the five published folders; what is refused, what is held out."""

from __future__ import annotations

import logging
import pickle

import h5py
import numpy as np
import pytest
from PIL import Image

from morphogen.core.errors import InputError
from morphogen.core.running.spread import Spread
from morphogen.tissue import DataConfig, read_tiles
from morphogen.tissue.data import TileDataset
from morphogen.tissue.reading.images import jpeg_quality
from morphogen.tissue.reading.layouts import region_image

from .conftest import coloured_tiles, write_tile

PX = DataConfig(tile_px=32, tile_mpp=1.0, mpp=1.0, hold_out=0.5)


def h5(path, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values


def features(rows, width, first=0):
    return (np.arange(rows)[:, None] + first + np.linspace(0, 1, width)).astype(np.float64)


def crc(root):
    paths = [f"TCGA-AA-000{i}_{k}.png" for i in range(3) for k in range(2)]
    for path in paths:
        write_tile(root / path)
    np.save(root / "patches_20x_all.npy", np.array(paths))
    h5(root / "features.h5", feat_20x=features(6, 768))
    return [0, 1, 2, 3, 4, 5], 768


def brca(root, file, prefix, split, keys):
    paths = [f"s{i}/t{i}.png" for i in range(5)]
    for path in paths:
        write_tile(root / prefix / path)
    np.save(root / "patch_list_20x.npy", np.array(paths))
    (root / "train_test_split").mkdir()
    for name, rows in (("train", [3, 0, 4]), ("test", [1])):
        arrays = {key.format(split=name): np.array(rows) for key in keys}
        if "indices_{split}_5x" in keys:
            arrays[f"indices_{name}_5x"] = np.array(rows) % 2
        np.savez(root / "train_test_split" / split.format(split=name), **arrays)
    return [3, 0, 4, 1]


def brca_patch(root):
    rows = brca(root, "", "pyramid", "{split}_all.npz", ["indices_{split}_20x"])
    h5(root / "ssl_features/features_hipt_ctr.h5", feat_20x=features(5, 384))
    return rows, 384


def brca_ibot(root):
    rows = brca(root, "", "", "{split}.npz", ["indices_{split}_20x"])
    h5(root / "features_ibot.h5", feat_20x=features(5, 768))
    return rows, 768


def brca_two(root):
    rows = brca(root, "", "", "{split}.npz", ["indices_{split}_20x", "indices_{split}_5x"])
    h5(root / "ssl_features/features.h5", feat_20x=features(5, 384), feat_5x=features(2, 768, 100))
    return rows, 384


def naip(root):
    lists = {"train": ["a.png", "b.png"], "test": ["c.png"]}
    for paths in lists.values():
        for path in paths:
            write_tile(root / "naip_patches" / path)
    (root / "naip_ldm_metadata").mkdir()
    np.savez(root / "naip_ldm_metadata/patch_list.npz", **{k: np.array(v) for k, v in lists.items()})
    h5(root / "naip_ldm_metadata/features.h5", feat_train=features(2, 768), feat_test=features(1, 768, 2))
    return [0, 1, 2], 768


LAYOUTS = {"crc": crc, "brca-patch": brca_patch, "brca-ibot": brca_ibot, "brca-two": brca_two, "naip": naip}


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_layouts_are_recognised_and_read(tmp_path, name):
    rows, width = LAYOUTS[name](tmp_path)
    table = read_tiles(tmp_path, PX)
    assert table.facts["layout"] == name and len(table) == len(rows)
    assert table.features["patch"].dtype == np.float32
    assert (table.features["patch"] == features(6, width)[rows].astype(np.float32)).all()
    assert table.read([len(rows) - 1, 0]).shape == (2, 32, 32, 3)
    train, held = table.split(0.5)
    assert not set(train.groups) & set(held.groups) and len(train) and len(held)
    if name == "crc":
        assert set(table.groups) == {"TCGA-AA-0000", "TCGA-AA-0001", "TCGA-AA-0002"}
    else:
        assert set(held.groups) == {"test"}
    if name == "brca-two":
        expected = features(2, 768, 100)[np.array(rows) % 2].astype(np.float32)
        assert (table.features["region"] == expected).all()
        assert region_image(tmp_path / "s0" / "r7" / "t.png") == tmp_path / "s0" / "r7.jpg"


def test_a_folder_that_fits_two_layouts_asks(tmp_path):
    crc(tmp_path)
    h5(tmp_path / "features_ibot.h5", feat_20x=features(6, 768))
    with pytest.raises(InputError, match="fits several layouts: crc, brca-ibot. Choose one"):
        read_tiles(tmp_path, PX)
    assert len(read_tiles(tmp_path, PX.replace(layout="crc"))) == 6


def test_pickled_lists_are_refused_and_read_safely(tmp_path):
    crc(tmp_path)
    names = np.load(tmp_path / "patches_20x_all.npy").astype(object)
    np.save(tmp_path / "patches_20x_all.npy", names, allow_pickle=True)
    with pytest.raises(InputError, match="the list is a pickle.*--data.trust true"):
        read_tiles(tmp_path, PX)
    assert len(read_tiles(tmp_path, PX.replace(trust=True))) == 6

    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    np.save(tmp_path / "patches_20x_all.npy", np.array([Evil()] * 6, dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="names builtins.print"):
        read_tiles(tmp_path, PX.replace(trust=True))


def test_tiles_of_a_wrong_size_are_left_out_in_one_warning(tmp_path, caplog):
    crc(tmp_path)
    for name in ("TCGA-AA-0000_1.png", "TCGA-AA-0002_0.png"):
        write_tile(tmp_path / name, px=33)
    with caplog.at_level(logging.WARNING):
        table = read_tiles(tmp_path, PX)
    assert [record.message for record in caplog.records] == [
        "2 of 6 tiles are not 32 × 32 px and are left out (first: TCGA-AA-0000_1.png)"
    ]
    assert (table.features["patch"][:, 0] == [0, 2, 3, 5]).all()  # not the next one in its place


def test_lists_must_stay_in_their_folder(tmp_path):
    crc(tmp_path)
    np.save(tmp_path / "patches_20x_all.npy", np.array(["../out.png"] * 6))
    with pytest.raises(InputError, match="leads out of the folder"):
        read_tiles(tmp_path, PX)
    np.save(tmp_path / "patches_20x_all.npy", np.array(["gone.png"] * 6))
    with pytest.raises(InputError, match="a tile of the list is not there"):
        read_tiles(tmp_path, PX)


def test_images_are_cut_on_a_grid_and_their_features_kept(tmp_path):
    write_tile(tmp_path / "a" / "wide.png", px=100)
    write_tile(tmp_path / "a" / "one.png", px=32)
    write_tile(tmp_path / "b" / "small.png", px=20)
    calls = []

    class Encoder:
        spec = type("Spec", (), {"width": 3, "name": "mean"})

        def identity(self):
            return "mean"

        def __call__(self, images):
            import torch

            calls.append(len(images))
            return torch.from_numpy(images.mean((1, 2)).astype(np.float32))

    config = PX.replace(stride=16, group="folder")
    table = read_tiles(tmp_path, config, cache=tmp_path / "cache", encoder=Encoder())
    assert len(table) == 5 * 5 + 1 and sum(calls) == 26
    assert set(table.groups) == {"a"}
    for row in (0, 7, 25):
        assert np.allclose(table.features["patch"][row], table.read([row])[0].mean((0, 1)), atol=1e-3)
    whole = np.asarray(Image.open(tmp_path / "a" / "wide.png"))
    row = table.names.index("a/wide-1-2")
    assert (table.places[row] == [1, 1, 2]).all()
    assert (table.read([row])[0] == whole[2 + 16 : 2 + 48, 2 + 32 : 2 + 64]).all()
    again = read_tiles(tmp_path, config, cache=tmp_path / "cache", encoder=Encoder())
    assert sum(calls) == 26 and again.identity() == table.identity()


@pytest.mark.slow
def test_images_encoded_by_two_workers_are_the_same_table(tmp_path):
    for k in range(3):
        write_tile(tmp_path / "in" / f"i{k}.png", px=64 + 32 * k)
    (tmp_path / "in" / "bad.png").write_bytes(b"no image")
    config = PX.replace(encoder="texture", group="slide")
    here = read_tiles(tmp_path / "in", config, cache=tmp_path / "one" / "features")
    spread = Spread(workers=2)
    there = read_tiles(tmp_path / "in", config, cache=tmp_path / "two" / "features", spread=spread)
    assert there.identity() == here.identity() and len(there) == 4 + 9 + 16
    caches = [sorted(each.name for each in (tmp_path / out / "features").iterdir()) for out in ("one", "two")]
    assert caches[0] == caches[1] and len(caches[0]) == 3
    assert "3 items are done, 1 failed." in (tmp_path / "two" / "runs" / "summary.md").read_text()


def test_tables_of_embeddings(tmp_path):
    import anndata
    import pandas as pd

    paths = [write_tile(tmp_path / "tiles" / f"t{i}.png").relative_to(tmp_path).as_posix() for i in range(4)]
    obs = pd.DataFrame({"path": paths, "patient": list("AABB"), "label": list("wxyz")}, index=list("abcd"))
    anndata.AnnData(X=features(4, 6).astype(np.float32), obs=obs).write_h5ad(tmp_path / "t.h5ad")
    table = read_tiles(tmp_path / "t.h5ad", PX)
    assert table.names == list("abcd") and table.groups == list("AABB") and table.labels == list("wxyz")
    train, held = table.split(0.5, seed=1)
    assert {*train.groups} != {*held.groups} and len(train) == len(held) == 2
    assert table.facts["encoder"] is None
    named = anndata.AnnData(X=features(4, 6), obs=obs, uns={"encoder": "uni"})
    named.write_h5ad(tmp_path / "n.h5ad")
    assert read_tiles(tmp_path / "n.h5ad", PX).facts["encoder"] == "uni"
    assert read_tiles([tmp_path / "n.h5ad", tmp_path / "t.h5ad"], PX).facts["encoder"] == "uni"
    named.uns["encoder"] = "gigapath"
    named.write_h5ad(tmp_path / "m.h5ad")
    with pytest.raises(InputError, match="of 'gigapath' and of 'uni' cannot be one set"):
        read_tiles([tmp_path / "n.h5ad", tmp_path / "m.h5ad"], PX)
    anndata.AnnData(X=features(4, 6), obs=obs.drop(columns="path")).write_h5ad(tmp_path / "u.h5ad")
    with pytest.raises(InputError, match="no column 'path'"):
        read_tiles(tmp_path / "u.h5ad", PX)


def test_what_cannot_be_held_out_is_said():
    table = coloured_tiles(groups=1)
    with pytest.raises(InputError, match="none can be held out"):
        table.split(0.2)
    assert len(table.split(0)[1]) == 0
    with pytest.raises(InputError, match="there is no group 'slide9'"):
        coloured_tiles().split(0.2, names=["slide9"])
    with pytest.raises(InputError, match="embeddings of 1 tiles are not all numbers .first: tile0"):
        values = table.features["patch"].copy()
        values[0, 0] = np.inf
        type(table)(table.names, table.groups, {"patch": values}, table.read, 32)


def test_flips_leave_the_embedding(tiles):
    import torch

    plain, flipping = TileDataset(tiles, flip=False), TileDataset(tiles, flip=True)
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(40):
        item = flipping.draw(3, generator)
        assert torch.equal(item["patch"], plain[3]["patch"])
        image = plain[3]["image"]
        match = [
            k for k, axes in enumerate([[], [1], [2], [1, 2]]) if torch.equal(image.flip(axes), item["image"])
        ]
        seen.update(match)
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("quality", [50, 75, 90, 95])
def test_jpeg_quality_is_read_from_the_file(tmp_path, quality):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8)).save(
        tmp_path / "a.jpg", quality=quality
    )
    assert abs(jpeg_quality(tmp_path / "a.jpg") - quality) <= 1


def test_pickles_of_arrays_alone_are_read(tmp_path):
    from morphogen.checkpoints.arrays import read_pickled_arrays

    value = [
        {"feat": np.arange(6, dtype=np.float32).reshape(2, 3), "image": np.zeros((2, 2), np.uint8), "n": 3}
    ]
    for protocol in (2, 4):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(value, protocol=protocol))
        read = read_pickled_arrays(tmp_path / "a.pkl")
        assert (read[0]["feat"] == value[0]["feat"]).all() and read[0]["n"] == 3
    (tmp_path / "b.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(InputError, match="names os.system|names posix.system"):
        read_pickled_arrays(tmp_path / "b.pkl")
