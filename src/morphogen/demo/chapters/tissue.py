"""Tissue from embeddings: a region of the real slide drawn again, and a canvas of a prior."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from morphogen.demo.workspace import Workspace, real_slide, shown
from morphogen.report import Report

TITLE = "New tissue from embeddings"
COMMANDS = """
morphogen tissue train slides/ --tile 64 --tile-mpp 1 --encoder texture --out tissue
morphogen tissue canvas --like slide.svs --region 0,1984,1920,896 --model tissue/model --out twin
morphogen tissue evaluate slide.svs --canvas twin --region 0,1984,1920,896 --model tissue/model --out judged
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


def run(work: Workspace, report: Report) -> None:
    """Train for two minutes on the upper part of the slide, draw a region of the lower part again, and invent one."""

    from morphogen.slides import get_encoder, open_slide
    from morphogen.slides.images import read_image
    from morphogen.tissue import CanvasConfig, draw_canvas, evaluate_twin, grid_of_region

    path = real_slide(work, "tissue")
    steps = work.size(200, 2)
    model = train_tissue(path, work.place("tissue", "x").parent, steps, work.size(32, 128), work.device)
    with open_slide(path) as slide:
        side = PX / slide.require_mpp()
        top = int(slide.height * (TRAINED_ROWS + 0.01))
        cells = (work.size(6, 1), work.size(14, 2))
        region = (0, top, cells[1] * side + 1, cells[0] * side + 1)
        real = slide.read_region(0, top, cells[1] * PX, cells[0] * PX, mpp=1.0)
    encoder = get_encoder("texture")
    config = CanvasConfig(codec="deflate") if not work.quick else CanvasConfig.named("fast")
    grid = grid_of_region(model, path, encoder, region=region)
    twin = draw_canvas(model, grid, work.place("tissue", "twin", "x").parent, config)
    report.text(
        "A diffusion model is trained to draw tiles from their embeddings (Graikos et al., CVPR 2024). Here it saw the "
        f"upper part of the slide for {steps} steps. Then the embeddings of a region of the lower part, one per cell "
        "of 64 µm, are all it is told: it draws **a twin**, an image with the same tissue in the same places and not "
        "one pixel of the original. Minutes of training show layout, stain and spots like nuclei; fibres and "
        "membranes want hours, or a GPU."
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
        f"their own (chance {1 / texture['group']:.0%}). Seam score {judged['seams']['score']:.2f} (1 = none): "
        f"every step works on the whole canvas, at {twin.cost:.0f} network megapixels per megapixel."
    )
    report.images([read_image(invented(work, model))], ["a canvas whose embeddings a prior invented"])
    report.code(shown(train_tissue), "python", "The Python that trained it")
    report.code(COMMANDS, "bash", "The same from the command line")
    work.headlines["cells of a twin nearest to their own"] = f"{texture['cell_top1']:.0%}"


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
