"""Spatial expression: the fast sampler beside the published one, its quality, and prediction at scale."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.harness import Row, child_peak_memory, compare
from morphogen.diffusion import ItemNoise

FAST, REFERENCE = 20, 1000
FEWER = (8, 10, 12, 16)


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


def quality(quick: bool) -> list[Row]:
    """Fast at 20 evaluations against the reference at 1000 on a small network trained here."""
    from morphogen.expression import ExpressionConfig, train_model
    from morphogen.expression.sections.tables import tabulate
    from morphogen.metrics.expression import macro, pearson
    from morphogen.metrics.probabilistic import energy_score, variance_ratio

    genes, steps, side, every, k = (24, 60, 12, 9, 4) if quick else (48, 1500, 24, 4, 20)
    train = [section(f"T{i}", f"P{i}", side, genes + 6) for i in range(2)]
    test = section("T9", "P9", side, genes + 6)
    config = ExpressionConfig(
        recipe="stem",
        panel={"size": genes, "highly_variable": genes + 5},
        network={"genes_per_token": 4, "width": 64, "depth": 2},
        training={"steps": steps, "warmup_steps": 10},
        validation=0.0,
    )
    with tempfile.TemporaryDirectory() as folder:
        model = train_model(train, config, Path(folder), device="cpu")
    part = test[::every].copy()  # from all over the section
    truth = tabulate(part, model.panel, model.transform).y
    # The mean of K samples is itself drawn: several seeds say how much of a difference is that.
    seeds = {"fast": 2 if quick else 8, "reference": 1 if quick else 2}
    found: dict[str, dict[str, np.ndarray]] = {}
    few = {f"{preset} {steps}": (preset, steps) for steps in FEWER for preset in ("fast", "faster")}
    seeds |= dict.fromkeys(few, 1 if quick else 4)
    for solver, n in seeds.items():
        runs: dict[str, list[Any]] = {"variance": [], "energy": [], "pcc": [], "ratio": []}
        preset, steps = few.get(solver, (solver, FAST))
        for seed in range(n):
            result = model(
                part, samples=k, solver=preset, steps=steps, keep_samples="obsm", device="cpu", seed=seed
            )
            s = np.asarray(result.obsm["pred_samples"], np.float64)
            # Spread of all samples over spots and draws: what shrinks when a solver takes too few steps.
            runs["variance"].append(s.reshape(-1, s.shape[2]).var(axis=0))
            runs["energy"].append(float(energy_score(truth, s).mean()))
            runs["pcc"].append(macro(pearson(truth, s.mean(axis=1))).value)
            runs["ratio"].append(float(np.nanmean(variance_ratio(truth, s))))
        found[solver] = {key: np.array(values) for key, values in runs.items()}
    a, b = found["fast"], found["reference"]
    on = (
        f"network 2×64 trained here {steps} steps, {part.n_obs} spots × {k} samples, {genes} genes, held-out patient, "
        f"{seeds['fast']} seeds against {seeds['reference']}"
    )
    variance = a["variance"] / b["variance"].mean(axis=0)
    energy = a["energy"] / b["energy"].mean()
    pcc = a["pcc"] - b["pcc"].mean()

    def row(name: str, each: np.ndarray, goal: str, unit: str, more: str = "") -> Row:
        return Row(name, float(each.mean()), unit, float(each.min()), float(each.max()), goal, on + more)

    return [
        row("Fast at 20 / reference at 1000: variance of samples", variance.mean(axis=1), "0.9 to 1.1", "x",
            f"; sample/truth variance {a['ratio'].mean():.3f} and {b['ratio'].mean():.3f}"),
        row("Fast at 20 / reference at 1000: energy score", energy, "0.98 to 1.02", "x"),
        row("Fast at 20 − reference at 1000: macro PCC", pcc, ">= -0.005", "",
            f"; {a['pcc'].mean():.4f} and {b['pcc'].mean():.4f}, whose seeds differ by {np.ptp(b['pcc']):.4f}"),
        *(_fewer(found, name) for name in few),
    ]  # fmt: skip


def _fewer(found: dict[str, dict[str, np.ndarray]], name: str) -> Row:
    """Fewer evaluations: variance of the samples over the reference's, and beside it energy and PCC; PCC against fast
    at 20 from the same noise, since seeds alone move it by more."""
    each, reference, fast = found[name], found["reference"], found["fast"]
    variance = (each["variance"] / reference["variance"].mean(axis=0)).mean(axis=1)
    energy = each["energy"] / reference["energy"].mean()
    pcc = each["pcc"] - fast["pcc"][: len(each["pcc"])]
    preset, steps = name.split()
    order = {"fast": "second order, log-SNR within ±8", "faster": "third order, log-SNR −6…5"}[preset]
    return Row(
        f"{preset.capitalize()} at {steps} / reference at 1000: variance of samples",
        float(variance.mean()), "x", float(variance.min()), float(variance.max()), "0.95 to 1.05",
        f"{order}; energy {energy.mean():.4f} (0.99 to 1.01), macro PCC {pcc.mean():+.4f} against fast at 20 from the "
        f"same noise; {len(pcc)} seeds",
    )  # fmt: skip


_SCALE = """
import sys, tempfile, time
from pathlib import Path
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads({threads})
from bench.bench_expression import section
from morphogen.expression import ExpressionConfig, train_model
side, genes = {side}, {genes}
train = [section(f"T{{i}}", f"P{{i}}", 14, genes + 20, width=64) for i in range(2)]
config = ExpressionConfig(panel={{"size": genes, "highly_variable": genes + 19}}, training={{"steps": 60}})
with tempfile.TemporaryDirectory() as folder:
    model = train_model(train, config, Path(folder) / "m", device="cpu")
    model.head.diffused = True  # the residual network runs whether or not it won here
    large = section("large", "new", side, genes + 20, width=64)
    start = time.perf_counter()
    result = model(large, samples=20, steps=20, device="cpu", out=Path(folder) / "large.h5ad")
    print(result.n_obs, time.perf_counter() - start)
"""


def scale(quick: bool) -> list[Row]:
    """50 000 spots × 200 genes × 20 samples, in a process of its own."""
    side, genes = (40, 50) if quick else (224, 200)
    code = _SCALE.format(
        root=str(Path(__file__).resolve().parents[1]), threads=torch.get_num_threads(), side=side, genes=genes
    )
    peak, printed = child_peak_memory(code, timeout=7200)
    spots, seconds = (float(v) for v in printed.split()[-2:])
    what = f"{int(spots)} spots × {genes} genes × 20 samples, recipe spatial small"
    return [
        Row("Prediction at scale: peak memory", peak / 1024, "GiB", goal="<= 4", detail=what),
        Row("Prediction at scale: rate", spots / seconds, "spots/s", detail=f"{what}, {seconds:.0f} s"),
    ]


def run(quick: bool = False) -> list[Row]:
    """All rows; the large ones only when not ``quick``."""
    return [*speed(quick), *quality(quick), *scale(quick)]
