"""Many slides: bands with a network that costs nothing, the share of the network, a long list of empty jobs."""

from __future__ import annotations

import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.harness import Row, child_peak_memory, rate
from morphogen.core.running.work import Item
from morphogen.demo.workspace import stain_model
from morphogen.slides import open_slide
from morphogen.tasks import ImageNoise, Layer, WindowConfig, make_images, make_slide


class Free:
    """A translator whose network costs nothing: latents as of a Stable Diffusion autoencoder, noise of the start drawn,
    pixels given back. What is left is the loop."""

    multiple, factor, mpp, planes = 64, 8, None, 3

    def __init__(self, crop: int = 512, channels: int = 4) -> None:
        self.crop, self.channels = crop, channels

    def noise(self, plan: Any, name: str) -> ImageNoise:
        return ImageNoise(self.channels, plan, seed=0, purpose="bench", name=name, posterior=False)

    def make(self, images: np.ndarray, noise: Any, posterior_noise: Any) -> torch.Tensor:
        noise(-1)
        return torch.from_numpy(images).permute(0, 3, 1, 2).float()


def bands(quick: bool) -> list[Row]:
    """Megapixels per second of the loop alone: in memory on the threads given, and pyramid to pyramid on two."""
    side = 1024 if quick else 2048
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    rows = []
    for crop in (512, 256):
        model = Free(crop)

        def once(model: Free = model) -> Any:
            return next(make_images(model, [image], ["a"], WindowConfig())).picture()

        rows.append(
            rate(
                f"bands in memory, network that costs nothing, windows of {crop} px",
                once,
                side * side / 1e6,  # type: ignore[arg-type]
                unit="Mpx/s",
                goal="≥ 20 per core",
            )
        )
    return rows


def pyramids(quick: bool) -> list[Row]:
    from bench.bench_stain_slide import write_large_slide

    side = 2000 if quick else 6000
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = write_large_slide(folder, side)
        torch.set_num_threads(1)  # reading, blending and writing each have a thread of their own
        found = []
        for k in range(3):
            with open_slide(path) as slide:
                began = time.perf_counter()
                layers = [Layer("", lambda band: band.picture())]
                make_slide(
                    Free(), slide, folder, f"x{k}", layers, {"n": k}, windows=WindowConfig(tissue_only=False)
                )
                found.append(side * side / 1e6 / (time.perf_counter() - began))
        torch.set_num_threads(threads)
    detail = f"{side} × {side} px, read, cut, blended, JPEG, all levels; windows of 512 px"
    return [
        Row("pyramid to pyramid, network that costs nothing", float(np.median(found)), "Mpx/s", min(found), max(found),
            goal="≥ 8 on two cores", detail=detail)
    ]  # fmt: skip


def long_list(quick: bool) -> list[Row]:
    """A cohort of jobs that cost nothing, in a process of its own: seconds each, and what memory grows by."""
    count = 1000 if quick else 10_000
    with tempfile.TemporaryDirectory() as folder:
        code = textwrap.dedent(
            f"""
            import sys, time
            from pathlib import Path
            sys.path[:0] = {sys.path!r}
            from bench.bench_cohort import Nothing
            from morphogen.core.running.cohort import run_cohort
            from morphogen.core.running.spread import Shard, Spread
            from morphogen.core.running.work import Item
            def memory():
                return int(open("/proc/self/status").read().split("VmRSS:")[1].split()[0]) / 1024
            items = [Item(f"/data/slides/slide-{{k:05d}}.svs") for k in range({count})]
            began, seen = time.perf_counter(), []
            spread, out = Spread(shard=Shard(1, 1)), Path({folder!r})
            for n, _ in enumerate(run_cohort(Nothing(), items, spread, out=out, what="nothing")):
                if n in (100, {count} - 1):
                    seen.append(memory())
            print((time.perf_counter() - began) / {count} * 1e3, seen[-1] - seen[0])
            """
        )
        _, printed = child_peak_memory(code)
    each, grown = (float(value) for value in printed.splitlines()[-1].split())
    what = f"{count:,} items that cost nothing, claimed, reported and marked"
    return [
        Row("cohort: cost of an item beside its work", each, "ms", goal="≤ 20", detail=what),
        Row("cohort: memory from item 100 to the last", grown, "MiB", goal="flat", detail=what),
    ]


class Nothing:
    """Work that costs nothing."""

    def load(self) -> bool:
        return True

    def __call__(self, loaded: Any, item: Item, path: Path | None) -> None:
        return None


def share(quick: bool) -> list[Row]:
    """How much of the time of a slide, from its file to its pyramid, is the network's."""
    from bench.bench_stain_slide import write_large_slide
    from morphogen.stain import StainTransfer, stain_slide
    from morphogen.stain.config import ApplyConfig, SamplerConfig

    side = 500 if quick else 2000
    model = StainTransfer.from_pretrained(stain_model())
    spent = 0.0
    network = model.network.forward

    def timed(*arguments: Any, **options: Any) -> Any:
        nonlocal spent
        began = time.perf_counter()
        try:
            return network(*arguments, **options)
        finally:
            spent += time.perf_counter() - began

    model.network.forward = timed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        path = write_large_slide(folder, side)
        config = ApplyConfig(sampler=SamplerConfig(steps=10))
        began = time.perf_counter()
        made = stain_slide(model, path, Path(folder) / "out", config)
        whole = time.perf_counter() - began
    detail = (
        f"{side} × {side} px, {made.windows} windows, {whole:.1f} s, {torch.get_num_threads()} thread(s); the rest is "
        "the encoder of the H&E, blending, reading and writing"
    )
    return [
        Row("packaged stain model at 10 evaluations: share of the network", 100 * spent / whole, "%",
            goal="≥ 90 %", detail=detail)
    ]  # fmt: skip


def run(quick: bool) -> list[Row]:
    """All of it."""
    return [
        *bands(quick),
        *long_list(quick),
        *share(quick),
        *pyramids(quick),
    ]
