"""Every command of the task pages works, from one folder per page, in its order, at small sizes.

A command that needs what a test has not (weights, a GPU, another method's pictures) is parsed: its verb, its
options and their types exist.
"""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from morphogen.cli.common import fold_settings
from morphogen.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "src" / "morphogen" / "demo" / "assets"

# What makes a command small enough for a test; everything else is as printed.
SMALLER = {
    "tissue train": "--size tiny --steps 2 --tile 32",
    "tissue canvas": "--steps 2",
    "tissue patches": "--steps 2 --most 2",
    "tissue evaluate": "--steps 2 --tiles 24",
    "tissue prior": "--steps 2 --width 16 --depth 1",
    "layout train": "--size tiny --steps 2 --training.batch_size 4",
    "layout segmenter": "--steps 2 --training.batch_size 4 --network.widths [8,16]",
    "layout evaluate": "--steps 2 --pairs 2 --training.batch_size 4 --network.widths [8,16]",
    "layout synthesize": "--count 3",
    "expression train": "--genes 12 --training.steps 3 --training.batch_size 16",
    "expression predict": "--samples 2 --steps 2",
    "expression evaluate": "--samples 4 --predict.steps 2",
    "stain train": "--steps 2 --crop 64 --training.batch_size 2 --training.warmup_steps 0 "
    "--model.widths [16,16] --model.attention [1]",
    "stain predict": "--windows.batch 16",
}
# Words of commands that are parsed alone.
ABSENT = (
    "--weights",
    "--start",
    "HISTDIST_FOLDER",
    "uni2",
    "cuda",
    "stem.pt",
    "stedm.ckpt",
    "large_image",
    "import histdist",
)


def commands(page: Path) -> list[str]:
    """Lines of the page's shell blocks, joined at a trailing backslash, without comments."""
    blocks = re.findall(r"```(?:bash|console)\n(.*?)```", page.read_text(), re.DOTALL)
    text = "\n".join(blocks).replace("\\\n", " ")
    lines = [line.removeprefix("$ ").split(" #")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line.startswith("morphogen ")]


def slides(place: Path) -> None:
    (place / "slides").mkdir()
    shutil.copy(ASSETS / "cmu-1-small-region.svs", place / "slides" / "a.svs")


def stain(place: Path) -> None:
    from PIL import Image

    from morphogen.demo import TissueSimulator, write_mist, write_slide

    write_mist(place / "DATA", 2, 2, size=96, truth=False)
    shutil.copytree(place / "DATA" / "TrainValAB" / "valA", place / "patches")
    (place / "their_images").mkdir()
    for path in (place / "patches").iterdir():
        Image.fromarray(np.full((96, 96, 3), 200, np.uint8)).save(place / "their_images" / f"{path.stem}.png")
    write_slide(place / "slide.tif", 200, 160, simulator=TissueSimulator(1))
    (place / "slide.tif").rename(place / "slide.svs")


def expression(place: Path) -> None:
    from morphogen.demo import TissueSimulator, write_hest, write_slide

    write_hest(place / "DATA", patients=3, width_um=600, height_um=600, n_genes=140, truth=False)
    write_slide(place / "slide.tif", 640, 512, simulator=TissueSimulator(1))
    (place / "slide.tif").rename(place / "slide.svs")


def layout(place: Path) -> None:
    from morphogen.demo import TissueSimulator, write_segmentation, write_slide

    write_segmentation(place / "DATA", 10, 96, patients=5, mpp=2.0)
    write_slide(place / "slide.tif", 256, 160, simulator=TissueSimulator(1, mpp=2.0))
    (place / "slide.tif").rename(place / "slide.svs")


def tissue(place: Path) -> None:
    from PIL import Image

    from morphogen.demo import TissueSimulator

    (place / "slides").mkdir()
    for number, name in enumerate("ab"):
        image = TissueSimulator(number, mpp=0.5).render(0, 0, 512, 512, ihc=False).he
        Image.fromarray(image).save(place / "slides" / f"{name}.png")


PAGES = {
    "tissue": (
        tissue,
        ["scores/report.html", "twin/canvas.ome.tif", "twin-scores/twin.json", "invented/canvas.ome.tif"],
    ),
    "layout": (layout, ["scores/report.html", "masks/slide.geojson", "masks/slide_mask.ome.tif"]),
    "slides": (slides, ["trident"]),
    "stain": (stain, ["stained", "scores/report.html"]),
    "checkpoints": (lambda place: None, []),  # of published files alone
    "expression": (expression, ["SIM3.h5ad", "map.geojson", "scores/report.html"]),
}


def stain_example() -> list[str]:
    return ["stain_slide.py", "runs/er/model", "slide.svs", "example"]


def expression_example() -> list[str]:
    import anndata

    return ["gene_map.py", "genes/model", "slide.svs", anndata.read_h5ad("SIM3.h5ad").var_names[0]]


def layout_example() -> list[str]:
    return ["segment_slide.py", "segmenter/model", "slide.svs", "example"]


def tissue_example() -> list[str]:
    return ["tissue_twin.py", "tissue/model", "slides/b.png", "0,0,128,128", "example", "0.5"]


# The script of examples/ that goes on from where a page ends, and what it leaves.
EXAMPLES = {
    "tissue": (tissue_example, "example/canvas.ome.tif"),
    "layout": (layout_example, "example/slide.geojson"),
    "stain": (stain_example, "example/slide_IHC.ome.tif"),
    "expression": (expression_example, "figures/show_mean.png"),
}


def status_of(line: str) -> int:
    tokens = shlex.split(line)
    smaller = shlex.split(SMALLER.get(" ".join(tokens[1:3]), ""))
    for option in smaller[::2]:
        if option in tokens:
            at = tokens.index(option)
            del tokens[at : at + 2]
    with pytest.raises(SystemExit) as stop:
        main([*tokens[1:], *smaller])
    return stop.value.code or 0


def parses(line: str) -> None:
    """Verb, options and their types exist."""
    from importlib import import_module

    room, *rest = shlex.split(line)[1:]
    app = import_module(f"morphogen.cli.{room}").app
    app.parse_args(fold_settings(rest), exit_on_error=False, print_error=False)


@pytest.mark.parametrize("name", list(PAGES))
def test_commands_of_a_page(name, tmp_path, monkeypatch, capfd):
    prepare, made = PAGES[name]
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    lines = commands(ROOT / "docs" / f"{name}.md")
    assert len(lines) >= 4
    for line in lines:
        if any(word in line for word in ABSENT):
            parses(line)
            continue
        if "stain predict" in line and "patches/" in line and (tmp_path / "stained").exists():
            shutil.rmtree(tmp_path / "stained")  # each line of the page stands for itself
        status = status_of(line)
        assert status == 0, f"{line}\n{capfd.readouterr().err[-2000:]}"
    for path in made:
        assert (tmp_path / path).exists(), path
    if name in EXAMPLES:
        example, left = EXAMPLES[name]
        script, *rest = example()
        monkeypatch.setattr(sys, "argv", [script, *rest])
        monkeypatch.setenv("MPLBACKEND", "agg")
        runpy.run_path(str(ROOT / "examples" / script), run_name="__main__")
        assert (tmp_path / left).is_file()


def test_every_example_is_run():
    named = {script.__name__.removesuffix("_example") for script, _ in EXAMPLES.values()}
    assert named <= set(PAGES)
    scripts = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert scripts == {"stain_slide.py", "gene_map.py", "segment_slide.py", "tissue_twin.py"}


def test_a_wrong_option_does_not_parse():
    from cyclopts import CycloptsError

    with pytest.raises(CycloptsError):
        parses("morphogen slide encode slides/ --encoderr uni2 --weights W")
