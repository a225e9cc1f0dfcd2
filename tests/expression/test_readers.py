"""Sections come out right from every layout, and bad ones are refused in one sentence."""

from __future__ import annotations

import gzip

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from morphogen.core.errors import ConfigError, InputError
from morphogen.core.files import write_json
from morphogen.expression.config import DataConfig
from morphogen.expression.data import (
    check_inside,
    facts,
    gene_matrix,
    pitch_in_pixels,
    resolve_mpp,
    total_counts,
)
from morphogen.expression.sections.readers import find_sections, read_sections

from .test_tables import section_file

RNG = np.random.default_rng


def counts(n=12, g=5, seed=0):
    return RNG(seed).poisson(2.0, size=(n, g)).astype(np.float32)


def table(n=12, g=5, seed=0, spacing=100.0):
    side = int(np.ceil(np.sqrt(n)))
    xy = np.array([(i % side, i // side) for i in range(n)], dtype=float) * spacing + 60
    a = ad.AnnData(sparse.csr_matrix(counts(n, g, seed)))
    a.obs_names, a.var_names = [f"b{i}" for i in range(n)], [f"G{i}" for i in range(g)]
    a.obsm["spatial"] = xy
    return a


def test_her2st_tables(shared):
    sections = read_sections(
        shared / "data/st_her2st", DataConfig(patient_pattern="^[A-Z]"), ["B4", "C3", "C4", "C6"]
    )
    assert [s.n_obs for s in sections] == [283, 180, 184, 178]
    assert [facts(s).patient for s in sections] == ["B", "C", "C", "C"]
    c3 = facts(sections[1])
    assert c3.technology == "ST" and c3.pitch_um == 200 and c3.image.endswith("C3_HE.jpg")
    assert 200 / c3.pitch_px == pytest.approx(0.687, abs=0.005)  # the array fit; printed spots jitter
    raw = pd.read_csv(shared / "data/st_her2st/C3.tsv.gz", sep="\t", index_col=0)
    row = raw.index[17]
    np.testing.assert_array_equal(
        gene_matrix(sections[1][row], ["ERBB2", "ACTB"])[0], raw.loc[row, ["ERBB2", "ACTB"]]
    )
    np.testing.assert_allclose(total_counts(sections[1]), raw.loc[sections[1].obs_names].sum(axis=1))


def test_rows_are_joined_by_barcode_not_by_position(tmp_path):
    x = pd.DataFrame(counts(6, 3), index=[f"{i}x0" for i in range(6)], columns=["A", "B", "C"])
    with gzip.open(tmp_path / "s1.tsv.gz", "wt") as file:
        x.to_csv(file, sep="\t")
    order = [5, 3, 0, 1]  # shuffled and two missing
    spots = pd.DataFrame({"x": order, "y": 0, "pixel_x": np.multiply(order, 10.0), "pixel_y": 7.0})
    spots.to_csv(tmp_path / "s1_selection.tsv", sep="\t", index=False)
    (section,) = read_sections(tmp_path)
    assert list(section.obs_names) == ["0x0", "1x0", "3x0", "5x0"]
    np.testing.assert_allclose(section.obsm["spatial"][:, 0], [0, 10, 30, 50])
    np.testing.assert_array_equal(section.X.toarray(), x.loc[section.obs_names].to_numpy())


def test_hest_folder(tmp_path):
    for folder in ("st", "wsis", "metadata"):
        (tmp_path / folder).mkdir()
    a = table()
    a.uns["spatial"] = {"ST": {"scalefactors": {"spot_diameter_fullres": 80.0}}}
    a.X = a.X.toarray()  # dense works too
    a.write_h5ad(tmp_path / "st/TENX1.h5ad")
    (tmp_path / "wsis/TENX1.tif").write_bytes(b"")
    write_json(
        tmp_path / "metadata/TENX1.json",
        {
            "patient": "P7",
            "pixel_size_um_estimated": 1.0,
            "st_technology": "Visium",
            "inter_spot_dist": 100.0,
        },
    )
    (section,) = read_sections(tmp_path)
    f = facts(section)
    assert (f.patient, f.mpp, f.technology, f.spot_diameter_px) == ("P7", 1.0, "Visium", 80.0)
    assert f.image.endswith("TENX1.tif")
    assert f.pitch_px == pytest.approx(100.0)


def test_space_ranger_folder(shared):
    folder = shared / "data/st_mini_visium/spaceranger_like"
    (section,) = read_sections(folder)
    positions = pd.read_csv(folder / "spatial/tissue_positions_list.csv", header=None, index_col=0)
    at = positions.loc[section.obs_names, [5, 4]].to_numpy()  # x is the column pixel
    np.testing.assert_array_equal(section.obsm["spatial"], at)
    f = facts(section)
    # 55 µm spots of 89.4 px: the pitch found from the array positions must agree with that.
    assert 100 / f.pitch_px == pytest.approx(55 / f.spot_diameter_px, rel=0.2)


def test_the_pitch_survives_holes_in_the_tissue():
    rng = RNG(0)
    grid = np.stack(np.meshgrid(np.arange(30), np.arange(30)), -1).reshape(-1, 2)
    grid = grid[rng.random(900) < 0.05]
    xy = grid * 137.0 + rng.normal(size=grid.shape)
    assert pitch_in_pixels(xy, grid, "ST") == pytest.approx(137, rel=0.01)
    assert pitch_in_pixels(xy, None, "ST") > 150  # what the nearest spot alone would say
    rows = np.arange(20)
    hexagonal = np.array([(c, r) for r in rows for c in range(r % 2, 40, 2)])
    pixels = hexagonal * np.array([50.0, 86.6])
    assert pitch_in_pixels(pixels, hexagonal, "Visium") == pytest.approx(100, rel=0.01)
    assert pitch_in_pixels(pixels, None, "Visium") == pytest.approx(100, rel=0.01)


def test_spots_that_share_a_place(tmp_path, caplog):
    """The pitch is that of the places; that they are shared is said, and where all are, the cause is named."""
    places = np.stack(np.meshgrid(np.arange(6), np.arange(6)), -1).reshape(-1, 2) * 60.0
    assert pitch_in_pixels(np.repeat(places, 2, axis=0), None, "Visium") == 60
    section = ad.AnnData(np.ones((72, 3), np.float32))
    section.obsm["spatial"] = np.repeat(places, 2, axis=0)
    (tmp_path / "a").mkdir()
    section.write_h5ad(tmp_path / "a" / "twice.h5ad")
    (found,) = read_sections(tmp_path / "a", DataConfig(technology="Visium"))
    assert facts(found).pitch_px == 60 and found.n_obs == 72
    assert "72 of 72 spots have the coordinates of another spot (first: '0')" in caplog.text
    section.obsm["spatial"][:] = 5
    section.write_h5ad(tmp_path / "a" / "twice.h5ad")
    with pytest.raises(InputError, match="all 72 spots have the same coordinates, x 5, y 5"):
        read_sections(tmp_path / "a", DataConfig(technology="Visium"))


def test_mpp_against_pitch(caplog):
    with pytest.raises(InputError, match="one spot has no pitch to tell it. Give --data.mpp.$"):
        resolve_mpp(None, 0, 100, trust=False, where="s")
    assert resolve_mpp(None, 100, 200, trust=False, where="s") == (2.0, "spot pitch")
    assert resolve_mpp(2.1, 100, 200, trust=False, where="s") == (2.1, "stated") and not caplog.records
    resolve_mpp(2.4, 100, 200, trust=False, where="s")
    assert "contradicts the spots" in caplog.text
    with pytest.raises(InputError, match="means 2 µm/px.*--data.mpp 2"):
        resolve_mpp(0.5, 100, 200, trust=False, where="s")
    assert resolve_mpp(0.5, 100, 200, trust=True, where="s")[0] == 0.5
    with pytest.raises(InputError, match="not known"):
        resolve_mpp(None, 100, None, trust=False, where="s")


def write(tmp_path, a, name="s.h5ad"):
    a.write_h5ad(tmp_path / name)
    return tmp_path / name


def test_values_that_are_not_counts(tmp_path, shared):
    with pytest.raises(InputError, match="log-normalised.*--data.layer NAME.*--data.values log1p"):
        read_sections(shared / "data/st_mini_visium/test_data.h5ad")
    a = table()
    a.X = sparse.csr_matrix(a.X.toarray() - 3.0)
    with pytest.raises(InputError, match="negative"):
        read_sections(write(tmp_path, a))
    a = table()
    a.X.data[2] = np.nan
    with pytest.raises(InputError, match="1 NaN"):
        read_sections(write(tmp_path, a))
    a = table()
    raw = a.X.copy()
    a.layers["raw"], a.X = raw, sparse.csr_matrix(np.log1p(raw.toarray()))
    path = write(tmp_path, a)
    (by_layer,) = read_sections(path, DataConfig(layer="raw"))
    np.testing.assert_array_equal(by_layer.X.toarray(), raw.toarray())
    (undone,) = read_sections(path, DataConfig(values="log1p"))
    np.testing.assert_allclose(undone.X.toarray(), raw.toarray(), atol=1e-5)
    with pytest.raises(InputError, match="Did you mean 'raw'"):
        read_sections(path, DataConfig(layer="rw"))


def test_duplicate_barcodes_and_genes(tmp_path):
    a = table()
    a.obs_names = ["b0", "b0", *a.obs_names[2:]]
    with pytest.raises(InputError, match="1 barcodes occur more than once.*'b0'"):
        read_sections(write(tmp_path, a))
    a = table()
    x = a.X.toarray()
    a.var_names = ["G0", "G1", "G1", "G3", "G4"]
    (section,) = read_sections(write(tmp_path, a))
    assert section.n_vars == 4
    np.testing.assert_array_equal(gene_matrix(section, ["G1"])[:, 0], x[:, 1] + x[:, 2])


def test_missing_genes_coordinates_and_files(tmp_path):
    path = write(tmp_path, table())
    (section,) = read_sections(path)
    with pytest.raises(InputError, match="s: 2 of 3 panel genes are not measured: X, Y"):
        gene_matrix(section, ["G0", "X", "Y"])
    with pytest.raises(InputError, match="lie outside the image.*coordinate_scale"):
        check_inside(section.obsm["spatial"], 200, 5000, "s")
    with pytest.raises(InputError, match="no such file or folder"):
        find_sections(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no sections"):
        find_sections(tmp_path / "empty")
    with pytest.raises(InputError, match="Did you mean 's'"):
        read_sections(tmp_path, sections=["S"])
    a = table()
    del a.obsm["spatial"]
    with pytest.raises(InputError, match="obsm\\['spatial'\\]"):
        read_sections(write(tmp_path, a))


def test_patients(tmp_path):
    path = write(tmp_path, table())
    (tmp_path / "p.csv").write_text("\ufeffsection,patient\ns,P1\nt,P2\n", encoding="utf-8")
    (section,) = read_sections(path, DataConfig(patients=str(tmp_path / "p.csv")))
    assert facts(section).patient == "P1"
    (section,) = read_sections(path)
    assert facts(section).patient == ""
    with pytest.raises(InputError, match="matches nothing"):
        read_sections(path, DataConfig(patient_pattern="^[0-9]"))


def test_patients_are_one_however_they_are_padded(tmp_path, caplog):
    for name in ("S1", "S2", "S3.A", "S4"):
        section_file(tmp_path / f"{name}.h5ad")
    (tmp_path / "p.csv").write_text('Section;Patient\nS1;"P1 "\nS2.h5ad; P1\nS3.A;P1\n')
    found = read_sections(tmp_path, DataConfig(patients=str(tmp_path / "p.csv")))
    assert [facts(s).patient for s in found] == ["P1", "P1", "P1", ""]
    assert "section 'S4' is not in it" in caplog.text
    (tmp_path / "p.csv").write_text("section,patient\nS1,P1\nS1,P2\n")
    with pytest.raises(InputError, match="'S1' has two values of patient: 'P1' in line 2 and 'P2' in line 3"):
        read_sections(tmp_path, DataConfig(patients=str(tmp_path / "p.csv")))


def test_a_pattern_that_is_no_regular_expression(tmp_path):
    with pytest.raises(ConfigError, match=r"'\(\[' is not a regular expression"):
        read_sections(section_file(tmp_path / "S1.h5ad"), DataConfig(patient_pattern="(["))
