"""Tissue from embeddings: a region of the real slide drawn again, and a canvas of a prior."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from morphogen.core.files import read_json
from morphogen.demo.workspace import Workspace, real_slide, shown, tissue_model
from morphogen.report import Report

TITLE = "New tissue from embeddings"
COMMANDS = """
morphogen tissue train slides/ --tile 64 --tile-mpp 1 --encoder texture --out tissue
morphogen tissue canvas --like slide.svs --region 513,1987,1284,771 --encoder-guidance 1 --model tissue/model --out twin
morphogen tissue evaluate slide.svs --canvas twin --region 513,1987,1284,771 --model tissue/model --out judged
morphogen tissue prior slides/ --model tissue/model --side 4 --out prior
morphogen tissue canvas --prior prior/model --rows 6 --columns 14 --model tissue/model --out invented
"""
TRAINED_ROWS = 0.66  # share of the slide, from above, that the model is trained on
PX = 64


def train_tissue(slide: Path, out: Path, steps: int, stride: int, device: str) -> Any:
    from morphogen.tissue import TrainConfig, read_tiles, train_model

    config = TrainConfig.recipe("small", steps)
    data = config.data.replace(tile_px=64, tile_mpp=1.0, stride=stride, hold_out=0.0)
    tiles = read_tiles(slide, data, cache=out / "features")
    above = tiles.places[:, 1] < TRAINED_ROWS * tiles.places[:, 1].max() - 2  # the rest is for the twin
    model = train_model(
        tiles.take(np.flatnonzero(above)), config.replace(data=data), out, device=device
    ).model
    return model


def draw_twin(model: Any, slide: Path, region: tuple[float, float, float, float], out: Path) -> Any:
    from morphogen.slides import get_encoder
    from morphogen.tissue import CanvasConfig, draw_canvas, grid_of_region

    grid = grid_of_region(model, slide, get_encoder("texture"), region=region)
    config = CanvasConfig.load(
        overrides={"sampler.preset": "fast", "sampler.encoder_guidance": 1.0, "codec": "deflate"}
    )
    twin = draw_canvas(model, grid, out, config)
    return twin


def run(work: Workspace, report: Report) -> None:
    """Draw a region of the lower part of the slide again by a model of the upper part, and invent one."""
    from morphogen.slides import open_slide
    from morphogen.slides.images import read_image
    from morphogen.tissue import evaluate_twin

    path = real_slide(work, "tissue")
    model, origin = _model(work, path)
    with open_slide(path) as slide:
        side = PX / slide.require_mpp()
        top = int(slide.height * (TRAINED_ROWS + 0.01))
        cells = (work.size(6, 1), work.size(10, 2))
        left = int(4 * side)  # both sides of the slide are glass
        region = (left, top, cells[1] * side + 1, cells[0] * side + 1)
        real = slide.read_region(left, top, cells[1] * PX, cells[0] * PX, mpp=1.0)
    twin = draw_twin(model, path, region, work.place("tissue", "twin", "x").parent)
    report.text(
        f"A diffusion model draws tiles from their embeddings (Graikos et al., CVPR 2024). {origin} Here the "
        "embeddings of a region of the lower part, one per cell of 64 µm, are all it is told: it draws **a twin**, an "
        "image with the same tissue in the same places and not one pixel of the original. A model of this size shows "
        "layout, stain and spots like nuclei; fibres and membranes want hours of training, or a GPU."
    )
    report.images(
        [real, read_image(twin.image)],
        ["the region", "its twin, drawn from embeddings"],
        compare=True,
    )
    judged = evaluate_twin(model, twin.image, path, work.place("tissue", "judged", "x").parent, region=region)
    texture = judged["texture"]
    report.text(
        f"Of {texture['group']} cells of the region, {texture['cell_top1']:.0%} of the twin's cells are nearest to "
        f"their own (chance {1 / texture['group']:.0%}), in the encoder that guided the drawing. Seam score "
        f"{judged['seams']['score']:.2f} (1 = none): every step works on the whole canvas, at {twin.cost:.0f} network "
        "megapixels per megapixel."
    )
    report.images([read_image(invented(work, model))], ["a canvas whose embeddings a prior invented"])
    report.code(shown(train_tissue), "python", "The Python that trained it")
    report.code(shown(draw_twin), "python", "The Python that drew the twin")
    report.code(COMMANDS, "bash", "The same from the command line")
    work.headlines["cells of a twin nearest to their own"] = f"{texture['cell_top1']:.0%}"


def _model(work: Workspace, slide: Path) -> tuple[Any, str]:
    """The tissue model that comes with the package, or one trained now, and a sentence on where it is from."""
    from morphogen.tissue import TissueDiffusion

    if work.quick:
        return train_tissue(
            slide, work.place("tissue", "x").parent, 2, 128, work.device
        ), "It was trained just now."
    folder = tissue_model()
    steps = read_json(folder / "morphogen.json")["training"]["steps"]
    return TissueDiffusion.from_pretrained(folder, device=work.device), (
        f"The small model comes with the package: it saw the upper part of this slide for {steps} steps on a CPU "
        "(`assets/README.md` of the demo says how)."
    )


def invented(work: Workspace, model: Any) -> Path:
    """A canvas from a prior that learned the slide's grids of 4 × 4 embeddings."""
    from morphogen.tissue import CanvasConfig, PriorConfig, draw_canvas, train_prior
    from morphogen.tissue.train import tiles_for

    out = work.place("tissue", "prior", "x").parent
    table = tiles_for(model, [real_slide(work, "tissue")], out)
    config = PriorConfig(side=4, width=64, depth=3)
    loop = config.training.replace(steps=work.size(400, 2), warmup_steps=0)
    prior = train_prior(table, config.replace(training=loop), out, device=work.device)
    grid = prior((work.size(6, 1), work.size(14, 2)), seed=work.seed)
    image: Path = draw_canvas(model, grid, out / "canvas", CanvasConfig.named("fast")).image
    return image
