"""A small slide of simulated tissue, and one tiny model of every room."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from morphogen.demo import TissueSimulator, write_hest, write_slide
from morphogen.slides import open_slide


@pytest.fixture(scope="session")
def slide_file(tmp_path_factory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slide") / "s.tif", 448, 384, simulator=TissueSimulator(3))


@pytest.fixture
def wsi(slide_file, tmp_path):
    """The slide in 64 px tiles at its own µm/px, with overlap, as LazySlide lays them."""
    import lazyslide as zs

    slide = open_slide(slide_file, out=tmp_path).wsi
    zs.pp.tile_tissues(
        slide, 64, stride_px=48, mpp=slide.properties.mpp, background_filter=False, tissue_key=None
    )
    return slide


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    """Three simulated sections, prepared with the texture encoder."""
    from morphogen.expression import prepare_sections

    root = tmp_path_factory.mktemp("sections")
    write_hest(root / "hest", patients=3, width_um=700, height_um=600, mpp=1.0, n_genes=130, truth=False)
    prepare_sections(root / "hest", root / "prepared")
    return root / "prepared"


TINY = {
    "network": {"width": 16, "depth": 1, "heads": 2, "genes_per_token": 2, "condition_heads": 4},
    "training": {"steps": 3, "batch_size": 16, "warmup_steps": 0, "validate_every": 3, "save_every": 3},
}


@pytest.fixture(scope="session")
def gene_models(prepared, tmp_path_factory) -> dict[str, Path]:
    """Folders of a model that sees neighbours and of one that does not, trained on SIM1 and SIM2."""
    from morphogen.expression import ExpressionConfig, load_sections, train_model

    root = tmp_path_factory.mktemp("genes")
    sections = load_sections(prepared, ["SIM1", "SIM2"])
    for recipe in ("spatial", "stem"):
        settings = TINY if recipe == "stem" else {"training": {"steps": 2, "validate_every": 2}}
        config = ExpressionConfig(recipe=recipe, panel={"size": 8, "highly_variable": 30}, **settings)
        train_model(sections, config, root / recipe, device="cpu")
    return {recipe: root / recipe / "model" for recipe in ("spatial", "stem")}


@pytest.fixture(scope="session")
def tissue_folder(tmp_path_factory) -> Path:
    from morphogen.tissue import ModelConfig, new_model

    model = new_model(
        ModelConfig.of("tiny", embeddings={"patch": 768}, encoder="h0-mini"), tile_px=32, mpp=1.0
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.network.parameters():
            if not parameter.any():
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.save_pretrained(tmp_path_factory.mktemp("tissue") / "model")


@pytest.fixture(scope="session")
def segmenter_folder(tmp_path_factory) -> Path:
    from morphogen.layout import Segmenter
    from morphogen.nets.layout.config import SegmenterConfig

    model = Segmenter.fresh(
        SegmenterConfig(architecture="small", widths=(8, 16)),
        ("background", "stroma", "tumour"),
        crop=32,
        mpp=0.5,
    )
    return model.save_pretrained(tmp_path_factory.mktemp("segmenter") / "model")
