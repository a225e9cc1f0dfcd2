"""TRIDENT, CLAM and HEST: the files hold what those tools expect, and come back as the same tiles and features."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch

from morphogen.core.errors import InputError, OutputError
from morphogen.slides import EncoderSpec, encode_slide, get_encoder, open_slide, read_boxes, tile_slide
from morphogen.slides.config import TileConfig
from morphogen.slides.exchange.transfer import (
    FORMATS,
    export_features,
    export_slides,
    import_features,
    import_slides,
)
from morphogen.slides.store import read_attrs, read_table, table_names
from morphogen.slides.tiles import read_tiles

FACTS = EncoderSpec(name="uni2", kind="module", input_px=32, mpp=1.0, mean=(0, 0, 0), std=(1, 1, 1))


class Tiny(torch.nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x, self.size).flatten(1)


@pytest.fixture(scope="module")
def encoded(synthetic, tmp_path_factory):
    """A slide with overlapping tiles and the features of two encoders."""
    slide = open_slide(synthetic, out=tmp_path_factory.mktemp("store"))
    tile_slide(slide, TileConfig(tile_px=64, tile_mpp=1.0, overlap=16))
    encode_slide(slide, get_encoder(Tiny(2), spec=FACTS, device="cpu"))
    encode_slide(slide, get_encoder(Tiny(3), device="cpu"))
    return slide


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("encoder", [None, "uni2"])
def test_there_and_back(encoded, synthetic, tmp_path, format, encoder):
    """Same tiles, same pixels a tile stands for, same features to the bit, in a store of its own."""
    export_features(encoded, format, tmp_path / "files", encoder=encoder)
    slide = open_slide(synthetic, out=tmp_path / "out")
    import_features(slide, format, tmp_path / "files", encoder=encoder)
    names = ["tiny_tiles", "uni2_tiles"] if encoder is None else ["uni2_tiles"]
    assert table_names(slide.store) == names
    a, b = read_tiles(encoded), read_tiles(slide)
    assert np.array_equal(a.boxes, b.boxes) and (a.tile_px, a.mpp) == (b.tile_px, b.mpp)
    if format != "hest":  # HEST has no overlap to keep
        assert read_attrs(slide.store)["tile_spec"] == read_attrs(encoded.store)["tile_spec"]
    for name in names:
        assert np.array_equal(read_table(slide, name).X, read_table(encoded, name).X)


@pytest.mark.parametrize("name, mpp", [("cmu", None), ("tcga", 0.25), ("cyto", 0.25)])
def test_the_real_slides_there_and_back(real, tmp_path, name, mpp):
    slide = open_slide(real[name], mpp=mpp, out=tmp_path / "a")
    tile_slide(slide, TileConfig(tile_px=64, tile_mpp=4.0, tissue="all"))
    encode_slide(slide, get_encoder(Tiny(2), device="cpu"))
    for format in FORMATS:
        export_features(slide, format, tmp_path / format)
        other = open_slide(real[name], mpp=mpp, out=tmp_path / f"b-{format}")
        import_features(other, format, tmp_path / format, encoder="tiny" if format == "clam" else None)
        assert read_tiles(other).identity() == read_tiles(slide).identity()
        assert np.array_equal(read_table(other, "tiny_tiles").X, read_table(slide, "tiny_tiles").X)


# --- what the files hold ---------------------------------------------------------------------------------


def test_trident_files(encoded, tmp_path):
    paths = export_features(encoded, "trident", tmp_path)
    folder = tmp_path / "10x_64px_16px_overlap"
    patches, features = (
        folder / "patches" / "synthetic_patches.h5",
        folder / "features_uni_v2" / "synthetic.h5",
    )
    assert {patches, features} <= set(paths)
    tiles = read_tiles(encoded)
    with h5py.File(patches) as file:
        assert file["coords"].dtype == np.int64 and np.array_equal(file["coords"], tiles.boxes[:, :2])
        assert dict(file["coords"].attrs) == {
            "patch_size": 64, "patch_size_level0": 128, "level0_magnification": 20, "target_magnification": 10,
            "overlap": 16, "name": "synthetic", "savetodir": ".", "level0_width": 1600, "level0_height": 1200,
        }  # fmt: skip
    with h5py.File(features) as file:
        assert file["features"].dtype == np.float32 and file["features"].shape == (len(tiles), 12)
        assert (
            file["features"].attrs["encoder"] == "uni_v2" and file["coords"].attrs["patch_size_level0"] == 128
        )


def test_clam_files(encoded, tmp_path):
    export_features(encoded, "clam", tmp_path, encoder="uni2")
    with h5py.File(tmp_path / "patches" / "synthetic.h5") as file:
        attrs = dict(file["coords"].attrs)
        assert (attrs["patch_size"], attrs["patch_level"], attrs["name"]) == (128, 0, "synthetic")
        assert list(attrs["level_dim"]) == [1600, 1200]
    with h5py.File(tmp_path / "h5_files" / "synthetic.h5") as file:
        assert file["coords"].dtype == np.int32 and file["features"].dtype == np.float32
        values = np.asarray(file["features"])
    tensor = torch.load(tmp_path / "pt_files" / "synthetic.pt", weights_only=True)
    assert np.array_equal(tensor.numpy(), values)


def test_hest_files(encoded, tmp_path):
    export_features(encoded, "hest", tmp_path)
    tiles = read_tiles(encoded)
    with h5py.File(tmp_path / "patches" / "synthetic.h5") as file:
        assert np.array_equal(file["img"], read_boxes(encoded, tiles.boxes, 64))
        assert file["barcode"].shape == (len(tiles), 1) and isinstance(file["barcode"][0, 0], bytes)
    with h5py.File(tmp_path / "embeddings" / "uni2" / "synthetic.h5") as file:
        assert set(file) == {"embeddings", "coords", "barcodes"}


def test_a_slide_without_tissue(blank, tmp_path):
    slide = open_slide(blank, out=tmp_path / "a")
    tile_slide(slide)
    for format in FORMATS:
        export_features(slide, format, tmp_path / format, encoder="uni2")
        other = open_slide(blank, out=tmp_path / f"b-{format}")
        import_features(other, format, tmp_path / format)
        assert len(read_tiles(other)) == 0 and table_names(other.store) == []
    with h5py.File(next((tmp_path / "trident").glob("*/features_uni_v2/blank.h5"))) as file:
        assert file["features"].shape == (0,)


# --- files as the tools write them, not as we do ---------------------------------------------------------


def _trident(folder, coords, features=None, **attrs):
    (folder / "20x_256px_0px_overlap" / "patches").mkdir(parents=True)
    with h5py.File(folder / "20x_256px_0px_overlap" / "patches" / "synthetic_patches.h5", "w") as file:
        file["coords"] = coords
        for key, value in attrs.items():
            file["coords"].attrs[key] = value
    if features is not None:
        (folder / "20x_256px_0px_overlap" / "features_phikon_v2").mkdir()
        with h5py.File(folder / "20x_256px_0px_overlap" / "features_phikon_v2" / "synthetic.h5", "w") as file:
            file["features"], file["coords"] = features[::-1], coords[::-1]  # its own order


def test_trident_without_attributes_and_in_another_order(synthetic, tmp_path):
    coords = np.array([[0, 0], [256, 0], [512, 256]])
    features = np.arange(6, dtype=np.float16).reshape(3, 2)
    _trident(tmp_path, coords, features)
    slide = open_slide(synthetic, out=tmp_path / "out")
    import_features(slide, "trident", tmp_path)
    tiles = read_tiles(slide)
    assert np.array_equal(tiles.boxes, [[0, 0, 256, 256], [256, 0, 256, 256], [512, 256, 256, 256]])
    assert (tiles.tile_px, tiles.mpp) == (256, 0.5)  # from the folder's name and the slide's µm/px
    assert np.array_equal(read_table(slide, "phikonv2_tiles").X, features)


def test_clam_patches_of_a_coarser_level(synthetic, tmp_path):
    (tmp_path / "patches").mkdir()
    (tmp_path / "pt_files").mkdir()
    with h5py.File(tmp_path / "patches" / "synthetic.h5", "w") as file:
        file["coords"] = np.array([[0, 0], [512, 512]], np.int32)
        attrs = {"patch_size": 256, "patch_level": 1, "downsample": [2.0, 2.0], "level_dim": [800, 600]}
        for key, value in attrs.items():
            file["coords"].attrs[key] = value
    torch.save(torch.ones(2, 5), tmp_path / "pt_files" / "synthetic.pt")
    slide = open_slide(synthetic, out=tmp_path / "out")
    import_features(slide, "clam", tmp_path, encoder="resnet50")
    tiles = read_tiles(slide)
    assert (tiles.boxes[:, 2:] == 512).all() and tiles.tile_px == 256 and tiles.mpp == 1.0
    assert read_table(slide, "resnet50_tiles").shape == (2, 5)


def test_hest_bench_embeddings_joined_by_barcode(synthetic, tmp_path):
    (tmp_path / "patches").mkdir()
    (tmp_path / "embeddings" / "uni").mkdir(parents=True)
    coords = np.array([[100, 200], [400, 200], [700, 500]])
    with h5py.File(tmp_path / "patches" / "synthetic.h5", "w") as file:
        file["img"] = np.zeros((3, 224, 224, 3), np.uint8)
        file["coords"] = coords
        names = np.array([[b"A"], [b"B"], [b"C"]], dtype=object)
        file.create_dataset("barcode", data=names, dtype=h5py.special_dtype(vlen=bytes))
    with h5py.File(tmp_path / "embeddings" / "uni" / "synthetic.h5", "w") as file:
        file["embeddings"] = np.array([[3.0], [1.0], [2.0]], np.float32)
        file["coords"], file["barcodes"] = coords[[2, 0, 1]], np.array([b"C", b"A", b"B"])
    slide = open_slide(synthetic, mpp=0.25, out=tmp_path / "out")
    import_features(slide, "hest", tmp_path)
    table = read_table(slide, "uni_tiles")
    assert table.obs["barcode"].tolist() == ["A", "B", "C"] and table.X[:, 0].tolist() == [1, 2, 3]
    assert (read_tiles(slide).boxes[:, 2:] == 448).all()  # 112 µm at 0.25 µm/px
    one = open_slide(synthetic, mpp=0.25, out=tmp_path / "one")
    import_features(one, "hest", tmp_path / "embeddings" / "uni" / "synthetic.h5")
    assert read_table(one, "uni_tiles").X[:, 0].tolist() == [3, 1, 2]


# --- bad files -------------------------------------------------------------------------------------------


def test_bad_files_in_one_line(encoded, synthetic, tmp_path, real):
    slide = open_slide(synthetic, out=tmp_path / "out")
    with pytest.raises(InputError, match="there is no such folder"):
        import_features(slide, "trident", tmp_path / "none")
    with pytest.raises(InputError, match="holds synthetic"):
        import_features(slide, "trident", tmp_path)
    export_features(encoded, "trident", tmp_path / "t")
    folder = tmp_path / "t" / "10x_64px_16px_overlap"
    with pytest.raises(InputError, match=r"no features of 'virchow' for synthetic \(there: .*uni2"):
        import_features(slide, "trident", tmp_path / "t", encoder="virchow")
    cut = folder / "features_uni_v2" / "synthetic.h5"
    cut.write_bytes(cut.read_bytes()[:700])
    with pytest.raises(InputError, match="not a readable h5 file; it may be cut short"):
        import_features(slide, "trident", tmp_path / "t")
    cut.unlink()
    with h5py.File(cut, "w") as file:
        file["features"], file["coords"] = np.full((2, 3), np.nan, np.float32), np.zeros((2, 2), np.int64)
    with pytest.raises(InputError, match="the features of tile 0 are not all numbers"):
        import_features(slide, "trident", tmp_path / "t")
    with pytest.raises(InputError, match="is of a slide of 1600×1200 px, not of cmu"):
        other = open_slide(real["cmu"], out=tmp_path / "out")
        import_features(other, "trident", folder / "patches" / "synthetic_patches.h5")
    assert not (tmp_path / "out" / "synthetic.zarr").exists()  # nothing was written by any of these
    with pytest.raises(InputError, match="has no tiles"):
        export_features(slide, "clam", tmp_path / "c")


@pytest.mark.parametrize(
    ("corner", "count"), [((1600, 0), 1), ((0, 1200), 1), ((-256, 0), 1), ((9000, 9000), 3)]
)
def test_tiles_beyond_the_slide_are_refused(synthetic, tmp_path, corner, count):
    coords = np.array([[0, 0], [256, 0], [1500, 1100]])  # the last overhangs
    coords = coords + corner if count == 3 else np.vstack([coords, corner])
    _trident(tmp_path, coords)
    slide = open_slide(synthetic, out=tmp_path / "out")
    with pytest.raises(
        InputError, match=rf"{count} of \d tiles lie outside of synthetic.tif \(1600×1200 px\)"
    ):
        import_features(slide, "trident", tmp_path)
    assert not slide.store.exists()


def test_tiles_that_differ_are_not_mixed(encoded, synthetic, tmp_path):
    export_features(encoded, "trident", tmp_path / "t")
    slide = open_slide(synthetic, out=tmp_path / "out")
    tile_slide(slide, TileConfig(tile_px=128))
    with pytest.raises(OutputError, match="already holds other tiles"):
        import_features(slide, "trident", tmp_path / "t")
    import_features(slide, "trident", tmp_path / "t", overwrite=True)
    with pytest.raises(OutputError, match="already holds 'tiny_tiles'"):
        import_features(slide, "trident", tmp_path / "t")
    import_features(slide, "trident", tmp_path / "t", overwrite=True)
    assert read_tiles(slide).identity() == read_tiles(encoded).identity()


def test_many_slides_one_without_files(encoded, synthetic, tmp_path, make_slide, make_tissue):
    other = make_slide(tmp_path / "other.tif", make_tissue(400, 400))
    out = encoded.store.parent
    done = export_slides([synthetic, other], "clam", tmp_path / "c", encoder="uni2", out=out)
    assert [o.status for o in done] == ["done", "failed"] and "slide tile" in done[1].message
    back = import_slides([synthetic, other], "clam", tmp_path / "c", encoder="uni2", out=tmp_path / "out")
    assert [o.status for o in back] == ["done", "failed"] and "other" in back[1].message
    assert back[0].tiles == len(read_tiles(encoded)) and back[0].width == 12
