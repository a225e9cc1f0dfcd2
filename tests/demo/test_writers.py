"""Simulated folders: what real readers find in them, and that a killed run ends as an uninterrupted one."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import anndata
import h5py
import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from morphogen.core.errors import InputError, OutputError
from morphogen.core.files import Manifest
from morphogen.demo import (
    Cell,
    Outline,
    Region,
    TissueSimulator,
    write_hest,
    write_mist,
    write_segmentation,
    write_slide,
)


class Killed(BaseException):
    pass


def _kill_after(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """The process dies in its (calls + 1)th rendering."""
    real, seen = TissueSimulator.render, []

    def render(self, *args, **options):
        if len(seen) == calls:
            raise Killed
        seen.append(1)
        return real(self, *args, **options)

    monkeypatch.setattr(TissueSimulator, "render", render)


def _bytes(root: Path) -> dict[str, bytes]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file() and path.name != Manifest.NAME)
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def test_mist_folder(tmp_path: Path) -> None:
    root = write_mist(tmp_path / "er", 3, 2, 96, "er", patients=2, val_patients=1)
    folders = {
        name: sorted((root / "TrainValAB" / name).iterdir()) for name in ("trainA", "trainB", "valA", "valB")
    }
    assert [len(folder) for folder in folders.values()] == [3, 3, 2, 2]
    for split in ("train", "val"):
        assert [p.name for p in folders[f"{split}A"]] == [p.name for p in folders[f"{split}B"]]
    he, ihc = (np.asarray(Image.open(folders[side][0])) for side in ("trainA", "trainB"))
    assert he.shape == ihc.shape == (96, 96, 3) and he.dtype == np.uint8
    rows = list(csv.DictReader((root / "patients.csv").open()))
    patients = {
        split: {row["patient"] for row in rows if row["split"] == split} for split in ("train", "val")
    }
    assert patients == {"train": {"P01", "P02"}, "val": {"P03"}}
    name = folders["trainA"][0].stem
    with np.load(root / "truth" / "train" / f"{name}.npz", allow_pickle=False) as truth:
        assert truth["dab_od_mean"].shape == (96, 96)
        assert {"dab_od", "instances", "classes", "regions"} <= set(truth.files)
    assert Manifest.read(root)["kind"] == "mist"
    with pytest.raises(OutputError, match="other settings"):
        write_mist(tmp_path / "er", 4, 2, 96, "er", patients=2, val_patients=1)


def test_mist_continues_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"size": 64, "patients": 1, "val_patients": 1, "suffix": ".png"}
    whole = write_mist(tmp_path / "whole", 2, 1, **options)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        _kill_after(patch, 1)
        write_mist(tmp_path / "killed", 2, 1, **options)
    assert Manifest.read(tmp_path / "killed") is None
    again = write_mist(tmp_path / "killed", 2, 1, **options)
    assert _bytes(again) == _bytes(whole)


@pytest.fixture(scope="module")
def hest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hest")
    return write_hest(root, ["A", "B"], 1, width_um=460, height_um=440, n_genes=150, patches=True)


def test_hest_tables(hest: Path) -> None:
    data = anndata.read_h5ad(hest / "st" / "SIM1.h5ad")
    assert data.n_vars == 150 and data.n_obs > 6 and data.obs_names.is_unique
    counts = data.X.toarray()
    assert np.array_equal(counts, np.round(counts)) and counts.min() >= 0 and counts.sum() > 0
    (library,) = data.uns["spatial"]
    factors = data.uns["spatial"][library]["scalefactors"]
    assert factors["spot_diameter_fullres"] == pytest.approx(110.0)
    centres = data.obsm["spatial"]
    gaps = np.hypot(*(centres[:, None] - centres[None]).T)
    np.fill_diagonal(gaps, np.inf)
    assert np.median(gaps.min(axis=0)) == pytest.approx(200.0, abs=0.1)  # 100 µm at 0.5 µm per pixel
    truth = anndata.read_h5ad(hest / "truth" / "SIM1.h5ad")
    assert list(truth.obs_names) == list(data.obs_names) and list(truth.var_names) == list(data.var_names)
    residual = (counts - truth.X) / np.sqrt(truth.X + truth.var["dispersion"].to_numpy() * truth.X**2)
    assert abs(residual.mean()) < 5 / residual.size**0.5


def test_hest_slide_shows_the_tissue_under_the_spots(hest: Path) -> None:
    data = anndata.read_h5ad(hest / "st" / "SIM2.h5ad")
    with openslide.OpenSlide(hest / "wsis" / "SIM2.tif") as slide:
        assert slide.dimensions == (920, 880)
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
        x, y = data.obsm["spatial"][0].astype(int)
        under = np.asarray(slide.read_region((x - 20, y - 20), 0, (40, 40)).convert("RGB"))
        corner = np.asarray(slide.read_region((0, 0), 0, (40, 40)).convert("RGB"))
    assert under.mean() < corner.mean() - 10
    with h5py.File(hest / "patches" / "SIM2.h5") as patches:
        assert patches["img"].shape == (data.n_obs, 224, 224, 3)
        assert [each.decode() for each in patches["barcode"][:, 0]] == list(data.obs_names)
        assert np.allclose(patches["coords"][:] + 112, data.obsm["spatial"], atol=1)
        # The patch is the slide's pixels, JPEG aside.
        with openslide.OpenSlide(hest / "wsis" / "SIM2.tif") as slide:
            corner = tuple(int(v) for v in patches["coords"][3])
            region = np.asarray(slide.read_region(corner, 0, (224, 224)).convert("RGB")).astype(int)
        assert np.abs(region - patches["img"][3]).mean() < 3


def test_hest_metadata(hest: Path) -> None:
    raw = (hest / "HEST_simulated.csv").read_bytes()
    assert raw.startswith(b"\xef\xbb\xbf")
    rows = list(csv.DictReader(raw.decode("utf-8-sig").splitlines()))
    assert [row["patient"] for row in rows] == ["A", "B"] and len(rows[0]) == 27
    facts = json.loads((hest / "metadata" / "SIM1.json").read_text())
    assert facts["pixel_size_um_estimated"] == 0.5 and facts["patient"] == "A"
    assert facts["spots_under_tissue"] == anndata.read_h5ad(hest / "st" / "SIM1.h5ad", backed="r").n_obs


def test_hest_is_left_alone_when_whole(hest: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in hest.rglob("*") if path.is_file()}
    write_hest(hest, ["A", "B"], 1, width_um=460, height_um=440, n_genes=150, patches=True)
    assert before == {path: path.stat().st_mtime_ns for path in hest.rglob("*") if path.is_file()}


@pytest.mark.parametrize("labels, enum", [("regions", Region), ("cells", Cell)])
def test_segmentation_folder(tmp_path: Path, labels: str, enum: type) -> None:
    root = write_segmentation(tmp_path / labels, 2, 96, labels=labels, patients=2)
    names = sorted(path.name for path in (root / "images").iterdir())
    assert len(names) == 2
    known = {int(key): value for key, value in json.loads((root / "labels.json").read_text()).items()}
    assert known == {int(each): each.name.lower() for each in enum}
    for name in names:
        image, mask = Image.open(root / "images" / name), Image.open(root / "masks" / name)
        assert image.size == mask.size == (96, 96) and mask.mode == "L"
        assert set(np.unique(np.asarray(mask))) <= set(known)
        instances = np.asarray(Image.open(root / "instances" / name))
        assert np.array_equal(np.unique(instances), np.arange(instances.max() + 1))
        if labels == "cells":
            assert np.array_equal(instances > 0, np.asarray(mask) > 0)


def test_slide_and_its_partner(tmp_path: Path) -> None:
    sim = TissueSimulator(1, outline=Outline(600, 350))
    path = write_slide(tmp_path / "he.ome.tif", 1200, 700, simulator=sim, ihc_path=tmp_path / "ihc.ome.tif")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["he.ome.tif", "ihc.ome.tif"]
    tissue = sim.render(500, 300, 128, 128)
    for name, file in (("he", path), ("ihc", tmp_path / "ihc.ome.tif")):
        with openslide.OpenSlide(file) as slide:
            assert slide.dimensions == (1200, 700) and slide.level_count >= 2
            assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
            shown = np.asarray(slide.read_region((500, 300), 0, (128, 128)).convert("RGB")).astype(int)
        assert np.abs(shown - getattr(tissue, name)).mean() < 3
        assert tifffile.imread(file, level=0).shape == (700, 1200, 3)
    with pytest.raises(InputError, match="TIFF"):
        write_slide(tmp_path / "he.png", 100, 100, simulator=sim)


def test_slide_continues_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sim = TissueSimulator(2)
    whole = write_slide(tmp_path / "whole" / "s.tif", 1100, 600, simulator=sim)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        _kill_after(patch, 3)
        write_slide(tmp_path / "killed" / "s.tif", 1100, 600, simulator=sim)
    assert not (tmp_path / "killed" / "s.tif").exists()
    rendered = []
    real = TissueSimulator.render
    with monkeypatch.context() as patch:
        patch.setattr(
            TissueSimulator, "render", lambda self, *a, **k: rendered.append(a) or real(self, *a, **k)
        )
        again = write_slide(tmp_path / "killed" / "s.tif", 1100, 600, simulator=sim)
    assert len(rendered) == 3  # of six blocks
    assert again.read_bytes() == whole.read_bytes()
    assert [each.name for each in (tmp_path / "killed").iterdir()] == ["s.tif"]


def test_half_a_slide_of_another_simulation_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Killed):
        _kill_after(patch, 1)
        write_slide(tmp_path / "s.tif", 1024, 512, simulator=TissueSimulator(2))
    mixed = write_slide(tmp_path / "s.tif", 1024, 512, simulator=TissueSimulator(3))
    clean = write_slide(tmp_path / "clean" / "s.tif", 1024, 512, simulator=TissueSimulator(3))
    assert mixed.read_bytes() == clean.read_bytes()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda root: write_mist(root, 1, 1, 32, suffix=".bmp"), "bmp"),
        (lambda root: write_mist(root, 1, 1, 32, "her3", patients=1), "her2"),
        (lambda root: write_hest(root, ["A", "A"]), "differ"),
        (lambda root: write_hest(root, 1, width_um=50), "no grid"),
        (lambda root: write_segmentation(root, 1, 32, labels="nuclei"), "regions or cells"),
        (lambda root: write_slide(root / "x.tif", 0, 5, simulator=TissueSimulator()), "holds nothing"),
    ],
)
def test_bad_requests_say_what_is_wrong(tmp_path: Path, make, message: str) -> None:
    with pytest.raises(Exception, match=message):
        make(tmp_path / "out")
