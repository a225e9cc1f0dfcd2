"""What the training loop costs beside the network, and what bf16 and compilation are worth on this machine."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.harness import Row, compare, seconds
from morphogen.core.devices import resolve_device
from morphogen.core.seeds import generator
from morphogen.training import Draws, TrainingConfig
from morphogen.training.guard import Part
from morphogen.training.loop import Meter, own_randomness, update
from morphogen.training.order import Batch
from morphogen.training.run import Run
from morphogen.training.start import compiled, start_accelerator

Step = Callable[[], object]


class Vectors(torch.utils.data.Dataset):
    """Random targets (tokens, width)."""

    def __init__(self, tokens: int, width: int) -> None:
        self.shape = (tokens, width)

    def __len__(self) -> int:
        return 256

    def __getitem__(self, index: int) -> dict:
        return {"x": torch.randn(self.shape, generator=generator("bench", index))}


class Transformer:
    """A denoiser of the shape of a gene transformer: ``layers`` blocks of ``width`` over ``tokens`` tokens."""

    def __init__(self, layers: int, width: int, tokens: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            block = nn.TransformerEncoderLayer(width, width // 64, 4 * width, 0.0, "gelu", batch_first=True)
            self.model = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.dataset = Vectors(tokens, width)

    def loss(self, model: nn.Module, batch: dict, draws: Draws) -> dict:
        x = batch["x"]
        noise, t = draws.normal_like(x), draws.uniform(1, 1)
        return {"loss": (model((1 - t) * x + t * noise) - noise).square().mean((1, 2)), "t": t[:, 0, 0]}


def run(quick: bool) -> list[Row]:
    layers, width, tokens, items = (4, 256, 64, 16) if quick else (12, 384, 200, 16)
    pairs = 5 if quick else 9
    shape = f"{layers} × {width}, {tokens} tokens, batch {items}"
    rows = []
    with contextlib.ExitStack() as stack:
        made: dict[str, tuple[Run, Step]] = {}
        for name, precision, compile in (
            ("fp32", "fp32", False),
            ("bf16", "bf16", False),
            ("compiled", "fp32", True),
            ("bf16 compiled", "bf16", True),
        ):
            made[name] = stack.enter_context(
                _run(Transformer(layers, width, tokens), items, precision, compile)
            )
        ready, step = made["fp32"]
        device = ready.accelerator.device.type
        rows.append(
            _share(
                "training: average, log, guard and draws per step",
                _beside(ready, tokens * width, items),
                step,
                pairs,
                shape,
            )
        )
        hand = _by_hand(Transformer(layers, width, tokens), items, device)
        rows.append(
            compare(
                "training: time of a step, ours over plain torch",
                step,
                hand,
                pairs=pairs,
                inverse=True,
                goal="≤ 1.03",
                detail=shape,
            )
        )
        for name in ("bf16", "compiled", "bf16 compiled"):
            rows.append(
                compare(
                    f"training: {name} against eager fp32 on {device}",
                    made[name][1],
                    step,
                    pairs=pairs,
                    warmup=2,
                    detail=shape,
                )
            )
    rows += _draws(pairs)
    return [*rows, *_input(pairs, quick)]


@contextlib.contextmanager
def _run(task: Transformer, items: int, precision: str, compile: bool) -> Iterator[tuple[Run, Step]]:
    """A run that takes a step of :func:`fit` at each call, on a batch at hand."""
    config = TrainingConfig(batch_size=items, steps=1_000_000)
    device = resolve_device("auto")
    with (
        tempfile.TemporaryDirectory() as folder,
        own_randomness(device),
        compiled(task.model, compile, device),
    ):
        accelerator = start_accelerator(config, Path(folder), device="auto", precision=precision)
        ready = Run(task, config, Path(folder), accelerator, precision=precision, resume=False)
        batch = _batch(task, items)

        def step() -> None:
            update(ready, ready.progress.step, iter([batch]))
            ready.progress.step += 1

        yield ready, step


def _batch(task: Transformer, items: int) -> Batch:
    positions = torch.arange(items)
    return {"x": torch.stack([task.dataset[i]["x"] for i in range(items)])}, positions, positions


def _beside(ready: Run, numbers: int, items: int) -> Step:
    """All that a step does besides forward, backward, clipping and AdamW, with a line in the log at each step."""
    device = ready.accelerator.device
    losses, positions = torch.rand(items, device=device), torch.arange(items)
    parts, norm = [Part(positions, losses)], torch.ones((), device=device)
    meter = Meter(ready).__enter__()

    def beside() -> None:
        Draws(0, positions, device).normal(numbers)
        ready.means.add({"loss": losses, "t": losses}, items)
        ready.guard.watch(1, parts, norm)
        ready.ema.update()
        ready.progress.step += 1
        meter.advance()
        meter.log(lr=1e-4, grad_norm=1.0)

    return beside


def _by_hand(task: Transformer, items: int, device: str) -> Step:
    """The same step in plain torch: no average, no log, no guard, the fastest random numbers."""
    model = task.model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    x = _batch(task, items)[0]["x"].to(device)

    def step() -> None:
        noise, t = torch.randn_like(x), torch.rand(len(x), 1, 1, device=device)
        loss = (model((1 - t) * x + t * noise) - noise).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _share(name: str, part: Step, whole: Step, pairs: int, shape: str) -> Row:
    row = compare(name, part, whole, pairs=pairs, inverse=True, detail=shape)
    low, high = (100 * value for value in (row.low or 0.0, row.high or 0.0))
    return Row(name, 100 * row.value, "%", low, high, "< 3 %", row.detail)


def _draws(pairs: int) -> list[Row]:
    """Draws per item against a torch.Generator per item, which would also not depend on the split of a batch."""
    rows = []
    device = resolve_device("auto")
    for items, numbers in ((256, 200), (16, 4 * 64 * 64)):
        positions = torch.arange(items)

        def hashed(positions: torch.Tensor = positions, numbers: int = numbers) -> None:
            Draws(0, positions, device).normal(numbers)

        def generators(items: int = items, numbers: int = numbers) -> None:
            out = torch.empty(items, numbers, device=device)
            for i in range(items):
                out[i].normal_(generator=generator("draws", 0, i, device=device))

        rows.append(
            compare(
                f"training: draws of {items} items × {numbers}, against a generator per item",
                hashed,
                generators,
                pairs=pairs * 3,
                warmup=2,
            )
        )
    return rows


def _input(pairs: int, quick: bool) -> list[Row]:
    """Batches of crops of decoded H&E / IHC pairs against the same crops made item by item, in one thread."""
    from PIL import Image

    from morphogen.stain.data import Pair
    from morphogen.stain.pairs.crops import PairDataset
    from morphogen.training.order import DataOrder, RankBatches, loader

    count, side, crop, items, steps = (4, 400, 128, 16, 4) if quick else (12, 1024, 256, 16, 12)
    device = resolve_device("auto")
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for k in range(count):
            paths = [Path(folder) / f"{k}-{name}.png" for name in ("he", "ihc")]
            for path in paths:
                pixels = torch.randint(
                    0, 256, (side, side, 3), dtype=torch.uint8, generator=generator("bench", k)
                )
                Image.fromarray(pixels.numpy()).save(path, compress_level=1)
            found.append(Pair(f"p{k}", *paths))
        dataset = PairDataset(found, ["IHC"], crop=crop)
        for k in range(count):
            dataset.images(k)

        def batches() -> RankBatches:
            order = DataOrder(count, 0)
            return RankBatches(order, items, rank=0, world=1, accumulation=1, first=0, last=steps)

        def ours() -> None:
            for batch, _, _ in loader(dataset, batches(), workers=0, device=device):
                dataset.finish({name: value.to(device) for name, value in batch.items()})

        def by_item() -> None:
            for batch, _, _ in loader(_Items(dataset), batches(), workers=0):
                for value in batch.values():
                    value.to(device)

        row = compare(
            f"training input: crops/s of {crop} px pairs, batches as a whole against item by item",
            ours,
            by_item,
            pairs=pairs,
            detail=f"{count} decoded pairs of {side} px, on {device.type}",
        )
        crops = items * steps
        rates = [crops / seconds(each) for each in (ours, by_item)]
        detail = f"{row.detail} for {crops}; {rates[0]:,.0f} crops/s against {rates[1]:,.0f}"
        return [replace(row, detail=detail, goal="≥ 1,000 crops/s")]


class _Items(torch.utils.data.Dataset):
    """Crops of a pair data set one by one: slices, mirrors and quarter turns, each copied."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def draw(self, index: int, generator: torch.Generator) -> dict:
        place, crop = self.dataset.place(index, generator), self.dataset.crop
        item = {"label": torch.tensor(0), "index": torch.tensor(index)}
        for name, image in zip(("he", "ihc"), self.dataset.images(index)[:2]):
            part = image[place.top : place.top + crop, place.left : place.left + crop]
            part = part.flip(1) if place.turn & 4 else part
            item[name] = torch.rot90(part, place.turn & 3, (0, 1)).contiguous()
        return item
