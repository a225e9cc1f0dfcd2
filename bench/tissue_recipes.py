"""What the recipes of canvases cost and give: ``fast`` and ``standard`` beside the published one, of one trained model.

``python -m bench.tissue_recipes --model tissue/model --image held-out.png --mpp 0.5 --out build/recipes``

Squares of cells at places spread over an image that the model has not seen, each with a seed of its own, are drawn with
every recipe from the embeddings of their cells. Ratios are to the published recipe; their intervals are those of the
jackknife over the squares (Student's t). A run that was stopped goes on with the canvases that are missing.
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
    """A recipe by its name; ``fast+guided`` is ``fast`` under encoder guidance."""
    config = CanvasConfig.named(name.removesuffix(GUIDED)).replace(codec="deflate", seed=seed)
    guided = 1.0 if name.endswith(GUIDED) else 0.0
    return config.replace(sampler=config.sampler.replace(encoder_guidance=guided))


def places(width: int, height: int, side: int, count: int) -> list[tuple[int, int]]:
    """(x, y) of ``count`` squares in rows of four, spread over an image."""
    rows = -(-count // 4)
    across = np.linspace(0, width - side, min(4, count)).astype(int)
    down = np.linspace(0, height - side, rows).astype(int)
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
    side = model.tile_px * options.cells
    mpp = model.mpp or options.mpp
    with open_slide(options.image, mpp=options.mpp) as slide:
        factor = mpp / options.mpp
        level0 = round(side * factor)
        at = places(slide.width, slide.height, level0, options.seeds)
        real = [np.asarray(slide.read_region(x, y, side, side, mpp=mpp)) for x, y in at]
    pictures: dict[str, list[np.ndarray]] = {"real": real, **{name: [] for name in options.recipes}}
    facts: dict[str, list[dict]] = {name: [] for name in options.recipes}
    encoder = get_encoder(model.config.encoder or "texture")
    for seed, (x, y) in enumerate(at):
        region = (x, y, level0, level0)
        grid = grid_of_region(model, options.image, encoder, region=region, mpp=options.mpp)
        for name in options.recipes:
            made = draw_canvas(model, grid, options.out / f"{name}-{seed}", config_of(name, seed))
            pictures[name].append(tifffile.imread(made.image))
            facts[name].append(json.loads((options.out / f"{name}-{seed}" / "canvas.json").read_text()))
            print(f"place {seed}, {name}: {facts[name][-1]['seconds']:.0f} s", flush=True)
    return pictures, facts


def judged(pictures: dict[str, list[np.ndarray]], name: str, encoder: Any, side: int) -> dict[str, float]:
    """Figures of one recipe in one encoder, with the intervals of their ratios to the published recipe."""
    count = len(pictures["real"])
    cells = {k: [scoring.encoded(encoder, cells_of(v, side)) for v in pictures[k]] for k in pictures}
    crops = {
        k: [scoring.encoded(encoder, scoring.crops(v, side, 16, n)) for n, v in enumerate(pictures[k])]
        for k in pictures
    }
    if encoder.names is not None:
        by = np.concatenate(crops["real"])
        crops = {k: [standardise(v, by) for v in values] for k, values in crops.items()}
    real = np.concatenate(cells["real"])

    def shown(recipe: str) -> Any:
        return faithfulness(
            real, np.concatenate(cells[recipe]), numpy_generator(0, "retrieval"), group=len(real)
        )

    def gain(recipe: str, which: list[int]) -> float:
        return float(np.nanmean(shown_by[recipe].reshape(count, -1)[which]))

    def distance(recipe: str, which: list[int]) -> float:
        parts = [np.concatenate([crops[k][n] for n in which]) for k in ("real", recipe)]
        return frechet_distance(*parts)

    own = shown(name)
    shown_by = {name: own.values, REFERENCE: shown(REFERENCE).values}
    figures = {"gain": own.gain, "top1": own.top1, "frechet": distance(name, list(range(count)))}
    for key, of in (("gain_ratio", gain), ("frechet_ratio", distance)):
        value, low, high = jackknife(lambda which, of=of: of(name, which) / of(REFERENCE, which), count)
        figures |= {key: value, f"{key}_low": low, f"{key}_high": high}
    return figures


def table(pictures: dict[str, list[np.ndarray]], facts: dict[str, list[dict]], side: int) -> list[str]:
    """The page's lines."""
    lines = [
        "| recipe | network Mpx per Mpx | seconds a canvas | seams of one phase / of all | judged in | matched − "
        "shuffled | own cell nearest | crops, Fréchet to real | faithfulness over the published recipe's | Fréchet "
        "over the published recipe's |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    encoders = {name: get_encoder(name, device="cpu") for name in ("texture", "lite0")}
    for name in facts:
        seams = [seams_by_phase(picture, side) for picture in pictures[name]]
        phase, plain = (np.array([each[key] for each in seams]) for key in ("score", "plain"))
        for k, (judge, encoder) in enumerate(encoders.items()):
            f = judged(pictures, name, encoder, side)
            first = (
                f"| {name} | {facts[name][0]['cost']:.1f} | {np.mean([e['seconds'] for e in facts[name]]):.1f} | "
                f"{phase.mean():.3f} / {plain.mean():.3f} "
            )
            intervals = [
                f"{f[key]:.2f} ({f[key + '_low']:.2f} to {f[key + '_high']:.2f})"
                if name != REFERENCE
                else "1"
                for key in ("gain_ratio", "frechet_ratio")
            ]
            lines.append(
                (first if k == 0 else "| | | | ")
                + f"| {judge} | {f['gain']:.3f} | {100 * f['top1']:.0f} % | {f['frechet']:.4g} | {intervals[0]} | "
                f"{intervals[1]} |"
            )
    seams = [seams_by_phase(picture, side) for picture in pictures["real"]]
    means = [np.mean([each[key] for each in seams]) for key in ("score", "plain")]
    return [*lines, f"| real | | | {means[0]:.3f} / {means[1]:.3f} | | | | | | |"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="a trained model")
    parser.add_argument("--image", type=Path, required=True, help="an image or slide that it has not seen")
    parser.add_argument("--mpp", type=float, required=True, help="µm per pixel of the image")
    parser.add_argument("--out", type=Path, required=True, help="folder of the canvases")
    parser.add_argument("--cells", type=int, default=4, help="cells along a side of a canvas")
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
