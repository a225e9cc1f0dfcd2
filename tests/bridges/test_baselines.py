"""Models of lazyslide-models in our tables, with random weights in their own format."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from morphogen.bridges.lazyslide.baselines import GeneBaseline, StainBaseline
from morphogen.bridges.lazyslide.loading import Foreign, load_foreign
from morphogen.cli.main import main
from morphogen.core.errors import ConfigError, DependencyError, InputError, WeightsError
from morphogen.core.files import read_json
from morphogen.demo import write_mist
from morphogen.expression import load_section
from morphogen.expression.scoring.outside import OutsideBaseline
from morphogen.expression.sections.panels import Panel
from morphogen.expression.sections.tables import tabulate
from morphogen.expression.sections.transforms import Transform
from morphogen.slides.colour import dab_density
from morphogen.stain.data import Pair

TINY = {
    "network": {"width": 16, "depth": 1, "heads": 2, "genes_per_token": 2, "condition_heads": 4},
    "training": {"steps": 3, "batch_size": 16, "warmup_steps": 0, "validate_every": 3, "save_every": 3},
}


def status(line: list[str]) -> int:
    with pytest.raises(SystemExit) as end:
        main(line)
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def stpath(prepared, tmp_path_factory):
    """``stfm.pth`` and ``symbol2ensembl.json`` of a narrow network with the released vocabulary's size."""
    from lazyslide_models.feature_prediction.stpath import _model
    from lazyslide_models.feature_prediction.stpath._constants import N_ORGANS, N_TECH
    from lazyslide_models.feature_prediction.stpath._vocab import N_GENE_TOKENS, N_UNIQUE_GENES

    pytest.importorskip("einops")
    folder = tmp_path_factory.mktemp("stpath")
    before = dict(_model.DEFAULT_CONFIG)
    _model.DEFAULT_CONFIG.update(d_model=8, n_layers=1, n_heads=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = _model.STFM(N_GENE_TOKENS, N_TECH, N_ORGANS)
    torch.save(network.state_dict(), folder / "stfm.pth")
    known = [str(name) for name in load_section(prepared / "SIM1.h5ad").var_names][:100]
    names = [*known, *(f"N{i}" for i in range(N_UNIQUE_GENES - len(known)))]
    vocabulary = {name: f"ENSG{i:011d}" for i, name in enumerate(names)}
    (folder / "symbol2ensembl.json").write_text(json.dumps(vocabulary))
    yield folder
    _model.DEFAULT_CONFIG.update(before)


@pytest.fixture(scope="module")
def gigatime(tmp_path_factory):
    from lazyslide_models.style_transfer.gigatime import GigaTIMEModel

    path = tmp_path_factory.mktemp("gigatime") / "model.pth"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = GigaTIMEModel(num_classes=23)
        network.final.weight.data *= 20  # so that the map varies
        torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def gigapath(prepared, tmp_path_factory):
    """The sections as GigaPath would have prepared them, in width and name, and a model trained on two of them."""
    from morphogen.expression import ExpressionConfig, load_sections, train_model
    from morphogen.expression.sections.prepare import save_section

    root = tmp_path_factory.mktemp("gigapath")
    for name in ("SIM1", "SIM2", "SIM3"):
        section = load_section(prepared / f"{name}.h5ad")
        values = section.obsm["embedding"]
        section.obsm["embedding"] = np.pad(values, ((0, 0), (0, 1536 - values.shape[1])))
        section.uns["morphogen"]["prepare"]["encoder"]["name"] = "gigapath"
        save_section(section, root / "prepared" / f"{name}.h5ad")
    config = ExpressionConfig(recipe="stem", panel={"size": 8, "highly_variable": 30}, **TINY)
    train_model(load_sections(root / "prepared", ["SIM1", "SIM2"]), config, root / "stem", device="cpu")
    return root


def test_genes_are_what_their_own_class_gives(stpath, gigapath):
    section = load_section(gigapath / "prepared" / "SIM3.h5ad")
    genes = [str(name) for name in section.var_names[:6]]
    model = GeneBaseline(Foreign("stpath", "Breast", stpath), genes, device="cpu")
    out = model(section)
    own = load_foreign(Foreign("stpath", "", stpath), genes=genes, organ_type="Breast", tech_type="Visium")
    values = own.predict(section.obsm["embedding"], section.obsm["spatial"].astype(np.float32))
    assert set(out) == set(genes) and np.allclose(out[genes[0]], values[genes[0]], atol=1e-5)
    again = GeneBaseline(Foreign("stpath", "Kidney", stpath), genes, device="cpu")(section)
    assert not np.allclose(out[genes[0]], again[genes[0]])  # the part names the organ


def test_a_table_with_a_foreign_baseline(stpath, gigapath, tmp_path):
    line = ["expression", "evaluate", str(gigapath / "prepared"), "--model", str(gigapath / "stem" / "model")]
    line += ["--test", "SIM3"]
    line += ["--baseline", f"lazyslide:stpath={stpath}", "--samples", "4", "--out", str(tmp_path / "scores")]
    assert status([*line, "--device", "cpu"]) == 0
    found = read_json(tmp_path / "scores" / "evaluation.json")
    rows = {row["method"]: row for row in found["scores"]}
    assert {"stem", "tuned ridge", "lazyslide:stpath"} <= set(rows)
    assert rows["lazyslide:stpath"]["crps"] > 0
    assert "slope" in found["outside"]["lazyslide:stpath"]["units"]
    assert "lazyslide:stpath" in (tmp_path / "scores" / "report.html").read_text()


def test_units_are_brought_over_and_correlations_stay(prepared):
    sections = {name: load_section(prepared / f"{name}.h5ad") for name in ("SIM1", "SIM3")}
    panel = Panel(tuple(str(name) for name in sections["SIM1"].var_names[:4]), "test")
    tables = {name: tabulate(section, panel, Transform("log1p")) for name, section in sections.items()}
    signs = np.array([1, 1, -1])

    class Known:
        name = "other"

        def __call__(self, section):
            truth = tables[section.uns["morphogen"]["section"]["section"]].y
            return dict(
                zip(panel.genes, (100 + 7 * signs * truth[:, :3]).T, strict=False)
            )  # the last is not known

    fitted = OutsideBaseline(Known(), panel, [tables["SIM1"]], sections)
    mean = fitted.mean(tables["SIM3"])
    truth = tables["SIM3"].y
    assert np.allclose(mean[:, :2], truth[:, :2], atol=1e-3)  # a linear change is undone
    assert np.corrcoef(mean[:, 2], truth[:, 2])[0, 1] < -0.99  # the wrong way round stays wrong
    assert np.ptp(mean[:, 3]) == 0 and np.isclose(mean[0, 3], tables["SIM1"].y[:, 3].mean(), atol=1e-5)
    assert fitted.missing == [panel.genes[3]]
    assert fitted.samples(tables["SIM3"], 5, 0).shape == (len(truth), 5, 4)
    Known.__call__ = lambda self, section: {"none": truth[:, 0]}
    with pytest.raises(InputError, match="none of the 4 panel genes"):
        OutsideBaseline(Known(), panel, [tables["SIM1"]], sections)


def test_a_marker_is_drawn_as_its_density(gigatime):
    model = StainBaseline(Foreign("gigatime", "", gigatime), ["Ki-67"], device="cpu")
    he = np.random.default_rng(0).integers(120, 255, (64, 96, 3), dtype=np.uint8)
    image = model(Pair("a", None, None, stain="Ki67"), he)
    assert image.shape == he.shape and image.dtype == np.uint8
    own = load_foreign(Foreign("gigatime", "", gigatime))
    with torch.no_grad():
        out = own.predict(own.get_transform()(he)[None])[0, own.channel_names.index("Ki67")].numpy()
    shown = dab_density(image[None], layout="nhwc")[0].numpy()
    assert abs(shown.mean() / out.mean() - 1) < 0.15
    assert np.corrcoef(shown.ravel(), out.ravel())[0, 1] > 0.95  # rounded to 8 bits


def test_a_stain_table_with_a_foreign_baseline(gigatime, tmp_path):
    write_mist(tmp_path / "pairs", 1, 3, size=96, truth=False)
    made = tmp_path / "pairs" / "TrainValAB" / "valB"
    line = ["stain", "evaluate", str(made), str(tmp_path / "pairs"), "--out", str(tmp_path / "scores")]
    assert status([*line, "--baseline", f"lazyslide:gigatime:CK={gigatime}"]) == 0
    methods = list(read_json(tmp_path / "scores" / "metrics.json")["methods"])
    assert methods[-1] == "lazyslide:gigatime:CK" and "colour deconvolution" in methods


REFUSED = [
    ("gigatime", "is not of the form lazyslide:NAME"),
    ("lazyslide:gigatme", "Did you mean 'gigatime'"),
    ("lazyslide:uni2=X", "makes no stains"),
    ("lazyslide:gigatime=X", "makes no 'IHC', only DAPI"),
    ("lazyslide:gigatime:CK=no/such.pth", "there are no weights here"),
    ("lazyslide:rosie=X", "runs what is in the file"),
    ("lazyslide:gigatime:CK", "gated and not on this machine"),
]


@pytest.mark.parametrize("text, message", REFUSED)
def test_refusals_of_stain_baselines(text, message, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    stain = "DAPI" if "rosie" in text else "IHC"
    with pytest.raises((ConfigError, WeightsError), match=message) as error:
        StainBaseline(Foreign.parse(text), [stain], device="cpu")
    assert len(str(error.value)) <= 300 and "\n" not in str(error.value)


def test_refusals_of_gene_baselines(stpath, tmp_path):
    for text, kind, message in (
        ("lazyslide:gigatime", ConfigError, "predicts no genes"),
        ("lazyslide:path2space", WeightsError, "runs what is in the file"),
        ("lazyslide:deepspotm", DependencyError, "deepspotm"),
        (f"lazyslide:stpath:Elbow={stpath}", InputError, "Unknown organ"),
        (f"lazyslide:stpath={tmp_path}", WeightsError, "there is no stfm.pth here"),
    ):
        with pytest.raises(kind, match=message):
            GeneBaseline(Foreign.parse(text), ["ACTB"], device="cpu")


def test_weights_that_hold_more_than_tensors_run_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path / "ran").touch, ()

    torch.save({"x": Evil()}, tmp_path / "model.pth")
    with pytest.raises(WeightsError):
        load_foreign(Foreign("gigatime", "", tmp_path / "model.pth"))
    assert not (tmp_path / "ran").exists()
