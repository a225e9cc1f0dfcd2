"""What the recipes of canvases cost and give: ``fast`` and ``standard`` beside the published one, of one trained model.

``python -m bench.tissue_recipes --model tissue/model --image held-out.png --mpp 0.5 --out build/recipes``

Rectangles of cells at places spread over an image that the model has not seen, each with a seed of its own, are drawn
with every recipe from the embeddings of their cells. Ratios are to the published recipe; their intervals are those of
the jackknife over the places (Student's t); none is given of a published recipe that is not faithful at all. A run
that was stopped goes on with the canvases that are missing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from scipy import stats

from morphogen.core.seeds import numpy_generator
from morphogen.metrics.faithfulness import faithfulness, standardise
from morphogen.metrics.images import frechet_distance
from morphogen.slides import get_encoder, open_slide
from morphogen.tissue import CanvasConfig, TissueDiffusion, draw_canvas, grid_of_region, scoring
from morphogen.tissue.evaluate import seams_by_phase

REFERENCE = "reference-canvas"
GUIDED = "+guided"


def config_of(name: str, seed: int) -> CanvasConfig:
    """A recipe by its name; ``fast+guided`` is ``fast`` under encoder guidance. Glass is drawn in all, as published."""
    config = CanvasConfig.named(name.removesuffix(GUIDED)).replace(codec="deflate", seed=seed, glass="draw")
    guided = 1.0 if name.endswith(GUIDED) else 0.0
    return config.replace(sampler=config.sampler.replace(encoder_guidance=guided))


def places(free: tuple[int, int], count: int) -> list[tuple[int, int]]:
    """(x, y) of ``count`` corners in rows of four, spread over the width and height that a rectangle leaves free."""
    across = np.linspace(0, free[0], min(4, count)).astype(int)
    down = np.linspace(0, free[1], -(-count // 4)).astype(int)
    return [(int(across[k % 4]), int(down[k // 4])) for k in range(count)]


def jackknife(figure: Callable[[list[int]], float], count: int) -> tuple[float, float, float]:
    """A figure of all ``count`` units, and its 95 % interval."""
    everything = list(range(count))
    value = figure(everything)
    left_out = np.array([figure([k for k in everything if k != each]) for each in everything])
    error = float(np.sqrt((count - 1) / count * ((left_out - left_out.mean()) ** 2).sum()))
    reach = float(stats.t.ppf(0.975, count - 1)) * error
    return value, value - reach, value + reach


def cells_of(image: np.ndarray, side: int) -> np.ndarray:
    """(N, side, side, 3): the cells of an image, row by row."""
    rows, columns = image.shape[0] // side, image.shape[1] // side
    return image.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)


def drawn(model: TissueDiffusion, options: Any) -> tuple[dict[str, list[np.ndarray]], dict[str, list[dict]]]:
    """Pictures of every recipe (``real``: the image's own), and what ``canvas.json`` says of them, place by place."""
    mpp = model.mpp or options.mpp
    width, height = (model.tile_px * cells for cells in (options.columns, options.rows))
    across, down = (round(side * mpp / options.mpp) for side in (width, height))
    with open_slide(options.image, mpp=options.mpp) as slide:
        at = places((slide.width - across, slide.height - down), options.seeds)
        real = [np.asarray(slide.read_region(x, y, width, height, mpp=mpp)) for x, y in at]
    pictures: dict[str, list[np.ndarray]] = {"real": real, **{name: [] for name in options.recipes}}
    facts: dict[str, list[dict]] = {name: [] for name in options.recipes}
    encoder = get_encoder(model.config.encoder or "texture")
    for seed, (x, y) in enumerate(at):
        region = (x, y, across, down)
        grid = grid_of_region(model, options.image, encoder, region=region, mpp=options.mpp)
        for name in options.recipes:
            made = draw_canvas(model, grid, options.out / f"{name}-{seed}", config_of(name, seed))
            pictures[name].append(tifffile.imread(made.image))
            facts[name].append(json.loads((options.out / f"{name}-{seed}" / "canvas.json").read_text()))
            print(f"place {seed}, {name}: {facts[name][-1]['seconds']:.0f} s", flush=True)
    return pictures, facts


class Judge:
    """What one encoder says of the pictures of all recipes.

    pictures: by recipe and ``real``, place by place. side: of a cell in pixels.
    """

    def __init__(self, encoder: Any, pictures: dict[str, list[np.ndarray]], side: int) -> None:
        self.count = len(pictures["real"])
        cells, crops = {}, {}
        for name, images in pictures.items():
            cells[name] = np.concatenate([scoring.encoded(encoder, cells_of(v, side)) for v in images])
            cut = [scoring.crops(v, side, 16, place) for place, v in enumerate(images)]
            crops[name] = scoring.encoded(encoder, np.concatenate(cut))
        real = crops["real"]
        if encoder.names is not None:
            crops = {name: standardise(values, real) for name, values in crops.items()}
        # Fréchet distances are those within the span of all features, which may have fewer dimensions.
        basis = np.linalg.qr(np.concatenate(list(crops.values())).T.astype(np.float64))[0]
        self.crops = {name: (values @ basis).reshape(self.count, 16, -1) for name, values in crops.items()}
        self.own = {
            name: faithfulness(cells["real"], values, numpy_generator(0, "retrieval"), group=len(values))
            for name, values in cells.items()
        }

    def gain(self, recipe: str, which: list[int]) -> float:
        """Matched − shuffled cosine of the cells at some places."""
        return float(np.mean(self.own[recipe].values.reshape(self.count, -1)[which]))

    def distance(self, recipe: str, which: list[int]) -> float:
        """Fréchet distance of crops at some places to the real crops there."""
        real, made = (np.concatenate(list(self.crops[name][which])) for name in ("real", recipe))
        return frechet_distance(real, made)

    def row(self, recipe: str) -> str:
        """The last columns of the table."""
        everything = list(range(self.count))
        own, ratios = self.own[recipe], []
        for of in (self.gain, self.distance):
            if recipe == REFERENCE:
                ratios.append("1")
                continue
            if of == self.gain and jackknife(lambda which: self.gain(REFERENCE, which), self.count)[1] <= 0:
                ratios.append("–")  # of something that may be nothing
                continue

            def ratio(which: list[int], of: Callable[..., float] = of) -> float:
                return of(recipe, which) / of(REFERENCE, which)

            value, low, high = jackknife(ratio, self.count)
            ratios.append(f"{value:.2f} ({low:.2f} to {high:.2f})")
        return (
            f"{own.gain:.3f} | {100 * own.top1:.0f} % of {own.group} | {self.distance(recipe, everything):.4g} | "
            f"{ratios[0]} | {ratios[1]} |"
        )


def table(pictures: dict[str, list[np.ndarray]], facts: dict[str, list[dict]], side: int) -> list[str]:
    """The page's lines."""
    heads = (
        "recipe",
        "network Mpx per Mpx",
        "seconds",
        "seams of one phase / of all",
        "judged in",
        "matched − shuffled",
        "own cell nearest",
        "crops, Fréchet to real",
        "faithfulness over the published recipe's",
        "Fréchet over the published recipe's",
    )
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    judges = {name: Judge(get_encoder(name, device="cpu"), pictures, side) for name in ("texture", "lite0")}
    for name, of in facts.items():
        begins = (
            f"| {name} | {of[0]['cost']:.1f} | {np.mean([each['seconds'] for each in of]):.1f} | "
            f"{_seams(pictures[name], side)} "
        )
        for judge, said in judges.items():
            lines.append(f"{begins}| {judge} | {said.row(name)}")
            begins = "| | | | "
    return [*lines, f"| real | | | {_seams(pictures['real'], side)} | | | | | | |"]


def _seams(images: list[np.ndarray], side: int) -> str:
    """Medians over the places: on bare glass a file's own JPEG blocks are all there is to compare."""
    found = [seams_by_phase(image, side) for image in images]
    return " / ".join(f"{np.median([each[key] for each in found]):.2f}" for key in ("score", "plain"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="a trained model")
    parser.add_argument("--image", type=Path, required=True, help="an image or slide that it has not seen")
    parser.add_argument("--mpp", type=float, required=True, help="µm per pixel of the image")
    parser.add_argument("--out", type=Path, required=True, help="folder of the canvases")
    parser.add_argument("--rows", type=int, default=4, help="rows of cells of a canvas")
    parser.add_argument("--columns", type=int, default=4, help="columns of cells")
    parser.add_argument("--seeds", type=int, default=8, help="places, each with its seed")
    parser.add_argument("--recipes", nargs="+", default=["fast", "standard", REFERENCE])
    options = parser.parse_args()
    if REFERENCE not in options.recipes:
        parser.error(f"--recipes must hold {REFERENCE}, which the others are held against")
    model = TissueDiffusion.from_pretrained(options.model)
    pictures, facts = drawn(model, options)
    print("\n".join(table(pictures, facts, model.tile_px)))


if __name__ == "__main__":
    main()
