"""A task room in one file, of the floor alone: from a picture of tissue to another picture of the same place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import nn

from morphogen import tasks
from morphogen.core.config import Config
from morphogen.core.files import content_hash
from morphogen.slides import open_slide
from morphogen.slides.images import list_images, name_of, read_image
from morphogen.training import TrainingConfig, fit


class RoomConfig(Config):
    """What the model is and how it is applied."""

    width: int = Field(8, ge=1, description="Channels.")
    windows: tasks.WindowConfig = Field(tasks.WindowConfig(), description="Windows of large images.")


class Colours(tasks.Pretrained):
    """The model, itself what the floor translates with."""

    kind, multiple, factor, planes = "colours", 4, 1, 3

    def __init__(self, config: RoomConfig, crop: int = 32, mpp: float | None = None) -> None:
        self.config, self.crop, self.mpp = config, crop, mpp
        width = config.width
        self.network = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, 3, 1))

    def components(self):
        return {"network": self.network}

    def saved(self):
        return {"preprocessing": {"crop": self.crop, "mpp": self.mpp}}

    @classmethod
    def restored(cls, read):
        model = cls(read.settings(RoomConfig), **read.facts["preprocessing"])
        read.restore(model.network, "network")
        return model

    def how(self):
        layers = [tasks.Layer("", lambda band: band.picture(), codec="deflate")]
        return {"layers": layers, "facts": {"model": self.identity}, "windows": self.config.windows}

    def noise(self, plan, name):
        return None

    @torch.no_grad()
    def make(self, images, noise, posterior_noise):
        return (self.network(self.pixels(torch.from_numpy(images))) + 1) * 127.5


class Crops:
    """Random crops of pairs of files."""

    def __init__(self, pairs: list[tuple[Path, Path]], side: int) -> None:
        self.pairs, self.side = [[torch.from_numpy(read_image(p)) for p in pair] for pair in pairs], side

    def __len__(self):
        return len(self.pairs)

    def draw(self, index, generator):
        shape = self.pairs[index][0].shape[:2]
        top, left = (int(torch.randint(n - self.side + 1, (), generator=generator)) for n in shape)
        a, b = (image[top : top + self.side, left : left + self.side] for image in self.pairs[index])
        return {"he": a, "target": b}


class Training:
    """What the loop needs."""

    def __init__(self, model: Colours, dataset: tasks.Cached) -> None:
        self.colours, self.model, self.dataset = model, model.network, dataset

    def loss(self, model, batch, draws):
        he, target = (self.colours.pixels(batch[name]) for name in ("he", "target"))
        return {"loss": ((model(he) - target) ** 2).flatten(1).mean(1)}

    def validate(self, model):
        return {}

    def preview(self, model, folder, step):
        pass


def train(he: Path, target: Path, out: Path, config: RoomConfig, steps: int) -> tuple[Colours, list[str]]:
    """The trained model, and the names of the images that were held out."""
    a, b, report = list_images(he), list_images(target), tasks.CheckReport()
    same = tasks.inspected(lambda n: read_image(a[n]).shape == read_image(b[n]).shape, a)
    for name, fits in zip(a, same, strict=True):
        report.good.append(name) if fits else report.add("of two sizes", name)
    names = tasks.usable(report, where=he)
    fitted, held = tasks.hold_out([name.split("-")[0] for name in names], 0.3)
    model = Colours(config)
    crops = Crops([(a[names[i]], b[names[i]]) for i in fitted], model.crop)
    stacked = lambda items: {key: torch.stack([item[key] for item in items]) for key in items[0]}  # noqa: E731
    facts = {"pairs": content_hash([names[i] for i in fitted]), "crop": model.crop}
    cached = tasks.Cached(tasks.cache_items(crops, stacked, out / "cache", facts, draws=8, seed=0))
    loop = TrainingConfig(steps=steps, batch_size=8, lr=2e-2, ema_decay=0)
    model.network.load_state_dict(fit(Training(model, cached), loop, out / "run", device="cpu").ema_state)
    model.save_pretrained(out / "model")
    return model, [names[i] for i in held]


@dataclass(frozen=True)
class Pictures:
    """The model over whatever is named; ``folder`` is where a process loads it from."""

    folder: Path
    out: Path

    def load(self) -> Colours:
        return Colours.from_pretrained(self.folder)

    def images(self, model, files):
        return tasks.translate_images(model, files, self.out, **model.how())

    def slide(self, model, source, path):
        with open_slide(path, source.mpp) as opened:
            made = tasks.make_slide(model, opened, self.out, f"{name_of(source.path)}_blue", **model.how())
        return list(made.images.values()), f"{made.windows} windows"


def evaluate(model: Colours, he: Path, target: Path, names: list[str], out: Path) -> list[tasks.Evaluation]:
    """The model beside the H&E itself."""
    options = {"unit": "patient", "seed": 0, "purpose": "colours", "resamples": 200}
    a, b, items = list_images(he), list_images(target), {"model": [], "H&E": []}
    for name in names:
        image, real = read_image(a[name]), read_image(b[name]).astype(float)
        (band,) = tasks.make_images(model, [image], [name], model.config.windows)
        for method, found in (("model", band.picture()), ("H&E", image)):
            error = float(np.abs(found - real).mean())
            items[method].append(tasks.ItemScores(name, name.split("-")[0], {"error": error}))
    scored = lambda found: tasks.SetScores({}, *tasks.mean_intervals(found, ["error"], **options))  # noqa: E731
    made = [tasks.Evaluation(method, scored(found), found) for method, found in items.items()]
    gained = tasks.against_first(made, lambda x, y: tasks.paired_differences(x, y, ["error"], **options))
    about = {"kind": "colours evaluation", "protocol": "colours-1", "facts": {"names": names}}
    tasks.write_results(out, made, differences=gained, **about)
    tasks.write_page(out, made, "Colours", "a test", [("Error", {"error": ("error", "min")})])
    return made
