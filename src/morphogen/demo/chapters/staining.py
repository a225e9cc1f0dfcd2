"""Virtual immunostaining of simulated tissue: a patch with its uncertainty, and a whole slide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from morphogen.core.files import read_json
from morphogen.demo.workspace import Workspace, shown, stain_model
from morphogen.report import Report

TITLE = "Virtual staining, patch and whole slide"
COMMANDS = """
morphogen stain train pairs --out er --steps 3000 --mpp 0.5 --crop 128
morphogen stain predict patches --model er/model --out stained --samples 8
morphogen stain predict slide.ome.tif --model er/model --out stained
morphogen stain evaluate stained pairs --out scores
morphogen view slide.ome.tif stained
"""
MPP = 0.5
UNSEEN = 77  # seed of patients that no training has seen


def stain_patch(folder: Path, he: np.ndarray, samples: int, device: str) -> tuple[Any, Any]:
    from morphogen.stain import StainTransfer, stain_image
    from morphogen.stain.config import ApplyConfig

    model = StainTransfer.from_pretrained(folder, device=device)
    stained = stain_image(model, he, ApplyConfig(samples=samples))  # .sample, .mean, .uncertainty
    return model, stained


def stain_whole(model: Any, slide: Path, out: Path) -> Any:
    from morphogen.stain import stain_slide

    result = stain_slide(model, slide, out)  # a pyramidal OME-TIFF that QuPath and OpenSlide open
    return result


def run(work: Workspace, report: Report) -> None:
    """Stain a patch and a slide of patients the model has not seen; the truth is known."""
    from morphogen.demo import TissueSimulator
    from morphogen.metrics.stain import correlation, tile_means
    from morphogen.slides.colour import dab_density

    folder, origin = model_folder(work)
    side = work.size(384, 256)
    tissue = TissueSimulator(UNSEEN + work.seed, patient=1, mpp=MPP).render(2300, 1500, side, side)
    model, stained = stain_patch(folder, tissue.he, work.size(6, 2), work.device)
    density = {
        name: np.asarray(dab_density(image[None]))[0]
        for name, image in (("predicted", stained.mean), ("real", tissue.ihc))
    }
    agreement = correlation(tile_means(density["predicted"], 64), tile_means(density["real"], 64))
    report.text(
        f"{origin} Here it stains an unseen simulated patient: the H&E alone goes in. Several samples are drawn; "
        "their mean says what to expect and where they disagree the H&E leaves the stain open. Every picture opens "
        "enlarged."
    )
    report.images(
        [tissue.he, stained.sample, tissue.ihc],
        ["H&E: what goes in", "predicted ER stain: one sample", "the real stain of the same cells"],
    )
    report.images([stained.sample, tissue.ihc], ["predicted", "real"], "Drag to compare.", compare=True)
    report.images(
        [
            _heat(density["predicted"], 0.6),
            _heat(density["real"], 0.6),
            _heat(stained.uncertainty, float(np.quantile(stained.uncertainty, 0.995))),
        ],
        [
            "DAB optical density, mean of the samples",
            "DAB optical density, real",
            "uncertainty: SD over the samples",
        ],
        f"Correlation of predicted and real DAB over tiles of 64 px (32 µm): {agreement:.2f}. "
        f"Correlation of the uncertainty with the true error, pixel by pixel after 16 px averaging: "
        f"{_error_correlation(stained, density):.2f}.",
    )
    report.code(shown(stain_patch), "python", "The Python that stained the patch")
    _slide(work, report, model)
    report.code(COMMANDS, "bash", "The same from the command line")
    work.headlines["DAB correlation of a virtual stain, unseen patient"] = f"{agreement:.2f}"


def _slide(work: Workspace, report: Report, model: Any) -> None:
    from morphogen.demo import TissueSimulator, write_slide
    from morphogen.demo.simulator.fields import Outline
    from morphogen.slides import open_slide

    side = work.size(1024, 512)
    simulator = TissueSimulator(
        UNSEEN + work.seed, patient=2, mpp=MPP, outline=Outline(side * MPP, side * MPP)
    )
    slide, ihc = work.place("data", "slide.ome.tif"), work.place("data", "slide_ihc.ome.tif")
    write_slide(slide, side, side, simulator=simulator, ihc_path=ihc)
    result = stain_whole(model, slide, work.place("stained", "x").parent)
    with open_slide(slide) as he, open_slide(result.image) as made, open_slide(ihc) as real:
        pictures = [each.thumbnail(1024) for each in (he, made, real)]
        mpp = made.mpp
        whole = np.asarray(real.read_region(0, 0, side, side))
    report.section("A whole slide")
    seams = (
        ""
        if result.seams is None
        else f" Seam score {result.seams.worst:.2f} (1.00 means that no seam shows; on so small a slide it scatters: "
        f"the real stain, which no window made, scores {_seams_by_chance(model, whole):.2f} at the same places)."
    )
    report.text(
        f"A simulated slide of {side} × {side} px goes through the same model in {result.windows} overlapping windows "
        f"and comes back as a pyramidal OME-TIFF at {mpp:g} µm/px. Glass stays white.{seams} Memory is bounded by one "
        "band of windows, and a killed run goes on where it was."
    )
    report.images(pictures, ["H&E slide", "virtual ER stain", "real ER stain"])
    report.code(shown(stain_whole), "python", "The Python that stained the slide")


def _seams_by_chance(model: Any, image: np.ndarray) -> float:
    """Seam score of an image (H, W, 3) at the borders of windows that had no part in it."""
    from morphogen.metrics.seams import seam_score
    from morphogen.tasks import WindowConfig, plan_windows
    from morphogen.tasks.pyramids import JPEG_GRID

    columns, rows = plan_windows(model, WindowConfig(), image.shape[1], image.shape[0]).borders()
    return seam_score(image, columns, rows, (image < 250).any(axis=2), period=JPEG_GRID).worst


def model_folder(work: Workspace) -> tuple[Path, str]:
    """The stain model that comes with the package, or one trained now, and a sentence on where it is from."""
    if not work.quick:
        folder = stain_model()
        steps = read_json(folder / "morphogen.json")["training"]["steps"]
        return folder, (
            f"The small model comes with the package: trained for {steps} steps on a CPU, on simulated H&E and ER "
            "pairs of other patients (`assets/README.md` of the demo says how)."
        )
    from morphogen.demo import write_mist
    from morphogen.stain import find_pairs, train_model
    from morphogen.stain.config import TrainConfig

    root = write_mist(work.place("data", "pairs"), work.size(48, 4), 2, size=256, mpp=MPP, suffix=".png")
    steps = work.size(400, 4)
    config = TrainConfig.load(
        overrides={
            "data.crop": 128,
            "data.mpp": MPP,
            "objective.bias_he_ihc": 0.05,
            "objective.last_step_share": 0.4,
            "training.steps": steps,
            "training.batch_size": work.size(8, 2),
            "training.lr": 8e-4,
            "training.ema_decay": 0.99,
        }
    )
    trained = train_model(
        find_pairs(root, "train"), config, work.place("staining", "run"), device=work.device
    )
    return (
        trained.folder,
        f"A small model was trained just now for {steps} steps on simulated H&E and ER pairs.",
    )


def _heat(values: np.ndarray, top: float) -> np.ndarray:
    import matplotlib

    return (matplotlib.colormaps["inferno"](np.clip(values / max(top, 1e-6), 0, 1))[..., :3] * 255).astype(
        np.uint8
    )


def _error_correlation(stained: Any, density: dict[str, np.ndarray]) -> float:
    from morphogen.metrics.stain import correlation, tile_means

    error = np.abs(density["predicted"] - density["real"])
    return correlation(tile_means(stained.uncertainty, 16), tile_means(error, 16))
