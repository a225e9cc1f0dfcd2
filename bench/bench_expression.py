"""Spatial expression: the time of the fast sampler beside that of the published one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from bench.harness import Row, compare
from morphogen.diffusion import ItemNoise

FAST, REFERENCE = 20, 1000


def section(name: str, patient: str, side: int, genes: int, width: int = 32, seed: int = 0) -> Any:
    """A prepared section of a world with a right answer: smooth embeddings, counts that follow them."""
    import anndata as ad
    from scipy import sparse

    from morphogen.expression.config import PrepareConfig
    from morphogen.expression.data import SectionFacts, set_facts
    from morphogen.expression.sections.prepare import index_neighbours

    rng, world = np.random.default_rng([seed, *name.encode()]), np.random.default_rng(7)
    y, x = np.divmod(np.arange(side * side), side)
    waves = rng.normal(size=(width, 2)) * 0.4
    field = np.sin(x[:, None] * waves[:, 0] + y[:, None] * waves[:, 1] + rng.uniform(0, 6.28, width))
    rate = np.exp(field @ (world.normal(size=(width, genes)) * 0.2) + world.uniform(0.5, 2.5, genes))
    counts = rng.poisson(rate * np.exp(0.4 * rng.normal(size=(len(rate), 1)))).astype(np.float32)
    out = ad.AnnData(sparse.csr_matrix(counts))
    out.var_names, out.obs_names = [f"G{i:04d}" for i in range(genes)], [f"{i}x{j}" for i, j in zip(x, y)]
    out.obs["total_counts"] = counts.sum(axis=1)
    out.obsm["spatial"] = np.stack([x, y], axis=1) * 100.0
    out.obsm["embedding"] = (field + 0.3 * rng.normal(size=field.shape)).astype(np.float32)
    set_facts(out, SectionFacts(section=name, patient=patient, mpp=1.0, pitch_um=100.0, pitch_px=100.0))
    index_neighbours(out, PrepareConfig())
    out.uns["morphogen"]["prepare"] = {
        "encoder": {"name": "synthetic"}, "encoder_identity": "synthetic", "field": "112um", "field_um": 112.0,
        "field_px": 224, "near": 9, "region": 49, "orientations": 1, "invariant": True, "key": "",
    }  # fmt: skip
    return out


def speed(quick: bool) -> list[Row]:
    """The default Stem network, 12 blocks of 384, 200 genes: 20 evaluations against 1000, and one against one."""
    from bench.bench_nets import PlainStem, stem
    from morphogen.expression.config import ExpressionConfig, SamplerConfig
    from morphogen.expression.model import ExpressionModel
    from morphogen.expression.recipes.gene_diffusion import GeneDiffusion
    from morphogen.expression.sections.panels import Panel
    from morphogen.expression.sections.transforms import Transform
    from morphogen.nets import fast_precision

    batch, few, pairs = (4, 2, 3) if quick else (20, 4, 5)
    network = stem()
    config = ExpressionConfig(recipe="stem", size="paper")
    head = GeneDiffusion.of_network(network, config.network)
    panel = Panel(tuple(f"G{i}" for i in range(200)), "listed")
    model = ExpressionModel(
        head, config, panel, Transform("log2p1"), {"name": "uni+conch", "width": 1536}, {}
    )
    precision = fast_precision("cpu")
    fast, autocast = model.sampler(precision)
    assert isinstance(fast, GeneDiffusion)
    condition = torch.randn(batch, 1536, generator=torch.Generator().manual_seed(0))
    embedded = network.embed_condition(condition).detach()
    noise = ItemNoise(0, [("spot", i) for i in range(batch)], (200,))
    plain = PlainStem(network)
    x, t = noise(-1), torch.full((batch,), 500.0)
    sampler = SamplerConfig(steps=few)

    @torch.inference_mode()
    def ours() -> object:
        return fast.sample(embedded, noise, sampler, autocast)

    from morphogen.diffusion import ddpm

    @torch.inference_mode()
    def published() -> object:  # `few` of its 1000 steps, as the published sampler takes them
        def denoise(x: torch.Tensor, t: Any, **_: Any) -> Any:
            return of_plain(x, t, condition=condition)

        times = [float(REFERENCE - 1 - i) for i in range(few)]
        return ddpm(denoise, x, times, head.schedule, variance="learned", noise=noise)

    from morphogen.diffusion import network_denoiser

    of_plain = network_denoiser(plain, head.schedule, "epsilon", learned_variance=True)
    size = f"batch {batch}, {torch.get_num_threads()} threads, {precision}"
    row = compare("", ours, published, pairs=pairs)
    scale = REFERENCE / FAST
    whole = Row(
        name=f"Stem 12×384, 200 genes, a sample: fast at {FAST} / published sampler at {REFERENCE}",
        value=row.value * scale,
        unit="x faster",
        low=None if row.low is None else row.low * scale,
        high=None if row.high is None else row.high * scale,
        goal=">= 75",
        detail=f"{size}; measured over {few} evaluations each, {row.detail}, times {scale:.0f}",
    )

    @torch.inference_mode()
    def one() -> object:
        return fast.network(x, 500.0, embedded=embedded)

    @torch.inference_mode()
    def other() -> object:
        return plain(x, t, condition)

    each = compare(
        "Stem 12×384, one evaluation: fast / plain eager fp32", one, other, pairs=pairs, goal="<= 0.65",
        inverse=True, detail=size,
    )  # fmt: skip
    return [whole, each]


def run(quick: bool = False) -> list[Row]:
    """All rows."""
    return speed(quick)
