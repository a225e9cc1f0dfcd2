"""Solvers: what they cost beside the network, and what they keep of the data's spread for how many evaluations.

``python -m bench.bench_diffusion`` writes the table of the second part, which has no timing in it, into
docs/diffusion.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.harness import Row, compare
from morphogen.core.devices import resolve_device
from morphogen.diffusion import (
    CanvasNoise,
    ItemNoise,
    Mixture,
    Schedule,
    WindowLayout,
    ddim,
    ddpm,
    dpmpp_2m,
    guided,
    network_denoiser,
    timesteps,
    windowed,
)
from morphogen.nets import GeneTransformer, GeneTransformerConfig, UNetConfig, build_unet

PAGE = Path(__file__).parents[1] / "docs" / "diffusion.md"
STEPS = 10


def overhead(quick: bool) -> list[Row]:
    """A solver with a network that costs nothing, against the forward passes of one of 9.3 GFLOP."""
    device = resolve_device("auto")
    network = (
        GeneTransformer(GeneTransformerConfig(genes=200, condition_dim=64), _generator(0)).eval().to(device)
    )
    schedule, pairs = Schedule.linear(), 3 if quick else 7
    x, answer = torch.randn(1, 200, generator=_generator(1)).to(device), torch.zeros(1, 2, 200, device=device)
    t, condition = (
        torch.full((1,), 500.0, device=device),
        torch.randn(1, 64, generator=_generator(2)).to(device),
    )
    free = network_denoiser(lambda x, t: answer, schedule, learned_variance=True)
    noise = ItemNoise(0, ["spot"], (200,))

    def forwards() -> None:
        with torch.no_grad():
            for _ in range(STEPS):
                network(x, t, condition)

    runs: dict[str, tuple[Callable[..., Any], Any, dict[str, Any]]] = {
        "DPM-Solver++ 2M": (dpmpp_2m, "log_snr", {}),
        "DPM-Solver++ SDE": (dpmpp_2m, "log_snr", {"sde": True, "noise": noise}),
        "DDIM, η = 1": (ddim, "trailing", {"eta": 1.0, "noise": noise}),
        "DDPM, learned variance": (ddpm, "trailing", {"variance": "learned", "noise": noise}),
    }
    return [
        compare(
            f"{name}: time beside the network",
            lambda s=solver, p=spacing, o=options: s(free, x, timesteps(schedule, STEPS, p), schedule, **o),
            forwards,
            pairs=pairs,
            goal="< 0.02",
            detail=f"{STEPS} steps, one item of 200 values; network of 9.3 GFLOP; {device}",
            inverse=True,
        )
        for name, (solver, spacing, options) in runs.items()
    ]


class SmallConvolutions(nn.Module):
    """A few convolutions at full resolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(4, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 4, 3, padding=1),
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layers(x)


def windows(quick: bool) -> list[Row]:
    """A canvas in windows: batched against one at a time, and the blending against the network alone."""
    device, side = resolve_device("auto"), 96 if quick else 256
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SmallConvolutions(32).eval().to(device)
    schedule, pairs = Schedule.linear(), 3 if quick else 7
    denoiser = network_denoiser(network, schedule)
    layout = WindowLayout((side, side), 32, 16)
    x = CanvasNoise(0, (1, 4, side, side))(-1).to(device)
    where = f"{len(layout)} windows of 32, stride 16; {device}"

    def step(batch: int) -> Callable[[], object]:
        canvas = windowed(denoiser, layout, batch=batch)
        return lambda: ddim(canvas, x, [500], schedule)

    many = torch.randn(16, 4, 32, 32, generator=_generator(0)).to(device)
    t = torch.full((16,), 500.0, device=device)

    def alone() -> None:
        with torch.no_grad():
            for _ in range(-(-len(layout) // 16)):
                network(many, t)

    # Nine windows, so two batches of five, twice for guidance: two forwards of ten.
    unet = build_unet(UNetConfig(in_channels=4, out_channels=4, widths=(64, 128), attention=(1,)), seed=0)
    unet = unet.eval().to(device)
    latent, told = (
        torch.randn(10, 4, 32, 32, generator=_generator(0)).to(device),
        torch.full((10,), 5.0).to(device),
    )
    canvas = torch.randn(1, 4, 64, 64, generator=_generator(1)).to(device)
    free = network_denoiser(lambda x, t, label: latent, schedule)
    beside = windowed(guided(free, {"label": 0.0}, 2.0), WindowLayout((64, 64), 32, 16))
    label = {"label": torch.ones(1, device=device)}

    def forwards() -> None:
        with torch.no_grad():
            unet(latent, told)
            unet(latent, told)

    return [
        compare(
            "windows in batches of 16 against one at a time", step(16), step(1), pairs=pairs, detail=where
        ),
        compare(
            "step of windows against the network alone",
            step(16),
            alone,
            pairs=pairs,
            detail=where,
            inverse=True,
        ),
        compare(
            "windows and guidance: time beside a small U-Net",
            lambda: ddim(beside, canvas, [500], schedule, condition=label),
            forwards,
            pairs=pairs,
            goal="< 0.02",
            detail=f"9 windows of 32 on a canvas of 64, guided; {device}",
            inverse=True,
        ),
    ]


def precision(quick: bool) -> list[Row]:
    """bf16 and compilation against eager float32, through a whole sampling run of a small gene transformer."""
    device = resolve_device("auto")
    size = GeneTransformerConfig(genes=200, condition_dim=64, width=192, depth=4, heads=3)
    network = GeneTransformer(size, _generator(0)).eval().to(device)
    schedule, items = Schedule.linear(), 8 if quick else 32
    x = torch.randn(items, 200, generator=_generator(1)).to(device)
    condition = {"condition": torch.randn(items, 64, generator=_generator(2)).to(device)}
    times = timesteps(schedule, 5, "log_snr")

    def sample(network: Callable[..., Tensor], precision: str) -> Callable[[], object]:
        denoiser = network_denoiser(network, schedule, learned_variance=True, precision=precision)
        return lambda: dpmpp_2m(denoiser, x, times, schedule, condition=condition)

    eager = sample(network, "fp32")
    detail = f"4 blocks of width 192, 200 genes, {items} items, 5 evaluations; {device}"
    rows = [
        compare(
            "sampling in bf16 autocast against fp32", sample(network, "bf16"), eager, pairs=5, detail=detail
        )
    ]
    if not quick:
        compiled = torch.compile(network)
        for name in ("fp32", "bf16"):
            rows.append(
                compare(
                    f"sampling compiled, {name}, against eager fp32",
                    sample(compiled, name),
                    eager,
                    pairs=5,
                    detail=detail,
                )
            )
    return rows


# -- quality for a number of evaluations -----------------------------------------------------------------------


def gene_like(n: int = 200) -> Mixture:
    """Zero-inflated data: 0 to 90 % zeros (of standard deviation 0.02), else a mode at 0.5 to 2.5."""
    u = torch.rand(3, n, generator=_generator(7), dtype=torch.float64)
    return Mixture.zero_inflated(zero=0.9 * u[0], mean=0.5 + 2 * u[1], std=0.2 + 0.4 * u[2])


def spread(items: int = 2000) -> list[tuple[str, int, float, float, float]]:
    """Solver, evaluations, and lowest, median and highest ratio of a gene's sampled variance to the true one."""
    data, schedule = gene_like(), Schedule.linear()
    denoiser, noise = data.denoiser(schedule), ItemNoise(0, range(items), (200,))
    start = torch.special.ndtri((torch.arange(items).double() + 0.5) / items)[:, None].expand(-1, 200).clone()
    rows = []
    for name, solver, spacing, options in (
        ("DDPM, respaced", ddpm, "trailing", {"noise": noise}),
        ("DDIM, trailing", ddim, "trailing", {}),
        ("DDIM, log-SNR grid", ddim, "log_snr", {}),
        ("DPM-Solver++ 2M, log-SNR grid", dpmpp_2m, "log_snr", {}),
        ("DPM-Solver++ SDE, log-SNR grid", dpmpp_2m, "log_snr", {"sde": True, "noise": noise}),
    ):
        for n in (10, 20, 50):
            x = noise(-1).double() if options else start
            ratio = (
                solver(denoiser, x, timesteps(schedule, n, spacing), schedule, **options).var(0)
                / data.variance
            )
            low, middle, high = (float(ratio.quantile(q)) for q in (0.0, 0.5, 1.0))
            rows.append((name, n, low, middle, high))
    return rows


def quality(quick: bool) -> list[Row]:
    """Variance kept in 20 evaluations on data whose denoiser is known; the same on every machine."""
    goals = {"DDPM, respaced": "", "DPM-Solver++ 2M, log-SNR grid": "0.96 to 1.04 for every gene"}
    return [
        Row(
            f"{name}: variance kept, 20 evaluations",
            middle,
            "x",
            low,
            high,
            goals[name],
            "200 zero-inflated genes",
        )
        for name, n, low, middle, high in spread(500 if quick else 2000)
        if n == 20 and name in goals
    ]


def table() -> str:
    """The rows of :func:`spread` in Markdown."""
    lines = ["| solver | evaluations | lowest | median | highest |", "|---|---|---|---|---|"]
    lines += [
        f"| {name} | {n} | {low:.2f} | {mid:.2f} | {high:.2f} |" for name, n, low, mid, high in spread()
    ]
    return "\n".join(lines)


def run(quick: bool) -> list[Row]:
    return [*overhead(quick), *windows(quick), *precision(quick), *quality(quick)]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    block = f"<!-- spread -->\n{table()}\n<!-- /spread -->"
    PAGE.write_text(
        re.sub(r"<!-- spread -->.*<!-- /spread -->", lambda _: block, text, flags=re.S), encoding="utf-8"
    )
