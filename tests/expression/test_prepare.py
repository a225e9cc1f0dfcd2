"""From files to prepared sections, slides without spots, published embedding folders, and the command."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import anndata as ad
import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import sparse

from morphogen.cli.main import main
from morphogen.core.errors import InputError
from morphogen.expression import (
    DataConfig,
    ExpressionConfig,
    PredictConfig,
    PrepareConfig,
    load_section,
    load_sections,
    prepare_sections,
    read_processed,
    slide_section,
    train_model,
    write_geojson,
)
from morphogen.expression.data import facts, set_facts
from morphogen.expression.sections import prepare as prepare_module
from morphogen.expression.sections.grid import grid_neighbours, grid_section
from morphogen.slides import dihedral, get_encoder, open_slide

STEP, SPOTS = 80, 4


def picture(seed=0, size=420):
    """Purple blobs on pink on white: enough for a tissue finder and a texture encoder."""
    rng = np.random.default_rng(seed)
    image = np.full((size, size, 3), 245, np.uint8)
    y, x = np.mgrid[:size, :size]
    inside = (x - size / 2) ** 2 + (y - size / 2) ** 2 < (0.46 * size) ** 2
    image[inside] = (226, 150, 190)
    for _ in range(500):
        cx, cy, r = rng.uniform(0, size), rng.uniform(0, size), rng.uniform(2, 5)
        image[((x - cx) ** 2 + (y - cy) ** 2 < r * r) & inside] = (110, 60, 150)
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


def hest(root, name="S1", patient="P1", seed=0, mpp=1.25):
    for folder in ("st", "wsis", "metadata"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed)).save(root / f"wsis/{name}.png")
    rng = np.random.default_rng(seed)
    grid = np.array([(i, j) for j in range(SPOTS) for i in range(SPOTS)])
    a = ad.AnnData(sparse.csr_matrix(rng.poisson(3, size=(len(grid), 15)).astype(np.float32)))
    a.obs_names, a.var_names = [f"s{i}" for i in range(len(grid))], [f"G{i:02d}" for i in range(15)]
    a.obsm["spatial"] = grid * float(STEP) + 90
    a.uns["spatial"] = {"x": {"scalefactors": {"spot_diameter_fullres": 44.0}}}
    a.write_h5ad(root / f"st/{name}.h5ad")
    meta = {
        "patient": patient,
        "pixel_size_um_estimated": mpp,
        "st_technology": "Visium",
        "inter_spot_dist": 100.0,
    }
    (root / f"metadata/{name}.json").write_text(json.dumps(meta))
    return a


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A HEST folder of two patients and its prepared sections (texture encoder)."""
    root = tmp_path_factory.mktemp("hest")
    hest(root, "S1", "P1", 1)
    hest(root, "S2", "P2", 2)
    prepare_sections(root, root / "store", device="cpu")
    return root


def test_prepared_section(store):
    one, two = load_sections(store / "store")
    assert one.obsm["embedding"].shape == (16, one.uns["morphogen"]["prepare"]["encoder"]["width"])
    assert "embedding_views" not in one.obsm  # the texture encoder does not tell orientations apart
    assert one.obsm["neighbours"].shape == (16, 49) and (one.obsm["neighbours"][:, 0] == np.arange(16)).all()
    f = facts(one)
    assert (f.section, f.patient, f.mpp) == ("S1", "P1", 1.25) and facts(two).patient == "P2"
    library = one.uns["spatial"]["S1"]
    assert (
        set(library["images"]) == {"hires", "lowres"}
        and library["scalefactors"]["tissue_hires_scalef"] == 1.0
    )
    # The field of a spot is 112 µm around its centre: encode it by hand.
    x, y = one.obsm["spatial"][5]
    half = 112 / 1.25 / 2
    crop = open_slide(f.image, mpp=1.25).read_box(x - half, y - half, 2 * half, 2 * half, 224, 224)
    by_hand = get_encoder("texture", device="cpu")(crop[None])[0]
    np.testing.assert_allclose(one.obsm["embedding"][5], by_hand, rtol=1e-4, atol=1e-4)


def test_scanpy_and_squidpy_plot_it(store, models_file):
    import matplotlib

    matplotlib.use("Agg")
    import scanpy as sc

    result = ad.read_h5ad(models_file)
    sc.pl.spatial(result, color=result.var_names[0], layer="pred_mean", show=False)
    squidpy = pytest.importorskip("squidpy")
    squidpy.pl.spatial_scatter(result, color=result.var_names[0], layer="pred_mean")


def test_what_is_done_is_skipped_and_what_changed_is_not(store, tmp_path, monkeypatch):
    root = tmp_path / "copy"
    shutil.copytree(store, root)
    done = []
    original = prepare_module.prepare_section
    monkeypatch.setattr(
        prepare_module,
        "prepare_section",
        lambda s, *a, **k: (done.append(facts(s).section), original(s, *a, **k))[1],
    )
    prepare_sections(root, root / "store", device="cpu")
    assert done == []  # same contents, another folder
    Image.fromarray(picture(9)).save(root / "wsis/S2.png")
    prepare_sections(root, root / "store", device="cpu")
    assert done == ["S2"]  # same name, other contents
    prepare_sections(root, root / "store", PrepareConfig(field="spot"), sections=["S1"], device="cpu")
    assert done == ["S2", "S1"]


def test_eight_orientations_of_an_encoder_that_sees_them(store):
    class Corner(torch.nn.Module):
        def forward(self, x):
            return x[:, :, :8, :8].mean(dim=(2, 3))

    section = load_section(store / "store/S1.h5ad")
    encoder = get_encoder(Corner(), device="cpu")
    fields = [
        prepare_module.crop_fields(open_slide(facts(section).image, mpp=1.25), section.obsm["spatial"], 112.0)
    ]
    prepare_module.embed(section, iter(fields), PrepareConfig(), encoder)
    assert section.obsm["embedding_views"].shape == (16, 7, 3)
    turned = encoder(np.ascontiguousarray(dihedral(fields[0][4])))
    np.testing.assert_allclose(section.obsm["embedding"][4], turned[0], rtol=1e-5)
    np.testing.assert_allclose(section.obsm["embedding_views"][4], turned[1:], rtol=1e-5)


def test_spot_field_is_stems_crop(store):
    section = load_section(store / "store/S1.h5ad")
    assert prepare_module.field_um(section, PrepareConfig(field="spot")) == 224 * 1.25
    assert prepare_module.field_um(section, PrepareConfig()) == 112.0


def test_hest_patches_join_by_barcode_and_know_corners_from_centres(tmp_path):
    a = hest(tmp_path)
    shutil.rmtree(tmp_path / "wsis")
    (tmp_path / "patches").mkdir()
    order = np.array([7, 2, 11, 0, 5])
    images = np.stack([np.full((224, 224, 3), 10 * i, np.uint8) for i in order])
    corners = a.obsm["spatial"][order] - 45

    def write(coords):
        with h5py.File(tmp_path / "patches/S1.h5", "w") as file:
            file["img"], file["coords"] = images, coords
            file["barcode"] = np.array([[f"s{i}".encode()] for i in order])

    write(corners)
    prepare_sections(tmp_path, tmp_path / "store", device="cpu")
    section = load_section(tmp_path / "store/S1.h5ad")
    assert sorted(section.obs_names) == ["s0", "s11", "s2", "s5", "s7"]
    blank = get_encoder("texture", device="cpu")(np.full((1, 224, 224, 3), 110, np.uint8))[0]
    np.testing.assert_allclose(section["s11"].obsm["embedding"][0], blank, rtol=1e-4, atol=1e-4)
    write(a.obsm["spatial"][order])
    with pytest.raises(InputError, match="corners and spot centres coincide"):
        prepare_sections(tmp_path, tmp_path / "store", device="cpu")


def test_bad_sections(tmp_path):
    hest(tmp_path, mpp=0.5)
    with pytest.raises(InputError, match="S1: 0.5 µm/px contradicts the spots.*means 1.25 µm/px"):
        prepare_sections(tmp_path, tmp_path / "store", device="cpu")
    with pytest.raises(InputError, match="lie outside the image"):
        prepare_sections(
            tmp_path,
            tmp_path / "store",
            PrepareConfig(data=DataConfig(coordinate_scale=2.0, mpp=0.625)),
            device="cpu",
        )
    (tmp_path / "wsis/S1.png").unlink()
    with pytest.raises(InputError, match="no H&E image.*--data.images"):
        prepare_sections(tmp_path, tmp_path / "store", device="cpu")
    with pytest.raises(InputError, match="not a prepared section"):
        load_section(tmp_path / "st/S1.h5ad")


def test_encoders_are_not_mixed(store, tmp_path):
    shutil.copytree(store / "store", tmp_path / "s")
    section = load_section(tmp_path / "s/S2.h5ad")
    section.uns["morphogen"]["prepare"]["encoder_identity"] = "x"
    section.write_h5ad(tmp_path / "s/S2.h5ad")
    with pytest.raises(InputError, match="S2: its identity is x"):
        load_sections(tmp_path / "s")


# --- published embedding folders ---


def test_stem_and_hisdiff_processed_data(tmp_path):
    a = hest(tmp_path)
    n = a.n_obs
    place = tmp_path / "processed_data"
    for name, width in (("uni", 10), ("conch", 6)):
        (place / f"1spot_{name}_ebd").mkdir(parents=True)
        (place / f"1spot_{name}_ebd_aug").mkdir()
        torch.save(torch.full((n, width), float(width)), place / f"1spot_{name}_ebd/S1_{name}.pt")
        torch.save(torch.zeros(n, 7, width), place / f"1spot_{name}_ebd_aug/S1_{name}_aug.pt")
    (place / "all_slide_lst.txt").write_text("S1\n")
    (section,) = read_processed(tmp_path)
    assert section.obsm["embedding"].shape == (n, 16) and section.obsm["embedding_views"].shape == (n, 7, 16)
    np.testing.assert_array_equal(section.obsm["embedding"][0], [10.0] * 10 + [6.0] * 6)  # UNI, then CONCH
    torch.save(torch.zeros(n - 1, 10), place / "1spot_uni_ebd/S1_uni.pt")
    with pytest.raises(InputError, match="has 15 rows, but the section has 16 spots"):
        read_processed(tmp_path)
    shutil.rmtree(place)
    for name in ("local_ebd", "neighbor_ebd"):
        (place / name).mkdir(parents=True)
    local = torch.randn(n, 12, generator=torch.Generator().manual_seed(0))
    torch.save(local, place / "local_ebd/S1.pt")
    (section,) = read_processed(tmp_path)
    torch.save(
        local[torch.from_numpy(section.obsm["neighbours"][:, :9]).long()], place / "neighbor_ebd/S1.pt"
    )
    (section,) = read_processed(tmp_path)
    np.testing.assert_allclose(section.obsm["embedding"], local)
    (place / "local_ebd/S1.pt").write_bytes(b"not a tensor")
    with pytest.raises(InputError, match="is not a weight file"):
        read_processed(tmp_path)


# --- slides without spots ---


@pytest.fixture(scope="module")
def model(store, tmp_path_factory):
    config = ExpressionConfig(panel={"size": 8, "highly_variable": 12}, spatial={"factors": 0})
    return train_model(load_sections(store / "store"), config, tmp_path_factory.mktemp("model"), device="cpu")


@pytest.fixture(scope="module")
def models_file(store, model):
    model(load_section(store / "store/S1.h5ad"), samples=2, device="cpu", out=store / "S1_predicted.h5ad")
    return store / "S1_predicted.h5ad"


def test_a_slide_without_spots(store, model, tmp_path):
    image = store / "wsis/S2.png"
    config = PredictConfig(samples=19, steps=3)
    section = slide_section(image, model, config, mpp=1.25, device="cpu")
    xy = section.obsm["spatial"]
    assert section.n_obs >= 9 and section.n_vars == 0
    assert np.diff(np.unique(xy[:, 0])).min() == pytest.approx(80)  # the training pitch, 100 µm
    assert (np.hypot(*(xy - 210).T) < 0.47 * 420).all()  # on the tissue only
    result = model(section, config, device="cpu")
    assert not result.var["measured"].any()
    np.testing.assert_array_equal(result.X, result.layers["pred_mean"])
    assert result.uns["morphogen"]["prediction"]["X"].startswith("a copy of the predicted mean")
    write_geojson(result, tmp_path / "q.geojson", (model.panel.genes[1],))
    features = json.loads((tmp_path / "q.geojson").read_text())["features"]
    assert len(features) == section.n_obs
    first = features[0]["properties"]["measurements"]
    assert set(first) == {model.panel.genes[1], f"{model.panel.genes[1]} sd"}
    ring = np.array(features[0]["geometry"]["coordinates"][0])
    np.testing.assert_allclose(ring[:4].mean(axis=0), xy[0], atol=0.01)
    set_facts(result, replace(facts(result), origin_x=30.0, origin_y=12.0))  # a slide with OpenSlide bounds
    write_geojson(result, tmp_path / "q.geojson", (model.panel.genes[1],))
    written = json.loads((tmp_path / "q.geojson").read_text())
    ring = np.array(written["features"][0]["geometry"]["coordinates"][0])
    np.testing.assert_allclose(ring[:4].mean(axis=0), xy[0] - [30, 12], atol=0.01)
    assert written["origin"] == [30, 12]
    with pytest.raises(InputError, match="'NOPE' is not in the panel"):
        write_geojson(result, tmp_path / "q.geojson", ("NOPE",))


def test_a_finer_grid_keeps_the_training_neighbourhood(store):
    section = grid_section(open_slide(store / "wsis/S2.png", mpp=1.25), 25.0, "all")
    coarse = grid_neighbours(section, 9, every=4)
    step = np.linalg.norm(section.obsm["spatial"][coarse[:, 1]] - section.obsm["spatial"], axis=1)
    np.testing.assert_allclose(step[coarse[:, 1] >= 0], 80.0)
    near = np.linalg.norm(
        section.obsm["spatial"][grid_neighbours(section, 9)[:, 1]] - section.obsm["spatial"], axis=1
    )
    np.testing.assert_allclose(near, 20.0)


# --- the command ---


def test_the_command_from_folder_to_report(store, tmp_path, capsys):
    data, out = str(store), tmp_path
    panel = ["--panel.size", "8", "--panel.highly_variable", "12", "--spatial.factors", "0"]
    for arguments in (
        ["prepare", data, "--out", f"{out}/store"],
        ["train", f"{out}/store", "--out", f"{out}/m", "--test", "S2", "--device", "cpu", *panel],
        [
            "predict",
            f"{out}/store/S2.h5ad",
            "--model",
            f"{out}/m/model",
            "--out",
            f"{out}/S2.h5ad",
            "--samples",
            "2",
        ],
        [
            "evaluate",
            f"{out}/store",
            "--model",
            f"{out}/m/model",
            "--test",
            "S2",
            "--out",
            f"{out}/e",
            "--samples",
            "19",
        ],
    ):
        with pytest.raises(SystemExit) as done:
            main(["expression", *arguments])
        assert done.value.code == 0
    said = capsys.readouterr().out
    assert "S1: 16 spots, 15 genes, 1.250 µm/px (stated), patient P1" in said
    assert "held-out patient" in said and "spatial: macro PCC" in said
    assert (out / "e/report.html").is_file() and (out / "S2.h5ad").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "nowhere", "--out", "o"], "no such file or folder"),
        (["train", "{store}", "--out", "o", "--test", "S11"], "Did you mean 'S1'"),
        (["train", "{store}", "--out", "o", "--network.dept", "3"], "unknown setting 'network.dept'"),
        (["train", "{store}", "--out", "o", "--panel.size", "500"], "candidate genes for a panel of 500"),
        (["predict", "{store}/S1.h5ad", "--model", "{store}", "--out", "o.h5ad"], "not a model folder"),
        (["evaluate", "{store}", "--model", "nowhere", "--test", "S2", "--out", "o"], "no such model folder"),
    ],
)
def test_bad_input_is_one_line_and_status_2(store, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    filled = [a.replace("{store}", str(store / "store")) for a in arguments]
    with pytest.raises(SystemExit) as done:
        main(["expression", *filled])
    error = capsys.readouterr().err.strip().splitlines()
    assert done.value.code == 2 and message in error[-1] and error[-1].startswith("morphogen: ")
