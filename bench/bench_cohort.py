"""Many slides and sections: two workers against one, bands with a network that costs nothing, the share of the
network, a long list of empty jobs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.harness import Row, child_peak_memory, rate
from morphogen.core.errors import MorphogenError
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


def workers(quick: bool) -> list[Row]:
    """Two workers against one on equal slides, by the commands a user types."""
    from bench.bench_stain_slide import write_large_slide

    count, side = (4, 500) if quick else (8, 2000)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        first = write_large_slide(folder, side)
        (base / "slides").mkdir()
        for k in range(count):
            (base / "slides" / f"s{k}.ome.tif").write_bytes(first.read_bytes())
        first.unlink()
        # Few steps: slides that last, in a benchmark that ends.
        model = ["--model", str(stain_model()), "--steps", "3"]
        took: dict[int, float] = {}
        for n in (1, 2):
            out = base / f"out{n}"
            took[n] = _command(
                ["stain", "predict", str(base / "slides"), *model, "--out", str(out), "--workers", str(n)],
                {"OMP_NUM_THREADS": "1"},
            )
        same = all(
            (base / "out1" / path.name).read_bytes() == path.read_bytes()
            for path in (base / "out2").glob("*.ome.tif")
        )
        if not same:
            raise MorphogenError("two workers made other bytes than one")
        detail = (
            f"{count} slides of {side} px, 3 steps; {took[2]:.1f} s against {took[1]:.1f} s, "
            "one thread each; equal bytes"
        )
        rows.append(
            Row("stain predict: two workers against one", took[1] / took[2], goal="≥ 1.8", detail=detail)
        )
    return rows


def predicting(quick: bool) -> list[Row]:
    """Two workers against one on equal sections of genes."""
    from bench.bench_expression import section
    from morphogen.expression import ExpressionConfig, train_model
    from morphogen.expression.sections.prepare import save_section

    count, side, genes = (4, 8, 24) if quick else (8, 20, 48)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        config = ExpressionConfig(
            recipe="stem",
            panel={"size": genes, "highly_variable": genes + 5},
            network={"genes_per_token": 4, "width": 64, "depth": 2},
            training={"steps": 2, "warmup_steps": 0},
            validation=0.0,
        )
        sections = [section(f"S{k}", f"P{k}", side, genes + 6) for k in range(count)]
        train_model(sections[:1], config, base / "trained", device="cpu")
        (base / "store").mkdir()
        for each in sections:
            save_section(each, base / "store" / f"{each.uns['morphogen']['section']['section']}.h5ad")
        model = ["--model", str(base / "trained" / "model"), "--samples", "10"]
        took: dict[int, float] = {}
        for n in (1, 2):
            out = base / f"out{n}"
            took[n] = _command(
                [
                    "expression",
                    "predict",
                    str(base / "store"),
                    *model,
                    "--out",
                    str(out),
                    "--workers",
                    str(n),
                ],
                {"OMP_NUM_THREADS": "1"},
            )
        _check_equal(base / "out1", base / "out2", count)
    detail = (
        f"{count} sections of {side * side} spots × 10 samples × {genes} genes; {took[2]:.1f} s against "
        f"{took[1]:.1f} s, one thread each; equal numbers"
    )
    return [
        Row("expression predict: two workers against one", took[1] / took[2], goal="≥ 1.8", detail=detail)
    ]


def _check_equal(one: Path, two: Path, count: int) -> None:
    import anndata as ad

    found = sorted(one.glob("*.h5ad"))
    if len(found) != count:
        raise MorphogenError(f"{len(found)} of {count} sections were predicted")
    for path in found:
        a, b = ad.read_h5ad(path), ad.read_h5ad(two / path.name)
        if not all(np.array_equal(a.layers[name], b.layers[name]) for name in a.layers):
            raise MorphogenError("two workers made other numbers than one")


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


def _command(arguments: list[str], environment: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "morphogen.cli.main", *arguments],
        check=True,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - began


def run(quick: bool) -> list[Row]:
    """All of it."""
    return [
        *bands(quick),
        *long_list(quick),
        *workers(quick),
        *predicting(quick),
        *share(quick),
        *pyramids(quick),
    ]
