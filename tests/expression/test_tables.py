"""Space Ranger, ST and AnnData as they are in the world: the right values, or one sentence."""

from __future__ import annotations

import gzip
import json
from types import SimpleNamespace

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from morphogen.core.errors import InputError
from morphogen.core.writing.h5ad import check_matrices, check_stored_matrices, open_h5ad
from morphogen.expression.config import DataConfig
from morphogen.expression.data import facts, merge_duplicate_genes, resolve_mpp
from morphogen.expression.sections.prepare import load_section
from morphogen.expression.sections.readers import find_sections, read_sections
from morphogen.slides.store import read_store, read_table

N, GENES = 20, 6
COUNTS = np.random.default_rng(3).poisson(2.0, (N, GENES)).astype(np.float32)
ROW, COL = np.divmod(np.arange(N), 5)
X, Y = 100.0 + 50.0 * COL, 200.0 + 50.0 * ROW
NAMES = [f"{'ACGT'[i % 4]}{'ACGT'[i // 4 % 4]}{i:03d}-1" for i in range(N)]
HEADER = "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres"
INSIDE = np.arange(N) >= 3


def positions(sep=",", header=True, order=range(6), names=NAMES):
    rows = [HEADER.split(",")] if header else []
    rows += [[names[i], int(INSIDE[i]), ROW[i], COL[i], Y[i], X[i]] for i in range(N)]
    return "\n".join(sep.join(str(row[k]) for k in order) for row in rows) + "\n"


def run(root, text=None, name="tissue_positions.csv", factors=None, names=NAMES, genes=None):
    """A Space Ranger folder of all 20 barcodes, 17 of them in the tissue."""
    (root / "spatial").mkdir(parents=True)
    m = sparse.csc_matrix(COUNTS.T)
    with h5py.File(root / "filtered_feature_bc_matrix.h5", "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array(names, "S")
        for key in ("data", "indices", "indptr"):
            group[key] = getattr(m, key).astype(np.int64)
        group["shape"] = np.array(m.shape, np.int32)
        for key, values in {
            "id": [f"E{i}" for i in range(GENES)], "name": genes or [f"G{i}" for i in range(GENES)],
            "feature_type": ["Gene Expression"] * GENES, "genome": ["GRCh38"] * GENES,
        }.items():  # fmt: skip
            group[f"features/{key}"] = np.array(values, "S")
        group["features/_all_tag_keys"] = np.array(["genome"], "S")
    data = (text if text is not None else positions()).encode()
    (root / "spatial" / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    if factors is not None:
        (root / "spatial/scalefactors_json.json").write_text(json.dumps(factors))
    return root


def check(section):
    assert list(section.obs_names) == [name for name, inside in zip(NAMES, INSIDE, strict=True) if inside]
    np.testing.assert_array_equal(section.X.toarray(), COUNTS[INSIDE])
    np.testing.assert_array_equal(section.obsm["spatial"], np.column_stack([X, Y])[INSIDE])
    np.testing.assert_array_equal(section.obs["array_row"], ROW[INSIDE])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tissue_positions.csv", positions()),
        ("tissue_positions_list.csv", positions(header=False)),
        ("tissue_positions_list.csv", positions()),
        ("tissue_positions.csv", positions(header=False)),
        ("tissue_positions.csv", positions(order=[5, 1, 0, 3, 2, 4])),
        ("tissue_positions.csv", positions(sep=";")),
        ("tissue_positions.csv", "\ufeff" + positions().replace("\n", "\r\n")),
        ("tissue_positions_list.csv.gz", positions(header=False)),
        ("tissue_positions.csv", positions(names=[name[:-2] for name in NAMES])),
        ("tissue_positions.csv", positions().replace(",1,", ",True,", 0)),
    ],
)
def test_positions_by_what_they_hold(tmp_path, name, text):
    """Order, header, delimiter, compression and the sample suffix do not matter; spots off the tissue are left out."""
    (section,) = read_sections(run(tmp_path / "S1", text, name, {"spot_diameter_fullres": 27.5}))
    check(section)
    f = facts(section)
    assert (f.section, f.technology, f.pitch_um, f.spot_diameter_px) == ("S1", "Visium", 100.0, 27.5)


def test_positions_in_parquet(tmp_path):
    root = run(tmp_path / "S1", factors={})
    path = root / "spatial/tissue_positions.csv"
    pd.read_csv(path).iloc[::-1].to_parquet(path.with_suffix(".parquet"))
    path.unlink()
    check(read_sections(root)[0])


def test_another_samples_positions_are_no_match(tmp_path):
    text = positions(names=[f"{name[:-2]}-2" for name in NAMES])
    with pytest.raises(InputError, match="no barcode of the matrix is in the table of spot positions"):
        read_sections(run(tmp_path / "S1", text, factors={}))


def test_missing_scale_factors_only_cost_the_spot_diameter(tmp_path, caplog):
    (section,) = read_sections(run(tmp_path / "S1"))
    check(section)
    assert facts(section).spot_diameter_px == 0.0 and "no scalefactors_json.json" in caplog.text


def test_genes_that_share_a_name_are_summed_and_it_is_said(tmp_path, caplog):
    root = run(tmp_path / "S1", genes=["G0", "G0", "G2", "G3", "G4", "G5"], factors={})
    (section,) = read_sections(root)
    assert list(section.var_names) == ["G0", "G2", "G3", "G4", "G5"]
    np.testing.assert_array_equal(section[:, "G0"].X.toarray().ravel(), COUNTS[INSIDE][:, :2].sum(axis=1))
    assert "1 gene names occur more than once (G0); their counts are summed" in caplog.text
    assert merge_duplicate_genes(section) is section


@pytest.mark.parametrize("place", ["", "outs", "outs/binned_outputs", "outs/binned_outputs/square_008um"])
def test_every_bin_size_of_visium_hd(tmp_path, place):
    """Pitch and µm/px are the files' own; the bins of a run are sections named after it."""
    bins = {2: "square_002um", 8: "square_008um", 16: "square_016um"}
    for um, name in bins.items():
        run(
            tmp_path / "RUN/outs/binned_outputs" / name,
            factors={"bin_size_um": float(um), "microns_per_pixel": um / 50, "spot_diameter_fullres": 50.0},
        )
    (tmp_path / "RUN/outs/spatial").mkdir()
    image = tmp_path / "RUN.tif"
    image.touch()
    found = {
        facts(s).section: facts(s)
        for s in read_sections(tmp_path / "RUN" / place, DataConfig(images=str(tmp_path)))
    }
    wanted = [8] if place.endswith("um") else [16, 8, 2]
    assert list(found) == [f"RUN_{bins[um]}" for um in wanted]
    for um in wanted:
        f = found[f"RUN_{bins[um]}"]
        assert (f.technology, f.pitch_um, f.pitch_px) == ("Visium HD", um, pytest.approx(50.0))
        assert f.mpp == pytest.approx(um / 50) and f.mpp_source == "stated" and f.image == str(image)
        assert resolve_mpp(f.mpp, f.pitch_px, f.pitch_um, trust=False, where="")[0] == f.mpp


def test_a_bin_size_without_scale_factors_is_known_by_its_folder(tmp_path):
    f = facts(read_sections(run(tmp_path / "square_016um"))[0])
    assert (f.section, f.technology, f.pitch_um) == ("square_016um", "Visium HD", 16.0)


def test_two_sections_of_one_name_are_refused(tmp_path):
    for name in ("S1.h5ad", "S1.H5AD"):
        section_file(tmp_path / name)
    with pytest.raises(InputError, match="there are several sections 'S1'"):
        find_sections(tmp_path)


# --- ST tables -----------------------------------------------------------------------------------------------


def st(root, counts=None, **columns):
    spots = pd.DataFrame({"x": COL, "y": ROW, "pixel_x": X, "pixel_y": Y, **columns})
    spots.to_csv(root / "S1_selection.tsv", sep="\t", index=False)
    names = [f"{c}x{r}" for c, r in zip(COL, ROW, strict=True)]
    frame = pd.DataFrame(COUNTS, index=names, columns=[f"G{i}" for i in range(GENES)])
    (counts(frame) if counts else frame).to_csv(root / "S1.tsv", sep="\t")
    return root


def test_spots_that_are_not_selected_are_left_out(tmp_path):
    (section,) = read_sections(st(tmp_path, selected=INSIDE.astype(int)))
    np.testing.assert_array_equal(section.X.toarray(), COUNTS[INSIDE])


def test_duplicate_genes_of_a_table_are_summed(tmp_path):
    (section,) = read_sections(st(tmp_path, lambda c: c.set_axis(["G0", "G0", *c.columns[2:]], axis=1)))
    assert list(section.var_names) == ["G0", "G2", "G3", "G4", "G5"]
    np.testing.assert_array_equal(section.X.toarray()[:, 0], COUNTS[:, :2].sum(axis=1))


def test_turned_tables_and_missing_pixels(tmp_path, caplog):
    pixel = np.where(np.arange(N) == 4, np.nan, X)
    (section,) = read_sections(st(tmp_path, lambda c: c.T, pixel_x=pixel))
    np.testing.assert_array_equal(section.X.toarray(), np.delete(COUNTS, 4, axis=0))
    assert "1 of 20 spots have no coordinates and are left out" in caplog.text


# --- AnnData -------------------------------------------------------------------------------------------------


def section_file(path, change=lambda a: None, x=COUNTS):
    a = ad.AnnData(None if x is None else sparse.csr_matrix(x), shape=(N, GENES) if x is None else None)
    a.obs_names, a.var_names = NAMES, [f"G{i}" for i in range(GENES)]
    a.obsm["spatial"] = np.column_stack([X, Y])
    a.obs["array_row"], a.obs["array_col"] = ROW, COL
    change(a)
    a.write_h5ad(path)
    return path


def cellxgene(a):
    a.uns["spatial"] = {
        "is_single": np.bool_(True),
        "lib": {
            "images": {"hires": np.zeros((4, 4, 3), np.uint8)},
            "scalefactors": {"spot_diameter_fullres": np.array([33.0])},
        },
    }


def raw(a):
    a.raw = a.copy()
    a.X = np.log1p(a.X.toarray() / 3)


def layer(a):
    a.layers["counts"] = sparse.csc_matrix(COUNTS)


def frame(a):
    a.obsm["spatial"] = pd.DataFrame({"pxl_row_in_fullres": Y, "pxl_col_in_fullres": X}, index=a.obs_names)


def text(a):
    a.obsm["spatial"] = np.column_stack([X, Y]).astype(str).astype(object)


def categories(a):
    a.obs["array_row"], a.obs["array_col"] = (pd.Categorical(v.astype(str)) for v in (ROW, COL))


def words(a):
    a.obs["array_row"] = "left"


def bare(a):
    a.uns["spatial"] = np.column_stack([X, Y])


QUIRKS = {
    "CELLxGENE": cellxgene, "raw": raw, "DataFrame": frame, "text": text, "categories": categories,
    "words for rows": words, "array in uns": bare, "patients": lambda a: a.obs.insert(0, "patient", " P1 "),
}  # fmt: skip


@pytest.mark.parametrize("quirk", QUIRKS)
def test_anndata_of_others(tmp_path, quirk):
    (section,) = read_sections(section_file(tmp_path / "S1.h5ad", QUIRKS[quirk]))
    np.testing.assert_array_equal(section.X.toarray(), COUNTS)
    np.testing.assert_array_equal(section.obsm["spatial"], np.column_stack([X, Y]))
    f = facts(section)
    assert f.pitch_px == pytest.approx(50.0)
    assert f.spot_diameter_px == (33.0 if quirk == "CELLxGENE" else 0.0)
    assert f.patient == ("P1" if quirk == "patients" else "")
    assert ("array_row" in section.obs) == (quirk != "words for rows")


def test_no_x_but_a_layer_of_counts(tmp_path, caplog):
    (section,) = read_sections(section_file(tmp_path / "S1.h5ad", layer, x=None))
    np.testing.assert_array_equal(section.X.toarray(), COUNTS)
    assert "taken from layer 'counts'" in caplog.text
    with pytest.raises(InputError, match=r"X is empty, and no usual layer holds counts \(layers: none\)"):
        read_sections(section_file(tmp_path / "S2.h5ad", x=None))


def test_spots_without_coordinates_are_left_out(tmp_path, caplog):
    def hole(a):
        a.obsm["spatial"][4] = np.nan

    (section,) = read_sections(section_file(tmp_path / "S1.h5ad", hole))
    np.testing.assert_array_equal(section.X.toarray(), np.delete(COUNTS, 4, axis=0))
    assert "1 of 20 spots have no coordinates and are left out" in caplog.text


def test_one_spot_has_no_pitch(tmp_path):
    path = section_file(tmp_path / "S1.h5ad")
    ad.read_h5ad(path)[:1].copy().write_h5ad(path)
    assert facts(read_sections(path)[0]).pitch_px == 0.0


def narrow(a):
    a.obsm["spatial"] = a.obsm["spatial"][:, :1]


def far(a):
    text(a)
    a.obsm["spatial"][2, 0] = "far"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (narrow, r"obsm\['spatial'\] has the shape \(20, 1\), but x and y of each spot are needed"),
        (far, r"'far' in obsm\['spatial'\] is not a number \(spot 2\)"),
        (lambda a: a.obsm.clear(), r"there is no obsm\['spatial'\]"),
    ],
)
def test_coordinates_that_cannot_be_used(tmp_path, change, sentence):
    with pytest.raises(InputError, match=sentence):
        read_sections(section_file(tmp_path / "S1.h5ad", change))


def test_text_in_counts_and_files_that_are_none(tmp_path):
    path = section_file(tmp_path / "S1.h5ad")
    with h5py.File(path, "a") as file:
        del file["X/data"]
        file["X/data"] = np.array(["two"] * int(np.count_nonzero(COUNTS)), "S")
    with pytest.raises(InputError, match="'X' is broken: its values are text"):
        read_sections(path)
    (tmp_path / "S2.h5ad").write_text("section,patient\n")
    with pytest.raises(InputError, match="is not a readable HDF5 file"):
        open_h5ad(tmp_path / "S2.h5ad")
    with h5py.File(tmp_path / "S3.h5ad", "w") as file:
        file["coords"] = np.zeros(3)
    with pytest.raises(InputError):
        read_sections(tmp_path / "S3.h5ad")


def broken(key, change):
    def edit(group):
        values = group[key][()]
        values = change(values)
        del group[key]
        group[key] = values

    return edit


def put(place, value):
    def change(values):
        values = values.astype(np.int32)
        values[place] = value
        return values

    return change


BROKEN = {
    "index beyond the genes": (broken("indices", put(3, 10**6)), "an index is .* outside 0 … 5"),
    "index below 0": (broken("indices", put(0, -7)), "outside 0 … 5"),
    "indptr falls": (broken("indptr", put(5, 10**6)), "indptr falls"),
    "indptr below 0": (broken("indptr", put(0, -4)), "indptr falls"),
    "indptr beyond the values": (broken("indptr", put(-1, 10**6)), "indptr goes from 0 to 1000000"),
    "indptr too short": (broken("indptr", lambda v: v[:-2]), "indptr has 19 entries for 20 rows"),
    "fewer values": (broken("data", lambda v: v[:-1]), "values have"),
    "fractions": (broken("indices", lambda v: v + 0.5), "must be whole numbers"),
    "another shape": (lambda g: g.attrs.__setitem__("shape", [N * 10, GENES]), "entries for 200 rows"),
    "no shape": (lambda g: g.attrs.__delitem__("shape"), "its shape is not two whole numbers"),
}


@pytest.mark.parametrize("place", ["X", "layers/counts", "raw/X"])
@pytest.mark.parametrize("kind", BROKEN)
def test_sparse_matrices_are_checked_before_compiled_code_reads_them(tmp_path, kind, place):
    def more(a):
        a.layers["counts"] = a.X.copy()
        a.raw = a.copy()

    path = section_file(tmp_path / "S1.h5ad", more)
    change, sentence = BROKEN[kind]
    with h5py.File(path, "a") as file:
        change(file[place])
    for read in (check_matrices, open_h5ad, load_section, read_sections):
        with pytest.raises(InputError, match=f"'{place}' is broken: .*{sentence}"):
            read(path)


@pytest.mark.parametrize("form", [2, 3])
def test_matrices_of_zarr_stores_are_checked_too(tmp_path, form):
    """The same checks, before a slide's store or one of its tables is read."""
    import zarr

    slide = SimpleNamespace(path=tmp_path / "s.tif", store=tmp_path / "s.zarr", width=1, height=1)
    folder = slide.store / "tables" / "features"
    with ad.settings.override(zarr_write_format=form):
        ad.read_h5ad(section_file(tmp_path / "S1.h5ad")).write_zarr(folder)
    check_stored_matrices(slide.store)
    group = zarr.open_group(folder / "X", mode="a")
    group["indices"][3] = 10**6
    sentence = "sparse matrix is broken: an index is 0 or 1000000, outside 0 … 5"
    with pytest.raises(InputError, match=sentence):
        read_store(slide)
    if form == 3:  # the stores that SpatialData writes
        with pytest.raises(InputError, match=sentence):
            read_table(slide, "features")


def test_a_10x_matrix_is_checked_too(tmp_path):
    root = run(tmp_path / "S1", factors={})
    with h5py.File(root / "filtered_feature_bc_matrix.h5", "a") as file:
        file["matrix/indices"][2] = 10**6
    with pytest.raises(InputError, match="'matrix' is broken: an index is"):
        read_sections(root)
