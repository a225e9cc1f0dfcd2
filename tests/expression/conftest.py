"""A small world with a right answer: embeddings that vary smoothly over a section, counts that follow them."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from morphogen.expression import ExpressionConfig, train_model
from morphogen.expression.config import PrepareConfig
from morphogen.expression.data import SectionFacts, set_facts
from morphogen.expression.sections.prepare import index_neighbours

WIDTH, GENES = 16, 12


def build_section(
    name: str, patient: str = "", side: int = 12, seed: int = 0, depth: float = 1.0, width: int = WIDTH
) -> ad.AnnData:
    """A prepared section of side² spots, 100 µm and 100 px apart, at 1 µm/px."""
    rng = np.random.default_rng([seed, *name.encode()])
    world = np.random.default_rng(7)
    y, x = np.divmod(np.arange(side * side), side)
    waves = rng.normal(size=(width, 2)) * 0.5
    phase = rng.uniform(0, 6.28, width)
    field = np.sin(x[:, None] * waves[:, 0] + y[:, None] * waves[:, 1] + phase)
    embedding = field + 0.3 * rng.normal(size=field.shape)
    weights = world.normal(size=(width, GENES)) * 0.35
    rate = np.exp(field @ weights + world.uniform(0.8, 2.0, GENES)) * depth
    noisy = rate * np.exp(0.3 * rng.normal(size=(len(rate), 1)))
    section = ad.AnnData(sparse.csr_matrix(rng.poisson(noisy).astype(np.float32)))
    section.var_names = [f"G{i:02d}" for i in range(GENES)]
    section.obs_names = [f"{i}x{j}" for i, j in zip(x, y, strict=True)]
    section.obs["array_col"], section.obs["array_row"] = x, y
    section.obs["total_counts"] = np.asarray(section.X.sum(axis=1)).ravel()
    section.obsm["spatial"] = np.stack([x, y], axis=1) * 100.0 + 50
    section.obsm["embedding"] = embedding.astype(np.float32)
    set_facts(
        section,
        SectionFacts(
            section=name, patient=patient, mpp=1.0, technology="Visium", pitch_um=100.0, pitch_px=100.0,
            spot_diameter_px=55.0,
        ),
    )  # fmt: skip
    index_neighbours(section, PrepareConfig())
    section.uns["morphogen"]["prepare"] = {
        "encoder": {"name": "test", "kind": "module", "width": width},
        "encoder_identity": "test-encoder",
        "field": "112um", "field_um": 112.0, "field_px": 224, "near": 9, "region": 49,
        "orientations": 1, "invariant": True, "key": "",
    }  # fmt: skip
    return section


@pytest.fixture(scope="session")
def make_section():
    return build_section


@pytest.fixture(scope="session")
def world():
    """Three patients, four sections."""
    return [
        build_section("A1", "A"),
        build_section("A2", "A", depth=1.2),
        build_section("B1", "B", depth=0.7),
        build_section("D1", "D", depth=1.4),
    ]


PANEL = {"size": 10, "highly_variable": 11}
TINY = {
    "network": {"width": 16, "depth": 1, "heads": 2, "genes_per_token": 2, "condition_heads": 4},
    "training": {"steps": 6, "batch_size": 16, "warmup_steps": 0, "validate_every": 3, "save_every": 3},
}


def config(recipe, **more):
    values = {"recipe": recipe, "panel": PANEL}
    if recipe != "spatial":
        values |= TINY
    else:
        values["training"] = {"steps": 20, "validate_every": 10}
        values["spatial"] = {"diffuse_from": 0}
    return ExpressionConfig(**{**values, **more})


@pytest.fixture(scope="session")
def models(world, tmp_path_factory):
    """One small model per recipe, trained on A1, A2, B1."""
    root = tmp_path_factory.mktemp("models")
    return {
        r: train_model(world[:3], config(r), root / r, device="cpu") for r in ("spatial", "stem", "hisdiff")
    }
