"""Our models behind the protocols of lazyslide-models, run by LazySlide's own functions."""

from __future__ import annotations

import lazyslide as zs
import lazyslide_models as lm
import numpy as np
import pytest
import torch
from lazyslide_models.base import InputConstraint, ModelTask, SegmentationOutput

from morphogen.bridges.lazyslide import bridged, register
from morphogen.core.errors import ConfigError, InputError, MorphogenError
from morphogen.demo.workspace import stain_model
from morphogen.expression import ExpressionModel, PredictConfig, load_section
from morphogen.slides import get_encoder, open_slide
from morphogen.stain import StainTransfer

KINDS = (lm.TilePredictionModel, lm.MarkerMapModel, lm.VirtualStainModel)


@pytest.fixture(scope="module")
def names(gene_models, tissue_folder, segmenter_folder):
    """Everything of ours, registered once; taken out of LazySlide's registry at the end."""
    before = dict(lm.MODEL_REGISTRY)
    made = register(stain_model(), gene_models["stem"], gene_models["spatial"])
    made += register(tissue_folder, name="twin") + register(segmenter_folder, name="regions")
    yield made
    for key in set(lm.MODEL_REGISTRY) - set(before):
        del lm.MODEL_REGISTRY[key]


def test_every_face_has_a_name(names, gene_models):
    ours = {
        "stain-er",
        "stain-er-density",
        "stem",
        "stem-tiles",
        "spatial",
        "twin",
        "regions",
        "regions-shares",
    }
    assert ours | {"texture"} <= set(names)
    assert "spatial-tiles" not in names  # it looks at neighbours
    assert set(lm.list_models("feature_prediction")) >= {"stem", "spatial", str(gene_models["stem"])}
    assert lm.MODEL_REGISTRY["stain-er"].stains == ("IHC",)  # known before any weights are loaded
    table = lm.MODEL_REGISTRY.to_dataframe().set_index("name")
    assert table.loc["twin", "model_type"] == "image_generation"


PROTOCOLS = {
    "stain-er": lm.VirtualStainModelProtocol,
    "stain-er-density": lm.MarkerMapModelProtocol,
    "stem": lm.FeaturePredictionModelProtocol,
    "stem-tiles": lm.TilePredictionModelProtocol,
    "twin": lm.ImageGenerationModelProtocol,
    "regions": lm.SegmentationModelProtocol,
    "regions-shares": lm.TilePredictionModelProtocol,
    "texture": lm.ImageModelProtocol,
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_contract_of_lazyslide_models(names, name):
    """What that package asks of its own models: one base, names as tuples of text, outputs of its kinds."""
    cls = lm.MODEL_REGISTRY[name]
    model = cls()
    assert isinstance(model, PROTOCOLS[name]) and isinstance(model, lm.ModelBase) and model.name == name
    task = cls.task
    if task in (ModelTask.tile_prediction, ModelTask.style_transfer):
        assert sum(issubclass(cls, kind) for kind in KINDS) == 1
    for attribute in ("stains", "channel_names", "columns"):
        declared = getattr(model, attribute, None)
        assert declared is None or (isinstance(declared, tuple) and all(isinstance(x, str) for x in declared))
    bounds = getattr(cls, "output_range", None)
    assert bounds is None or (len(bounds) == 2 and bounds[0] < bounds[1])
    assert cls.input_constraint is None or isinstance(cls.input_constraint, InputConstraint)
    assert name in cls.__doc__ and model._repr_html_()
    if name != "texture":
        assert model.estimate_param_size() > 0
    model.to("cpu")

    tiles = torch.stack([model.get_transform()(tile) for tile in noise(2, 48)]) if name != "twin" else None
    with torch.inference_mode():
        if task is ModelTask.style_transfer:
            channels = 3 * len(model.stains) if name == "stain-er" else len(model.channel_names)
            out = model.predict(tiles)
            assert out.shape == (2, channels, 48, 48) and out.is_floating_point()
            assert bounds is None or (out.min() >= bounds[0] and out.max() <= bounds[1])
        elif task is ModelTask.tile_prediction:
            out = model.predict(tiles)
            assert tuple(out) == model.columns
            assert all(isinstance(v, np.ndarray) and v.shape == (2,) for v in out.values())
        elif task is ModelTask.segmentation:
            out = model.segment(tiles)
            assert isinstance(out, SegmentationOutput) and out.probability_map.shape == (2, 3, 48, 48)
            assert len(out.classes) == 3 and torch.allclose(out.probability_map.sum(1), torch.ones(2, 48, 48))
        elif task is ModelTask.vision:
            out = model.encode_image(tiles)
            assert out.ndim == 2 and out.is_floating_point()


def noise(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(90, 255, (count, side, side, 3), dtype=np.uint8)


def nearly(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal, but for a grey level here and there: another batch is summed in another order."""
    apart = (a - b).abs()
    return bool(apart.max() < 1.5 / 255 and (apart > 1e-5).float().mean() < 0.01)


def test_a_stained_slide_is_what_the_model_makes_of_its_tiles(names, wsi):
    zs.tl.virtual_stain(wsi, "stain-er", batch_size=5, device="cpu", pbar=False)
    stained = wsi.images["stain-er_prediction_IHC"]
    assert stained.shape == (3, 384, 448)
    model = StainTransfer.from_pretrained(stain_model())
    tile = open_slide(wsi.reader.file).read_region(0, 0, 64, 64)
    own = model(torch.from_numpy(tile[None]), "mean").images[0].permute(2, 0, 1) / 255
    corner = torch.as_tensor(np.asarray(stained[:, :40, :40]))  # where no other tile is blended in
    assert nearly(corner, own[:, :40, :40].float())


def test_samples_do_not_depend_on_the_batch():
    model = bridged(stain_model(), sampler="fast", seed=3)
    tiles = torch.from_numpy(noise(3, 32)).permute(0, 3, 1, 2)
    together = model.predict(tiles)
    assert nearly(model.predict(tiles[2:]), together[2:])
    assert not torch.allclose(
        bridged(stain_model(), sampler="fast", seed=4).predict(tiles), together, atol=1e-2
    )


def test_density_and_colours_agree(names, wsi):
    from morphogen.slides.colour import dab_density

    tiles = torch.from_numpy(noise(2, 32)).permute(0, 3, 1, 2)
    colours = bridged(stain_model()).predict(tiles)
    density = bridged(stain_model(), "density").predict(tiles)
    again = dab_density((colours * 255).round().to(torch.uint8), layout="nchw")
    assert torch.allclose(density[:, 0], again, atol=1e-5)
    zs.tl.virtual_stain(wsi, "stain-er-density", batch_size=64, device="cpu", pbar=False)
    assert list(wsi.images["stain-er-density_prediction"].coords["c"].values) == ["IHC"]


def test_genes_from_features_are_those_of_our_own_prediction(gene_models, prepared):
    section = load_section(prepared / "SIM3.h5ad")
    model = ExpressionModel.from_pretrained(gene_models["spatial"])
    own = model(section, PredictConfig(samples=0), device="cpu")
    genes = bridged(gene_models["spatial"])
    out = genes.predict(section.obsm["embedding"], section.obsm["spatial"] - 100.0)
    assert tuple(out) == genes.genes
    assert np.allclose(np.stack(list(out.values()), axis=1), own.layers["pred_mean"], atol=1e-4)


def test_genes_by_name_on_a_slide_with_our_encoder(names, gene_models, slide_file, tmp_path):
    wsi = open_slide(slide_file, out=tmp_path).wsi
    layout = bridged(gene_models["stem"]).tiling
    assert layout["tile_px"] == 224 and layout["mpp"] == 0.5 and layout["stride_px"] == 200
    zs.pp.tile_tissues(wsi, **layout, background_filter=False, tissue_key=None)
    zs.tl.feature_extraction(wsi, "texture", device="cpu", pbar=False)
    zs.tl.feature_prediction(wsi, "stem", device="cpu", pbar=False)
    table = wsi.tables["stem_tiles"]
    assert table.shape == (len(wsi.shapes["tiles"]), 8) and np.isfinite(table.X).all()
    tiles = open_slide(slide_file)
    box = wsi.shapes["tiles"].bounds.iloc[0]
    field = tiles.read_region(box.minx, box.miny, 224, 224, mpp=0.5)
    features = get_encoder("texture", device="cpu")(field[None]).numpy()
    assert np.allclose(wsi.tables["texture_tiles"].X[0], features[0], atol=0.05)
    zs.tl.tile_prediction(wsi, "stem-tiles", device="cpu", pbar=False)
    assert np.allclose(wsi.shapes["tiles"][list(table.var_names)].to_numpy(), table.X, atol=1e-3)


def test_spread_beside_the_mean(gene_models, prepared):
    section = load_section(prepared / "SIM3.h5ad")
    genes = bridged(gene_models["stem"], spread=True, samples=4)
    out = genes.predict(section.obsm["embedding"], section.obsm["spatial"])
    assert tuple(out) == genes.genes + tuple(f"{gene} sd" for gene in genes.genes)
    assert min(out[f"{gene} sd"].min() for gene in genes.genes) > 0


def test_regions_by_name(names, wsi):
    zs.tl.tile_prediction(wsi, "regions-shares", device="cpu", pbar=False)
    shares = wsi.shapes["tiles"][["background", "stroma", "tumour"]].to_numpy()
    assert np.allclose(shares.sum(axis=1), 1, atol=1e-5)
    names = ["background", "stroma", "tumour"]
    zs.seg.semantic(
        wsi, "regions", class_names=names, threshold=0.2, ignore_index=None, device="cpu", pbar=False
    )
    assert set(wsi.shapes["anatomical_structures"]["class"]) <= set(names)


def test_tissue_from_embeddings_and_from_nothing(names, wsi):
    from wsidata.io import add_features

    count = len(wsi.shapes["tiles"])
    features = np.random.default_rng(0).normal(size=(count, 768)).astype(np.float32)
    add_features(wsi, "h0-mini_tiles", "tiles", features)
    drawn = zs.tl.image_generation(wsi, bridged_twin(names), prompt_tiles=slice(0, 2), device="cpu", seed=1)
    assert [image.size for image in drawn] == [(32, 32)] * 4
    assert np.asarray(drawn[0]).tobytes() != np.asarray(drawn[2]).tobytes()
    blank = zs.tl.image_generation(model=bridged_twin(names), num_images_per_tiles=3, device="cpu")
    assert len(blank) == 3


def bridged_twin(names):
    return lm.MODEL_REGISTRY["twin"](sampler="fast")


@pytest.mark.parametrize("given, message", [
    (torch.randn(1, 3, 32, 32), "normalised for another network"),
    (torch.zeros(1, 4, 32, 32, dtype=torch.uint8), r"tiles must be \(B, 3, H, W\)"),
    (torch.zeros(1, 3, 32, 32, dtype=torch.int64), "tiles must be uint8"),
])  # fmt: skip
def test_tiles_that_are_none(given, message):
    with pytest.raises(InputError, match=message):
        bridged(stain_model()).predict(given)


def test_refusals_name_the_way_out(names, gene_models, tmp_path):
    with pytest.raises(ConfigError, match="Give another name"):
        register(stain_model(), name="uni2")
    with pytest.raises(ConfigError, match="does not fit 2 models"):
        register(stain_model(), stain_model(), name="x")
    with pytest.raises(ConfigError, match="has no face 'tiles', only '', 'density'"):
        bridged(stain_model(), "tiles")
    with pytest.raises(MorphogenError, match="morphogen"):
        register(tmp_path)
    with pytest.raises(ConfigError, match="no face 'tiles'"):
        bridged(gene_models["spatial"], "tiles")
    with pytest.raises(InputError, match="Give coords"):
        bridged(gene_models["stem"]).predict(np.zeros((2, 280), np.float32))
    with pytest.raises(InputError, match="width 5"):
        bridged(gene_models["stem"]).predict(np.zeros((2, 5), np.float32), np.array([[0, 0], [9, 9]]))


def test_encoders_in_the_registry_stay_ours(names):
    """They are listed once, as ours, not as encoders of lazyslide-models."""
    from morphogen.slides.encoders.spec import lazyslide_specs

    lazyslide_specs.cache_clear()
    assert "texture" in lm.MODEL_REGISTRY and "texture" not in lazyslide_specs()
